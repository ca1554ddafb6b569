"""Statistics of the target tokens from hidden states and the output head, without the full logits.

One chunked linear cross-entropy serves every objective. Only trained positions are computed: they are
gathered to the front, cut into chunks of C tokens, and a loop with as many trips as there are chunks
makes the [C, V] logits of one chunk at a time, forward and again backward. Each device works on its own
rows and its own slice of the vocabulary inside `shard_map`; the gradients of the head are summed over
devices once, after the loop.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from dft_jax import sharding
from dft_jax.types import TokenStats

_ROWS = P(sharding.BATCH_AXES, None)
_HIDDEN = P(sharding.BATCH_AXES, None, None)


def token_stats(
    hidden_BLD: Float[Array, "B L D"],
    head_VD: Float[Array, "V D"],
    targets_BL: Int[Array, "B L"],
    mask_BL: Bool[Array, "B L"],
    segments_BL: Int[Array, "B L"] | None = None,
    *,
    chunk_tokens: int,
    mesh: Mesh,
) -> TokenStats:
    """log p, entropy and correctness of each trained target; zeros where `mask_BL` is False.

    Matrix products run in the dtype of `hidden_BLD` and accumulate in float32; everything after them is
    float32 (bf16 logits would put DFT's weight off by 2 %, a bf16 softmax by 7 %). Masked positions are
    never read, so what they hold (NaN included) reaches neither values nor gradients.

    Args:
      hidden_BLD: final hidden states; B divisible by the data × fsdp devices of `mesh`.
      head_VD: output head in the dtype of the parameters; its gradient accumulates in float32.
      segments_BL: which example of its row a token belongs to; by default a row is one example.
      chunk_tokens: trained tokens whose logits exist at once on a device, C.

    Returns:
      Statistics of which only `logp_BL` carries a gradient, to `hidden_BLD` and `head_VD`.
    """
    logp_BL, entropy_BL, correct_BL = _token_stats(hidden_BLD, head_VD, targets_BL, mask_BL, chunk_tokens, mesh)
    examples_BL = jnp.where(mask_BL, 1 if segments_BL is None else segments_BL, 0)
    return TokenStats(logp_BL, lax.stop_gradient(entropy_BL), correct_BL, examples_BL)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _token_stats(hidden_BLD, head_VD, targets_BL, mask_BL, chunk_tokens, mesh):
    return _forward(hidden_BLD, head_VD, targets_BL, mask_BL, chunk_tokens, mesh)[0]


def _forward(hidden_BLD, head_VD, targets_BL, mask_BL, chunk_tokens, mesh):
    vocab_axes = _vocab_axes(head_VD, mesh)
    local = functools.partial(_local_forward, chunk_tokens=chunk_tokens, vocab_axes=vocab_axes)
    logp_BL, entropy_BL, correct_BL, logsumexp_BL = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(_HIDDEN, P(vocab_axes or None, None), _ROWS, _ROWS),
        out_specs=(_ROWS,) * 4,
        check_vma=False,  # nothing differentiates through it: the custom gradient below is the only one
    )(hidden_BLD, head_VD, targets_BL, mask_BL)
    return (logp_BL, entropy_BL, correct_BL), (hidden_BLD, head_VD, targets_BL, mask_BL, logsumexp_BL)


def _backward(chunk_tokens, mesh, residuals, cotangents):
    hidden_BLD, head_VD, targets_BL, mask_BL, logsumexp_BL = residuals
    vocab_axes = _vocab_axes(head_VD, mesh)
    local = functools.partial(_local_backward, chunk_tokens=chunk_tokens, vocab_axes=vocab_axes)
    d_hidden_BLD, d_head_VD = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(_HIDDEN, P(vocab_axes or None, None), _ROWS, _ROWS, _ROWS, _ROWS),
        out_specs=(_HIDDEN, P(vocab_axes or None, None)),
        check_vma=False,
    )(hidden_BLD, head_VD, targets_BL, mask_BL, logsumexp_BL, cotangents[0])
    return d_hidden_BLD.astype(hidden_BLD.dtype), d_head_VD.astype(head_VD.dtype), None, None


_token_stats.defvjp(_forward, _backward)


def _vocab_axes(head_VD, mesh: Mesh) -> tuple[str, ...]:
    """The axes that cut the vocabulary: none when it does not divide, and every device takes all of it."""
    return ("tensor",) if head_VD.shape[0] % mesh.shape["tensor"] == 0 else ()


def _local_forward(hidden_BLD, head_VD, targets_BL, mask_BL, *, chunk_tokens, vocab_axes):
    chunk_of, n_chunks, N = _chunks(hidden_BLD, targets_BL, mask_BL, chunk_tokens, vocab_axes, head_VD.shape[0])
    dtype = jnp.promote_types(jnp.float32, hidden_BLD.dtype)
    head_VD = head_VD.astype(hidden_BLD.dtype)

    def one_chunk(i, stats):
        index_C, hidden_CD, is_target_CV = chunk_of(i)
        logits_CV = jnp.einsum("CD,VD->CV", hidden_CD, head_VD, preferred_element_type=dtype)
        max_C = lax.pmax(logits_CV.max(axis=-1), vocab_axes)
        exp_CV = jnp.exp(logits_CV - max_C[:, None])
        sum_C, sum_logits_C, target_C = lax.psum(
            (
                exp_CV.sum(axis=-1),
                (exp_CV * logits_CV).sum(axis=-1),
                jnp.where(is_target_CV, logits_CV, 0.0).sum(axis=-1),
            ),
            vocab_axes,
        )
        logsumexp_C = max_C + jnp.log(sum_C)
        entropy_C = logsumexp_C - sum_logits_C / sum_C
        new = (target_C - logsumexp_C, entropy_C, target_C >= max_C, logsumexp_C)
        return tuple(all_N.at[index_C].set(one_C, mode="drop") for all_N, one_C in zip(stats, new, strict=True))

    zeros_N = jnp.zeros(N, dtype)
    stats = lax.fori_loop(0, n_chunks, one_chunk, (zeros_N, zeros_N, jnp.zeros(N, bool), zeros_N))
    return tuple(all_N.reshape(mask_BL.shape) for all_N in stats)


def _local_backward(hidden_BLD, head_VD, targets_BL, mask_BL, logsumexp_BL, d_logp_BL, *, chunk_tokens, vocab_axes):
    chunk_of, n_chunks, N = _chunks(hidden_BLD, targets_BL, mask_BL, chunk_tokens, vocab_axes, head_VD.shape[0])
    dtype = jnp.promote_types(jnp.float32, hidden_BLD.dtype)
    head_VD = head_VD.astype(hidden_BLD.dtype)
    logsumexp_N, d_logp_N = logsumexp_BL.reshape(-1), d_logp_BL.reshape(-1)

    def one_chunk(i, gradients):
        d_hidden_ND, d_head_VD = gradients
        index_C, hidden_CD, is_target_CV = chunk_of(i)
        logits_CV = jnp.einsum("CD,VD->CV", hidden_CD, head_VD, preferred_element_type=dtype)
        p_CV = jnp.exp(logits_CV - _take(logsumexp_N, index_C)[:, None])
        # d log p(target) / d logits = onehot(target) - p. Rows beyond the last token have d_logp = 0.
        d_logits_CV = _take(d_logp_N, index_C)[:, None] * (is_target_CV - p_CV)
        d_logits_CV = d_logits_CV.astype(hidden_CD.dtype)
        d_hidden_CD = jnp.einsum("CV,VD->CD", d_logits_CV, head_VD, preferred_element_type=dtype)
        d_head_VD += jnp.einsum("CV,CD->VD", d_logits_CV, hidden_CD, preferred_element_type=dtype)
        return d_hidden_ND.at[index_C].set(d_hidden_CD, mode="drop"), d_head_VD

    D = hidden_BLD.shape[-1]
    d_hidden_ND, d_head_VD = lax.fori_loop(
        0, n_chunks, one_chunk, (jnp.zeros((N, D), dtype), jnp.zeros(head_VD.shape, dtype))
    )
    return lax.psum(d_hidden_ND, vocab_axes).reshape(hidden_BLD.shape), lax.psum(d_head_VD, sharding.BATCH_AXES)


def _chunks(hidden_BLD, targets_BL, mask_BL, chunk_tokens, vocab_axes, local_vocab):
    """Returns (chunk_of, number of chunks, N), with chunk_of(i) = (index_C, hidden_CD, is_target_CV).

    mask_N   0 1 1 0 1 0      with chunks of 2 tokens, N = 6:
    index_C  [1 2] [4 6]      6 = N is beyond the last position: reads give 0, writes are dropped
    """
    N = mask_BL.size
    chunk_tokens = min(chunk_tokens, N)
    mask_N = mask_BL.reshape(-1)
    padded = -(-N // chunk_tokens) * chunk_tokens
    (order_N,) = jnp.nonzero(mask_N, size=padded, fill_value=N)
    # The same trip count everywhere, so that the collectives inside the loop meet.
    n_chunks = lax.pmax(-(-mask_N.sum() // chunk_tokens), sharding.BATCH_AXES)
    first_id = lax.axis_index(vocab_axes) * local_vocab if vocab_axes else 0
    hidden_ND = hidden_BLD.reshape(N, -1)
    local_targets_N = targets_BL.reshape(-1) - first_id

    def chunk_of(i):
        index_C = lax.dynamic_slice(order_N, (i * chunk_tokens,), (chunk_tokens,))
        is_target_CV = _take(local_targets_N, index_C)[:, None] == jnp.arange(local_vocab)[None, :]
        return index_C, _take(hidden_ND, index_C), is_target_CV

    return chunk_of, n_chunks, N


def _take(array_N, index_C):
    return array_N.at[index_C].get(mode="fill", fill_value=0)
