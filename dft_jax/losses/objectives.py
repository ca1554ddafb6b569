"""Per-token objectives: pure functions from token statistics to per-token losses.

Each is `loss_t = -sg(weight_t) · log p_t` with its own weight (sg: stop-gradient), so the gradient
of token t is that of SFT scaled by `weight_t`; `asft` and `gift` add a divergence to it. A new
objective is one more function under `@objective`; its keyword arguments are its parameters, its
defaults are the published ones. A config names it as `dft` or with parameters as
`mixed(alpha=0.8)`. docs/objectives.md has all of them in one table.

In docstrings p is the probability of the target, π the model, π_ref the model before training, p_r
its probability of the target, H the entropy of π in nats, V the size of the vocabulary.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dft_jax.runtime import calls, errors
from dft_jax.runtime.options import Option, unknown
from dft_jax.types import AnyArray, TokenStats

# Of a whole batch [B, L], or of a chunk of its trained tokens [C].
Loss = Callable[..., Float[Array, "..."]]

# What an objective needs besides log p, in `Objective.needs`: only those that name it pay for it.
REFERENCE = "reference"  # reference_logp_BL and kl_BL: a forward pass of the model before training
# reference_mass_BL, of the logits that REFERENCE asks for: an objective names both.
REFERENCE_MASS = "reference_mass"
CONCENTRATION = "concentration"  # concentration_BL: one more sum over the vocabulary
TOP_ENTROPY = "top_entropy"  # top_entropy_BL: a partial sort of the vocabulary
OTHER_TOKENS = "other_tokens"  # a loss that depends on other tokens: logits are made twice

TOP_TOKENS = 20  # of which top_entropy_BL is


@dataclasses.dataclass(frozen=True)
class Range:
    """The legal values of a parameter; `words` complete "should be …" for a user."""

    is_legal: Callable[[float], bool]
    words: str


_FRACTION = Range(lambda value: 0.0 <= value <= 1.0, "between 0 and 1")
_NOT_NEGATIVE = Range(lambda value: 0.0 <= value < float("inf"), "a finite number of at least 0")
_POSITIVE_FRACTION = Range(lambda value: 0.0 < value <= 1.0, "above 0 and at most 1")
_BELOW_1 = Range(lambda value: 0.0 <= value < 1.0, "at least 0 and below 1")
_AT_LEAST_1 = Range(lambda value: 1.0 <= value < float("inf"), "a finite number of at least 1")
# Beyond these float32 makes 0 or infinity of a quotient, and then no number of 0 · infinity.
_SCALE = Range(lambda value: 1e-6 <= value <= 1e6, "between 1e-6 and 1e6")


@dataclasses.dataclass(frozen=True)
class Objective:
    """loss(stats) -> [B, L], with values for its parameters.

    `needs` names what is costly: statistics that `stats` must have, or OTHER_TOKENS.
    """

    loss: Loss
    needs: tuple[str, ...] = ()

    @property
    def needs_reference(self) -> bool:
        """Whether it compares with the model before training."""
        return REFERENCE in self.needs

    def __call__(self, stats: TokenStats) -> Float[Array, "..."]:
        return self.loss(stats)


# config.objective
OPTION = Option("dft", "what is minimised: sft, dft, power(alpha=0.5), … (docs/objectives.md)")


@dataclasses.dataclass(frozen=True)
class Registered:
    """An objective under its name: the loss with the published defaults, and its parameters."""

    loss: Loss
    needs: tuple[str, ...]
    ranges: Mapping[str, Range]


OBJECTIVES: dict[str, Registered] = {}


def register(
    needs: tuple[str, ...] = (), ranges: Mapping[str, Range] | None = None
) -> Callable[[Loss], Loss]:
    """Registers `loss(stats, **parameters)` as an objective under the function's name."""

    def decorator(loss: Loss) -> Loss:
        OBJECTIVES[loss.__name__] = Registered(loss, needs, ranges or {})
        return loss

    return decorator


