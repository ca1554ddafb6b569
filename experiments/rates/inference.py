"""Tests and intervals of paired differences over seeds and problems.

Letters as elsewhere: S seeds, P problems.
"""

import itertools

import numpy as np
from jaxtyping import Float

DRAWS = 10_000


def sign_flip_p(difference_S: Float[np.ndarray, " S"]) -> float:
    """Two-sided p of "the differences are as likely to have the other sign", over all 2^S signs.

    Fisher's exact test of paired differences: of a few seeds all signs can be tried, where
    `significance.sign_flip_p_values` draws some. Signs that give the same mean but for rounding
    count as extreme.
    """
    observed = abs(difference_S.mean())
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(difference_S))))
    means = np.abs(signs @ difference_S) / len(difference_S)
    return float((means >= observed - 1e-12).mean())


def interval(
    difference_SP: Float[np.ndarray, "S P"], level: float = 0.95
) -> tuple[float, float, float]:
    """Mean and bootstrap interval of differences of two methods by seed and problem.

    Seeds are drawn first, then problems, the same for both methods since these are differences.
    """
    n_seeds, n_problems = difference_SP.shape
    rng = np.random.default_rng(0)
    means = []
    for _ in range(DRAWS):
        seeds = rng.integers(0, n_seeds, n_seeds)
        problems = rng.integers(0, n_problems, n_problems)
        means.append(difference_SP[seeds].mean(axis=0)[problems].mean())
    tail = (1 - level) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(difference_SP.mean()), float(low), float(high)
