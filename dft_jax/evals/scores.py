"""Numbers from verdicts: avg@k, pass@k and maj@k with their intervals, and completions in loops.

Arrays are named by letters: P problems, S samples of each. Shares are fractions from 0 to 1.
"""

import collections
import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Shaped
from scipy import special

# Of the one method that makes intervals, as scores.json names it.
INTERVAL = {
    "method": "t-interval over problems with two imagined problems added, one right and one wrong",
    "level": 0.95,
    "study": "experiments/intervals",
}

# A loop at the end of a text: its least length, how often it is the same, and its longest period.
LOOP_CHARACTERS = 200
LOOP_REPEATS = 4
LOOP_PERIOD = 250


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean over problems, with its standard error and 95 % interval.

    Error and interval are None where nothing says how other problems would be: with one problem,
    and for a difference that is zero on every problem.
    """

    mean: float
    standard_error: float | None
    interval_95: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Padded:
    """Mean, squared standard error and degrees of freedom, the imagined problems counted."""

    center: float
    variance: float
    degrees: float


def average(correct_PS: Shaped[np.ndarray, "P S"]) -> Mean:
    """avg@S: the share of correct samples, over problems.

    Samples of one problem are not independent, so the problems' shares are what varies: sixteen
    samples of thirty problems are thirty observations.
    """
    return mean_of_shares(_checked(correct_PS).mean(axis=1))


def mean_of_shares(share_P: Shaped[np.ndarray, " P"]) -> Mean:
    """The mean of a share for each problem, and how it would vary over other problems like these.

    The interval is Student's over P + 2 problems: the given ones, and two imagined ones of which
    one is right and one is wrong (Agresti and Caffo 2000 add these to binary observations). For
    many problems they make no difference. For few they do what a bootstrap cannot: with 0 of 30
    right it is 0 to 9.5 %, not 0 to 0, and with 30 problems at 5 % it holds the truth in 98 to 100
    % of the cases where the bootstrap's does in 79 to 84 %. experiments/intervals has the table.
    `standard_error` is that of the P + 2 too.
    """
    return _mean(share_P, imagined=(0.0, 1.0), limits=(0.0, 1.0))


def by_cluster(
    share_P: Shaped[np.ndarray, " P"], clusters: Sequence[str]
) -> Float[np.ndarray, " C"]:
    """One value for each cluster of problems, for intervals: problems of one cluster, such as five
    versions of a question, vary together, and are one observation.

    The values' mean is the mean over problems. Where all clusters are as large they are the
    clusters' means; else what a cluster's problems are above or below the mean, over the mean size
    of clusters (the linearised ratio of sums, Cochran 1977, section 6.4), is added to the mean.

        share_P    1 0 | 1 1 | 0 0        one value each     0.5  1.0  0.0

    Args:
      share_P: one value for each problem.
      clusters: the name of each problem's cluster.
    """
    mean = float(share_P.mean())
    _, cluster_P = np.unique(np.asarray(clusters), return_inverse=True)
    above_C = np.bincount(cluster_P, weights=share_P - mean)
    return mean + above_C * (len(above_C) / len(share_P))


def mean_of_differences(difference_P: Float[np.ndarray, " P"], draws: float = 1) -> Mean:
    """The mean of one paired difference of shares for each problem, from -1 to 1.

    The imagined problems differ by ±1/√draws, where each share is the mean of so many draws: by 1
    for one sample, which is the interval of Bonett and Price (2012) for paired proportions, and by
    less where a problem's share is known better. For avg@S, `draws` is S; for maj@S, 1; for pass@k,
    S/k.
    """
    if not np.any(difference_P):
        return Mean(0.0, None, None)
    return _mean(difference_P, imagined_differences(draws), limits=(-1.0, 1.0))


def imagined_differences(draws: float) -> tuple[float, float]:
    """How the two imagined problems differ where each share is the mean of so many draws."""
    return -1 / math.sqrt(draws), 1 / math.sqrt(draws)


def mean_over_benchmarks(shares: Sequence[Shaped[np.ndarray, " _"]]) -> Mean:
    """The mean over benchmarks of the mean over problems, each benchmark with the same weight."""
    mean = float(np.mean([share_P.mean() for share_P in shares]))
    parts = [padded(share_P, (0.0, 1.0)) for share_P in shares]
    return _combined(mean, parts, limits=(0.0, 1.0))


def difference_over_benchmarks(
    differences: Sequence[Float[np.ndarray, " _"]], draws: Sequence[float]
) -> Mean:
    """The mean over benchmarks of the mean paired difference.

    Args:
      differences: of each benchmark, as in `mean_of_differences`.
      draws: of each benchmark, as there.
    """
    mean = float(np.mean([difference_P.mean() for difference_P in differences]))
    if not any(np.any(difference_P) for difference_P in differences):
        return Mean(0.0, None, None)
    pairs = zip(differences, draws, strict=True)
    parts = [padded(difference_P, imagined_differences(n)) for difference_P, n in pairs]
    return _combined(mean, parts, limits=(-1.0, 1.0))


def padded(value_P: Shaped[np.ndarray, " P"], imagined: tuple[float, float]) -> Padded | None:
    """What the problems and the imagined ones say of the mean; None for one problem."""
    if len(value_P) == 1:
        return None
    value_P = np.append(value_P, imagined)
    n = len(value_P)
    return Padded(float(value_P.mean()), float(value_P.var(ddof=1)) / n, n - 1)


def t_quantile(degrees: float) -> float:
    """Student's t that a value exceeds in 2.5 % of the cases."""
    return float(special.stdtrit(degrees, 0.975))


