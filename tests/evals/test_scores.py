"""Scores against independent oracles: enumeration of subsets, exact fractions, analytic errors,
coverage.
"""

import fractions
import itertools
import math
import time

import jaxtyping
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
        hits = [
            row[list(chosen)].any()
            for row in correct_PS
            for chosen in itertools.combinations(range(n_samples), k)
        ]
        assert scores.pass_at_k(correct_PS, k).mean() == pytest.approx(np.mean(hits), abs=1e-12)


@pytest.mark.parametrize(
    "n_samples,correct,k",
    [(16, 1, 8), (256, 3, 100), (1024, 1, 512), (4096, 5, 1000), (4096, 4000, 96)],
)
def test_pass_at_k_is_stable_for_large_numbers(n_samples, correct, k):
    row = np.arange(n_samples) < correct
    exact = 1 - fractions.Fraction(math.comb(n_samples - correct, k), math.comb(n_samples, k))
    assert scores.pass_at_k(row[None], k)[0] == pytest.approx(float(exact), rel=1e-12)


def test_pass_at_k_is_unbiased():
    """Over samples of a problem with chance p, the mean is 1 − (1−p)^k: an exact sum over the
    binomial distribution.
    """
    p, n_samples, k = 0.15, 12, 5
    expectation = sum(
        math.comb(n_samples, c) * p**c * (1 - p) ** (n_samples - c)
        * scores.pass_at_k(np.arange(n_samples)[None] < c, k)[0]
        for c in range(n_samples + 1)
    )  # fmt: skip
    assert expectation == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


@given(CORRECTNESS)
@settings(max_examples=100, deadline=None)
def test_relations_between_the_scores(correct_PS):
    n_samples = correct_PS.shape[1]
    passes = [scores.pass_at_k(correct_PS, k).mean() for k in range(1, n_samples + 1)]
    mean = scores.average(correct_PS)
    assert passes[0] == pytest.approx(mean.mean) == pytest.approx(correct_PS.mean())
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(passes))
    assert passes[-1] == pytest.approx(correct_PS.any(axis=1).mean())
    if mean.interval_95:
        low, high = mean.interval_95
        assert 0 <= low <= mean.mean <= high <= 1 and low < high and 0 < mean.standard_error <= 0.5


def test_error_of_independent_samples_is_the_binomial_one():
    """One sample per problem, p = 0.3: the analytic error is sqrt(p(1−p)/P), and the interval ±1.96
    of it.
    """
    n_problems = 500
    correct_PS = (np.arange(n_problems) < 0.3 * n_problems)[:, None]
    result = scores.average(correct_PS)
    analytic = math.sqrt(0.3 * 0.7 / n_problems)
    assert result.mean == pytest.approx(0.3)
    assert result.standard_error == pytest.approx(analytic, rel=0.005)
    assert result.interval_95 == pytest.approx(
        (0.3 - 1.96 * analytic, 0.3 + 1.96 * analytic), abs=0.002
    )


def test_error_follows_problems_not_samples():
    """Sixteen copies of a sample are no more evidence: the same error, where a naive one would be a
    quarter.
    """
    random = np.random.default_rng(1)
    once_PS = random.random((300, 1)) < 0.4
    often_PS = np.repeat(once_PS, 16, axis=1)
    once, often = scores.average(once_PS), scores.average(often_PS)
    assert often.standard_error == pytest.approx(once.standard_error, rel=1e-6)
    assert often.interval_95 == pytest.approx(once.interval_95, rel=1e-6)
    naive = math.sqrt(often.mean * (1 - often.mean) / often_PS.size)
    assert often.standard_error > 3.5 * naive


def coverage(truth, intervals):
    """The share of the intervals that hold the truth."""
    held = [low <= truth <= high for low, high in intervals]
    return np.mean(held)