def objective(
    needs: tuple[str, ...] = (), ranges: Mapping[str, Range] | None = None
) -> Callable[[Loss], Loss]:
    """Registers `weight(stats, **parameters)`; the loss is -stop_gradient(weight) · log p."""

    def decorator(weight: Loss) -> Loss:
        @functools.wraps(weight)
        def loss(stats: TokenStats, **parameters: float) -> Float[Array, "..."]:
            return -jax.lax.stop_gradient(weight(stats, **parameters)) * stats.logp_BL

        return register(needs, ranges)(loss)

    return decorator


@objective()
def sft(stats: TokenStats) -> Float[Array, "..."]:
    """Negative log-likelihood: weight 1."""
    return jnp.ones_like(stats.logp_BL)


@objective()
def dft(stats: TokenStats) -> Float[Array, "..."]:
    """Dynamic fine-tuning: weight p, so the gradient is that of -p (arXiv 2508.05629, eq. 9)."""
    return jnp.exp(stats.logp_BL)


@objective(ranges={"alpha": _NOT_NEGATIVE})
def power(stats: TokenStats, alpha: float = 0.5) -> Float[Array, "..."]:
    """Weight p^α: the gradient of (1 - p^α)/α. α = 0 is SFT, α = 1 is DFT (arXiv 2510.00526)."""
    return jnp.exp(alpha * stats.logp_BL)


@objective(ranges={"tau": _FRACTION})
def threshold(stats: TokenStats, tau: float = 0.2) -> Float[Array, "..."]:
    """Weight 1 where p ≥ τ, else 0 (arXiv 2510.00526). τ = 0.1 is ProFit's."""
    return (jnp.exp(stats.logp_BL) >= tau).astype(stats.logp_BL.dtype)


@objective(ranges={"floor": _FRACTION})
def floored_dft(stats: TokenStats, floor: float = 0.1) -> Float[Array, "..."]:
    """Weight max(p, floor): rare but mandatory tokens, such as EOS, can still be learned."""
    return jnp.maximum(jnp.exp(stats.logp_BL), floor)


@objective(ranges={"alpha": _FRACTION})
def mixed(stats: TokenStats, alpha: float = 0.75) -> Float[Array, "..."]:
    """Weight α·p + (1 - α): between SFT (α = 0) and DFT (α = 1)."""
    return alpha * jnp.exp(stats.logp_BL) + (1.0 - alpha)


@objective(needs=(OTHER_TOKENS,))
def sentence(stats: TokenStats) -> Float[Array, "..."]:
    """Weight Π p over the example's trained tokens: DFT by the sentence.

    One of the two sentence-level weights of the paper's ablation, where both lose.
    """
    return jnp.exp(_sum_per_example(stats.logp_BL, stats))


@objective(needs=(OTHER_TOKENS,))
def geometric(stats: TokenStats) -> Float[Array, "..."]:
    """Weight (Π p)^(1/n), n the example's trained tokens: the other weight of that ablation."""
    return jnp.exp(_mean_per_example(stats.logp_BL, stats))


@register(needs=(REFERENCE,), ranges={"kl": _NOT_NEGATIVE})
def asft(stats: TokenStats, kl: float = 0.05) -> Float[Array, "..."]:
    """DFT + kl · KL(π_ref ‖ π), which stays near the model it began from (arXiv 2509.23753)."""
    return dft(stats) + kl * stats.kl_BL


@objective(needs=(REFERENCE, OTHER_TOKENS), ranges={"largest": _NOT_NEGATIVE})
def iw_sft(stats: TokenStats, largest: float = 16.0) -> Float[Array, "..."]:
    """Weight min(exp(mean_t(log π - log π_ref)), largest), the mean over the example's tokens.

    The sequence's importance weight against the model before training, length-normalised and
    clipped (arXiv 2507.12856).
    """
    log_ratio_BL = stats.logp_BL - stats.reference_logp_BL
    # Without the clip, one example far from the reference would be the whole update.
    return jnp.minimum(jnp.exp(_mean_per_example(log_ratio_BL, stats)), largest)


