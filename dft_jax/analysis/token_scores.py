"""Probability, entropy and gradient of each trained token of demonstrations, under checkpoints."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dft_jax import sharding
from dft_jax.analysis import figures, trained_tokens
from dft_jax.data import batches as loader
from dft_jax.data.examples import Examples
from dft_jax.lm.language_model import LM
from dft_jax.losses import fused
from dft_jax.models.model import Model, balanced, head, matmul_precision, with_attention
from dft_jax.runtime import errors, progress
from dft_jax.runtime.options import Config
from dft_jax.types import Batch, Leaf, Params, TokenStats

CHANGED_COLUMNS = (
    "model",
    "token_id",
    "token",
    "count",
    "p_before",
    "p_after",
    "change",
    "fell_below_0.01",
)


@dataclasses.dataclass(frozen=True)
class Scores:
    """The T trained tokens of all examples under one checkpoint, in the order of the data.

    `gradient_T` is that of SFT; that of DFT is p times as large.
    """

    logp_T: Float[np.ndarray, " T"]
    entropy_T: Float[np.ndarray, " T"]
    gradient_T: Float[np.ndarray, " T"]

    @property
    def p_T(self) -> Float[np.ndarray, " T"]:
        """The probability of each token."""
        return np.exp(self.logp_T)


def gradient_norm(logp: Float[Array, "*s"], logp_doubled: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """|onehot - p|, from the target's log p under the logits and under twice the logits.

    The square is (1 - p)² + Σ_{v≠target} p_v², of which the sum is (p²/q)(1 - q). That sum is at
    most (1 - p)², and is held there: near p = 1 rounding would make it many times as large. So the
    result is off by less than 0.001 everywhere.
    """
    target = -jnp.expm1(logp)
    others = jnp.exp(2 * logp - logp_doubled) * -jnp.expm1(logp_doubled)
    return jnp.sqrt(target**2 + jnp.clip(others, 0, target**2))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _BatchScores:
    """The values at each place of a batch."""

    logp_BL: Leaf
    entropy_BL: Leaf
    gradient_BL: Leaf


def score(lm: LM, examples: Examples, config: Config, name: str) -> Scores:
    """Reads the examples once under a model, which sees their images where they have some.

    Raises:
      UserError: probabilities that are not finite.
    """
    if examples.have_images:
        lm = lm.with_images()
    model = with_attention(lm.model, config.model.attention)
    score_batch = make_scorer(model, config.train.loss_chunk_tokens)
    row_length = loader.row_length(config.data)
    batches = loader.SequentialBatches(
        examples,
        model.mesh,
        global_batch=config.train.global_batch,
        row_length=row_length,
        vision=model.config.vision,
    )
    numbered = trained_tokens.Numbered(examples)
    n_tokens = examples.report["tokens"]["supervised"]
    logp_T = np.empty(n_tokens, np.float32)
    entropy_T = np.empty(n_tokens, np.float32)
    gradient_T = np.empty(n_tokens, np.float32)
    with matmul_precision(str(model.module.compute_dtype)):
        for step in progress.bar(batches, desc=name, total=len(batches), unit="batch"):
            batch = sharding.device_batch(step.batch, model.mesh, step.n_rows)
            found = jax.device_get(score_batch(lm.params, batch))
            # From the places in the batch to those in the data.
            (rows,) = step.rows
            placed = numbered.placed(rows, row_length)
            number_P = placed.targets_BL[placed.mask_BL]
            logp_T[number_P] = found.logp_BL[placed.mask_BL]
            entropy_T[number_P] = found.entropy_BL[placed.mask_BL]
            gradient_T[number_P] = found.gradient_BL[placed.mask_BL]
    if not np.isfinite([logp_T, entropy_T, gradient_T]).all():
        what = f"{name}: its probabilities are not finite numbers"
        raise errors.UserError(f"{what}; did the run diverge? Leave it out")
    return Scores(logp_T, entropy_T, gradient_T)


def make_scorer(model: Model, chunk_tokens: int) -> Callable[[Params, Batch], _BatchScores]:
    """The jitted function of parameters and a batch [1, B, L]."""

    # Replicated: every process reads the values of all rows.
    @functools.partial(
        jax.jit,
        out_shardings=sharding.named(model.mesh),
        compiler_options=model.compiler_options,
    )
    def score_batch(params: Params, batch: Batch) -> _BatchScores:
        batch = jax.tree.map(lambda x_ABL: x_ABL[0], batch)
        batch = balanced(batch, model.mesh)
        hidden_BLD = model.apply(params, batch)

        def stats(hidden_BLD: Array) -> TokenStats:
            return fused.token_stats(
                hidden_BLD,
                head(params),
                batch.targets_BL,
                batch.mask_BL,
                batch.segments_BL,
                chunk_tokens=chunk_tokens,
                mesh=model.mesh,
            )

        # Twice the hidden states make twice the logits, whose log p gives Σ_v p_v² exactly.
        plain = stats(hidden_BLD)
        doubled = stats(2 * hidden_BLD)
        gradient_BL = gradient_norm(plain.logp_BL, doubled.logp_BL)
        scores = _BatchScores(plain.logp_BL, plain.entropy_BL, gradient_BL)
        # The host knows tokens by their places in the row.
        return jax.tree.map(lambda x_BL: sharding.in_row_order(x_BL, batch.n_parts), scores)

    return score_batch


def summarise(scores: Scores) -> dict[str, Any]:
    """Means over the tokens, and by bin of p (None where a bin is empty)."""
    p_T = scores.p_T
    dft_T = p_T * scores.gradient_T
    bin_T = figures.bin_of(p_T)
    count = np.bincount(bin_T, minlength=figures.N_BINS)

    def by_bin(x_T: np.ndarray) -> list[float | None]:
        sums = np.bincount(bin_T, weights=x_T, minlength=figures.N_BINS)
        means: list[float | None] = []
        for total, n in zip(sums, count, strict=True):
            if n:
                means.append(float(total / n))
            else:
                means.append(None)
        return means

    def mean(x_T: np.ndarray) -> float:
        # In float64: a float32 sum over millions of tokens loses the digits that are printed.
        return float(np.mean(x_T, dtype=np.float64))

    return {
        "tokens": len(p_T),
        "nll": mean(-scores.logp_T),
        "mean_p": mean(p_T),
        "entropy": mean(scores.entropy_T),
        "share_of_p_below_0.01": mean(p_T < np.float32(0.01)),
        "share_of_p_above_0.95": mean(p_T > np.float32(0.95)),
        "p_histogram": (count / len(p_T)).tolist(),
        "sft_gradient": mean(scores.gradient_T),
        "dft_gradient": mean(dft_T),
        "sft_gradient_by_bin": by_bin(scores.gradient_T),
        "dft_gradient_by_bin": by_bin(dft_T),
    }


def changed(
    name: str,
    token_T: Int[np.ndarray, " T"],
    before: Scores,
    after: Scores,
    text_of: Callable[[int], str],
) -> list[dict[str, Any]]:
    """A row of `CHANGED_COLUMNS` for each token type, most fallen first."""
    ids, type_T, counts = np.unique(token_T, return_inverse=True, return_counts=True)
    fell_T = (before.p_T >= np.float32(0.01)) & (after.p_T < np.float32(0.01))
    p_before = np.bincount(type_T, weights=before.p_T) / counts
    p_after = np.bincount(type_T, weights=after.p_T) / counts
    fell = np.bincount(type_T, weights=fell_T) / counts
    rows = []
    for number, id_ in enumerate(ids.tolist()):
        row = {
            "model": name,
            "token_id": id_,
            "token": text_of(id_),
            "count": int(counts[number]),
            "p_before": float(p_before[number]),
            "p_after": float(p_after[number]),
            "change": float(p_after[number]) - float(p_before[number]),
            "fell_below_0.01": float(fell[number]),
        }
        rows.append(row)
    return sorted(rows, key=lambda row: row["change"])
