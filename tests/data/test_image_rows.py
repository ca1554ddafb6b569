"""Tokens, positions and windows of images, against cases written out by hand and naive loops."""

import numpy as np
import pytest

from dft_jax.data.image_rows import CutImage, by_windows, expand, image_batch, positions_of
from dft_jax.data.sources.rows import BadRow
from dft_jax.models.spec import VisionSpec

IMAGE, START, END = 90, 91, 92
# Windows of 2 × 2 units, as in the example of types.ImageBatch; those of the model have 4 × 4.
SMALL = VisionSpec(2, 16, 2, 24, 16, (1,), 14, 2, 56, IMAGE, START, END)
MODEL = VisionSpec(2, 16, 2, 24, 16, (1,), 14, 2, 112, IMAGE, START, END)
A, B, C, D = 1, 2, 3, 4


def ids(*tokens):
    return np.array(tokens, np.int32)


def test_the_worked_example_of_positions():
    expanded = expand(ids(A, B, START, IMAGE, END, C, D), [(4, 6)], MODEL)
    np.testing.assert_array_equal(expanded, [A, B, START, *[IMAGE] * 6, END, C, D])
    found = positions_of(expanded, [(4, 6)], MODEL)
    np.testing.assert_array_equal(
        found,
        [
            [0, 1, 2, 3, 3, 3, 3, 3, 3, 6, 7, 8],
            [0, 1, 2, 3, 3, 3, 4, 4, 4, 6, 7, 8],
            [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8],
        ],
    )
    # What comes next has position 9, as the number of tokens is 12: delta = -3.
    assert found.max() + 1 - len(expanded) == -3


def test_two_images_and_an_image_at_the_end():
    expanded = expand(ids(START, IMAGE, END, START, IMAGE, END), [(4, 2), (2, 6)], MODEL)
    assert len(expanded) == 2 + 2 + 2 + 3
    found = positions_of(expanded, [(4, 2), (2, 6)], MODEL)
    np.testing.assert_array_equal(
        found,
        [
            [0, 1, 1, 3, 4, 5, 5, 5, 8],
            [0, 1, 2, 3, 4, 5, 5, 5, 8],
            [0, 1, 1, 3, 4, 5, 6, 7, 8],
        ],
    )
    # Cut off before its end token, as a prompt may be.
    np.testing.assert_array_equal(
        positions_of(expanded[:-1], [(4, 2), (2, 6)], MODEL), found[:, :-1]
    )


def test_text_has_ordinary_positions():
    np.testing.assert_array_equal(
        positions_of(ids(A, B, C), [], MODEL), np.tile(np.arange(3), (3, 1))
    )
    np.testing.assert_array_equal(expand(ids(A, B, C), [], MODEL), [A, B, C])


@pytest.mark.parametrize(
    "tokens, grids, words",
    [
        ([A, START, IMAGE, END], [], "1 tokens stand for an image, but the row has 0"),
        ([A, B], [(4, 4)], "0 tokens stand for an image, but the row has 1"),
        ([A, IMAGE, END], [(4, 4)], "not between"),
        ([START, IMAGE, A], [(4, 4)], "not between"),
        ([IMAGE], [(4, 4)], "not between"),
        # two of them without a frame between would be one run of tokens
        ([START, IMAGE, IMAGE, END], [(4, 4), (4, 4)], "not between"),
    ],
)
def test_tokens_that_do_not_fit_their_images_are_refused(tokens, grids, words):
    with pytest.raises(BadRow, match=words):
        expand(ids(*tokens), grids, MODEL)


def test_the_example_of_windows():
    order = by_windows((4, 6), SMALL)
    np.testing.assert_array_equal(order.windows_I, [0] * 16 + [1] * 8)
    np.testing.assert_array_equal(order.rows_I[::4], [0, 0, 2, 2, 0, 2])
    np.testing.assert_array_equal(order.cols_I[::4], [0, 2, 0, 2, 4, 4])
    # Within a unit, row by row.
    np.testing.assert_array_equal(order.rows_I[16:20], [0, 0, 1, 1])
    np.testing.assert_array_equal(order.cols_I[16:20], [4, 5, 4, 5])
    np.testing.assert_array_equal(order.places_J, [0, 1, 4, 2, 3, 5])


@pytest.mark.parametrize("grid", [(2, 2), (4, 6), (20, 12), (16, 16), (34, 22), (2, 60)])
def test_each_patch_comes_once_in_the_window_that_holds_it(grid):
    order = by_windows(grid, MODEL)
    # Where a patch is in the processor's order: units row by row, four patches each.
    unit = order.rows_I // 2 * (grid[1] // 2) + order.cols_I // 2
    expected = unit * 4 + order.rows_I % 2 * 2 + order.cols_I % 2
    np.testing.assert_array_equal(order.patches_I, expected)
    np.testing.assert_array_equal(np.sort(order.patches_I), np.arange(grid[0] * grid[1]))
    across = -(-grid[1] // 8)
    np.testing.assert_array_equal(order.windows_I, order.rows_I // 8 * across + order.cols_I // 8)
    # Contiguous, and at most 8 × 8.
    assert (np.diff(order.windows_I) >= 0).all() and np.bincount(order.windows_I).max() <= 64
    # A token finds its unit by its number.
    np.testing.assert_array_equal(unit[::4][order.places_J], np.arange(len(order.places_J)))


def cut(grid, first):
    patches = np.arange(grid[0] * grid[1], dtype=np.uint8)[:, None] + first
    return CutImage(np.repeat(patches.astype(np.uint8), 588, axis=1), grid)


def test_the_example_of_a_batch():
    """The row that types.ImageBatch shows, and one with two images of two examples."""
    two = [START, *[IMAGE] * 2, END, START, *[IMAGE] * 1, END, A]
    tokens_BL = np.array([[START, *[IMAGE] * 6, END], two], np.int32)
    positions_BL3 = np.zeros((2, 8, 3), np.int32)
    images = [[cut((4, 6), 0)], [cut((4, 2), 100), cut((2, 2), 200)]]
    batch = image_batch(tokens_BL, positions_BL3, images, SMALL, 32)
    np.testing.assert_array_equal(batch.windows_BI[0, ::4], [1, 1, 1, 1, 2, 2, 0, 0])
    np.testing.assert_array_equal(batch.images_BI[0, ::4], [1, 1, 1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(batch.units_BL[0], [0, 1, 2, 5, 3, 4, 6, 0])
    # Windows and images of a row have numbers of their own, so that none sees another.
    np.testing.assert_array_equal(batch.windows_BI[1, ::4], [1, 1, 2, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(batch.images_BI[1, ::4], [1, 1, 2, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(batch.units_BL[1], [0, 1, 2, 0, 0, 3, 0, 0])
    # Units 0,0 0,1 1,0 1,1, then those of the second window.
    np.testing.assert_array_equal(
        batch.patches_BIX[0, :24, 0], [*range(8), *range(12, 20), *range(8, 12), *range(20, 24)]
    )
    np.testing.assert_array_equal(
        batch.patches_BIX[1, :12, 0], [*range(100, 108), *range(200, 204)]
    )
    assert batch.patches_BIX.dtype == np.uint8 and batch.patches_BIX.shape == (2, 32, 588)
