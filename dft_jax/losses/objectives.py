"""Per-token objectives: pure functions from token statistics to per-token losses.

Each is `loss_t = -sg(weight_t) · log p_t` with its own weight (sg: stop-gradient), so the gradient
of token t is that of SFT scaled by `weight_t`; `asft` adds a divergence to it. A new objective is
one more function under `@objective`; its keyword arguments are its parameters, its defaults are the
published ones. A config names it as `dft` or with parameters as `mixed(alpha=0.8)`.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dft_jax.runtime import calls, errors
from dft_jax.runtime.options import Option, unknown
from dft_jax.types import TokenStats

Loss = Callable[..., Float[Array, "B L"]]
Range = tuple[Callable[[float], bool], str]

# What a statistic costs is paid only by the objectives that need it.
# another forward pass, with the parameters before training: reference_logp_BL, kl_BL
REFERENCE = "reference"
TOP_ENTROPY = "top_entropy"  # a partial sort of the vocabulary: top_entropy_BL
# a loss that depends on tokens besides its own: logits made twice (losses.py)
OTHER_TOKENS = "other_tokens"
TOP_TOKENS = 20


@dataclasses.dataclass(frozen=True)
class Objective:
    """loss(stats) -> [B, L]; `needs` names what is costly: statistics that `stats` must have, or
    OTHER_TOKENS.
    """

    loss: Loss
    needs: tuple[str, ...] = ()

    def __call__(self, stats: TokenStats) -> Float[Array, "B L"]:
        return self.loss(stats)


# config.objective
OPTION = Option("dft", "what is minimised: sft, dft, power(alpha=0.5), … (losses/objectives.py)")

OBJECTIVES: dict[str, tuple[Objective, dict[str, Range]]] = {}  # and the range of each parameter


def register(*needs: str, **legal: Range):
    """Registers a loss as an objective; `legal` gives each parameter's range and its words."""

    def of(loss: Loss) -> Loss:
        OBJECTIVES[loss.__name__] = Objective(loss, needs), legal
        return loss

    return of


def objective(*needs: str, **legal: Range):
    """The same, of a weight."""

    def of(weight: Loss) -> Loss:
        @functools.wraps(weight)
        def loss(stats: TokenStats, **parameters: float) -> Float[Array, "B L"]:
            return -jax.lax.stop_gradient(weight(stats, **parameters)) * stats.logp_BL

        return register(*needs, **legal)(loss)

    return of


_FRACTION = (lambda value: 0.0 <= value <= 1.0, "between 0 and 1")
_NOT_NEGATIVE = (lambda value: 0.0 <= value < float("inf"), "a finite number of at least 0")


@objective()
def sft(stats: TokenStats):
    """Negative log-likelihood: weight 1."""
    return jnp.ones_like(stats.logp_BL)


@objective()
def dft(stats: TokenStats):
    """Dynamic fine-tuning: weight p, so the gradient is exactly that of -p (arXiv 2508.05629, eq.
    9).
    """
    return jnp.exp(stats.logp_BL)


@objective(alpha=_NOT_NEGATIVE)
def power(stats: TokenStats, alpha: float = 0.5):
    """Weight p^α: the gradient of (1 - p^α)/α. α = 0 is SFT, α = 1 is DFT (arXiv 2510.00526)."""
    return jnp.exp(alpha * stats.logp_BL)


@objective(tau=_FRACTION)
def threshold(stats: TokenStats, tau: float = 0.2):
    """Weight 1 where p ≥ τ, else 0 (arXiv 2510.00526)."""
    return (jnp.exp(stats.logp_BL) >= tau).astype(stats.logp_BL.dtype)


@objective(floor=_FRACTION)
def floored_dft(stats: TokenStats, floor: float = 0.1):
    """Weight max(p, floor): rare but mandatory tokens, such as EOS, can still be learned."""
    return jnp.maximum(jnp.exp(stats.logp_BL), floor)


@objective(alpha=_FRACTION)
def mixed(stats: TokenStats, alpha: float = 0.75):
    """Weight α·p + (1 - α): between SFT (α = 0) and DFT (α = 1)."""
    return alpha * jnp.exp(stats.logp_BL) + (1.0 - alpha)