@pytest.mark.parametrize("n_samples", [1, 16])
def test_the_interval_covers_with_few_and_hard_problems(n_samples):
    """AIME's case: 30 problems of which most are never solved. The bootstrap covered 79 and 84 %
    here.
    """
    random = np.random.default_rng(0)
    chance_NP = random.beta(0.05, 0.95, size=(2000, 30))
    share_NP = random.binomial(n_samples, chance_NP) / n_samples
    intervals = [scores.mean_of_shares(share_P).interval_95 for share_P in share_NP]
    assert coverage(0.05, intervals) >= 0.92
    # Nor is it had by being wide: 11.4 points is Wilson's for 0 of 30.
    assert np.median([high - low for low, high in intervals]) < 0.20


@pytest.mark.parametrize("n_samples", [1, 16])
def test_the_interval_of_a_difference_covers(n_samples):
    """Two models of which one is better on the problems that are neither easy nor hard."""
    random = np.random.default_rng(1)

    def differences(shape):
        chance = random.beta(0.1, 0.9, size=shape)
        better = chance + 0.5 * chance * (1 - chance)
        drawn = [random.binomial(n_samples, p) / n_samples for p in (better, chance)]
        return drawn[0] - drawn[1], (better - chance).mean()

    _, truth = differences(1_000_000)
    given_NP, _ = differences((2000, 30))
    found = [scores.mean_of_differences(given_P, n_samples) for given_P in given_NP]
    # None is said to hold nothing: it makes no claim. It is rare enough not to matter.
    intervals = [each.interval_95 for each in found if each.interval_95]
    assert len(intervals) >= (1900 if n_samples > 1 else 1500)
    assert coverage(truth, intervals) >= 0.92


def test_many_problems_give_the_textbook_interval():
    """Problems of uneven difficulty, 8 samples: ± t · sqrt(Var(m_p)/P)."""
    random = np.random.default_rng(2)
    chance_P = random.beta(0.5, 0.5, size=1200)
    share_P = (random.random((1200, 8)) < chance_P[:, None]).mean(axis=1)
    result = scores.mean_of_shares(share_P)
    error = share_P.std(ddof=1) / math.sqrt(1200)
    assert result.standard_error == pytest.approx(error, rel=0.002)
    assert result.interval_95 == pytest.approx(
        (result.mean - 1.962 * error, result.mean + 1.962 * error), abs=3e-4
    )


def test_nothing_and_everything_right_are_no_certainty():
    """0 of 30: Wilson's is 0 to 11.4 %, the rule of three 0 to 10 %; never 0 to 0."""
    for share, other in ((0.0, 1.0), (1.0, 0.0)):
        result = scores.mean_of_shares(np.full(30, share))
        assert result.mean == share and 0.02 < result.standard_error < 0.04
        near, far = sorted(result.interval_95, key=lambda end: abs(end - share))
        assert near == share and 0.09 < abs(far - share) < 0.12 and abs(far - other) < 1


def test_differences_of_one_sample_are_bonett_and_price():
    """Seven problems gained, one lost, of 40: ((7+1) − (1+1)) / 42 ± t · sqrt of the multinomial's
    variance.
    """
    result = scores.mean_of_differences(np.array([1.0] * 7 + [-1.0] + [0.0] * 32))
    center, n = 6 / 42, 42
    error = math.sqrt((10 / n - center**2) / (n - 1))
    assert result.mean == pytest.approx(6 / 40)
    assert result.interval_95 == pytest.approx(
        (center - 2.0195 * error, center + 2.0195 * error), abs=1e-4
    )


def test_a_difference_that_is_zero_everywhere_has_no_interval():
    assert scores.mean_of_differences(np.zeros(30), 16) == scores.Mean(0.0, None, None)
    assert scores.difference_over_benchmarks([np.zeros(3), np.zeros(4)], [1, 1]) == scores.Mean(
        0.0, None, None
    )


def test_the_mean_over_benchmarks_is_the_mean_of_independent_means():
    random = np.random.default_rng(5)
    shares = [random.binomial(16, random.beta(0.5, 0.5, size=n)) / 16 for n in (300, 900)]
    result = scores.mean_over_benchmarks(shares)
    errors = [scores.mean_of_shares(share_P).standard_error for share_P in shares]
    assert result.mean == pytest.approx(np.mean([share_P.mean() for share_P in shares]))
    assert result.standard_error == pytest.approx(math.hypot(*errors) / 2)
    half = (result.interval_95[1] - result.interval_95[0]) / 2
    assert half == pytest.approx(1.965 * result.standard_error, rel=0.005)
    assert scores.mean_over_benchmarks([shares[0], np.ones(1)]).interval_95 is None