@objective(needs=(TOP_ENTROPY,), ranges={"alpha": _NOT_NEGATIVE})
def eaft(stats: TokenStats, alpha: float = 1.0) -> Float[Array, "..."]:
    """Weight (H₂₀ / ln 20)^α, H₂₀ the entropy among the 20 most probable tokens (arXiv 2601.02151).

    It is small where the model is sure. α is of an implementation of it, LLaMA-Factory's; α = 0 is
    SFT.
    """
    return jnp.power(stats.top_entropy_BL / math.log(TOP_TOKENS), alpha)


@objective(needs=(OTHER_TOKENS,), ranges={"floor": _FRACTION})
def talr(stats: TokenStats, floor: float = 0.01) -> Float[Array, "..."]:
    """Weight max(p^(1/τ), floor), τ the median loss of the micro-batch's tokens (arXiv 2509.20758).

    Where the model is sure of most tokens τ is nearly 0, and all tokens that it is not sure of have
    the floor's weight.
    """
    is_trained_BL = stats.examples_BL > 0
    tau = _median(-stats.logp_BL, is_trained_BL, stats.weights_BL)
    # Half of all losses can be 0 to the last digit, and a batch can have no trained token.
    tau = jnp.maximum(jnp.nan_to_num(tau), 1e-6)
    return jnp.maximum(jnp.exp(stats.logp_BL / tau), floor)


# ---- weights that vanish at p = 1, too: what is learned already is left alone


@objective(ranges={"P": Range(lambda value: 0.5 < value < 1.0, "above 0.5 and below 1")})
def infosft(stats: TokenStats, P: float = 0.93) -> Float[Array, "..."]:
    """Weight p · max(0, 1 - logit(p) / logit(P)), logit(p) = log(p / (1 - p)) (arXiv 2605.14967).

    Above p where p < 0.5, below it beyond, at most 0.508 (p = 0.568), and 0 from P on. Limits:
    p → 0 gives p · (1 + log(1/p) / logit(P)) → 0, p → 1 gives 0; P → 1 is DFT.
    """
    # logit(1) is infinite. From P on the weight is 0, so the logit of P does instead.
    logp_BL = jnp.minimum(stats.logp_BL, math.log(P))
    logit_BL = logp_BL - jnp.log(-jnp.expm1(logp_BL))
    weight_BL = jnp.exp(logp_BL) * (1.0 - logit_BL / math.log(P / (1.0 - P)))
    # Rounding leaves a little more or less than 0 next to P.
    return jnp.where(stats.logp_BL < math.log(P), jnp.maximum(weight_BL, 0.0), 0.0)


@objective()
def chord_phi(stats: TokenStats) -> Float[Array, "..."]:
    """Weight p · (1 - p), the φ of CHORD (arXiv 2508.11408), there within GRPO.

    Limits: 0 at both ends; at most 1/4, at p = 1/2.
    """
    return -jnp.exp(stats.logp_BL) * jnp.expm1(stats.logp_BL)


# ---- powers of p whose exponent the model decides


@objective(needs=(CONCENTRATION,))
def deft(stats: TokenStats) -> Float[Array, "..."]:
    """Weight p^a, a = Σ_v π(v)²: DFT where the model is sure, SFT where it is not.

    The gradient of (1 - p^a) / a with a held fixed (arXiv 2602.11424), whose value differs from
    this loss's. 1/V ≤ a ≤ 1. Limits: p → 1 gives 1; p → 0 gives p where another token has the rest,
    p^(1/V) where it is spread.
    """
    return jnp.exp(stats.concentration_BL * stats.logp_BL)


@objective(needs=(OTHER_TOKENS,), ranges={"floor": _FRACTION})
def cayley(stats: TokenStats, floor: float = 0.5) -> Float[Array, "..."]:
    """Weight p^a, a = f + (1 - f) · p / (2 - p), f = floor · mean p of the micro-batch's tokens.

    The gradient of (1 - p^a) / a with a held fixed (arXiv 2602.11424; the mean is over all devices,
    in the authors' code over those of each). Limits: p → 1 gives 1; p → 0 gives p^f, which is 0, or
    1 where f is 0. Without a floor no weight is below 0.793, which is nearly SFT.
    """
    is_trained_BL = stats.examples_BL > 0
    p_BL = jnp.exp(stats.logp_BL)
    mean = _mean(p_BL, is_trained_BL, stats.weights_BL)
    least = floor * mean
    return jnp.exp((least + (1.0 - least) * p_BL / (2.0 - p_BL)) * stats.logp_BL)


