"""The trained tokens of demonstrations, one after the other, and where they lie in packed rows."""

import dataclasses

import numpy as np
from jaxtyping import Int

from dft_jax.analysis import figures
from dft_jax.data import packing
from dft_jax.data.examples import Examples
from dft_jax.data.templates import Example
from dft_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class Tokens:
    """All T trained tokens: ids, and of which example and at which place of it each is."""

    id_T: Int[np.ndarray, " T"]
    example_T: Int[np.ndarray, " T"]
    position_T: Int[np.ndarray, " T"]


def tokens(examples: Examples) -> Tokens:
    """The trained tokens of all examples, in the order of the data."""
    ids = []
    numbers = []
    positions = []
    for number, example in enumerate(examples.examples):
        places = np.flatnonzero(figures.targets(example))
        ids.append(example.ids[places])
        numbers.append(np.full(len(places), number, np.int32))
        positions.append(places.astype(np.int32))
    return Tokens(np.concatenate(ids), np.concatenate(numbers), np.concatenate(positions))


class Numbered:
    """The same examples with the number of each trained token, 0 … T - 1, in the place of its id.

    Rows that are filled with them say where in a batch each token lies. They have no images, whose
    tokens are not theirs.
    """

    def __init__(self, examples: Examples):
        self.examples: list[Example] = []
        n_before = 0
        for example in examples.examples:
            # Tokens that are not trained get a number too; no mask ever selects it.
            numbers = n_before + np.cumsum(figures.targets(example)) - 1
            ids = numbers.astype(np.int32)
            self.examples.append(dataclasses.replace(example, ids=ids, images=()))
            n_before = int(numbers[-1]) + 1

    def placed(self, rows: list[list[int]], row_length: int) -> Batch:
        """Rows of these examples; where the mask is set, its targets are the numbers of tokens."""
        return packing.fill_rows(self.examples, rows, row_length)
