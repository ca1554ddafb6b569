"""Loss and statistics of the target tokens, from hidden states and head, never the full logits.

One chunked linear cross-entropy serves every objective. Trained positions are cut into chunks of C
tokens (chunks.py), and a loop makes the [C, V] logits of one chunk at a time (statistics.py):

    for each chunk:                                                                  products
      logits_CV    = hidden_CD · head_DV     (and those of a reference, if needed)       1
      logsumexp_C, log p_C, entropy_C, …  → statistics, [N] each

      one pass: the loss of a token depends on that token alone, so its gradient is known here
        d_logits_CV  = Σ d loss / d statistic · d statistic / d logits
        d_hidden_CD  = d_logits_CV · head_VD                                             2
        d_head_VD   += d_logits_CV · hidden_CD                                           3
      kept for the backward pass: both gradients, to be multiplied by a number

      two passes: the loss of a token depends on others, so all log p come first
      kept for the backward pass: the inputs; there a second loop makes
        logits_CV and logsumexp_C again                                                  2
        d_logits_CV from the incoming gradients, then d_hidden_CD and d_head_VD          3, 4

A product is 2·N·D·V operations; those of the logits of a reference come on top, in each pass.

Each device works on some of the rows and a slice of the vocabulary inside `shard_map` (devices.py
says which), and gradients are summed over devices once, after the loop.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dft_jax.losses import chunks, devices, objectives, statistics
from dft_jax.losses.devices import Inputs, Layout, LossSpec, Projection
from dft_jax.losses.statistics import Extras, Stats, StatsGradients
from dft_jax.types import AnyArray, AnyMesh, TokenStats

# ---- what callers use


def loss_and_stats(
    hidden_BLD: Float[Array, "B L D"],
    head_VD: Float[Array, "V D"],
    targets_BL: Int[AnyArray, "B L"],
    mask_BL: Bool[AnyArray, "B L"],
    segments_BL: Int[AnyArray, "B L"],
    reference: tuple[Float[Array, "B L D"], Float[Array, "V D"]] | None = None,
    *,
    objective: objectives.Objective,
    chunk_tokens: int,
    mesh: AnyMesh,
    head_gradient: bool = True,
    weights_BL: Float[AnyArray, "B L"] | None = None,
) -> tuple[Float[Array, ""], TokenStats]:
    """Sum of the objective over trained tokens, and the statistics it was computed from.

    The sum is differentiable in `hidden_BLD` and `head_VD`; the statistics carry no gradient.
    Arguments, precision and masking are those of `token_stats`; `weights_BL` multiplies the loss of
    each token, None where all weigh 1.
    """
    if objectives.OTHER_TOKENS in objective.needs:
        stats = token_stats(
            hidden_BLD,
            head_VD,
            targets_BL,
            mask_BL,
            segments_BL,
            reference,
            chunk_tokens=chunk_tokens,
            mesh=mesh,
            needs=objective.needs,
            head_gradient=head_gradient,
        )
        # What looks at a whole micro-batch counts each token as often as it weighs.
        losses_BL = objective(dataclasses.replace(stats, weights_BL=weights_BL))
        # An objective sees zeros where nothing is trained, and may make something else of them.
        loss = jnp.where(mask_BL, _weighted(losses_BL, weights_BL), 0).sum()
        return loss, jax.tree.map(lax.stop_gradient, stats)
    inputs = _inputs(hidden_BLD, head_VD, targets_BL, mask_BL, reference, weights_BL)
    spec = LossSpec(chunk_tokens, _extras(objective.needs, head_VD.shape[0]), mesh, head_gradient)
    # No gradient of the statistics comes back: the backward pass looks at that of the loss alone.
    one_pass: Any = _loss_in_one_pass  # to type checkers a custom_vjp returns anything
    loss, stats = one_pass(inputs, objective, spec)
    return loss, stats.as_token_stats(jnp.where(mask_BL, segments_BL, 0))


def token_stats(
    hidden_BLD: Float[Array, "B L D"],
    head_VD: Float[Array, "V D"],
    targets_BL: Int[AnyArray, "B L"],
    mask_BL: Bool[AnyArray, "B L"],
    segments_BL: Int[AnyArray, "B L"] | None = None,
    reference: tuple[Float[Array, "B L D"], Float[Array, "V D"]] | None = None,
    *,
    chunk_tokens: int,
    mesh: AnyMesh,
    needs: tuple[str, ...] = (),
    head_gradient: bool = True,
) -> TokenStats:
    """log p, entropy and correctness of each trained target; zeros where `mask_BL` is False.

    Matrix products run in the dtype of `hidden_BLD` and accumulate in float32; everything after
    them is float32 (bf16 logits would put DFT's weight off by 2 %, a bf16 softmax by 7 %). Masked
    positions are never read, so what they hold (NaN included) reaches neither values nor gradients.

    Args:
      hidden_BLD: final hidden states; B divisible by the data × fsdp devices of `mesh`.
      head_VD: output head in the dtype of the parameters; its gradient accumulates in float32.
      targets_BL: ids of the tokens that are to be predicted.
      mask_BL: which of them are trained.
      segments_BL: which example of its row a token belongs to; by default a row is one example.
      reference: hidden states and head of another model with the same vocabulary, for
        `reference_logp_BL` and `kl_BL`.
      chunk_tokens: trained tokens whose logits exist at once on a device, C.
      mesh: the devices; rows are spread over its batch axes, the vocabulary over `tensor`.
      needs: what else is made: TOP_ENTROPY, CONCENTRATION and, where there is a reference,
        REFERENCE_MASS of objectives.py.
      head_gradient: False of a head that is frozen: it gets no gradient, which spares a product and
        a sum of its size.

    Returns:
      Statistics in nats, of which only `logp_BL` and `kl_BL` carry a gradient, to `hidden_BLD` and
      `head_VD`.
    """
    inputs = _inputs(hidden_BLD, head_VD, targets_BL, mask_BL, reference)
    spec = LossSpec(chunk_tokens, _extras(needs, head_VD.shape[0]), mesh, head_gradient)
    stats: Any = _stats_in_two_passes(inputs, spec)
    examples_BL = jnp.where(mask_BL, 1 if segments_BL is None else segments_BL, 0)
    # The backward pass ignores what comes to the others, so nothing may seem to flow there.
    stopped = jax.tree.map(lax.stop_gradient, stats)
    stats = dataclasses.replace(stopped, logp=stats.logp, kl=stats.kl)
    return stats.as_token_stats(examples_BL)


def _extras(needs: tuple[str, ...], vocab: int) -> Extras:
    """Which statistics an objective with these needs asks for."""
    top_tokens = 0
    if objectives.TOP_ENTROPY in needs:
        top_tokens = min(objectives.TOP_TOKENS, vocab)
    return Extras(top_tokens, objectives.CONCENTRATION in needs, objectives.REFERENCE_MASS in needs)


def _inputs(
    hidden_BLD: jax.Array,
    head_VD: jax.Array,
    targets_BL: AnyArray,
    mask_BL: AnyArray,
    reference: tuple[jax.Array, jax.Array] | None,
    weights_BL: AnyArray | None = None,
) -> Inputs:
    model = Projection(hidden_BLD, head_VD)
    if reference is None:
        return Inputs(model, None, targets_BL, mask_BL, weights_BL)
    return Inputs(model, Projection(*reference), targets_BL, mask_BL, weights_BL)


# ---- one pass: the gradients are made in the loop that makes the statistics


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _loss_in_one_pass(
    inputs: Inputs, objective: objectives.Objective, spec: LossSpec
) -> tuple[jax.Array, Stats]:
    """Sum of the objective and statistics; this body runs where nobody asks for a gradient."""
    stats = _sweep(inputs, spec)
    return _sum_of_losses(objective, stats, inputs.mask_BL, inputs.weights_BL), stats


def _one_pass_forward(
    inputs: Inputs, objective: objectives.Objective, spec: LossSpec
) -> tuple[tuple[jax.Array, Stats], Projection]:
    """The same, and the gradients of the sum, which are all that the backward pass needs."""
    layout = devices.layout_of(inputs, spec.mesh)
    stats, gradients = jax.shard_map(
        functools.partial(_local_stats_and_gradients, objective, spec, layout),
        mesh=spec.mesh,
        in_specs=(layout.inputs,),
        # Statistics stay with their rows; the gradients lie as the model does.
        out_specs=(layout.rows, devices.layout_of_gradients(layout, spec)),
        # Nothing differentiates through it: the custom gradients here are the only ones.
        check_vma=False,
    )(inputs)
    loss = _sum_of_losses(objective, stats, inputs.mask_BL, inputs.weights_BL)
    return (loss, stats), gradients


def _one_pass_backward(
    objective: objectives.Objective,
    spec: LossSpec,
    gradients: Projection,
    cotangents: tuple[jax.Array, Stats],
) -> tuple[Inputs]:
    """The gradients of the sum times the gradient that comes in, such as 1/N."""
    d_loss, _ = cotangents  # the statistics carry no gradient
    # In the dtype of the gradient: a float32 number would make float32 of a bfloat16 gradient.
    scaled = jax.tree.map(lambda gradient: gradient * d_loss.astype(gradient.dtype), gradients)
    # Nothing flows to the reference, the targets, the mask and the weights.
    return (Inputs(scaled, None, None, None),)


_loss_in_one_pass.defvjp(_one_pass_forward, _one_pass_backward)


def _sum_of_losses(
    objective: objectives.Objective, stats: Stats, is_token: AnyArray, weights: AnyArray | None
) -> Float[Array, ""]:
    """Sum over the tokens, of an objective that looks at each token alone.

    So it does not matter which example a token belongs to, and a chunk is as good as a batch.
    """
    losses = _weighted(objective(stats.as_token_stats(is_token)), weights)
    return jnp.where(is_token, losses, 0).sum()


def _weighted(losses: jax.Array, weights: AnyArray | None) -> jax.Array:
    return losses if weights is None else losses * weights


# ---- two passes: the statistics first, the gradients when it is known what the loss makes of them


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _stats_in_two_passes(inputs: Inputs, spec: LossSpec) -> Stats:
    """Statistics, of which a gradient flows through `logp` and `kl`."""
    return _sweep(inputs, spec)


def _two_passes_forward(inputs: Inputs, spec: LossSpec) -> tuple[Stats, Inputs]:
    """The same, and the inputs, from which the backward pass makes the logits again."""
    return _sweep(inputs, spec), inputs


def _two_passes_backward(spec: LossSpec, inputs: Inputs, cotangents: Stats) -> tuple[Inputs]:
    d_stats = StatsGradients(cotangents.logp, cotangents.kl)
    layout = devices.layout_of(inputs, spec.mesh)
    gradients = jax.shard_map(
        functools.partial(_local_gradients, spec, layout),
        mesh=spec.mesh,
        # What comes in for each statistic is cut as the statistic is.
        in_specs=(layout.inputs, layout.rows),
        out_specs=devices.layout_of_gradients(layout, spec),
        check_vma=False,
    )(inputs, d_stats)
    return (Inputs(gradients, None, None, None),)


_stats_in_two_passes.defvjp(_two_passes_forward, _two_passes_backward)


def _sweep(inputs: Inputs, spec: LossSpec) -> Stats:
    """The statistics alone, [B, L] each."""
    layout = devices.layout_of(inputs, spec.mesh)
    return jax.shard_map(
        functools.partial(_local_stats, spec, layout),
        mesh=spec.mesh,
        in_specs=(layout.inputs,),
        out_specs=layout.rows,
        check_vma=False,
    )(inputs)


# ---- the loop of one device: three of them, which differ in what they carry


def _local_stats(spec: LossSpec, layout: Layout, inputs: Inputs) -> Stats:
    """The statistics of its rows."""
    share = devices.share_of(layout.inside(inputs), spec, layout)

    def add_chunk(number, stats):
        index_C = share.chunks.index(number)
        found, _ = share.stats_of(share.logits(index_C))
        return _put(stats, index_C, found)

    stats = lax.fori_loop(0, share.chunks.count, add_chunk, share.no_stats())
    return share.as_rows(stats)


def _local_stats_and_gradients(
    objective: objectives.Objective,
    spec: LossSpec,
    layout: Layout,
    inputs: Inputs,
) -> tuple[Stats, Projection]:
    """Both from the same logits; the objective sees a chunk as if it were a batch."""
    inside = layout.inside(inputs)
    share = devices.share_of(inside, spec, layout)
    sums = devices.gradient_sums(inputs, inside, spec, layout)

    def add_chunk(number, carry):
        stats, gradients = carry
        index_C = share.chunks.index(number)
        logits = share.logits(index_C)
        found, logsumexps = share.stats_of(logits)
        # Through the statistics, of which there are C each, and never through the [C, V] logits.
        is_token_C, weights_C = share.chunks.is_token(index_C), share.weights(index_C)
        d_found = _loss_gradients(objective, found, is_token_C, weights_C)
        d_logits_CV = statistics.d_logits(logits, logsumexps, d_found)
        return _put(stats, index_C, found), sums.add(gradients, index_C, d_logits_CV)

    carry = (share.no_stats(), sums.zeros())
    stats, gradients = lax.fori_loop(0, share.chunks.count, add_chunk, carry)
    return share.as_rows(stats), sums.over_devices(gradients)


def _local_gradients(
    spec: LossSpec, layout: Layout, inputs: Inputs, d_stats_BL: StatsGradients
) -> Projection:
    """The gradients alone, from logits that are made again."""
    inside = layout.inside(inputs)
    share = devices.share_of(inside, spec, layout)
    sums = devices.gradient_sums(inputs, inside, spec, layout)
    d_stats_N = jax.tree.map(share.at_positions, d_stats_BL)

    def add_chunk(number, gradients):
        index_C = share.chunks.index(number)
        logits = share.logits(index_C)
        _, logsumexps = share.stats_of(logits)
        d_found = jax.tree.map(lambda value_N: chunks.take(value_N, index_C), d_stats_N)
        d_logits_CV = statistics.d_logits(logits, logsumexps, d_found)
        return sums.add(gradients, index_C, d_logits_CV)

    gradients = lax.fori_loop(0, share.chunks.count, add_chunk, sums.zeros())
    return sums.over_devices(gradients)


def _put(stats_N: Stats, index_C: jax.Array, stats_C: Stats) -> Stats:
    return jax.tree.map(
        lambda all_N, value_C: chunks.put(all_N, index_C, value_C), stats_N, stats_C
    )


def _loss_gradients(
    objective: objectives.Objective,
    stats: Stats,
    is_token_C: jax.Array,
    weights_C: jax.Array | None,
) -> StatsGradients:
    """d Σ loss / d statistic, [C]."""

    def loss(differentiable: StatsGradients) -> jax.Array:
        values = dataclasses.replace(stats, logp=differentiable.logp, kl=differentiable.kl)
        return _sum_of_losses(objective, values, is_token_C, weights_C)

    return jax.grad(loss)(StatsGradients(stats.logp, stats.kl))
