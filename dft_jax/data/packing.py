"""Packing of one step's examples into rows, and the few row counts that steps may have.

A step always trains exactly its own examples; packing only decides where they lie. So a batch keeps
the paper's meaning (256 examples), and an unpacked run would make the same update.
"""

import functools
import math
from typing import overload

import numpy as np

from dft_jax.data import image_files
from dft_jax.data.templates import Example
from dft_jax.models.spec import VisionSpec
from dft_jax.types import Batch

# Row counts of a run: at most so many.
_MOST_COUNTS = 8


def slots(example: Example) -> int:
    """Positions an example takes: its last token is only a target."""
    return len(example.ids) - 1


def pack(
    sizes: list[int], row_length: int, patches: list[int] | None = None, most_patches: int = 0
) -> list[list[int]]:
    """The fewest rows of two ways: `best_fit`, and `fullest_rows` where that has a row too many.

    A step of 256 short examples is some thirty rows, so that one of them is three per cent. With
    images it is `best_fit` alone.

    Args:
      sizes: positions that each example takes, at most `row_length`.
      row_length: positions of a row.
      patches: of the images of each example, at most `most_patches`; None where none has images.
      most_patches: that a row may have.

    Returns:
      The example numbers of each row; always the same for the same sizes.
    """
    rows = best_fit(sizes, row_length, patches, most_patches)
    least_rows = -(-sum(sizes) // row_length)
    if len(rows) == least_rows or patches is not None:
        return rows
    filled = fullest_rows(sizes, row_length)
    return filled if len(filled) < len(rows) else rows


def best_fit(
    sizes: list[int], row_length: int, patches: list[int] | None = None, most_patches: int = 0
) -> list[list[int]]:
    """Best-fit decreasing: longest first, each into the fullest row that still holds it.

        sizes [3, 5, 2, 4], row_length 6  ->  [[1], [3, 2], [0]]   that is 5 | 4 + 2 | 3

    A row holds an example where there is room for its images as well; see `pack`.

    Returns the example numbers of each row. Ties go to the lower number, so the result is unique.
    """
    rows: list[list[int]] = []
    room = np.empty(len(sizes), np.int64)
    image_room = np.full(len(sizes), most_patches)
    if patches is None:
        patches = [0] * len(sizes)
    longest_first = sorted(range(len(sizes)), key=lambda number: (-sizes[number], number))
    for number in longest_first:
        assert sizes[number] <= row_length, "examples are cut to the row before packing"
        assert patches[number] <= most_patches, "examples with more are left out before packing"
        left = room[: len(rows)] - sizes[number]
        fits = np.flatnonzero((left >= 0) & (image_room[: len(rows)] >= patches[number]))
        if len(fits):
            # The fullest row: short gaps at the ends of rows are what packing loses.
            row = fits[np.argmin(left[fits])]
        else:
            row = len(rows)
            rows.append([])
            room[row] = row_length
        rows[row].append(number)
        room[row] -= sizes[number]
        image_room[row] -= patches[number]
    return rows


def fullest_rows(sizes: list[int], row_length: int) -> list[list[int]]:
    """Row by row: the longest example that is left, with those others that fill the row most.

        sizes [4, 3, 3, 2, 2, 2], row_length 8  ->  [[0, 3, 4], [1, 2, 5]]   best_fit has three rows

    Of several fillings, the one with the longest examples. (The minimum bin slack heuristic of
    Gupta and Ho, 1999; the sets are found by dynamic programming, a bit for each sum.)

    Returns the example numbers of each row, as `best_fit` does.
    """
    rows = []
    left = sorted(range(len(sizes)), key=lambda number: (-sizes[number], number))
    while left:
        first, *others = left
        chosen = _fullest([sizes[number] for number in others], row_length - sizes[first])
        rows.append([first, *(others[place] for place in chosen)])
        left = [number for place, number in enumerate(others) if place not in chosen]
    return rows


def _fullest(sizes: list[int], room: int) -> set[int]:
    """The places of those sizes whose sum is the largest that `room` holds."""
    # Bit s of reachable[k] says whether some of the first k sizes have the sum s.
    reachable = [1]
    for size in sizes:
        sums = reachable[-1]
        reachable.append((sums | sums << size) & ((1 << (room + 1)) - 1))
    rest = reachable[-1].bit_length() - 1
    chosen = set()
    for place in reversed(range(len(sizes))):
        # This one is needed where those before it do not reach the sum.
        if not reachable[place] >> rest & 1:
            chosen.add(place)
            rest -= sizes[place]
    return chosen


def row_counts(needed: list[int], multiple: int, compilation_rows: float) -> list[int]:
    """The row counts that steps are padded to: those with the fewest empty rows.

    They are few, because each is a compilation of the step, which takes minutes on large models:
    one more is chosen where the empty rows that it saves take longer.

        needed [61, 64, 63, 70] ten times, multiple 8, compilation_rows 200  ->  [64, 72]
        the same, compilation_rows 300                                       ->  [72]

    Args:
      needed: rows that each step takes.
      multiple: rows come in multiples of this (micro-batches × devices that rows are spread over).
      compilation_rows: rows that are computed in the time of one compilation.

    Returns:
      Ascending; the last is enough for every step; at most eight.
    """
    sizes, times = np.unique(round_up(np.array(needed), multiple), return_counts=True)
    # Steps of each size, or smaller.
    n_steps = np.cumsum(times)

    @functools.cache
    def fewest(last: int, n_counts: int) -> tuple[int, list[int]]:
        """Rows of the steps up to size number `last` in at most so many counts, and these counts.

        Dynamic programming: the largest count is sizes[last], the steps up to another size are
        padded to smaller ones.
        """
        largest = int(sizes[last])
        best = (largest * int(n_steps[last]), [largest])
        if n_counts == 1:
            return best
        for first in range(last):
            rows, counts = fewest(first, n_counts - 1)
            padded_to_largest = int(n_steps[last] - n_steps[first])
            best = min(best, (rows + largest * padded_to_largest, [*counts, largest]))
        return best

    best_cost, best = math.inf, []
    for n_counts in range(1, _MOST_COUNTS + 1):
        rows, counts = fewest(len(sizes) - 1, n_counts)
        cost = rows + compilation_rows * len(counts)
        if cost < best_cost:
            best_cost, best = cost, counts
    return best


def most_segments(rows: list[list[int]]) -> int:
    """The most segments of a row, padding one of them: a power of two that is at least so many.

    Each is a compilation, so there are few. `rows` have the ids of their examples.
    """
    most = 1 + max((len(row) for row in rows), default=0)
    return 1 << (most - 1).bit_length()


@overload
def round_up(n: int, multiple: int) -> int: ...
@overload
def round_up(n: np.ndarray, multiple: int) -> np.ndarray: ...
def round_up(n: int | np.ndarray, multiple: int) -> int | np.ndarray:
    """The smallest multiple that is at least n, of a number or of each of an array."""
    return -(-n // multiple) * multiple


def fill_rows(
    examples: list[Example],
    rows: list[list[int]],
    row_length: int,
    most: int | None = None,
    with_weights: bool = False,
    vision: VisionSpec | None = None,
    n_patches: int = 0,
    features_dtype: str = "",
) -> Batch:
    """Writes rows of example ids as a Batch of numpy arrays [len(rows), row_length].

    A picture of one is in types.Batch. Its `most_segments` are those of these rows, or `most`; it
    has weights where they are asked for.

    Args:
      vision: of the model whose tower sees the images.
      n_patches: of a row, padding included; 0 where no row has images.
      features_dtype: of the kept features of the images, which are read in their place; empty where
        none are.

    Raises:
      UserError: an image is another one than when it was looked at, or features are damaged.
    """
    shape = (len(rows), row_length)
    tokens = np.zeros(shape, np.int32)
    targets = np.zeros(shape, np.int32)
    mask = np.zeros(shape, bool)
    segments = np.zeros(shape, np.int32)
    positions = np.zeros(shape, np.int32)
    weights = None
    if with_weights:
        weights = np.zeros(shape, np.float32)
    for row, example_ids in enumerate(rows):
        start = 0
        # Segment 0 is padding.
        for segment, example_id in enumerate(example_ids, start=1):
            example = examples[example_id]
            here = slice(start, start + slots(example))
            tokens[row, here] = example.ids[:-1]
            targets[row, here] = example.ids[1:]
            mask[row, here] = example.target_mask()
            if weights is not None:
                weights[row, here] = example.target_weights()
            segments[row, here] = segment
            positions[row, here] = np.arange(slots(example))
            start = here.stop
    if most is None:
        most = most_segments(rows)
    images = None
    if n_patches:
        assert vision is not None, "examples have images where the model has a tower"
        shown = []  # of each row; the last token of an example is only a target
        for example_ids in rows:
            of_row = [examples[example_id] for example_id in example_ids]
            shown.append([(example.ids[:-1], example.images) for example in of_row])
        if features_dtype:
            images = image_files.fill_features(tokens, shown, vision, n_patches, features_dtype)
        else:
            images = image_files.fill(tokens, shown, vision, n_patches)
    return Batch(tokens, targets, mask, segments, positions, most, weights, images)
