"""The loss of the target tokens, and their statistics, from hidden states and output head without
the full logits.

One chunked linear cross-entropy serves every objective. Only trained positions are computed: they
are gathered to the front, cut into chunks of C tokens, and a loop with as many trips as there are
chunks makes the [C, V] logits of one chunk at a time. An objective whose loss of a token depends on
that token alone knows its gradient at once, so the same chunk of logits gives the gradients of
hidden states and head: 3 products of N·D·V in all. The others need all log p first, and make the
logits again in the backward pass: 4 products.

Each device works on its own rows and its own slice of the vocabulary inside `shard_map`; the
gradients of the head are summed over devices once, after the loop.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from dft_jax import sharding
from dft_jax.losses import objectives
from dft_jax.types import TokenStats

_ROWS = P(sharding.BATCH_AXES, None)
_HIDDEN = P(sharding.BATCH_AXES, None, None)
_DIFFERENTIABLE = ("logp_BL", "kl_BL")


@dataclasses.dataclass(frozen=True)
class _How:
    """What the computation is specialised on."""

    chunk_tokens: int
    mesh: Mesh
    top_tokens: int
    objective: objectives.Objective | None = None  # whose gradients are made with the statistics


def loss_and_stats(
    hidden_BLD: Float[Array, "B L D"],
    head_VD: Float[Array, "V D"],
    targets_BL: Int[Array, "B L"],
    mask_BL: Bool[Array, "B L"],
    segments_BL: Int[Array, "B L"],
    reference: tuple[Float[Array, "B L D"], Float[Array, "V D"]] | None = None,
    *,
    objective: objectives.Objective,
    chunk_tokens: int,
    mesh: Mesh,
) -> tuple[Float[Array, ""], TokenStats]:
    """Σ of the objective over the trained tokens, with gradients to `hidden_BLD` and `head_VD`; and
    what it is made of.

    The statistics carry no gradient. Arguments as in `token_stats`, to whose precision and masking
    this keeps.
    """
    top_tokens = objectives.TOP_TOKENS if objectives.TOP_ENTROPY in objective.needs else 0
    arguments = (hidden_BLD, head_VD, targets_BL, mask_BL)
    if objectives.OTHER_TOKENS in objective.needs:
        how = dict(chunk_tokens=chunk_tokens, mesh=mesh, top_tokens=top_tokens)
        stats = token_stats(*arguments, segments_BL, reference, **how)
        return jnp.where(mask_BL, objective(stats), 0).sum(), jax.tree.map(lax.stop_gradient, stats)
    total, found = _loss_and_stats(
        *arguments, reference or (), _How(chunk_tokens, mesh, top_tokens, objective)
    )
    return total, TokenStats(**found, examples_BL=jnp.where(mask_BL, segments_BL, 0))


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

    Matrix products run in the dtype of `hidden_BLD` and accumulate in float32; everything after
    them is float32 (bf16 logits would put DFT's weight off by 2 %, a bf16 softmax by 7 %). Masked
    positions are never read, so what they hold (NaN included) reaches neither values nor gradients.

    Args:
      hidden_BLD: final hidden states; B divisible by the data × fsdp devices of `mesh`.
      head_VD: output head in the dtype of the parameters; its gradient accumulates in float32.
      segments_BL: which example of its row a token belongs to; by default a row is one example.
      reference: hidden states and head of another model with the same vocabulary, for
      `reference_logp_BL` and `kl_BL`.
      chunk_tokens: trained tokens whose logits exist at once on a device, C.
      top_tokens: how many of the most probable tokens `top_entropy_BL` is of; 0 leaves it out.

    Returns:
      Statistics of which only `logp_BL` and `kl_BL` carry a gradient, to `hidden_BLD` and
      `head_VD`.
    """
    how = _How(chunk_tokens, mesh, top_tokens)
    _, stats = _loss_and_stats(hidden_BLD, head_VD, targets_BL, mask_BL, reference or (), how)
    examples_BL = jnp.where(mask_BL, 1 if segments_BL is None else segments_BL, 0)
    stopped = {
        name: lax.stop_gradient(value)
        for name, value in stats.items()
        if name not in _DIFFERENTIABLE
    }
    return TokenStats(**stats | stopped, examples_BL=examples_BL)


