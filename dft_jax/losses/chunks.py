"""Cuts the trained positions of one device into chunks of C, and writes what is found there back.

Only trained positions are worth a row of logits: on instruction data about half of all positions
are prompt or padding. They are gathered to the front, in their order:

    position     0 1 2 3 4 5
    mask_N       0 1 1 0 1 0      with chunks of 2 tokens, N = 6:
    index_C      [1 2] [4 6]      6 = N is beyond the last position: it reads 0, and is not written
"""

import dataclasses

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, Shaped

from dft_jax import sharding


@dataclasses.dataclass(frozen=True)
class Chunks:
    """The trained positions of one device, in chunks of equal size, and their targets.

    `count` is a traced number, the same on all devices; targets are numbers within the device's
    slice of the vocabulary, below 0 or above it where they are in the slice of another device.
    """

    n_positions: int  # N
    chunk_tokens: int  # C
    count: Int[Array, ""]
    order_padded: Int[Array, " padded"]  # trained positions first; N from there on
    local_targets_N: Int[Array, " N"]

    def index(self, number: Int[Array, ""]) -> Int[Array, " C"]:
        """The positions of a chunk."""
        begin = number * self.chunk_tokens
        return lax.dynamic_slice(self.order_padded, (begin,), (self.chunk_tokens,))

    def targets(self, index_C: Int[Array, " C"]) -> Int[Array, " C"]:
        """The targets of these positions, as numbers within this device's slice."""
        return take(self.local_targets_N, index_C)

    def is_token(self, index_C: Int[Array, " C"]) -> Bool[Array, " C"]:
        """False for the positions that fill up the last chunk."""
        return index_C < self.n_positions


def size(n_positions: int, chunk_tokens: int) -> int:
    """Positions in a chunk: `chunk_tokens`, or fewer where the device has few."""
    # The last chunk is computed whole, so it must not be a large part of few positions.
    return min(chunk_tokens, max(n_positions // 4, 128), n_positions)


def cut(
    targets_BL: Int[Array, "B L"],
    mask_BL: Bool[Array, "B L"],
    chunk_tokens: int,
    vocab_axes: tuple[str, ...],
    local_vocab: int,
) -> Chunks:
    """Chunks of the positions where `mask_BL` is True; runs inside `shard_map`.

    Args:
      chunk_tokens: positions in a chunk, at most; fewer where the device has few.
      vocab_axes: axes of the mesh over which the vocabulary is cut; none where it is whole.
      local_vocab: entries of the vocabulary on this device.
    """
    n_positions = mask_BL.size
    chunk_tokens = size(n_positions, chunk_tokens)
    mask_N = mask_BL.reshape(-1)
    padded = -(-n_positions // chunk_tokens) * chunk_tokens
    (order_padded,) = jnp.nonzero(mask_N, size=padded, fill_value=n_positions)
    # The maximum over the devices with other positions: all make the same number of trips, so that
    # the collectives inside the loop meet. A device with fewer tokens has empty chunks at the end.
    count = lax.pmax(-(-mask_N.sum() // chunk_tokens), (*sharding.BATCH_AXES, "sequence"))
    first_id = lax.axis_index(vocab_axes) * local_vocab if vocab_axes else 0
    local_targets_N = targets_BL.reshape(-1) - first_id
    return Chunks(n_positions, chunk_tokens, count, order_padded, local_targets_N)


def take(array_N: Shaped[Array, "N ..."], index_C: Int[Array, " C"]) -> Shaped[Array, "C ..."]:
    """The entries at these positions; 0 beyond the last one."""
    return array_N.at[index_C].get(mode="fill", fill_value=0)


def put(
    array_N: Shaped[Array, "N ..."], index_C: Int[Array, " C"], value_C: Shaped[Array, "C ..."]
) -> Shaped[Array, "N ..."]:
    """`array_N` with these entries replaced; what is beyond the last position is dropped."""
    return array_N.at[index_C].set(value_C, mode="drop")
