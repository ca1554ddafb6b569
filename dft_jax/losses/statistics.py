"""Statistics of the targets of one chunk, from its [C, V] logits, and their derivative.

Each device has the logits of its own slice of the vocabulary; whatever runs over all of it is
summed over `vocab_axes`, the axes of the mesh that cut it (none where it is whole).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dft_jax.types import AnyArray, Leaf, TokenStats

# A maximum and three or four sums, in the order of `_Sums`.
_Quantities = tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class Extras:
    """Statistics that only some objectives need: which of them are made, besides the rest."""

    top_tokens: int = 0  # how many of the most probable tokens `top_entropy` is of; 0: not made
    concentration: bool = False
    reference_mass: bool = False  # only where there is a reference


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stats:
    """Statistics of targets: of a chunk [C], a device [N] or all [B, L]; None if not asked for."""

    logp: Leaf
    entropy: Leaf
    correct: Leaf
    top_entropy: Leaf = None
    reference_logp: Leaf = None
    kl: Leaf = None
    concentration: Leaf = None
    reference_mass: Leaf = None

    def as_token_stats(self, examples: AnyArray) -> TokenStats:
        """As objectives see them; `examples` is which example a token belongs to, 0 for none."""
        return TokenStats(
            logp_BL=self.logp,
            entropy_BL=self.entropy,
            correct_BL=self.correct,
            examples_BL=examples,
            reference_logp_BL=self.reference_logp,
            kl_BL=self.kl,
            top_entropy_BL=self.top_entropy,
            concentration_BL=self.concentration,
            reference_mass_BL=self.reference_mass,
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StatsGradients:
    """d loss / d statistic, of the two statistics that carry a gradient; shapes as in `Stats`."""

    logp: Leaf
    kl: Leaf


@dataclasses.dataclass(frozen=True)
class Logits:
    """Logits of a chunk, and which of them are the targets'.

    A target is a number within the device's slice of the vocabulary, below 0 or from V on where it
    is in the slice of another device.
    """

    targets_C: Int[Array, " C"]
    model_CV: Float[Array, "C V"]
    reference_CV: Float[Array, "C V"] | None = None  # of the model that is compared with


@dataclasses.dataclass(frozen=True)
class Logsumexps:
    """What turns logits into log probabilities: of the model's, and of the reference's."""

    model_C: Float[Array, " C"]
    reference_C: Float[Array, " C"] | None = None


@dataclasses.dataclass(frozen=True)
class _Sums:
    """What the statistics are made of, over the whole vocabulary, [C] each."""

    max_C: jax.Array
    exp_C: jax.Array  # Σ exp(l - max)
    logits_C: jax.Array  # Σ exp(l - max) · l
    target_C: jax.Array  # the target's logit
    squares_C: jax.Array | None = None  # Σ exp(l - max)²


@dataclasses.dataclass(frozen=True)
class _VocabStats:
    """What one model says of each target."""

    logp_C: jax.Array
    entropy_C: jax.Array
    correct_C: jax.Array
    logsumexp_C: jax.Array


def chunk_stats(
    logits: Logits, extras: Extras, vocab_axes: tuple[str, ...], is_gpu: bool = False
) -> tuple[Stats, Logsumexps]:
    """The statistics of a chunk, and what `d_logits` needs of it besides.

    Args:
      logits: of this device's slice of the vocabulary, float32.
      extras: what is made besides log p, entropy and correctness, and what a reference gives.
      vocab_axes: the axes of the mesh that cut the vocabulary.
      is_gpu: read the logits once, which is faster on a GPU and slower elsewhere.
    """
    sums_of = _sums_in_one_reading if is_gpu else _sums_in_two_readings
    sums = sums_of(logits.model_CV, logits.targets_C, vocab_axes, extras.concentration)
    model = _vocab_stats(sums)
    stats = Stats(model.logp_C, model.entropy_C, model.correct_C)
    if extras.top_tokens:
        top_entropy_C = _top_entropy(logits.model_CV, extras.top_tokens, vocab_axes)
        stats = dataclasses.replace(stats, top_entropy=top_entropy_C)
    if sums.squares_C is not None:
        # Σ π², of terms that are all positive: float32 is enough.
        stats = dataclasses.replace(stats, concentration=sums.squares_C / sums.exp_C**2)
    if logits.reference_CV is None:
        return stats, Logsumexps(model.logsumexp_C)
    reference_sums = sums_of(logits.reference_CV, logits.targets_C, vocab_axes)
    reference = _vocab_stats(reference_sums)
    reference_logp_CV = logits.reference_CV - reference.logsumexp_C[:, None]
    log_ratio_CV = reference_logp_CV - (logits.model_CV - model.logsumexp_C[:, None])
    # KL(π_ref ‖ π), added up over the slices of the vocabulary.
    kl_C = lax.psum((jnp.exp(reference_logp_CV) * log_ratio_CV).sum(axis=-1), vocab_axes)
    stats = dataclasses.replace(stats, reference_logp=reference.logp_C, kl=kl_C)
    if extras.reference_mass:
        # The target's logit to the last bit: made again from log p it could be a little more than
        # itself, and the target would count as less probable than the target.
        is_less_CV = logits.reference_CV < reference_sums.target_C[:, None]
        less_CV = jnp.where(is_less_CV, jnp.exp(reference_logp_CV), 0.0)
        # Tokens less probable than the target, of all slices of the vocabulary.
        less_C = lax.psum(less_CV.sum(axis=-1), vocab_axes)
        stats = dataclasses.replace(stats, reference_mass=less_C + jnp.exp(reference.logp_C))
    return stats, Logsumexps(model.logsumexp_C, reference.logsumexp_C)


def _vocab_stats(sums: _Sums) -> _VocabStats:
    """log p, entropy and correctness of the targets."""
    logsumexp_C = sums.max_C + jnp.log(sums.exp_C)
    entropy_C = logsumexp_C - sums.logits_C / sums.exp_C
    is_best_C = sums.target_C >= sums.max_C
    return _VocabStats(sums.target_C - logsumexp_C, entropy_C, is_best_C, logsumexp_C)


def _is_target(targets_C: Int[Array, " C"], logits_CV: jax.Array) -> Bool[Array, "C V"]:
    """True at the target of each position, if this device has that part of the vocabulary."""
    local_ids_V = jnp.arange(logits_CV.shape[1])
    return targets_C[:, None] == local_ids_V[None, :]


def _sums_in_two_readings(
    logits_CV: jax.Array,
    targets_C: jax.Array,
    vocab_axes: tuple[str, ...],
    with_squares: bool = False,
) -> _Sums:
    """First the maximum, then the sums; simple loops, which a CPU compiler vectorises."""
    # The largest logit of all slices: the same on every device, and exp of the rest is at most 1.
    max_C = lax.pmax(logits_CV.max(axis=-1), vocab_axes)
    exp_CV = jnp.exp(logits_CV - max_C[:, None])
    exp_C, logits_C = exp_CV.sum(axis=-1), (exp_CV * logits_CV).sum(axis=-1)
    # Read at its place: a sum over where(is target, logit, 0) is two more passes on a CPU.
    n_vocab = logits_CV.shape[1]
    places_C = jnp.clip(targets_C, 0, n_vocab - 1)
    there_C = jnp.take_along_axis(logits_CV, places_C[:, None], axis=1)[:, 0]
    target_C = jnp.where(places_C == targets_C, there_C, 0.0)
    sums_C = [exp_C, logits_C, target_C]
    if with_squares:
        sums_C.append((exp_CV * exp_CV).sum(axis=-1))
    # The sums over the slices in one collective. One device has the target, the others add 0.
    return _Sums(max_C, *lax.psum(sums_C, vocab_axes))


def _sums_in_one_reading(
    logits_CV: jax.Array,
    targets_C: jax.Array,
    vocab_axes: tuple[str, ...],
    with_squares: bool = False,
) -> _Sums:
    """All of them in one reduction, whose parts are brought to a common maximum as they meet.

    XLA makes one kernel of it for a GPU, where the time goes to reading the logits.
    """
    # Of a single logit l: the maximum is l, exp(l - l) is 1, and that times l is l.
    ones_CV = jnp.ones_like(logits_CV)
    target_CV = jnp.where(_is_target(targets_C, logits_CV), logits_CV, 0.0)
    zero = jnp.zeros((), logits_CV.dtype)
    # The lowest number and not -inf: the difference of two of these is no number.
    lowest = jnp.array(jnp.finfo(logits_CV.dtype).min, logits_CV.dtype)
    terms_CV, begins = [logits_CV, ones_CV, logits_CV, target_CV], [lowest, zero, zero, zero]
    if with_squares:
        terms_CV.append(ones_CV)
        begins.append(zero)
    max_C, exp_C, logits_C, target_C, *squares_C = lax.reduce(
        tuple(terms_CV), tuple(begins), _merge, [1]
    )
    # The same once more, over the slices of the vocabulary.
    all_max_C = lax.pmax(max_C, vocab_axes)
    scale_C = jnp.exp(max_C - all_max_C)
    sums_C = [exp_C * scale_C, logits_C * scale_C, target_C]
    for squares in squares_C:
        sums_C.append(squares * scale_C**2)
    return _Sums(all_max_C, *lax.psum(sums_C, vocab_axes))


def _merge(one: _Quantities, other: _Quantities) -> _Quantities:
    """The maximum and the sums of two parts of the logits, from those of each."""
    max_1, exp_1, logits_1, target_1, *squares_1 = one
    max_2, exp_2, logits_2, target_2, *squares_2 = other
    # The part with the larger maximum stays as it is, and the other shrinks: one exp for both.
    kept, shrunk = jnp.ones_like(max_1), jnp.exp(-jnp.abs(max_1 - max_2))
    is_first = max_1 >= max_2
    scale_1, scale_2 = lax.select(is_first, kept, shrunk), lax.select(is_first, shrunk, kept)
    merged = [
        jnp.maximum(max_1, max_2),
        exp_1 * scale_1 + exp_2 * scale_2,
        logits_1 * scale_1 + logits_2 * scale_2,
        target_1 + target_2,
    ]
    for first, second in zip(squares_1, squares_2, strict=True):
        merged.append(first * scale_1 * scale_1 + second * scale_2 * scale_2)
    return tuple(merged)


def _top_entropy(
    logits_CV: jax.Array, top_tokens: int, vocab_axes: tuple[str, ...]
) -> Float[Array, " C"]:
    """Entropy of the softmax over the largest logits alone."""
    top_CK = lax.top_k(logits_CV, min(top_tokens, logits_CV.shape[1]))[0]
    if vocab_axes:
        # Gathers the largest of each device: the largest of all are among them.
        top_CK = lax.all_gather(top_CK, vocab_axes, axis=1, tiled=True)
        top_CK = lax.top_k(top_CK, top_tokens)[0]
    logp_CK = jax.nn.log_softmax(top_CK, axis=-1)
    return -(jnp.exp(logp_CK) * logp_CK).sum(axis=-1)


def d_logits(
    logits: Logits, logsumexps: Logsumexps, d_stats: StatsGradients
) -> Float[Array, "C V"]:
    """The gradient of the model's logits, given those of its statistics.

    d log p(target) / d logits = onehot(target) - p, and d KL(π_ref ‖ π) / d logits = p - p_ref.
    """
    p_CV = jnp.exp(logits.model_CV - logsumexps.model_C[:, None])
    is_target_CV = _is_target(logits.targets_C, logits.model_CV)
    d_logits_CV = d_stats.logp[:, None] * (is_target_CV - p_CV)
    if logits.reference_CV is None or logsumexps.reference_C is None:
        return d_logits_CV
    reference_CV = jnp.exp(logits.reference_CV - logsumexps.reference_C[:, None])
    return d_logits_CV + d_stats.kl[:, None] * (p_CV - reference_CV)
