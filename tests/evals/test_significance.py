"""Sign flips against enumeration and McNemar's exact test, Holm against its definition by adjusted
p.
"""

import itertools
import time

import numpy as np
import pytest
from scipy import stats

from dft_jax.evals import significance


def test_p_against_all_flips():
    differences = [np.random.default_rng(seed).normal(0.5, 1, size=10) for seed in range(4)]
    signs = np.array(list(itertools.product([-1, 1], repeat=10)))
    exact = [np.mean(np.abs(signs @ d) >= abs(d.sum()) - 1e-9) for d in differences]
    assert significance.sign_flip_p_values(differences) == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("gained,lost", [(6, 0), (7, 1), (20, 3), (5, 5)])
def test_one_sample_is_mcnemar(gained, lost):
    difference_P = np.array([1.0] * gained + [-1.0] * lost + [0.0] * 20)
    [p] = significance.sign_flip_p_values([difference_P])
    exact = stats.binomtest(gained, gained + lost).pvalue
    # Four standard deviations of a share of so many flips, and the one flip that is added.
    flips = significance.FLIPS if exact < 0.005 else significance.FLIPS / 10
    chance = 4 * np.sqrt(exact * (1 - exact) / flips) + 1 / flips
    assert p == pytest.approx(exact, abs=chance)


def test_equal_runs_have_p_one_and_unequal_lengths_are_fine():
    assert significance.sign_flip_p_values([np.zeros(30), np.ones(7)]) == pytest.approx(
        [1, 2**-6], abs=6e-3
    )
    assert significance.sign_flip_p_values([]) == []


def test_sums_that_rounding_would_tell_apart_are_equal():
    """Of thirds and sevenths: a flip of all signs has the same absolute sum."""
    [p] = significance.sign_flip_p_values([np.array([1 / 3, 1 / 7])])
    assert p == pytest.approx(0.5, abs=0.02)


def test_p_is_uniform_where_nothing_differs():
    random = np.random.default_rng(0)
    chance_P = random.beta(0.3, 0.7, size=30)
    pairs = random.binomial(16, chance_P, size=(400, 2, 30)) / 16
    p_values = np.array(significance.sign_flip_p_values([a - b for a, b in pairs]))
    assert 0.02 <= np.mean(p_values <= 0.05) <= 0.08


def test_holm_against_adjusted_p():
    random = np.random.default_rng(1)
    for n in (1, 2, 7, 42):
        p = random.uniform(size=n) ** 4
        order = np.argsort(p)
        adjusted = np.maximum.accumulate(p[order] * np.arange(n, 0, -1))
        expected = np.empty(n, bool)
        expected[order] = adjusted <= 0.05
        assert significance.holm(p.tolist()) == expected.tolist()
    assert significance.holm([]) == []
    assert significance.holm([0.012, 0.012, 0.012, 0.9]) == [True, True, True, False]
    assert significance.holm([0.04, 0.03]) == [False, False]


def test_the_largest_benchmarks_take_a_moment():
    random, began = np.random.default_rng(4), time.perf_counter()
    significance.sign_flip_p_values([random.normal(size=1319) for _ in range(6)])
    assert time.perf_counter() - began < 10
