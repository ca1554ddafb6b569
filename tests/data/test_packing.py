"""Packing: every example once, nothing across a boundary, few shapes, good efficiency."""

import itertools

import numpy as np
from hypothesis import given, settings, strategies as st

from dft_jax.data import packing
from dft_jax.data.templates import Example


def test_picture_of_best_fit():
    assert packing.best_fit([3, 5, 2, 4], 6) == [[1], [3, 2], [0]]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 50), max_size=40))
def test_every_example_is_placed_once_and_fits(sizes):
    rows = packing.best_fit(sizes, 50)
    assert sorted(n for row in rows for n in row) == list(range(len(sizes)))
    assert all(sum(sizes[n] for n in row) <= 50 for row in rows)
    if sizes:
        assert len(rows) <= 1.7 * -(-sum(sizes) // 50) + 1  # best fit's bound


def test_math_like_lengths_fill_the_rows():
    """256 examples of about 512 tokens in rows of 2048: 97.5 % full, performance.md's floor."""
    rng = np.random.default_rng(0)
    full = []
    for _ in range(20):
        sizes = np.clip(rng.lognormal(6.05, 0.6, size=256), 32, 2047).astype(int).tolist()
        full.append(sum(sizes) / (2048 * len(packing.best_fit(sizes, 2048))))
    assert np.mean(full) >= 0.975


def test_row_counts_are_few_and_enough():
    assert packing.row_counts([61, 64, 63, 70] * 10, multiple=8) == [64, 72]
    # too few steps for another compilation
    assert packing.row_counts([61, 64, 63, 70], multiple=8) == [72]
    assert packing.row_counts([3, 4], multiple=16) == [16]
    # a second one would save 1 row of 20,000
    assert packing.row_counts([200] * 99 + [199], multiple=1) == [200]
    rng = np.random.default_rng(0)
    needed = rng.normal(64, 3, size=25).astype(int).tolist()
    counts = packing.row_counts(needed, multiple=1)
    assert len(counts) == 3 and counts[-1] == max(needed)
    empty = sum(min(count for count in counts if count >= n) - n for n in needed)
    for other in itertools.combinations(range(min(needed), max(needed)), 2):  # none is better
        assert empty <= sum(
            min(count for count in (*other, counts[-1]) if count >= n) - n for n in needed
        )
    many = rng.normal(64, 3, size=400).astype(int)
    counts = np.array(packing.row_counts(many.tolist(), multiple=1))
    assert len(counts) <= 8 and counts[np.searchsorted(counts, many)].sum() < 1.012 * many.sum()


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
