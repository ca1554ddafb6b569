"""Probability, entropy and gradient of each trained token of some demonstrations, under checkpoints."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dft_jax import sharding
from dft_jax.analysis import figures
from dft_jax.data import batches as loader
from dft_jax.evals.report import aligned
from dft_jax.lm import LM
from dft_jax.losses import fused
from dft_jax.models.model import head, matmul_precision, with_attention
from dft_jax.runtime import errors, progress
from dft_jax.runtime.options import Config
from dft_jax.types import Batch

_TOP = 10  # token types printed each way
CHANGED_COLUMNS = "model token_id token count p_before p_after change fell_below_0.01".split()


@dataclasses.dataclass(frozen=True)
class Scores:
    """The T trained tokens of all examples under one checkpoint, float32, in the order of the data."""

    logp_T: np.ndarray
    entropy_T: np.ndarray
    gradient_T: np.ndarray  # of SFT; that of DFT is p times as large

    @property
    def p_T(self) -> np.ndarray:
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


def numbered(examples: loader.Examples) -> loader.Examples:
    """The same examples with the number of each trained token, 0 … T - 1, in the place of its id.

    They are packed just as the real ones are, so they say where in a batch each token lies.
    """
    trained = np.concatenate([figures.targets(example) for example in examples.examples])
    ends = np.cumsum([len(example.ids) for example in examples.examples])[:-1]
    ids_of = np.split((np.cumsum(trained) - 1).astype(np.int32), ends)
    pairs = zip(examples.examples, ids_of, strict=True)
    replaced = [dataclasses.replace(example, ids=ids) for example, ids in pairs]
    return loader.Examples(replaced, examples.report, examples.origins)


def tokens(examples: loader.Examples) -> tuple[np.ndarray, np.ndarray]:
    """The ids of all T trained tokens, and the number of the example that each is of."""
    ids, numbers = [], []
    for number, example in enumerate(examples.examples):
        trained_ids = example.ids[figures.targets(example)]
        ids.append(trained_ids)
        numbers.append(np.full(len(trained_ids), number, np.int32))
    return np.concatenate(ids), np.concatenate(numbers)


def score(lm: LM, examples: loader.Examples, config: Config, name: str) -> Scores:
    """Reads the examples once under a model.

    Raises:
      UserError: probabilities that are not finite.
    """
    model = with_attention(lm.model, config.model.attention)
    chunk_tokens = config.train.loss_chunk_tokens

    @functools.partial(jax.jit, out_shardings=sharding.named(model.mesh))
    def score_batch(params, batch: Batch, numbers: Batch):
        batch, numbers = jax.tree.map(lambda x_ABL: x_ABL[0], (batch, numbers))
        hidden_BLD = model.apply(params, batch)

        def stats(hidden_BLD):
            return fused.token_stats(
                hidden_BLD,
                head(params),
                batch.targets_BL,
                batch.mask_BL,
                batch.segments_BL,
                chunk_tokens=chunk_tokens,
                mesh=model.mesh,
            )

        plain, doubled = stats(hidden_BLD), stats(2 * hidden_BLD)
        gradient_BL = gradient_norm(plain.logp_BL, doubled.logp_BL)
        return batch.mask_BL, numbers.targets_BL, (plain.logp_BL, plain.entropy_BL, gradient_BL)

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
    scores_3T = np.empty((3, examples.report["tokens"]["supervised"]), np.float32)
    with matmul_precision(str(model.module.compute_dtype)):
        pairs = zip(*passes, strict=True)
        for pair in progress.bar(pairs, desc=name, total=len(passes[0]), unit="batch"):
            batches = (sharding.device_batch(step.batch, model.mesh, step.n_rows) for step in pair)
            mask_BL, number_BL, values = jax.device_get(score_batch(lm.params, *batches))
            scores_3T[:, number_BL[mask_BL]] = [value_BL[mask_BL] for value_BL in values]
    if not np.isfinite(scores_3T).all():
        what = f"{name}: its probabilities are not finite numbers"
        raise errors.UserError(f"{what}; did the run diverge? Leave it out")
    return Scores(*scores_3T)


def summarise(scores: Scores) -> dict[str, Any]:
    """Means over the tokens, and by bin of p (None where a bin is empty)."""
    p_T = scores.p_T
    dft_T = p_T * scores.gradient_T
    bin_T = figures.bin_of(p_T)
    count = np.bincount(bin_T, minlength=figures.N_BINS)

    def by_bin(x_T):
        sums = np.bincount(bin_T, weights=x_T, minlength=figures.N_BINS)
        return [float(total / n) if n else None for total, n in zip(sums, count, strict=True)]

    def mean(x_T):
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
    name: str, token_T: np.ndarray, before: Scores, after: Scores, text_of: Callable[[int], str]
) -> list[dict]:
    """A row of `CHANGED_COLUMNS` for each token type, most fallen first."""
    ids, type_T, count = np.unique(token_T, return_inverse=True, return_counts=True)
    fell_T = (before.p_T >= np.float32(0.01)) & (after.p_T < np.float32(0.01))
    means = [np.bincount(type_T, weights=x_T) / count for x_T in (before.p_T, after.p_T, fell_T)]
    rows = []
    for id_, n, p_before, p_after, fell in zip(
        ids.tolist(), count.tolist(), *(m.tolist() for m in means), strict=True
    ):
        values = (name, id_, text_of(id_), n, p_before, p_after, p_after - p_before, fell)
        rows.append(dict(zip(CHANGED_COLUMNS, values, strict=True)))
    return sorted(rows, key=lambda row: row["change"])


def summary_table(summaries: dict[str, dict[str, Any]]) -> str:
    """A line for each model."""
    columns = "tokens nll mean_p entropy share_of_p_below_0.01 share_of_p_above_0.95 sft_gradient dft_gradient".split()
    lines = [
        [name, *(f"{values[column]:.6g}" for column in columns)]
        for name, values in summaries.items()
    ]
    return aligned([["model", *columns], *lines])


def changes_table(rows: list[dict[str, Any]]) -> str:
    """The token types that fell most, then those that rose most, of rows in the order of `changed`."""
    lines = [["", "token", "count", "p before", "p after", "change", "fell below 0.01"]]
    fallen, risen = ([row for row in rows if sign * row["change"] > 0] for sign in (-1, 1))
    for word, shown in (("fell", fallen[:_TOP]), ("rose", risen[: -_TOP - 1 : -1])):
        for row in shown:
            shares = [f"{row['p_before']:.4f}", f"{row['p_after']:.4f}", f"{row['change']:+.4f}"]
            lines.append(
                [
                    word,
                    repr(row["token"]),
                    str(row["count"]),
                    *shares,
                    f"{row['fell_below_0.01']:.1%}",
                ]
            )
    return aligned(lines)
