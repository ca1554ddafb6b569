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
    reference: tuple[Float[Array, "B L D"], Float[Array, "V D"]] | None = None,
    *,
    chunk_tokens: int,
    mesh: Mesh,
    top_tokens: int = 0,
) -> TokenStats:
    """log p, entropy and correctness of each trained target; zeros where `mask_BL` is False.

    Matrix products run in the dtype of `hidden_BLD` and accumulate in float32; everything after them is
    float32 (bf16 logits would put DFT's weight off by 2 %, a bf16 softmax by 7 %). Masked positions are
    never read, so what they hold (NaN included) reaches neither values nor gradients.

    Args:
      hidden_BLD: final hidden states; B divisible by the data × fsdp devices of `mesh`.
      head_VD: output head in the dtype of the parameters; its gradient accumulates in float32.
      segments_BL: which example of its row a token belongs to; by default a row is one example.
      reference: hidden states and head of another model with the same vocabulary, for `reference_logp_BL` and `kl_BL`.
      chunk_tokens: trained tokens whose logits exist at once on a device, C.
      top_tokens: how many of the most probable tokens `top_entropy_BL` is of; 0 leaves it out.

    Returns:
      Statistics of which only `logp_BL` and `kl_BL` carry a gradient, to `hidden_BLD` and `head_VD`.
    """
    stats = _token_stats(hidden_BLD, head_VD, targets_BL, mask_BL, reference or (), chunk_tokens, mesh, top_tokens)
    examples_BL = jnp.where(mask_BL, 1 if segments_BL is None else segments_BL, 0)
    stopped = {name: lax.stop_gradient(value) for name, value in stats.items() if name not in ("logp_BL", "kl_BL")}
    return TokenStats(**stats | stopped, examples_BL=examples_BL)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _token_stats(hidden_BLD, head_VD, targets_BL, mask_BL, reference, chunk_tokens, mesh, top_tokens):
    return _forward(hidden_BLD, head_VD, targets_BL, mask_BL, reference, chunk_tokens, mesh, top_tokens)[0]


def _forward(hidden_BLD, head_VD, targets_BL, mask_BL, reference, chunk_tokens, mesh, top_tokens):
    vocab_axes = _vocab_axes(head_VD, mesh)
    local = functools.partial(
        _local_forward, chunk_tokens=chunk_tokens, vocab_axes=vocab_axes, top_tokens=min(top_tokens, head_VD.shape[0])
    )
    model = (_HIDDEN, P(vocab_axes or None, None))
    stats, normalizers = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(*model, _ROWS, _ROWS, model if reference else ()),
        out_specs=_ROWS,
        check_vma=False,  # nothing differentiates through it: the custom gradient below is the only one
    )(hidden_BLD, head_VD, targets_BL, mask_BL, reference)
    return stats, (hidden_BLD, head_VD, targets_BL, mask_BL, reference, normalizers)


def _backward(chunk_tokens, mesh, top_tokens, residuals, cotangents):
    hidden_BLD, head_VD, *_, reference, _ = residuals
    vocab_axes = _vocab_axes(head_VD, mesh)
    local = functools.partial(_local_backward, chunk_tokens=chunk_tokens, vocab_axes=vocab_axes)
    model = (_HIDDEN, P(vocab_axes or None, None))
    d_hidden_BLD, d_head_VD = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(*model, _ROWS, _ROWS, model if reference else (), _ROWS, _ROWS),
        out_specs=model,
        check_vma=False,
    )(*residuals, {name: cotangents[name] for name in ("logp_BL", "kl_BL") if name in cotangents})
    return d_hidden_BLD.astype(hidden_BLD.dtype), d_head_VD.astype(head_VD.dtype), None, None, None


_token_stats.defvjp(_forward, _backward)


def _vocab_axes(head_VD, mesh: Mesh) -> tuple[str, ...]:
    """The axes that cut the vocabulary: none when it does not divide, and every device takes all of it."""
    return ("tensor",) if head_VD.shape[0] % mesh.shape["tensor"] == 0 else ()


def _local_forward(hidden_BLD, head_VD, targets_BL, mask_BL, reference, *, chunk_tokens, vocab_axes, top_tokens):
    """Statistics by name, and the logsumexp of the model (and of the reference), which the backward pass needs."""
    chunk_of, n_chunks, N = _chunks(targets_BL, mask_BL, chunk_tokens, vocab_axes, head_VD.shape[0])
    dtype = jnp.promote_types(jnp.float32, hidden_BLD.dtype)
    logits_of = [_logits_of(*model, dtype) for model in ((hidden_BLD, head_VD), reference) if model]

    def one_chunk(i, stats):
        index_C, is_target_CV = chunk_of(i)
        logits_CV, *reference_logits = (logits(index_C) for logits in logits_of)
        new, normalizers = _of_chunk(logits_CV, is_target_CV, vocab_axes)
        if top_tokens:
            new["top_entropy_BL"] = _top_entropy(logits_CV, top_tokens, vocab_axes)
        for reference_CV in reference_logits:
            of_reference, (reference_logsumexp_C,) = _of_chunk(reference_CV, is_target_CV, vocab_axes)
            log_ratio_CV = (reference_CV - reference_logsumexp_C[:, None]) - (logits_CV - normalizers[0][:, None])
            p_CV = jnp.exp(reference_CV - reference_logsumexp_C[:, None])
            new["reference_logp_BL"] = of_reference["logp_BL"]
            new["kl_BL"] = lax.psum((p_CV * log_ratio_CV).sum(axis=-1), vocab_axes)
            normalizers += (reference_logsumexp_C,)
        return jax.tree.map(lambda all_N, one_C: all_N.at[index_C].set(one_C, mode="drop"), stats, (new, normalizers))

    zeros_N = jnp.zeros(N, dtype)
    names = ["logp_BL", "entropy_BL", *(["top_entropy_BL"] if top_tokens else [])]
    names += ["reference_logp_BL", "kl_BL"] if reference else []
    empty = {name: zeros_N for name in names} | {"correct_BL": jnp.zeros(N, bool)}
    found = lax.fori_loop(0, n_chunks, one_chunk, (empty, (zeros_N,) * len(logits_of)))
    return jax.tree.map(lambda all_N: all_N.reshape(mask_BL.shape), found)


