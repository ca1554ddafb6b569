"""Best-fit packing of one step's examples into rows, and the few row counts that steps may have.

A step always trains exactly its own examples; packing only decides where they lie. So a batch keeps the
paper's meaning (256 examples), and an unpacked run would make the same update.
"""

import itertools

import numpy as np

from dft_jax.data.chat import Example
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


def row_counts(needed: list[int], multiple: int, at_most: int = 3) -> list[int]:
    """The row counts that steps are padded to: few, since each is a compilation, and with the fewest empty rows.

        needed [61, 64, 63, 70], multiple 8  ->  [64, 72]

    Args:
      needed: rows that each step takes.
      multiple: rows come in multiples of this (micro-batches × devices that rows are spread over).

    Returns:
      Ascending; the last is enough for every step. One that would save less than a percent of all rows is left out.
    """
    sizes, times = np.unique(round_up(np.array(needed), multiple), return_counts=True)

    def total(counts):
        return int(np.array(counts)[np.searchsorted(counts, sizes)] @ times)

    best = [sizes[-1]]
    for n in range(1, min(at_most, len(sizes))):
        found = min(([*chosen, sizes[-1]] for chosen in itertools.combinations(sizes[:-1], n)), key=total)
        best = found if total(found) < 0.99 * total(best) else best
    return [int(count) for count in best]


def round_up(n, multiple: int):
    return -(-n // multiple) * multiple


def fill_rows(examples: list[Example], rows: list[list[int]], row_length: int) -> Batch:
    """Writes rows of examples as a Batch of numpy arrays [len(rows), row_length]; see types.Batch for a picture."""
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
