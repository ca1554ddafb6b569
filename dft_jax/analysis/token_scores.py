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
from dft_jax.analysis import figures
from dft_jax.data import batches as loader
from dft_jax.data.examples import Examples
from dft_jax.evals.report import aligned
from dft_jax.lm.language_model import LM
from dft_jax.losses import fused
from dft_jax.models.model import head, matmul_precision, with_attention
from dft_jax.runtime import errors, progress
from dft_jax.runtime.options import Config
from dft_jax.types import Batch, Leaf, Params, TokenStats

# Token types that are printed each way.
_TOP = 10
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
SUMMARY_COLUMNS = (
    "tokens",
    "nll",
    "mean_p",
    "entropy",
    "share_of_p_below_0.01",
    "share_of_p_above_0.95",
    "sft_gradient",
    "dft_gradient",
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


def numbered(examples: Examples) -> Examples:
    """The same examples with the number of each trained token, 0 … T - 1, in the place of its id.

    They are packed just as the real ones are, so they say where in a batch each token lies.
    """
    replaced = []
    n_before = 0
    for example in examples.examples:
        # Tokens that are not trained get a number too; no mask ever selects it.
        numbers = n_before + np.cumsum(figures.targets(example)) - 1
        replaced.append(dataclasses.replace(example, ids=numbers.astype(np.int32)))
        n_before = int(numbers[-1]) + 1
    return Examples(replaced, examples.report, examples.origins)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """All T trained tokens: ids, and of which example and at which place of it each is."""

    id_T: Int[np.ndarray, " T"]
    example_T: Int[np.ndarray, " T"]
    position_T: Int[np.ndarray, " T"]


def tokens(examples: Examples) -> Tokens:
    """The trained tokens of all examples, in the order of the data."""
    ids = []
    numbers = []
    positions = []
    for number, example in enumerate(examples.examples):
        places = np.flatnonzero(figures.targets(example))
        ids.append(example.ids[places])
        numbers.append(np.full(len(places), number, np.int32))
        positions.append(places.astype(np.int32))
    return Tokens(np.concatenate(ids), np.concatenate(numbers), np.concatenate(positions))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _BatchScores:
    """Of one batch: which places are trained, which token of the data each is, and its values."""

    mask_BL: Leaf
    number_BL: Leaf
    logp_BL: Leaf
    entropy_BL: Leaf
    gradient_BL: Leaf


def score(lm: LM, examples: Examples, config: Config, name: str) -> Scores:
    """Reads the examples once under a model.

    Raises:
      UserError: probabilities that are not finite.
    """
    model = with_attention(lm.model, config.model.attention)
    chunk_tokens = config.train.loss_chunk_tokens

    # Replicated: every process reads the values of all rows.
    @functools.partial(jax.jit, out_shardings=sharding.named(model.mesh))
    def score_batch(params: Params, batch: Batch, numbers: Batch) -> _BatchScores:
        batch, numbers = jax.tree.map(lambda x_ABL: x_ABL[0], (batch, numbers))
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
        return _BatchScores(
            mask_BL=batch.mask_BL,
            number_BL=numbers.targets_BL,
            logp_BL=plain.logp_BL,
            entropy_BL=plain.entropy_BL,
            gradient_BL=gradient_BL,
        )

    # The second pass is packed as the first: it says which token lies where.
    passes = []
    for read in (examples, numbered(examples)):
        passes.append(
            loader.SequentialBatches(
                read,
                model.mesh,
                global_batch=config.train.global_batch,
                row_length=loader.row_length(config.data),
            )
        )
    n_tokens = examples.report["tokens"]["supervised"]
    logp_T = np.empty(n_tokens, np.float32)
    entropy_T = np.empty(n_tokens, np.float32)
    gradient_T = np.empty(n_tokens, np.float32)
    with matmul_precision(str(model.module.compute_dtype)):
        pairs = zip(*passes, strict=True)
        for pair in progress.bar(pairs, desc=name, total=len(passes[0]), unit="batch"):
            batch, numbers = (
                sharding.device_batch(step.batch, model.mesh, step.n_rows) for step in pair
            )
            found = jax.device_get(score_batch(lm.params, batch, numbers))
            # From the places in the batch to those in the data.
            mask_BL = found.mask_BL
            number_P = found.number_BL[mask_BL]
            logp_T[number_P] = found.logp_BL[mask_BL]
            entropy_T[number_P] = found.entropy_BL[mask_BL]
            gradient_T[number_P] = found.gradient_BL[mask_BL]
    if not np.isfinite([logp_T, entropy_T, gradient_T]).all():
        what = f"{name}: its probabilities are not finite numbers"
        raise errors.UserError(f"{what}; did the run diverge? Leave it out")
    return Scores(logp_T, entropy_T, gradient_T)


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


def summary_table(summaries: dict[str, dict[str, Any]]) -> str:
    """A line for each model."""
    lines = [["model", *SUMMARY_COLUMNS]]
    for name, values in summaries.items():
        line = [name]
        for column in SUMMARY_COLUMNS:
            line.append(f"{values[column]:.6g}")
        lines.append(line)
    return aligned(lines)


def changes_table(rows: list[dict[str, Any]]) -> str:
    """The token types that fell most, then those that rose most; `rows` are as from `changed`."""
    fallen = [row for row in rows if row["change"] < 0]
    risen = [row for row in rows if row["change"] > 0]
    # The rows rise, so the highest rise is the last.
    risen.reverse()
    lines = [["", "token", "count", "p before", "p after", "change", "fell below 0.01"]]
    for row in fallen[:_TOP]:
        lines.append(_change_line("fell", row))
    for row in risen[:_TOP]:
        lines.append(_change_line("rose", row))
    return aligned(lines)


def _change_line(word: str, row: dict[str, Any]) -> list[str]:
    return [
        word,
        repr(row["token"]),
        str(row["count"]),
        f"{row['p_before']:.4f}",
        f"{row['p_after']:.4f}",
        f"{row['change']:+.4f}",
        f"{row['fell_below_0.01']:.1%}",
    ]
