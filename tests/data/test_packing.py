"""Packing: every example once, nothing across a boundary, few shapes, good efficiency."""

import numpy as np
from hypothesis import given, settings, strategies as st

from dft_jax.data import packing
from dft_jax.data.chat import Example


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
    """256 examples of about 512 tokens in rows of 2048: at least 97.5 % full (performance.md's floor)."""
    rng = np.random.default_rng(0)
    full = []
    for _ in range(20):
        sizes = np.clip(rng.lognormal(6.05, 0.6, size=256), 32, 2047).astype(int).tolist()
        full.append(sum(sizes) / (2048 * len(packing.best_fit(sizes, 2048))))
    assert np.mean(full) >= 0.975


def test_row_counts_are_few_and_enough():
    counts = packing.row_counts([61, 64, 63, 70], most=256, multiple=8)
    assert counts == [64, 72, 256]
    assert packing.row_counts([3, 4], most=4, multiple=16) == [16]


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
