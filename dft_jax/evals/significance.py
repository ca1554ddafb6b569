"""What is more than chance: sign flips and Holm's rule for differences, and the bootstrap.

Evaluations have no bootstrap intervals: of few problems they are too narrow (see scores.py). The
bootstrap is here for experiments, whose values are no shares of problems: times, gradient norms.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

FLIPS = 100_000  # the smallest p is 1e-5: Holm can still mark the smallest of 5,000 differences
_FEWER = 10_000  # are enough where a hundred of them are as far from 0: p is 0.01 or more
_CHUNK = 1000  # flips at a time: 1000 × 1319 problems of float32 are 5 MB

_LEVEL_95 = (0.025, 0.975)


def resample(
    count: int, n_resamples: int, random: np.random.Generator
) -> Int[np.ndarray, "R count"]:
    """Indices of `n_resamples` samples of `count` values each, drawn with replacement."""
    return random.integers(count, size=(n_resamples, count))


def percentile_interval(
    values: Float[np.ndarray, "..."], axis: int = -1
) -> Float[np.ndarray, "2 ..."]:
    """The ends of the 95 % percentile interval: quantiles 2.5 % and 97.5 % of resampled values.

    Args:
      values: a statistic of each resample.
      axis: that of the resamples.
    """
    return np.quantile(values, _LEVEL_95, axis=axis)


def bootstrap_interval(
    statistic: Callable[[np.ndarray], np.ndarray], count: int, n_resamples: int, seed: int = 0
) -> tuple[float, float]:
    """The 95 % bootstrap interval of one statistic.

    Args:
      statistic: gives a value for each row of indices, [R, count] -> [R]. What is measured side by
        side is drawn together: both are taken at the same indices.
      count: values that the statistic is of.
      n_resamples: R.
      seed: of the draws, which are the same each time.
    """
    index_Rn = resample(count, n_resamples, np.random.default_rng(seed))
    low, high = percentile_interval(statistic(index_Rn))
    return float(low), float(high)


def sign_flip_p_values(differences: Sequence[np.ndarray], *, seed: int = 0) -> list[float]:
    """Two-sided p of each paired difference [P], if either run could have been the other.

    Then each problem's difference is as likely with the other sign. p is the share of random flips
    of all signs whose sum is as far from 0 as the one observed, which itself counts as one flip. It
    is exact for any number of problems and any distribution of the differences (one sample each:
    McNemar's exact test), where a bootstrap of 30 problems is not. One set of signs serves all, so
    it costs little more for many.
    """
    random = np.random.default_rng(seed)
    values = [np.asarray(difference_P, np.float32) for difference_P in differences]
    observed = [abs(float(np.sum(difference_P))) for difference_P in differences]
    as_far = np.zeros(len(values), np.int64)  # flips whose sum is as far from 0 as the observed
    flips = np.zeros(len(values), np.int64)
    unsettled = list(range(len(values)))
    for begin in range(0, FLIPS, _CHUNK):
        if begin >= _FEWER:
            unsettled = [number for number in unsettled if as_far[number] < _FEWER // 100]
        if not unsettled:
            break
        # One bit for each sign; all differences take theirs from the same rows.
        longest = max(len(values[number]) for number in unsettled)
        bits = np.frombuffer(random.bytes(_CHUNK * -(-longest // 8)), np.uint8)
        signs_RP = np.unpackbits(bits.reshape(_CHUNK, -1), axis=1).astype(np.float32) * 2 - 1
        for number in unsettled:
            sums_R = np.abs(signs_RP[:, : len(values[number])] @ values[number])
            # Sums that are equal but for rounding are equal.
            as_far[number] += np.count_nonzero(sums_R >= observed[number] * (1 - 1e-5) - 1e-7)
            flips[number] += _CHUNK
    return [float(p) for p in (1 + as_far) / (1 + flips)]


def holm(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which hypotheses Holm (1979) rejects; `level` is the chance of even one false rejection.

    It makes no assumption on how they depend on one another. The smallest p has to be at most
    level/n, the next level/(n−1), and so on until the first that is not.
    """
    order = np.argsort(p_values, kind="stable")
    rejected = [False] * len(p_values)
    for rank, number in enumerate(order):
        if p_values[number] > level / (len(p_values) - rank):
            break
        rejected[number] = True
    return rejected