@objective(OTHER_TOKENS)
def sentence(stats: TokenStats):
    """Weight Π p over the example's trained tokens: DFT by the sentence, as in the paper's ablation
    (it loses).
    """
    return jnp.exp(_of_example(stats)[0])


@objective(OTHER_TOKENS)
def geometric(stats: TokenStats):
    """Weight (Π p)^(1/n), n the example's trained tokens: the other sentence-level weight of the
    paper's ablation.
    """
    total_BL, count_BL = _of_example(stats)
    return jnp.exp(total_BL / jnp.maximum(count_BL, 1))


@register(REFERENCE, kl=_NOT_NEGATIVE)
def asft(stats: TokenStats, kl: float = 0.05):
    """DFT + kl · KL(π_ref ‖ π): anchored, so that it stays near the model it began from (arXiv
    2509.23753).
    """
    return dft(stats) + kl * stats.kl_BL


@objective(REFERENCE, OTHER_TOKENS, largest=_NOT_NEGATIVE)
def iw_sft(stats: TokenStats, largest: float = 16.0):
    """The sequence's importance weight against the model before training, length-normalised and
    clipped: min(exp(mean_t(log π - log π_ref)), largest) (arXiv 2507.12856).
    """
    total_BL, count_BL = _of_example(stats, stats.logp_BL - stats.reference_logp_BL)
    return jnp.minimum(jnp.exp(total_BL / jnp.maximum(count_BL, 1)), largest)


@objective(TOP_ENTROPY)
def eaft(stats: TokenStats):
    """Entropy among the 20 most probable tokens over ln 20: small where the model is sure (arXiv
    2601.02151).
    """
    return stats.top_entropy_BL / math.log(TOP_TOKENS)


@objective(OTHER_TOKENS, floor=_FRACTION)
def talr(stats: TokenStats, floor: float = 0.01):
    """Weight max(p^(1/τ), floor), τ the median loss of the micro-batch's tokens (arXiv 2509.20758).

    Where the model is sure of most tokens τ is nearly 0, and all tokens that it is not sure of have
    the floor's weight.
    """
    is_trained_BL = stats.examples_BL > 0
    tau = jnp.nanmedian(jnp.where(is_trained_BL, -stats.logp_BL, jnp.nan))
    # Half of all losses can be 0 to the last digit, and a batch can have no trained token.
    tau = jnp.maximum(jnp.nan_to_num(tau), 1e-6)
    return jnp.maximum(jnp.exp(stats.logp_BL / tau), floor)


def _of_example(
    stats: TokenStats, value_BL=None
) -> tuple[Float[Array, "B L"], Float[Array, "B L"]]:
    """At each token, Σ log p (or of another value) over the trained tokens of its example, and
    their number.

    examples_BL   1  1  0  2  2      logp_BL  -1 -2  0 -3 -1
    Σ log p      -3 -3  .  -4 -4     number    2  2  .  2  2
    """
    is_trained_BL = stats.examples_BL > 0
    value_BL = jnp.where(is_trained_BL, stats.logp_BL if value_BL is None else value_BL, 0)

    def one_row(value_L, examples_L):
        return jax.ops.segment_sum(value_L, examples_L, num_segments=len(value_L) + 1)[examples_L]

    over_rows = jax.vmap(one_row)
    count_BL = over_rows(is_trained_BL.astype(value_BL.dtype), stats.examples_BL)
    return over_rows(value_BL, stats.examples_BL), count_BL


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
    known, legal = OBJECTIVES[call.name]
    call.require_known(f"objective={spec!r}", legal)
    parameters = {}
    for key, value in call.arguments.items():
        is_legal, words = legal[key]
        parameters[key] = float("nan")  # which is in no range
        with contextlib.suppress(ValueError):
            parameters[key] = float(value)
        if not is_legal(parameters[key]):
            raise errors.UserError(
                f"objective={spec!r}: {key} must be {words}, not {value or 'nothing'!r}"
            )
    return Objective(functools.partial(known.loss, **parameters), known.needs)


def problems(spec: str) -> list[str]:
    """What is wrong with `config.objective`."""
    try:
        make_objective(spec)
    except errors.UserError as error:
        return [f"config.{error}"]
    return []