def test_one_problem_says_nothing_of_others():
    assert scores.average(np.array([[True, False]])) == scores.Mean(0.5, None, None)
    assert scores.mean_of_differences(np.ones(1)) == scores.Mean(1.0, None, None)


def test_powers_of_two():
    assert [scores.powers_of_two(n) for n in (1, 2, 3, 16, 20)] == [
        [1], [1, 2], [1, 2, 3], [1, 2, 4, 8, 16], [1, 2, 4, 8, 16, 20]
    ]  # fmt: skip


# classes of one problem's answers, whether each is correct, whether the majority is.
MAJORITIES = {
    "plain": ([0, 0, 1], [1, 1, 0], True),
    "wrong majority": ([1, 0, 1], [0, 1, 0], False),
    "tie: the earliest wins": ([1, 0], [0, 1], False),
    "tie: the earliest wins, right": ([0, 1, 1, 0], [1, 0, 0, 1], True),
    "None does not vote": ([None, None, None, 0], [0, 0, 0, 1], True),
    "nobody votes": ([None, None], [0, 0], False),
    "one verdict was a timeout": ([1, 1, 2], [0, 1, 0], True),
    "spellings of one wrong answer": ([0, 1, 1], [1, 0, 0], False),
}


@pytest.mark.parametrize("case", MAJORITIES)
def test_majority(case):
    classes, correct, expected = MAJORITIES[case]
    assert scores.majority([classes], np.array([correct])).tolist() == [expected]


@given(st.lists(st.sampled_from([0, 1, 2, None]), min_size=1, max_size=7))
@settings(max_examples=200, deadline=None)
def test_majority_against_counting(classes):
    votes = [each for each in classes if each is not None]
    best = max((votes.count(each) for each in votes), default=0)
    winner = next((each for each in votes if votes.count(each) == best), None)
    correct_PS = np.array([[each == 0 for each in classes]])
    assert scores.majority([classes], correct_PS)[0] == (winner == 0)


PROSE = "".join(f"Step {i}: we add {i * i} to {i + 7}. " for i in range(60))

LOOPS = {
    "empty": ("", False),
    "prose": (PROSE, False),
    "short repetition": ("so " * 60, False),  # 179 characters
    "one character": (PROSE + "0" * 200, True),
    "199 of it": (PROSE + "x" + "0" * 199, False),
    "a sentence of 50": (
        PROSE + ("Wait, let me check that again, it should be fine. ")[:50] * 5,
        True,
    ),
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
    assert scores.ends_in_a_loop(text) == expected


def test_loops_are_quick_on_long_texts():
    began = time.perf_counter()
    assert not scores.ends_in_a_loop("ab" * 2_000_000 + "c" + "a" * 199)
    assert time.perf_counter() - began < 1


def test_ragged_samples_name_the_problem():
    assert scores.missing_samples({"a": [0, 1], "b": [1, 0]}) == []
    [line] = scores.missing_samples({"a": [0, 1, 2], "b": [2]})
    assert line == "problem 'b' has 1 of 3 samples; missing: sample 0, 1"


@pytest.mark.parametrize(
    "bad", [np.zeros((0, 4)), np.zeros((3, 0)), np.zeros(3), np.array([[0.0, math.nan]])]
)
def test_gaps_are_refused_and_not_taken_for_zero(bad):
    for function in (
        scores.average,
        lambda x: scores.pass_at_k(x, 1),
        lambda x: scores.majority([[1]], x),
    ):
        # The check of annotations, where it is on, is the first to refuse one axis instead of two.
        with pytest.raises((ValueError, jaxtyping.TypeCheckError)):
            function(bad)
    with pytest.raises(ValueError):
        scores.pass_at_k(np.ones((2, 2)), 3)
