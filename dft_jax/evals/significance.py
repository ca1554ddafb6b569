"""Which of several paired differences are more than chance: sign flips for one, Holm for all of them."""

from collections.abc import Sequence

import numpy as np

FLIPS = 100_000  # the smallest p is 1e-5: Holm can still mark the smallest of 5,000 differences
_CHUNK = 1000  # flips at a time: 1000 × 1319 problems of float32 are 5 MB


def sign_flip_p_values(differences: Sequence[np.ndarray], *, seed: int = 0) -> list[float]:
    """Two-sided p of each paired difference [P], of the hypothesis that either run could have been the other.

    Then each problem's difference is as likely with the other sign. p is the share of random flips
    of all signs whose sum is as far from 0 as the one observed, which itself counts as one flip. It
    is exact for any number of problems and any distribution of the differences (one sample each:
    McNemar's exact test), where a bootstrap of 30 problems is not. One set of signs serves all, so
    it costs little more for many.
    """
    random, longest = np.random.default_rng(seed), max(map(len, differences), default=0)
    observed = [abs(float(difference_P.sum())) for difference_P in differences]
    as_far = np.zeros(len(differences), np.int64)
    for begin in range(0, FLIPS, _CHUNK):
        n = min(_CHUNK, FLIPS - begin)
        signs_RP = random.integers(2, size=(n, longest), dtype=np.int8).astype(np.float32) * 2 - 1
        for number, difference_P in enumerate(differences):
            sums_R = np.abs(signs_RP[:, : len(difference_P)] @ difference_P.astype(np.float32))
            # Sums that are equal but for rounding are equal.
            as_far[number] += np.count_nonzero(sums_R >= observed[number] * (1 - 1e-5) - 1e-7)
    return [float(p) for p in (1 + as_far) / (1 + FLIPS)]


def holm(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which hypotheses Holm (1979) rejects: with `level` the chance of even one false rejection among them all.

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
