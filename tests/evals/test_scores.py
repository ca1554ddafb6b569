"""Scores against independent oracles: enumeration of subsets, exact fractions, analytic errors."""

import fractions
import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from dft_jax.evals import scores

CORRECTNESS = st.integers(1, 5).flatmap(
    lambda n_samples: st.lists(
        st.lists(st.booleans(), min_size=n_samples, max_size=n_samples), min_size=1, max_size=6
    ).map(np.array)
)


@given(CORRECTNESS)
@settings(max_examples=200, deadline=None)
def test_pass_at_k_is_the_mean_over_all_subsets(correct_PS):
    n_samples = correct_PS.shape[1]
    for k in range(1, n_samples + 1):
        hits = [row[list(chosen)].any() for row in correct_PS for chosen in itertools.combinations(range(n_samples), k)]
        assert scores.pass_at_k(correct_PS, k) == pytest.approx(np.mean(hits), abs=1e-12)


@pytest.mark.parametrize(
    "n_samples,correct,k", [(16, 1, 8), (256, 3, 100), (1024, 1, 512), (4096, 5, 1000), (4096, 4000, 96)]
)
def test_pass_at_k_is_stable_for_large_numbers(n_samples, correct, k):
    row = np.arange(n_samples) < correct
    exact = 1 - fractions.Fraction(math.comb(n_samples - correct, k), math.comb(n_samples, k))
    assert scores.pass_at_k(row[None], k) == pytest.approx(float(exact), rel=1e-12)


def test_pass_at_k_is_unbiased():
    """Over samples of a problem with chance p, the mean is 1 − (1−p)^k: an exact sum over the binomial distribution."""
    p, n_samples, k = 0.15, 12, 5
    expectation = sum(
        math.comb(n_samples, c) * p**c * (1 - p) ** (n_samples - c)
        * scores.pass_at_k(np.arange(n_samples)[None] < c, k)
        for c in range(n_samples + 1)
    )  # fmt: skip
    assert expectation == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


@given(CORRECTNESS)
@settings(max_examples=100, deadline=None)
def test_relations_between_the_scores(correct_PS):
    n_samples = correct_PS.shape[1]
    passes = [scores.pass_at_k(correct_PS, k) for k in range(1, n_samples + 1)]
    mean = scores.average(correct_PS, resamples=50)
    assert passes[0] == pytest.approx(mean.mean) == pytest.approx(correct_PS.mean())
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(passes))
    assert passes[-1] == pytest.approx(correct_PS.any(axis=1).mean())
    if mean.interval_95:
        assert 0 <= mean.interval_95[0] <= mean.interval_95[1] <= 1 and mean.standard_error <= 0.5


def test_error_of_independent_samples_is_the_binomial_one():
    """One sample per problem, p = 0.3: the analytic error is sqrt(p(1−p)/P), and the interval ±1.96 of it."""
    n_problems = 500
    correct_PS = (np.arange(n_problems) < 0.3 * n_problems)[:, None]
    result = scores.average(correct_PS)
    analytic = math.sqrt(0.3 * 0.7 / n_problems)
    assert result.mean == pytest.approx(0.3)
    assert result.standard_error == pytest.approx(analytic, rel=0.03)
    assert result.interval_95 == pytest.approx((0.3 - 1.96 * analytic, 0.3 + 1.96 * analytic), abs=0.004)


def test_error_follows_problems_not_samples():
    """Sixteen copies of a sample are no more evidence: the same error, where a naive one would be a quarter."""
    random = np.random.default_rng(1)
    once_PS = random.random((300, 1)) < 0.4
    often_PS = np.repeat(once_PS, 16, axis=1)
    once, often = scores.average(once_PS), scores.average(often_PS)
    assert often.standard_error == pytest.approx(once.standard_error, rel=1e-6)
    naive = math.sqrt(often.mean * (1 - often.mean) / often_PS.size)
    assert often.standard_error > 3.5 * naive


def test_error_matches_the_cluster_formula_and_covers():
    """Problems of uneven difficulty, 8 samples: sqrt(Var(m_p)/P); in 200 repetitions the interval holds the truth."""
    random = np.random.default_rng(2)
    covered = 0
    for repetition in range(200):
        chance_P = random.beta(0.5, 0.5, size=120)
        correct_PS = random.random((120, 8)) < chance_P[:, None]
        result = scores.average(correct_PS, seed=repetition, resamples=1000)
        analytic = math.sqrt(correct_PS.mean(axis=1).var() / 120)
        assert result.standard_error == pytest.approx(analytic, rel=0.12)
        covered += result.interval_95[0] <= 0.5 <= result.interval_95[1]  # the mean of Beta(1/2, 1/2)
    assert 180 <= covered <= 199  # 95 % of 200 is 190, standard deviation 3.1