@objective(ranges={"beta": _SCALE, "least": _FRACTION, "most": _AT_LEAST_1})
def idft(
    stats: TokenStats, beta: float = 1.0, least: float = 0.1, most: float = 2.0
) -> Float[Array, "..."]:
    """Weight p^g, g = clip(exp(-(log p + H) / β), least, most) (arXiv 2602.12222).

    log p + H is 0 for a token as likely as the model's own are on average: g = 1, DFT. A less
    likely one has a larger exponent. Limits: p → 0 gives p^most → 0; p → 1 gives 1. Without the
    authors' warm-up of g, which their released run switches off.
    """
    surplus_BL = stats.logp_BL + stats.entropy_BL
    exponent_BL = jnp.clip(jnp.exp(-surplus_BL / beta), least, most)
    return jnp.exp(exponent_BL * stats.logp_BL)


@objective(ranges={"alpha": _POSITIVE_FRACTION})
def trsft(stats: TokenStats, alpha: float = 0.1) -> Float[Array, "..."]:
    """Weight min(1, p / α): DFT below α, SFT above (TRAPO, arXiv 2512.17636, there within RL).

    Limits: p → 0 gives p / α → 0; from α on 1. α = 1 is DFT, α → 0 is SFT.
    """
    return jnp.exp(jnp.minimum(stats.logp_BL - math.log(alpha), 0.0))


# ---- weights of the model before training, which stay what they are


@objective(needs=(REFERENCE,))
def prift_prob(stats: TokenStats) -> Float[Array, "..."]:
    """Weight p_r: DFT by the model before training (PriFT, arXiv 2606.09396).

    Limits: those of p_r. Whatever p is, a token is learned if p_r is high and hardly ever if it is
    0; learning it does not raise its own weight, as it does in DFT.
    """
    return jnp.exp(stats.reference_logp_BL)


@objective(needs=(REFERENCE, REFERENCE_MASS), ranges={"tau": _BELOW_1})
def prift_mass(stats: TokenStats, tau: float = 0.5) -> Float[Array, "..."]:
    """Weight 1 where u ≥ τ, else 0; u = p_r + Σ π_ref(v) over all v with π_ref(v) < p_r.

    PriFT's rule by ranks (arXiv 2606.09396). Limits: u = 1, the weight 1, for the reference's most
    probable token; u → 0, the weight 0, in its tail. τ = 0 is SFT.
    """
    return (stats.reference_mass_BL >= tau).astype(stats.logp_BL.dtype)


@register(
    needs=(REFERENCE,),
    ranges={"beta": Range(lambda value: 0.0 < value <= 80.0, "above 0 and at most 80")},
)
def gift(stats: TokenStats, beta: float = 20.0) -> Float[Array, "..."]:
    """Cross-entropy to softmax(log π_ref + β · onehot(target)) (arXiv 2601.09233, no smoothing).

    To a constant it is λ · (-log p) + (1 - λ) · KL(π_ref ‖ π), λ = sigmoid(log p_r + log(e^β - 1)),
    which is what is computed. Limits: p_r → 0 gives λ = 0, so the model stays as it was; p_r → 1
    gives λ = 1. With β = 20 λ is above 0.997 wherever p_r > 1e-6: SFT but for such tokens.
    """
    share_BL = jax.nn.sigmoid(stats.reference_logp_BL + math.log(math.expm1(beta)))
    share_BL = jax.lax.stop_gradient(share_BL)
    return -share_BL * stats.logp_BL + (1.0 - share_BL) * stats.kl_BL


