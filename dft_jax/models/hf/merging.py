"""Adapters added to the tensors of their base: W + s · B A, in float32 on the host."""

import dataclasses
from collections.abc import Mapping

import numpy as np

# Rows of a product that are made at once. The last bits of a product can depend on how many rows it
# has (one row goes another way through BLAS: 82 % of 8,192 columns of rank 64 differ), so these
# blocks begin at the same rows whatever rows are asked for.
_BLOCK_ROWS = 128


@dataclasses.dataclass(frozen=True)
class Pair:
    """The two matrices of one module, float32, and what their product is multiplied by."""

    a_ZI: np.ndarray  # [rank, inputs]
    b_OZ: np.ndarray  # [outputs, rank]
    scale: float

    def update(self, rows: slice = slice(None)) -> np.ndarray:
        """s · B A [outputs, inputs], float32; or these rows of it, which have the same bits."""
        start, stop, _ = rows.indices(len(self.b_OZ))
        update = np.empty((stop - start, self.a_ZI.shape[1]), np.float32)
        for first in range(start - start % _BLOCK_ROWS, stop, _BLOCK_ROWS):
            block = self.b_OZ[first : first + _BLOCK_ROWS] @ self.a_ZI
            begin, end = max(first, start), min(first + _BLOCK_ROWS, stop)
            update[begin - start : end - start] = block[begin - first : end - first]
        update *= np.float32(self.scale)
        return update


# By the name of the base's tensor that each adds to, as "model.layers.0.self_attn.q_proj.weight".
Pairs = Mapping[str, Pair]


def merged(tensor: np.ndarray, pair: Pair | None, rows: slice | None = None) -> np.ndarray:
    """A tensor of the base with what an adapter adds; as it is where there is no pair for it.

    Of one that was read in part `rows` are those that it is; the pair is of the whole. Which rows
    are read together changes nothing.

    Float32, whatever the base is: nothing is rounded here.
    """
    if pair is None:
        return tensor
    rows = rows or slice(None)
    # The others are as they are in the base: a sum would make -0 to 0.
    is_changed = pair.b_OZ[rows].any(axis=1)
    if not is_changed.any():
        return tensor
    # bfloat16 to float32 is exact; the sum is rounded once, when it is written or placed.
    total = tensor.astype(np.float32)
    np.add(total, pair.update(rows), out=total, where=is_changed[:, None])
    return total
