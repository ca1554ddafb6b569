"""What every run reports: sums over trained tokens from the step, finished on the host."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dft_jax.data.batches import PackedBatch
from dft_jax.data.image_rows import Grid
from dft_jax.models import routing
from dft_jax.models.parts import ALL, TEXT
from dft_jax.models.spec import VisionSpec
from dft_jax.types import AnyArray, TokenStats

# The paper's bins of token probability (its figure of token distributions).
P_BIN_EDGES = (0.0, 1e-4, 1e-3, 1e-2, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def token_sums(
    stats: TokenStats,
    loss: Float[Array, ""],
    mask_BL: Bool[AnyArray, "B L"],
    weights_BL: Float[AnyArray, "B L"] | None = None,
) -> dict[str, Array]:
    """Sums over the trained tokens of one micro-batch; adding them over micro-batches is exact.

    With weights every sum but that of the tokens is of w·x, and `weight` is Σ w.
    """
    p_BL = jnp.exp(stats.logp_BL)

    def count(x_BL):
        return jnp.where(mask_BL, x_BL, 0).sum(dtype=jnp.float32)

    def total(x_BL):
        return count(x_BL if weights_BL is None else x_BL * weights_BL)

    # Edge i opens bin i; p = 1 falls in the last one.
    bin_BL = sum((p_BL >= edge).astype(jnp.int32) for edge in P_BIN_EDGES[1:-1])
    in_bin = [total(bin_BL == i) for i in range(len(P_BIN_EDGES) - 1)]
    sums = {
        "loss": loss,
        "nll": total(-stats.logp_BL),
        "p": total(p_BL),
        "entropy": total(stats.entropy_BL),
        "correct": total(stats.correct_BL),
        "tokens": count(mask_BL),
        "p_histogram": jnp.stack(in_bin),
    }
    if weights_BL is not None:
        sums["weight"] = count(weights_BL)
    return sums


def routing_sums(routed: routing.Routing, per_token: int) -> dict[str, Array]:
    """Sums over the tokens of one micro-batch, trained or not, of how they go through experts,
    `per_token` each; adding them over micro-batches is exact. `balance` is the micro-batch's times
    its tokens.
    """
    pairs_XE = routed.pairs_XBE.sum(axis=1)
    n_tokens = (pairs_XE[0].sum() // per_token).astype(jnp.float32)
    return {
        "expert_pairs": pairs_XE,
        "routed_tokens": n_tokens,
        "balance": routing.balance(routed, per_token) * n_tokens,
    }


def divisor(sums: dict[str, Any]) -> float:
    """What makes means of a step's sums: its trained tokens, or Σ w of sums with weights; 1 where
    there are none.
    """
    if "weight" in sums:
        return float(sums["weight"]) or 1.0
    return max(float(sums["tokens"]), 1.0)


def per_token(sums: dict[str, Any], area: str) -> dict[str, Any]:
    """Host-side: means per trained token, named `area/what`; the histogram as fractions in
    `P_BIN_EDGES`' bins. Of sums with weights they are Σ w·x / Σ w.
    """
    n = divisor(sums)
    sum_of = {
        "loss": "loss",
        "nll": "nll",
        "mean_p": "p",
        "entropy": "entropy",
        "token_accuracy": "correct",
    }
    means: dict[str, Any] = {}
    for name, key in sum_of.items():
        means[f"{area}/{name}"] = float(sums[key]) / n
    means[f"{area}/supervised_tokens"] = int(sums["tokens"])
    if "weight" in sums:
        means[f"{area}/weight"] = float(sums["weight"])
    histogram = [float(count) / n for count in np.asarray(sums["p_histogram"])]
    means[f"{area}/p_histogram"] = histogram
    means[f"{area}/share_of_p_below_0.01"] = sum(histogram[: P_BIN_EDGES.index(0.01)])
    return means


def of_sources(packed: PackedBatch) -> dict[str, int | float]:
    """What a step of a mixture has drawn of each source, as `data/NAME/what`.

    `epochs` is how often the source was gone through up to the end of the step. Of one source
    nothing is said.
    """
    values: dict[str, int | float] = {}
    for name, drawn in packed.drawn.items():
        values[f"data/{name}/examples"] = drawn.examples
        values[f"data/{name}/tokens"] = drawn.tokens
        values[f"data/{name}/trained_tokens"] = drawn.trained_tokens
        values[f"data/{name}/epochs"] = packed.epochs[name]
    return values


def of_experts(sums: dict[str, Any]) -> dict[str, float]:
    """How a step's tokens, trained or not, were spread over experts, as `experts/what`; nothing of
    a model without any.

    `busiest_load` is that of a layer's busiest expert relative to the mean of its experts, the mean
    over layers: 1 where all have the same. `idle_share` is of the experts of all layers those that
    no token went through, and `balance` that of `routing.balance`.
    """
    if "expert_pairs" not in sums:
        return {}
    pairs_XE = np.asarray(sums["expert_pairs"], np.float64)
    most_X, mean_X = pairs_XE.max(axis=1), np.maximum(pairs_XE.mean(axis=1), 1e-9)
    return {
        "experts/busiest_load": float((most_X / mean_X).mean()),
        "experts/idle_share": float((pairs_XE == 0).mean()),
        "experts/balance": float(sums["balance"]) / max(float(sums["routed_tokens"]), 1.0),
    }


# Dense bf16 peak of one device, FLOP/s, by a part of `device.device_kind`; from the makers'
# datasheets.
_PEAK_FLOPS = {
    # "TPU v5": v5p
    **{
        "TPU v4": 275e12,
        "TPU v5 lite": 197e12,
        "TPU v5e": 197e12,
        "TPU v5": 459e12,
        "TPU v6": 918e12,
    },
    **{"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12},
}


def peak_flops(device_kind: str) -> float | None:
    """Peak of a device by name; None where it is not known (every CPU), and no MFU reported."""
    return next((flops for name, flops in _PEAK_FLOPS.items() if name in device_kind), None)


def training_flops_per_token(
    n_matmul_params: int,
    n_layers: int,
    n_heads: int,
    head_dim: int,
    mean_length: float,
    n_frozen: int = 0,
) -> float:
    """FLOPs forward and backward of one token: 6 a parameter used in a product, 4 one of `n_frozen`
    others that get no gradient, and causal attention over its example, of `mean_length` tokens on
    average.

    Recomputation (rematerialisation, the head's second pass) is not counted: it is cost, not useful
    work.
    """
    attention = 6 * 2 * n_layers * n_heads * head_dim * (mean_length / 2)
    return 6 * n_matmul_params + 4 * n_frozen + attention


def tower_flops(vision: VisionSpec, grid: Grid, parts: str) -> float:
    """FLOPs of training on an image, in the tower and its merger: forward 2 for each number that is
    multiplied, and backward 2 for each gradient of a weight or an input that is needed.

    A frozen tower has no backward pass, and pixels need no gradient. Attention is counted by what a
    patch sees, its image or its window, and nothing that is masked; recomputation is not counted.

    Args:
      grid: rows and columns of the image's patches.
      parts: what is trained, one of parts.PARTS.
    """
    E, F = vision.hidden_size, vision.intermediate_size
    n_patches = grid[0] * grid[1]
    n_units = n_patches // vision.merge**2
    # Scores and their sums of values, over all heads: of an image, and of each of its windows.
    n_full = len(vision.full_blocks)
    n_seen = n_full * n_patches**2 + (vision.depth - n_full) * _seen_in_windows(vision, grid)
    block = 4 * E * E + 3 * E * F
    multiplied = vision.depth * block * n_patches + 2 * E * n_seen
    pixels = vision.patch_values * E * n_patches
    merged = vision.merge**2 * E
    merger = (merged * merged + merged * vision.out_size) * n_units
    if parts == TEXT:
        return 2 * (multiplied + pixels + merger)
    # The merger begins with a norm, which needs the gradient of what follows it.
    if parts == ALL:
        return 6 * multiplied + 4 * pixels + 6 * merger
    return 2 * (multiplied + pixels) + 6 * merger


def _seen_in_windows(vision: VisionSpec, grid: Grid) -> int:
    """Pairs of patches of one window, those at the right and lower edge cut off."""
    side = vision.window_units * vision.merge
    squares = []
    for n_along in grid:
        whole, rest = divmod(n_along, side)
        squares.append(whole * side**2 + rest**2)
    return squares[0] * squares[1]
