"""What the notebooks of the studies share: reading results.csv, paired intervals, tables and
figures.

Letters as elsewhere: S seeds, P problems. Shares are fractions; tables and figures are in percent.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dft_jax.analysis.figures import COLOURS
from dft_jax.evals import scores
from experiments import common

COLOUR_OF = {"base": COLOURS[0], "none": COLOURS[0], "sft": COLOURS[1], "dft": COLOURS[2]}
HERE = Path(__file__).parent


def open_study(name: str) -> tuple[pd.DataFrame, Path]:
    """results.csv of a study, and the folder for its figures: the study's own, or that of --out."""
    return read(HERE / name / "results.csv"), common.out_folder(HERE / name)


def read(file: Path) -> pd.DataFrame:
    return pd.read_csv(file, dtype={"correct": str})


def records(file: Path) -> list[dict[str, Any]]:
    """The rows as they were written, "" where a cell is empty; none where there is no file."""
    if not file.exists():
        return []
    frame = read(file).astype(object)
    return frame.where(frame.notna(), "").to_dict("records")


def shares(rows: pd.DataFrame) -> np.ndarray:
    """The share of right samples of each problem, [S, P], a row for each seed, ascending."""
    rows = rows.sort_values("seed")
    assert rows.seed.is_unique, "these are rows of several settings"
    counts_SP = np.array([[int(count) for count in row.split()] for row in rows.correct])
    return counts_SP / rows.samples.to_numpy()[:, None]


def interval(value_SP: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % interval of shares by seed and problem, over other seeds and problems like
    these.
    """
    return _interval(value_SP, (0.0, 1.0), (0.0, 1.0))


def interval_of_difference(value_SP: np.ndarray, samples: float) -> tuple[float, float, float]:
    """As `interval`, of differences of two settings by seed and problem; each share is of `samples`
    samples.

    Paired, they say more than the two intervals do.
    """
    imagined = scores.imagined_differences(samples * len(value_SP))
    return _interval(value_SP, imagined, (-1.0, 1.0))


def _interval(
    value_SP: np.ndarray, imagined: tuple[float, float], limits: tuple[float, float]
) -> tuple[float, float, float]:
    """Of crossed seeds and problems: what varies with the seed, and what with the problem, each
    with its own t.

    The variance of the mean is σ²(seed)/S + σ²(problem)/P + σ²(rest)/SP. The means of the seeds
    vary by the first and the last part, and there are only S of them: with three seeds they get the
    quantile 4.3, with five 2.8. Of the problems' means counts what is beyond the rest; the two
    imagined problems are those of `scores.mean_of_shares`. Where seeds dominate, a bootstrap of
    three of them held the truth in 75 to 83 % of the cases.
    """
    n_seeds = len(value_SP)
    padded_SP = np.concatenate([value_SP, np.tile(imagined, (n_seeds, 1))], axis=1)
    n_problems = padded_SP.shape[1]
    problem_P = padded_SP.mean(axis=0)
    variance = scores.t_quantile(n_problems - 1) ** 2 * problem_P.var(ddof=1) / n_problems
    if n_seeds > 1:
        seed_S = value_SP.mean(axis=1)
        rest_SP = padded_SP - padded_SP.mean(axis=1, keepdims=True) - problem_P + padded_SP.mean()
        rest = (rest_SP**2).sum() / ((n_seeds - 1) * (n_problems - 1)) / (n_seeds * n_problems)
        of_problems = max(problem_P.var(ddof=1) / n_problems - rest, 0.0)
        variance = scores.t_quantile(n_problems - 1) ** 2 * of_problems
        variance += scores.t_quantile(n_seeds - 1) ** 2 * seed_S.var(ddof=1) / n_seeds
    mean, center, half = float(value_SP.mean()), float(padded_SP.mean()), float(np.sqrt(variance))
    low, high = max(limits[0], center - half), min(limits[1], center + half)
    return mean, min(mean, low), max(mean, high)


def cell(frame: pd.DataFrame, benchmark: str, temperature: float, **where) -> pd.DataFrame:
    """The rows of one setting, a row for each seed."""
    rows = frame[(frame.benchmark == benchmark) & (frame.temperature == temperature)]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return rows


def difference(
    ours: pd.DataFrame, theirs: pd.DataFrame, value=shares, draws: float | None = None
) -> tuple[float, float, float]:
    """Mean of ours - theirs with its interval, over the seeds and problems that both have.

    `value` gives [S, P]; each is the mean of `draws` draws, by default the samples of a problem.
    """
    seeds = sorted(set(ours.seed) & set(theirs.seed))
    assert seeds, "no seed in common"
    value_SP = value(ours[ours.seed.isin(seeds)]) - value(theirs[theirs.seed.isin(seeds)])
    return interval_of_difference(value_SP, draws or int(ours.samples.iloc[0]))


def pass_at_k(rows: pd.DataFrame, k: int) -> np.ndarray:
    """`scores.pass_at_k` of each seed and problem, [S, P]."""
    n_samples = int(rows.samples.iloc[0])
    return scores.pass_at_k_of_counts(np.rint(shares(rows) * n_samples), n_samples, k)


def text(triple: tuple[float, float, float], sign: bool = False) -> str:
    """`12.3 [10.1, 14.2]`, in percent."""
    plus = "+" if sign else ""
    mean, low, high = (100 * value for value in triple)
    return f"{mean:{plus}.1f} [{low:{plus}.1f}, {high:{plus}.1f}]"


def show(rows: list[dict[str, str]]) -> str:
    """A Markdown table; also printed."""
    table = common.markdown_table(rows)
    print(table)
    return table


def errorbar(
    axis, x, triples, label: str | None, colour: str, across: bool = False, **options
) -> None:
    """Means with their intervals, in percent; upwards, or `across`."""
    mean, low, high = (100 * np.array(values) for values in zip(*triples, strict=True))
    ends = [np.maximum(mean - low, 0), np.maximum(high - mean, 0)]
    style = {
        "marker": "o",
        "ms": 3.5,
        "lw": 1.4,
        "capsize": 2,
        "color": colour,
        "label": label,
    } | options
    if across:
        axis.errorbar(mean, x, xerr=ends, **style)
    else:
        axis.errorbar(x, mean, yerr=ends, **style)