def _mean(
    value_BL: Float[Array, "..."], is_trained_BL: Array, weights_BL: Float[AnyArray, "..."] | None
) -> Float[Array, ""]:
    """The mean of a value over the trained tokens, 0 without any; a token of weight 2 counts as
    two.
    """
    if weights_BL is None:
        # A batch can have no trained token.
        return jnp.where(is_trained_BL, value_BL, 0.0).sum() / jnp.maximum(is_trained_BL.sum(), 1)
    weight_BL = jnp.where(is_trained_BL, weights_BL, 0.0)
    return (weight_BL * value_BL).sum() / jnp.maximum(weight_BL.sum(), 1e-30)


def _median(
    value_BL: Float[Array, "..."], is_trained_BL: Array, weights_BL: Float[AnyArray, "..."] | None
) -> Float[Array, ""]:
    """The median of a value over the trained tokens, NaN without any; a token of weight 2 counts
    as two.
    """
    value_BL = jnp.where(is_trained_BL, value_BL, jnp.nan)
    if weights_BL is None:
        return jnp.nanmedian(value_BL)
    # NaN comes last, and weighs nothing.
    order_N = jnp.argsort(value_BL.reshape(-1))
    value_N = value_BL.reshape(-1)[order_N]
    weight_N = jnp.where(is_trained_BL, weights_BL, 0).reshape(-1)[order_N]
    up_to_N = jnp.cumsum(weight_N)
    # Where half of the weight ends exactly at a token, the mean of it and the next one.
    half = up_to_N[-1] / 2
    last = len(value_N) - 1
    lower = jnp.minimum(jnp.searchsorted(up_to_N, half, side="left"), last)
    upper = jnp.minimum(jnp.searchsorted(up_to_N, half, side="right"), last)
    return (value_N[lower] + value_N[upper]) / 2


def _sum_per_example(value_BL: Float[Array, "..."], stats: TokenStats) -> Float[Array, "..."]:
    """At each token, the sum of a value over the trained tokens of its example.

    examples_BL   1  1  0  2  2      value_BL  -1 -2  0 -3 -1
    sum          -3 -3  .  -4 -4
    """
    trained_BL = jnp.where(stats.examples_BL > 0, value_BL, 0)

    def one_row(value_L, examples_L):
        # Examples of a row are numbered from 1; an untrained token is in none, 0.
        sums = jax.ops.segment_sum(value_L, examples_L, num_segments=len(value_L) + 1)
        return sums[examples_L]

    return jax.vmap(one_row)(trained_BL, stats.examples_BL)


def _mean_per_example(value_BL: Float[Array, "..."], stats: TokenStats) -> Float[Array, "..."]:
    """At each token, the mean of a value over the trained tokens of its example."""
    count_BL = _sum_per_example(jnp.ones_like(value_BL), stats)
    # 0 / 1 where a token is in no example, not 0 / 0.
    return _sum_per_example(value_BL, stats) / jnp.maximum(count_BL, 1)


def make_objective(spec: str) -> Objective:
    """The objective that `spec` names: `dft`, `power(alpha=0.5)`, …

    Raises:
      UserError: unknown name or parameter, or a value out of range; the message lists the legal
        ones.
    """
    call = calls.parse(spec)
    if call is None:
        raise errors.UserError(
            f"objective={spec!r}: expected a name such as 'dft' or 'power(alpha=0.5)'"
        )
    if call.name not in OBJECTIVES:
        what = f"objective={spec!r}: unknown objective {call.name!r}"
        raise errors.UserError(unknown(what, call.name, list(OBJECTIVES)))
    known = OBJECTIVES[call.name]
    call.require_known(f"objective={spec!r}", known.ranges)
    parameters = {}
    for key, text in call.arguments.items():
        legal = known.ranges[key]
        # NaN is in no range: what is no number is refused as a number out of range is.
        value = float("nan")
        with contextlib.suppress(ValueError):
            value = float(text)
        if not legal.is_legal(value):
            raise errors.UserError(
                f"objective={spec!r}: {key} must be {legal.words}, not {text or 'nothing'!r}"
            )
        parameters[key] = value
    return Objective(functools.partial(known.loss, **parameters), known.needs)


def problems(spec: str) -> list[str]:
    """What is wrong with `config.objective`."""
    try:
        make_objective(spec)
    except errors.UserError as error:
        return [f"config.{error}"]
    return []