def _mean(value_P: np.ndarray, imagined: tuple[float, float], limits: tuple[float, float]) -> Mean:
    return _combined(float(value_P.mean()), [padded(value_P, imagined)], limits)


def _combined(mean: float, parts: Sequence[Padded | None], limits: tuple[float, float]) -> Mean:
    """The mean of independent parts, its degrees of freedom pooled as by Satterthwaite (1946)."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return Mean(mean, None, None)
    variances = np.array([part.variance for part in known])
    degrees = variances.sum() ** 2 / np.sum(variances**2 / [part.degrees for part in known])
    error = math.sqrt(variances.sum()) / len(known)
    center = float(np.mean([part.center for part in known]))
    half = t_quantile(degrees) * error
    # The mean is inside but for rounding.
    low, high = min(mean, center - half), max(mean, center + half)
    return Mean(mean, error, (max(limits[0], low), min(limits[1], high)))


def pass_at_k(correct_PS: Shaped[np.ndarray, "P S"], k: int) -> Float[np.ndarray, " P"]:
    """The chance that one or more of k samples, drawn without replacement, are correct."""
    correct_PS = _checked(correct_PS)
    return pass_at_k_of_counts(correct_PS.sum(axis=1), correct_PS.shape[1], k)


def pass_at_k_of_counts(
    correct: Shaped[np.ndarray, "*problems"], n_samples: int, k: int
) -> Float[np.ndarray, "*problems"]:
    """`pass_at_k` from how many of the `n_samples` samples of each problem are correct.

    The unbiased estimator 1 − C(S−c, k)/C(S, k) of Chen et al. (arXiv 2107.03374, equation 1), c of
    S correct, as the product of (S−c−j)/(S−j) for j < k: no large numbers, and exactly 1 where
    fewer than k are wrong.
    """
    if not 1 <= k <= n_samples:
        raise ValueError(f"pass@{k} needs 1 <= k <= {n_samples} samples")
    wrong = n_samples - np.asarray(correct)
    j_K = np.arange(k)
    # A factor is 0 once j reaches the number of wrong samples, whatever the later ones are.
    all_wrong = np.prod((wrong[..., None] - j_K) / (n_samples - j_K), axis=-1)
    return 1 - all_wrong


def powers_of_two(n_samples: int) -> list[int]:
    """The k of pass@k: 1, 2, 4, …, and the number of samples itself."""
    powers = [2**exponent for exponent in range(n_samples.bit_length())]
    if powers[-1] != n_samples:
        powers.append(n_samples)
    return powers


def majority(
    classes_PS: Sequence[Sequence[int | None]], correct_PS: Shaped[np.ndarray, "P S"]
) -> Shaped[np.ndarray, " P"]:
    """maj@S of each problem: whether the answer that most of its samples give is correct.

    Samples of one class mean the same (`pool.Grader.classes`); one without an answer (None) does
    not vote. Of classes with as many votes the one whose first sample is the earliest
    wins; a problem where nobody votes counts as not correct. The winner is correct if any of its
    samples was found so: a verdict of `timeout` on one of them is the machine's doing.
    """
    correct_PS = _checked(correct_PS)
    right = []
    for classes_S, correct_S in zip(classes_PS, correct_PS, strict=True):
        votes = collections.Counter(number for number in classes_S if number is not None)
        if not votes:
            right.append(False)
            continue
        # Of classes with as many votes, `most_common` gives the first that was counted.
        winner = votes.most_common(1)[0][0]
        verdicts_of_winner = [
            is_correct
            for number, is_correct in zip(classes_S, correct_S, strict=True)
            if number == winner
        ]
        right.append(any(verdicts_of_winner))
    return np.array(right)


def ends_in_a_loop(text: str) -> bool:
    """Whether a completion ends in a loop: one stretch of text over and over, until it was cut.

    That is, for some period p of at most 250 characters, the last max(200, 4·p) characters repeat
    with period p: at least four times the same, and at least 200 characters of it. White space at
    the very end is left out.
    """
    text = text.rstrip()
    for period in range(1, LOOP_PERIOD + 1):
        needed = max(LOOP_CHARACTERS, LOOP_REPEATS * period)
        if len(text) < needed:
            return False
        if text[-1] == text[-1 - period]:  # most periods end here
            tail = text[-needed:]
            if tail[period:] == tail[:-period]:
                return True
    return False


def missing_samples(samples_of: dict[str, Sequence[int]]) -> list[str]:
    """A line for each problem that lacks samples which others have; empty where all is well.

    A missing sample is a gap that would bias every score if it were counted as wrong, or left out.
    """
    full = sorted(set().union(*samples_of.values()))
    mistakes = []
    for problem, samples in samples_of.items():
        missing = sorted(set(full) - set(samples))
        if missing:
            shown = ", ".join(map(str, missing[:5]))
            if len(missing) > 5:
                shown += ", …"
            mistakes.append(
                f"problem {problem!r} has {len(samples)} of {len(full)} samples;"
                f" missing: sample {shown}"
            )
    return mistakes


def _checked(correct_PS: np.ndarray) -> np.ndarray:
    """As bool [P, S], at least one of each; a ValueError for NaN, which is a gap and no zero."""
    correct_PS = np.asarray(correct_PS)
    if correct_PS.ndim != 2 or 0 in correct_PS.shape:
        raise ValueError(
            "correctness should be [problems, samples], at least one of each,"
            f" not {correct_PS.shape}"
        )
    if not np.isin(correct_PS, [0, 1]).all():
        raise ValueError("correctness should be true or false for every sample")
    return correct_PS.astype(bool)
