"""Statistics of the targets of one chunk, from its [C, V] logits, and their derivative.

Each device has the logits of its own slice of the vocabulary; whatever runs over all of it is
summed over `vocab_axes`, the axes of the mesh that cut it (none where it is whole).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from dft_jax.types import Leaf, TokenStats


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

    def as_token_stats(self, examples: jax.Array) -> TokenStats:
        """As objectives see them; `examples` is which example a token belongs to, 0 for none."""
        return TokenStats(
            logp_BL=self.logp,
            entropy_BL=self.entropy,
            correct_BL=self.correct,
            examples_BL=examples,
            reference_logp_BL=self.reference_logp,
            kl_BL=self.kl,
            top_entropy_BL=self.top_entropy,
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StatsGradients:
    """d loss / d statistic, of the two statistics that carry a gradient; shapes as in `Stats`."""

    logp: Leaf
    kl: Leaf


@dataclasses.dataclass(frozen=True)
class Logits:
    """Logits of a chunk, and which of them are the targets'."""

    is_target_CV: Bool[Array, "C V"]
    model_CV: Float[Array, "C V"]
    reference_CV: Float[Array, "C V"] | None = None  # of the model that is compared with


@dataclasses.dataclass(frozen=True)
class Logsumexps:
    """What turns logits into log probabilities: of the model's, and of the reference's."""

    model_C: Float[Array, " C"]
    reference_C: Float[Array, " C"] | None = None


@dataclasses.dataclass(frozen=True)
class _VocabStats:
    """What one model says of each target."""

    logp_C: jax.Array
    entropy_C: jax.Array
    correct_C: jax.Array
    logsumexp_C: jax.Array


def chunk_stats(
    logits: Logits, top_tokens: int, vocab_axes: tuple[str, ...]
) -> tuple[Stats, Logsumexps]:
    """The statistics of a chunk, and what `d_logits` needs of it besides.

    Args:
      logits: of this device's slice of the vocabulary, float32.
      top_tokens: how many of the most probable tokens `top_entropy` is of; 0 leaves it out.
      vocab_axes: the axes of the mesh that cut the vocabulary.
    """
    model = _vocab_stats(logits.model_CV, logits.is_target_CV, vocab_axes)
    stats = Stats(model.logp_C, model.entropy_C, model.correct_C)
    if top_tokens:
        top_entropy_C = _top_entropy(logits.model_CV, top_tokens, vocab_axes)
        stats = dataclasses.replace(stats, top_entropy=top_entropy_C)
    if logits.reference_CV is None:
        return stats, Logsumexps(model.logsumexp_C)
    reference = _vocab_stats(logits.reference_CV, logits.is_target_CV, vocab_axes)
    reference_logp_CV = logits.reference_CV - reference.logsumexp_C[:, None]
    log_ratio_CV = reference_logp_CV - (logits.model_CV - model.logsumexp_C[:, None])
    # KL(π_ref ‖ π), added up over the slices of the vocabulary.
    kl_C = lax.psum((jnp.exp(reference_logp_CV) * log_ratio_CV).sum(axis=-1), vocab_axes)
    stats = dataclasses.replace(stats, reference_logp=reference.logp_C, kl=kl_C)
    return stats, Logsumexps(model.logsumexp_C, reference.logsumexp_C)


def _vocab_stats(
    logits_CV: jax.Array, is_target_CV: jax.Array, vocab_axes: tuple[str, ...]
) -> _VocabStats:
    """log p, entropy and correctness of the targets, over the whole vocabulary."""
    # The largest logit of all slices: the same on every device, and exp of the rest is at most 1.
    max_C = lax.pmax(logits_CV.max(axis=-1), vocab_axes)
    exp_CV = jnp.exp(logits_CV - max_C[:, None])
    terms_CV = (exp_CV, exp_CV * logits_CV, jnp.where(is_target_CV, logits_CV, 0.0))
    # Three sums over the slices in one collective. One device has the target, the others add 0.
    sum_C, sum_logits_C, target_C = lax.psum(
        [term_CV.sum(axis=-1) for term_CV in terms_CV], vocab_axes
    )
    logsumexp_C = max_C + jnp.log(sum_C)
    entropy_C = logsumexp_C - sum_logits_C / sum_C
    return _VocabStats(target_C - logsumexp_C, entropy_C, target_C >= max_C, logsumexp_C)


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
    if logits.reference_CV is None or logsumexps.reference_C is None:
        return d_stats.logp[:, None] * (logits.is_target_CV - p_CV)
    reference_CV = jnp.exp(logits.reference_CV - logsumexps.reference_C[:, None])
    d_logits_CV = d_stats.logp[:, None] * (logits.is_target_CV - p_CV)
    return d_logits_CV + d_stats.kl[:, None] * (p_CV - reference_CV)