def _total(objective, stats, mask):
    """Σ of the objective, which has to look at each token alone; 0 without one."""
    return (
        jnp.where(mask, objective(TokenStats(**stats, examples_BL=mask)), 0).sum()
        if objective
        else 0.0
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _loss_and_stats(hidden_BLD, head_VD, targets_BL, mask_BL, reference, how: _How):
    """(Σ of the objective, statistics by name). Of the latter a gradient flows only where there is
    no objective.
    """
    without = dataclasses.replace(how, objective=None)  # nobody asks for a gradient
    stats, _ = _on_devices(hidden_BLD, head_VD, targets_BL, mask_BL, reference, {}, without)
    return _total(how.objective, stats, mask_BL), stats


def _forward(hidden_BLD, head_VD, targets_BL, mask_BL, reference, how):
    arguments = (hidden_BLD, head_VD, targets_BL, mask_BL, reference)
    stats, gradients = _on_devices(*arguments, {}, how)
    return (_total(how.objective, stats, mask_BL), stats), gradients or arguments


def _backward(how, saved, cotangents):
    d_total, d_stats = cotangents
    if how.objective:
        gradients = [gradient * d_total.astype(gradient.dtype) for gradient in saved]
    else:
        _, gradients = _on_devices(
            *saved, {name: d_stats[name] for name in _DIFFERENTIABLE if name in d_stats}, how
        )
    return *gradients, None, None, None


_loss_and_stats.defvjp(_forward, _backward)


def _on_devices(hidden_BLD, head_VD, targets_BL, mask_BL, reference, cotangents, how: _How):
    """Statistics by name; and, given an objective or cotangents of statistics, gradients of hidden
    states and head.

    A vocabulary that the `tensor` axis does not divide is not cut, and every device takes all of
    it.
    """
    vocab_axes = ("tensor",) if head_VD.shape[0] % how.mesh.shape["tensor"] == 0 else ()
    model = (_HIDDEN, P(vocab_axes or None, None))
    return jax.shard_map(
        functools.partial(
            _local, how=how, vocab_axes=vocab_axes, top_tokens=min(how.top_tokens, head_VD.shape[0])
        ),
        mesh=how.mesh,
        in_specs=(*model, _ROWS, _ROWS, model if reference else (), _ROWS),
        out_specs=(_ROWS, model if how.objective or cotangents else ()),
        # nothing differentiates through it: the custom gradients above are the only ones
        check_vma=False,
    )(hidden_BLD, head_VD, targets_BL, mask_BL, reference, cotangents)


def _local(
    hidden_BLD,
    head_VD,
    targets_BL,
    mask_BL,
    reference,
    cotangents,
    *,
    how: _How,
    vocab_axes,
    top_tokens,
):
    chunk_of, n_chunks, N = _chunks(
        targets_BL, mask_BL, how.chunk_tokens, vocab_axes, head_VD.shape[0]
    )
    dtype = jnp.promote_types(jnp.float32, hidden_BLD.dtype)
    logits_of = [_logits_of(*model, dtype) for model in ((hidden_BLD, head_VD), reference) if model]
    hidden_ND, weights_VD = hidden_BLD.reshape(N, -1), head_VD.astype(hidden_BLD.dtype)

    def one_chunk(i, carry):
        found, gradients = carry
        index_C, is_target_CV = chunk_of(i)
        is_token_C = index_C < N
        logits = [logits(index_C) for logits in logits_of]
        stats, logsumexps = _of_chunk(logits, is_target_CV, vocab_axes, top_tokens)
        found = {name: found[name].at[index_C].set(stats[name], mode="drop") for name in found}
        if not gradients:
            return found, gradients
        if how.objective:
            d_stats = _gradients_of_loss(how.objective, stats, is_token_C)
        else:
            d_stats = {
                name: _take(value_BL.reshape(N), index_C) for name, value_BL in cotangents.items()
            }
        d_hidden_ND, d_head_VD = gradients
        d_logits_CV = _d_logits(logits, logsumexps, is_target_CV, d_stats).astype(hidden_ND.dtype)
        d_hidden_CD = jnp.einsum("CV,VD->CD", d_logits_CV, weights_VD, preferred_element_type=dtype)
        d_head_VD += jnp.einsum(
            "CV,CD->VD", d_logits_CV, _take(hidden_ND, index_C), preferred_element_type=dtype
        )
        return found, (d_hidden_ND.at[index_C].set(d_hidden_CD, mode="drop"), d_head_VD)

    names = ["logp_BL", "entropy_BL", *(["top_entropy_BL"] if top_tokens else [])]
    names += ["reference_logp_BL", "kl_BL"] if reference else []
    found = {name: jnp.zeros(N, dtype) for name in names} | {"correct_BL": jnp.zeros(N, bool)}
    zeros = (jnp.zeros(hidden_ND.shape, dtype), jnp.zeros(head_VD.shape, dtype))
    gradients = zeros if how.objective or cotangents else ()
    found, gradients = lax.fori_loop(0, n_chunks, one_chunk, (found, gradients))
    if gradients:  # summed over the parts of the vocabulary, and over the rows of all devices
        d_hidden_BLD = (
            lax.psum(gradients[0], vocab_axes).reshape(hidden_BLD.shape).astype(hidden_BLD.dtype)
        )
        gradients = (
            d_hidden_BLD,
            lax.psum(gradients[1], sharding.BATCH_AXES).astype(head_VD.dtype),
        )
    return {name: all_N.reshape(mask_BL.shape) for name, all_N in found.items()}, gradients


def _of_chunk(logits, is_target_CV, vocab_axes, top_tokens):
    """Statistics of a chunk by name, and logsumexps, from the logits [C, V] of the model (and of
    the reference).
    """
    logits_CV, *reference_logits = logits
    stats, logsumexp_C = _of_model(logits_CV, is_target_CV, vocab_axes)
    if top_tokens:
        stats["top_entropy_BL"] = _top_entropy(logits_CV, top_tokens, vocab_axes)
    if not reference_logits:
        return stats, [logsumexp_C]
    (reference_CV,) = reference_logits
    of_reference, reference_logsumexp_C = _of_model(reference_CV, is_target_CV, vocab_axes)
    reference_logp_CV = reference_CV - reference_logsumexp_C[:, None]
    log_ratio_CV = reference_logp_CV - (logits_CV - logsumexp_C[:, None])
    stats["reference_logp_BL"] = of_reference["logp_BL"]
    stats["kl_BL"] = lax.psum((jnp.exp(reference_logp_CV) * log_ratio_CV).sum(axis=-1), vocab_axes)
    return stats, [logsumexp_C, reference_logsumexp_C]


def _of_model(logits_CV, is_target_CV, vocab_axes):
    """log p, entropy and correctness of the targets, and the logsumexp; sums run over the whole
    vocabulary.
    """
    max_C = lax.pmax(logits_CV.max(axis=-1), vocab_axes)
    exp_CV = jnp.exp(logits_CV - max_C[:, None])
    terms_CV = (exp_CV, exp_CV * logits_CV, jnp.where(is_target_CV, logits_CV, 0.0))
    sum_C, sum_logits_C, target_C = lax.psum(
        [term_CV.sum(axis=-1) for term_CV in terms_CV], vocab_axes
    )
    logsumexp_C = max_C + jnp.log(sum_C)
    entropy_C = logsumexp_C - sum_logits_C / sum_C
    return {
        "logp_BL": target_C - logsumexp_C,
        "entropy_BL": entropy_C,
        "correct_BL": target_C >= max_C,
    }, logsumexp_C


def _top_entropy(logits_CV, top_tokens, vocab_axes):
    """Entropy of the softmax over the largest logits alone: of each device's largest, then of those
    of all.
    """
    top_CK = lax.top_k(logits_CV, min(top_tokens, logits_CV.shape[1]))[0]
    if vocab_axes:
        top_CK = lax.all_gather(top_CK, vocab_axes, axis=1, tiled=True)
        top_CK = lax.top_k(top_CK, top_tokens)[0]
    logp_CK = jax.nn.log_softmax(top_CK, axis=-1)
    return -(jnp.exp(logp_CK) * logp_CK).sum(axis=-1)


def _gradients_of_loss(objective, stats, is_token_C):
    """d Σ loss / d statistic [C], by name; the objective sees the chunk as if it were a batch."""

    def loss(differentiable):
        return _total(objective, stats | differentiable, is_token_C)

    return jax.grad(loss)({name: stats[name] for name in _DIFFERENTIABLE if name in stats})


def _d_logits(logits, logsumexps, is_target_CV, d_stats):
    """d log p(target) / d logits = onehot(target) - p, and d KL(π_ref ‖ π) / d logits = p - p_ref."""
    p_CV, *p_reference = (
        jnp.exp(logits_CV - n_C[:, None]) for logits_CV, n_C in zip(logits, logsumexps, strict=True)
    )
    d_logits_CV = d_stats["logp_BL"][:, None] * (is_target_CV - p_CV)
    for reference_CV in p_reference:
        d_logits_CV += d_stats["kl_BL"][:, None] * (p_CV - reference_CV)
    return d_logits_CV


def _logits_of(hidden_BLD, head_VD, dtype):
    """Returns logits(index_C) -> [C, V] at these positions, zero beyond the last one."""
    hidden_ND, head_VD = (
        hidden_BLD.reshape(-1, hidden_BLD.shape[-1]),
        head_VD.astype(hidden_BLD.dtype),
    )

    def logits(index_C):
        return jnp.einsum(
            "CD,VD->CV", _take(hidden_ND, index_C), head_VD, preferred_element_type=dtype
        )

    return logits


def _chunks(targets_BL, mask_BL, chunk_tokens, vocab_axes, local_vocab):
    """Returns (chunk_of, number of chunks, N), with chunk_of(i) = (index_C, is_target_CV).

    mask_N   0 1 1 0 1 0      with chunks of 2 tokens, N = 6:
    index_C  [1 2] [4 6]      6 = N is beyond the last position: reads give 0, writes are dropped
    """
    N = mask_BL.size
    # The last chunk is computed whole: of few positions it should not be a large part.
    chunk_tokens = min(chunk_tokens, max(N // 4, 128), N)
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