def test_average_is_seeded_and_says_when_nothing_is_known():
    correct_PS = np.random.default_rng(3).random((40, 4)) < 0.5
    assert scores.average(correct_PS) == scores.average(correct_PS)
    assert scores.average(correct_PS) != scores.average(correct_PS, seed=1)
    assert scores.average(np.array([[True, False]])) == scores.Mean(0.5, None, None)
    assert scores.average(np.ones((5, 2))) == scores.Mean(1.0, 0.0, (1.0, 1.0))


def test_the_largest_benchmark_takes_a_moment():
    correct_PS = np.random.default_rng(4).random((1319, 16)) < 0.5
    began = time.perf_counter()
    scores.average(correct_PS)
    assert time.perf_counter() - began < 5


def test_powers_of_two():
    assert [scores.powers_of_two(n) for n in (1, 2, 3, 16, 20)] == [
        [1], [1, 2], [1, 2, 3], [1, 2, 4, 8, 16], [1, 2, 4, 8, 16, 20]
    ]  # fmt: skip


# answers of one problem, whether each is correct, whether the majority is.
MAJORITIES = {
    "plain": (["2", "2", "3"], [1, 1, 0], True),
    "wrong majority": (["3", "2", "3"], [0, 1, 0], False),
    "tie: the earliest wins": (["3", "2"], [0, 1], False),
    "tie: the earliest wins, right": (["2", "3", "3", "2"], [1, 0, 0, 1], True),
    "None does not vote": ([None, None, None, "2"], [0, 0, 0, 1], True),
    "nobody votes": ([None, None], [0, 0], False),
    "white space is no difference": (["3", "2 ", " 2"], [0, 1, 1], True),
    "one verdict was a timeout": (["2", "2", "3"], [0, 1, 0], True),
}


@pytest.mark.parametrize("case", MAJORITIES)
def test_majority(case):
    answers, correct, expected = MAJORITIES[case]
    assert scores.majority([answers], np.array([correct])) == expected


@given(st.lists(st.sampled_from(["1", "2", "3", None]), min_size=1, max_size=7))
@settings(max_examples=200, deadline=None)
def test_majority_against_counting(answers):
    correct = [answer == "2" for answer in answers]
    votes = [answer for answer in answers if answer is not None]
    best = max((votes.count(answer) for answer in votes), default=0)
    winner = next((answer for answer in votes if votes.count(answer) == best), None)
    assert scores.majority([answers], np.array([correct])) == (winner == "2")


def test_majority_is_a_mean_over_problems():
    answers = [["1", "1"], ["1", "2"], ["2", "2"]]
    assert scores.majority(answers, np.array([[1, 1], [1, 0], [0, 0]])) == pytest.approx(2 / 3)


PROSE = "".join(f"Step {i}: we add {i * i} to {i + 7}. " for i in range(60))

LOOPS = {
    "empty": ("", False),
    "prose": (PROSE, False),
    "short repetition": ("so " * 60, False),  # 179 characters
    "one character": (PROSE + "0" * 200, True),
    "199 of it": (PROSE + "x" + "0" * 199, False),
    "a sentence of 50": (PROSE + ("Wait, let me check that again, it should be fine. ")[:50] * 5, True),
    "period 100, four times": (PROSE + PROSE[:100] * 4, True),
    "period 100, three times": (PROSE + PROSE[:100] * 3, False),
    "period 250, cut in the fifth": (PROSE + PROSE[:250] * 4 + PROSE[:33], True),
    "period 251": (PROSE + PROSE[:251] * 5, False),
    "white space after it": (PROSE + "ab" * 150 + "\n\n", True),
    "recovered": ("ab" * 500 + PROSE, False),
}


@pytest.mark.parametrize("case", LOOPS)
def test_loops(case):
    text, expected = LOOPS[case]
    assert scores.loops(text) == expected


def test_loops_are_quick_on_long_texts():
    began = time.perf_counter()
    assert not scores.loops("ab" * 2_000_000 + "c" + "a" * 199)
    assert time.perf_counter() - began < 1


def test_ragged_samples_name_the_problem():
    assert scores.rectangle({"a": [0, 1], "b": [1, 0]}) == []
    [line] = scores.rectangle({"a": [0, 1, 2], "b": [2]})
    assert line == "problem 'b' has 1 of 3 samples; missing: sample 0, 1"


@pytest.mark.parametrize("bad", [np.zeros((0, 4)), np.zeros((3, 0)), np.zeros(3), np.array([[0.0, math.nan]])])
def test_gaps_are_refused_and_not_taken_for_zero(bad):
    for function in (scores.average, lambda x: scores.pass_at_k(x, 1), lambda x: scores.majority([["1"]], x)):
        with pytest.raises(ValueError):
            function(bad)
    with pytest.raises(ValueError):
        scores.pass_at_k(np.ones((2, 2)), 3)