def _of_chunk(logits_CV, is_target_CV, vocab_axes):
    """log p, entropy and correctness of the targets, and the logsumexp; sums run over the whole vocabulary."""
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
    found = {"logp_BL": target_C - logsumexp_C, "entropy_BL": entropy_C, "correct_BL": target_C >= max_C}
    return found, (logsumexp_C,)


def _top_entropy(logits_CV, top_tokens, vocab_axes):
    """Entropy of the softmax over the largest logits alone: of each device's largest, then of those of all."""
    top_CK = lax.top_k(logits_CV, min(top_tokens, logits_CV.shape[1]))[0]
    if vocab_axes:
        top_CK = lax.all_gather(top_CK, vocab_axes, axis=1, tiled=True)
        top_CK = lax.top_k(top_CK, top_tokens)[0]
    logp_CK = jax.nn.log_softmax(top_CK, axis=-1)
    return -(jnp.exp(logp_CK) * logp_CK).sum(axis=-1)


def _local_backward(
    hidden_BLD, head_VD, targets_BL, mask_BL, reference, normalizers, cotangents, *, chunk_tokens, vocab_axes
):
    chunk_of, n_chunks, N = _chunks(targets_BL, mask_BL, chunk_tokens, vocab_axes, head_VD.shape[0])
    dtype = jnp.promote_types(jnp.float32, hidden_BLD.dtype)
    logits_of = [_logits_of(*model, dtype) for model in ((hidden_BLD, head_VD), reference) if model]
    hidden_ND, head_VD = hidden_BLD.reshape(N, -1), head_VD.astype(hidden_BLD.dtype)
    logsumexps = [logsumexp_BL.reshape(-1) for logsumexp_BL in normalizers]
    cotangents = {name: value_BL.reshape(-1) for name, value_BL in cotangents.items()}

    def one_chunk(i, gradients):
        d_hidden_ND, d_head_VD = gradients
        index_C, is_target_CV = chunk_of(i)
        p_CV, *p_reference = (
            jnp.exp(logits(index_C) - _take(logsumexp_N, index_C)[:, None])
            for logits, logsumexp_N in zip(logits_of, logsumexps, strict=True)
        )
        # d log p(target) / d logits = onehot(target) - p. Rows beyond the last token have d_logp = 0.
        d_logits_CV = _take(cotangents["logp_BL"], index_C)[:, None] * (is_target_CV - p_CV)
        for reference_CV in p_reference:  # d KL(π_ref ‖ π) / d logits = p - p_ref
            d_logits_CV += _take(cotangents["kl_BL"], index_C)[:, None] * (p_CV - reference_CV)
        d_logits_CV = d_logits_CV.astype(hidden_ND.dtype)
        d_hidden_CD = jnp.einsum("CV,VD->CD", d_logits_CV, head_VD, preferred_element_type=dtype)
        d_head_VD += jnp.einsum("CV,CD->VD", d_logits_CV, _take(hidden_ND, index_C), preferred_element_type=dtype)
        return d_hidden_ND.at[index_C].set(d_hidden_CD, mode="drop"), d_head_VD

    zeros = (jnp.zeros(hidden_ND.shape, dtype), jnp.zeros(head_VD.shape, dtype))
    d_hidden_ND, d_head_VD = lax.fori_loop(0, n_chunks, one_chunk, zeros)
    return lax.psum(d_hidden_ND, vocab_axes).reshape(hidden_BLD.shape), lax.psum(d_head_VD, sharding.BATCH_AXES)


def _logits_of(hidden_BLD, head_VD, dtype):
    """Returns logits(index_C) -> [C, V] at these positions, zero beyond the last one."""
    hidden_ND, head_VD = hidden_BLD.reshape(-1, hidden_BLD.shape[-1]), head_VD.astype(hidden_BLD.dtype)

    def logits(index_C):
        return jnp.einsum("CD,VD->CV", _take(hidden_ND, index_C), head_VD, preferred_element_type=dtype)

    return logits


def _chunks(targets_BL, mask_BL, chunk_tokens, vocab_axes, local_vocab):
    """Returns (chunk_of, number of chunks, N), with chunk_of(i) = (index_C, is_target_CV).

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
    local_targets_N = targets_BL.reshape(-1) - first_id

    def chunk_of(i):
        index_C = lax.dynamic_slice(order_N, (i * chunk_tokens,), (chunk_tokens,))
        is_target_CV = _take(local_targets_N, index_C)[:, None] == jnp.arange(local_vocab)[None, :]
        return index_C, is_target_CV

    return chunk_of, n_chunks, N


def _take(array_N, index_C):
    return array_N.at[index_C].get(mode="fill", fill_value=0)
