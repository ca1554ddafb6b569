"""Packing: every example once, nothing across a boundary, few shapes, good efficiency."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from dft_jax.data import packing
from dft_jax.data.templates import Example


def test_picture_of_best_fit():
    assert packing.best_fit([3, 5, 2, 4], 6) == [[1], [3, 2], [0]]


def test_picture_of_fullest_rows():
    sizes = [4, 3, 3, 2, 2, 2]
    assert packing.fullest_rows(sizes, 8) == [[0, 3, 4], [1, 2, 5]] == packing.pack(sizes, 8)
    assert len(packing.best_fit(sizes, 8)) == 3


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 50), max_size=40))
@pytest.mark.parametrize("way", [packing.best_fit, packing.fullest_rows, packing.pack])
def test_every_example_is_placed_once_and_fits(way, sizes):
    rows = way(sizes, 50)
    assert sorted(n for row in rows for n in row) == list(range(len(sizes)))
    assert all(sum(sizes[n] for n in row) <= 50 for row in rows)
    if sizes:
        assert len(rows) <= 1.7 * -(-sum(sizes) // 50) + 1  # best fit's bound


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=9))
def test_a_row_is_filled_as_far_as_it_can_be(sizes):
    """Against all subsets; and no row more than best fit takes."""
    longest = max(sizes)
    others = sorted(sizes, reverse=True)[1:]
    fitting = [
        sum(some)
        for count in range(len(others) + 1)
        for some in itertools.combinations(others, count)
        if longest + sum(some) <= 20
    ]
    [first, *_] = packing.fullest_rows(sizes, 20)
    assert sum(sizes[number] for number in first) == longest + max(fitting)
    assert len(packing.pack(sizes, 20)) <= len(packing.best_fit(sizes, 20))


def test_short_examples_take_as_few_rows_as_their_tokens_fill():
    """256 like GSM8K's, about 210 tokens, in rows of 2048: best fit takes one too many in a third
    of the steps.
    """
    rng = np.random.default_rng(0)
    too_many = 0
    for _ in range(20):
        sizes = np.clip(rng.lognormal(5.28, 0.35, size=256), 90, 560).astype(int).tolist()
        fewest = -(-sum(sizes) // 2048)
        assert len(packing.pack(sizes, 2048)) == fewest
        too_many += len(packing.best_fit(sizes, 2048)) > fewest
    assert too_many >= 3


def test_math_like_lengths_fill_the_rows():
    """256 examples of about 512 tokens in rows of 2048: 97.5 % full, performance.md's floor."""
    rng = np.random.default_rng(0)
    full = []
    for _ in range(20):
        sizes = np.clip(rng.lognormal(6.05, 0.6, size=256), 32, 2047).astype(int).tolist()
        full.append(sum(sizes) / (2048 * len(packing.best_fit(sizes, 2048))))
    assert np.mean(full) >= 0.975


def test_row_counts_are_few_and_enough():
    steps = [61, 64, 63, 70] * 10
    assert packing.row_counts(steps, multiple=8, compilation_rows=200) == [64, 72]
    # the second saves 8 rows in 30 steps
    assert packing.row_counts(steps, multiple=8, compilation_rows=239) == [64, 72]
    assert packing.row_counts(steps, multiple=8, compilation_rows=241) == [72]
    assert packing.row_counts([3, 4], multiple=16, compilation_rows=0) == [16]
    # slow rows of few steps: no row is computed in vain
    assert packing.row_counts([6, 8, 7], multiple=1, compilation_rows=0.5) == [6, 7, 8]
    assert packing.row_counts([6, 8, 7], multiple=1, compilation_rows=2) == [8]
    many = np.random.default_rng(0).normal(64, 3, size=400).astype(int).tolist()
    counts = np.array(packing.row_counts(many, multiple=1, compilation_rows=0))
    assert len(counts) == 8 and counts[np.searchsorted(counts, many)].sum() < 1.012 * sum(many)


@pytest.mark.parametrize("compilation_rows", [0.0, 3.0, 10.0, 40.0, 1000.0])
def test_no_other_row_counts_cost_less(compilation_rows):
    """Rows of all steps and of all compilations, against every choice of counts."""
    needed = np.random.default_rng(1).normal(20, 3, size=25).astype(int).tolist()
    sizes = sorted(set(needed))

    def cost(counts):
        rows = sum(min(count for count in counts if count >= n) for n in needed)
        return rows + compilation_rows * len(counts)

    chosen = packing.row_counts(needed, 1, compilation_rows)
    assert len(chosen) <= 8 and chosen[-1] == max(needed)
    for n_others in range(8):
        for others in itertools.combinations(sizes[:-1], n_others):
            assert cost(chosen) <= cost([*others, sizes[-1]])


def test_picture_of_a_batch():
    """The picture in types.Batch, number by number."""
    a, b, c, x, y = 11, 12, 13, 0, 15  # id 0 is a token like any other
    examples = [
        Example(np.array([a, b, c], np.int32), np.array([False, False, True]), 0),
        Example(np.array([x, y], np.int32), np.array([False, True]), 0),
    ]
    batch = packing.fill_rows(examples, [[0, 1], []], 5)
    np.testing.assert_array_equal(batch.tokens_BL, [[a, b, x, 0, 0], [0] * 5])
    np.testing.assert_array_equal(batch.targets_BL, [[b, c, y, 0, 0], [0] * 5])
    np.testing.assert_array_equal(batch.mask_BL, [[0, 1, 1, 0, 0], [0] * 5])
    np.testing.assert_array_equal(batch.segments_BL, [[1, 1, 2, 0, 0], [0] * 5])
    np.testing.assert_array_equal(batch.positions_BL, [[0, 1, 0, 0, 0], [0] * 5])
