"""Adapters added to the tensors of their base: W + s · B A, in float32 on the host."""

import dataclasses
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Pair:
    """The two matrices of one module, float32, and what their product is multiplied by."""

    a_ZI: np.ndarray  # [rank, inputs]
    b_OZ: np.ndarray  # [outputs, rank]
    scale: float

    def update(self, rows: slice | None = None) -> np.ndarray:
        """s · B A [outputs, inputs], float32; or these rows of it."""
        b_OZ = self.b_OZ if rows is None else self.b_OZ[rows]
        return np.float32(self.scale) * (b_OZ @ self.a_ZI)


# By the name of the base's tensor that each adds to, as "model.layers.0.self_attn.q_proj.weight".
Pairs = Mapping[str, Pair]


def merged(tensor: np.ndarray, pair: Pair | None, rows: slice | None = None) -> np.ndarray:
    """A tensor of the base with what an adapter adds; as it is where there is no pair for it.

    Of one that was read in part `rows` are those that it is; the pair is of the whole.

    Float32, whatever the base is: nothing is rounded here.
    """
    if pair is None:
        return tensor
    if rows is not None and not pair.b_OZ[rows].any():
        return tensor  # the adapter is of other rows; a sum would make -0 to 0
    # bfloat16 to float32 is exact; the sum is rounded once, when it is written or placed.
    return tensor.astype(np.float32) + pair.update(rows)
