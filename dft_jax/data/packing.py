"""Best-fit packing of one step's examples into rows, and the few row counts that steps may have.

A step always trains exactly its own examples; packing only decides where they lie. So a batch keeps
the paper's meaning (256 examples), and an unpacked run would make the same update.
"""

import functools

import numpy as np

from dft_jax.data.templates import Example
from dft_jax.types import Batch


def slots(example: Example) -> int:
    """Positions an example takes: its last token is only a target."""
    return len(example.ids) - 1


def best_fit(sizes: list[int], row_length: int) -> list[list[int]]:
    """Best-fit decreasing: longest first, each into the fullest row that still holds it.

        sizes [3, 5, 2, 4], row_length 6  ->  [[1], [3, 2], [0]]   that is 5 | 4 + 2 | 3

    Returns the example numbers of each row. Ties go to the lower number, so the result is unique.
    """
    rows: list[list[int]] = []
    room = np.empty(len(sizes), np.int64)
    for number in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        assert sizes[number] <= row_length, "examples are cut to the row before packing"
        left = room[: len(rows)] - sizes[number]
        fits = np.flatnonzero(left >= 0)
        if len(fits):
            row = fits[np.argmin(left[fits])]
        else:
            row = len(rows)
            rows.append([])
            room[row] = row_length
        rows[row].append(number)
        room[row] -= sizes[number]
    return rows


def row_counts(needed: list[int], multiple: int) -> list[int]:
    """The row counts that steps are padded to: few, since each is a compilation, and with the
    fewest empty rows.

        needed [61, 64, 63, 70] ten times, multiple 8  ->  [64, 72]

    Args:
      needed: rows that each step takes.
      multiple: rows come in multiples of this (micro-batches × devices that rows are spread over).

    Returns:
      Ascending; the last is enough for every step. At most eight, and one more for every ten steps;
      each saves at least a quarter percent of all rows.
    """
    sizes, times = np.unique(round_up(np.array(needed), multiple), return_counts=True)
    n_steps = np.cumsum(times)  # of this size, or smaller

    @functools.cache
    def fewest(last: int, n: int) -> tuple[int, list[int]]:
        """Rows of the steps up to size number `last` in at most n counts, and these."""
        options = [(0, [], 0)]
        options += [
            (*fewest(first, n - 1), n_steps[first]) for first in range(last if n > 1 else 0)
        ]
        return min(
            (rows + int(sizes[last] * (n_steps[last] - done)), [*counts, int(sizes[last])])
            for rows, counts, done in options
        )

    found = [fewest(len(sizes) - 1, n) for n in range(1, min(8, 1 + len(needed) // 10) + 1)]
    best = found[0]
    for more in found[1:]:
        best = more if more[0] < 0.9975 * best[0] else best
    return best[1]


def round_up(n, multiple: int):
    return -(-n // multiple) * multiple


def fill_rows(examples: list[Example], rows: list[list[int]], row_length: int) -> Batch:
    """Writes rows of examples as a Batch of numpy arrays [len(rows), row_length]; see types.Batch
    for a picture.
    """
    shape = (len(rows), row_length)
    tokens, targets, segments, positions = (np.zeros(shape, np.int32) for _ in range(4))
    mask = np.zeros(shape, bool)
    for row, numbers in enumerate(rows):
        start = 0
        for segment, number in enumerate(numbers, start=1):
            example = examples[number]
            here = slice(start, start + slots(example))
            tokens[row, here] = example.ids[:-1]
            targets[row, here] = example.ids[1:]
            mask[row, here] = example.trained[1:]
            segments[row, here] = segment
            positions[row, here] = np.arange(slots(example))
            start = here.stop
    return Batch(tokens, targets, mask, segments, positions)
