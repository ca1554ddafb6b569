"""How much of each array of the traced loss lies on one device.

The planner traces the step of one device as if it were alone, with its own rows and the vocabulary
of one device along `tensor`. Parameters are cut over `fsdp`, and gathered for use. Where rows are
shared along `fsdp` (losses/devices.py), the loss has more hidden states and less of the vocabulary.
Of two devices along it:

                     traced     held
    hidden states    N × D      2N × D
    head             V × D      ½V × D
    logits           C × V      ½V × C, and C may be larger, because there are more positions
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dft_jax import sharding
from dft_jax.losses import chunks, devices
from dft_jax.models.model import DecoderSpec


def whole(shape: tuple[int, ...]) -> float:
    """Of an array of any shape, all of it."""
    del shape
    return 1.0


def in_loss(
    architecture: DecoderSpec,
    mesh: tuple[int, int, int],
    shape_BL: tuple[int, int],
    chunk_tokens: int,
) -> Callable[[tuple[int, ...]], float]:
    """How much of an array of the traced loss a device holds, by the array's shape.

    Args:
      mesh: devices along data, fsdp and tensor.
      shape_BL: rows of one device in a micro-batch, and their length.
      chunk_tokens: as in config.train.loss_chunk_tokens.
    """
    data, fsdp, tensor = mesh
    rows, length = shape_BL
    vocab, width = architecture.vocab_size, architecture.hidden_size
    all_rows = (rows * data * fsdp, length)
    model = devices.Projection(_shape(*all_rows, width), _shape(vocab, width))
    inputs = devices.Inputs(model, None, _shape(*all_rows), _shape(*all_rows))
    if not devices.layout_of(inputs, sharding.abstract_mesh(mesh)).shares_rows:
        return whole
    # It divides: rows would not be shared otherwise.
    vocab //= tensor
    held_chunk = chunks.size(rows * length * fsdp, chunk_tokens)

    def share(shape: tuple[int, ...]) -> float:
        if shape[-1:] == (vocab,):
            # Logits [C, V], or numbers of tokens [V], which nothing keeps.
            return held_chunk / shape[0] / fsdp
        if vocab in shape:
            return 1 / fsdp
        if shape in ((rows * length, width), (rows, length, width)):
            return fsdp
        return 1.0

    return share


def _shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)
