"""How much of each array of the traced loss lies on one device.

The planner traces the step of one device as if it were alone, with its own rows and the vocabulary
of one device along `tensor`. Parameters are cut over `fsdp`, and gathered for use. Where rows are
shared along `fsdp` and `expert` (losses/devices.py), the loss has more hidden states and less of
the vocabulary.
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
from dft_jax.data import batches
from dft_jax.losses import chunks, devices
from dft_jax.models.model import DecoderSpec
from dft_jax.models.rematerialisation import OFFLOAD
from dft_jax.planner.devices import Device
from dft_jax.planner.layouts import StepLayout, part
from dft_jax.runtime.options import Config


def whole(shape: tuple[int, ...]) -> float:
    """Of an array of any shape, all of it."""
    del shape
    return 1.0


def gathered_keys(config: Config, architecture: DecoderSpec, layout: StepLayout) -> float:
    """Keys and values of the other devices' positions, which the trace of one device lacks.

    Where rows are cut, those of the whole rows come to each device (attention/sequence.py): of one
    layer at a time with their gradients, and under "none" those of every layer stay.
    """
    ways = layout.devices["sequence"]
    heads = part(architecture.num_kv_heads, layout.devices["tensor"])
    n_others = layout.rows * batches.row_length(config.data) * (ways - 1) // ways
    itemsize = jnp.dtype(config.model.compute_dtype).itemsize
    of_layer = 2 * n_others * heads * architecture.head_dim * itemsize
    kept = architecture.num_layers if layout.remat == "none" else 1
    return (kept + 1) * of_layer


def gathered_tokens(config: Config, architecture: DecoderSpec, layout: StepLayout) -> float:
    """Tokens of the other devices along `expert`, which the trace of one device lacks.

    Those of all devices come to each (models/moe.py). At once there are, of one layer, the tokens,
    the gradients of what the experts made of them, and their own; under "none" the tokens of every
    layer stay. A token's shares and numbers of experts are small beside it.
    """
    others = layout.devices["expert"] - 1
    of_layer = others * _hidden_bytes(config, architecture, layout)
    kept = 1
    if layout.remat == "none":
        kept = sum(layer.feed_forward == "experts" for layer in architecture.layers)
    return (kept + 2) * of_layer


def saving(layout: StepLayout, device: Device) -> str:
    """The policy of rematerialisation that counts: the host of a CPU has the CPU's own memory."""
    if layout.remat == OFFLOAD and device.platform == "cpu":
        return "full"
    return layout.remat


def host_bytes(
    config: Config, architecture: DecoderSpec, layout: StepLayout, device: Device
) -> float:
    """What a device keeps in the memory of its host: the inputs of all layers, or nothing."""
    if saving(layout, device) != OFFLOAD:
        return 0.0
    return architecture.num_layers * _hidden_bytes(config, architecture, layout)


def _hidden_bytes(config: Config, architecture: DecoderSpec, layout: StepLayout) -> int:
    """Of the hidden states of a device's part of its rows, between two layers."""
    length = batches.row_length(config.data) // layout.devices["sequence"]
    itemsize = jnp.dtype(config.model.compute_dtype).itemsize
    return layout.rows * length * architecture.hidden_size * itemsize


def in_loss(
    config: Config, architecture: DecoderSpec, layout: StepLayout
) -> Callable[[tuple[int, ...]], float]:
    """How much of an array of the traced loss a device holds, by the array's shape."""
    along, rows = layout.devices, layout.rows
    ways, tensor = along["fsdp"] * along["expert"], along["tensor"]
    length = batches.row_length(config.data) // along["sequence"]
    vocab, width = architecture.vocab_size, architecture.hidden_size
    mesh = sharding.abstract_mesh(layout.mesh)
    all_rows = (rows * sharding.batch_shards(mesh), length * along["sequence"])
    model = devices.Projection(_shape(*all_rows, width), _shape(vocab, width))
    inputs = devices.Inputs(model, None, _shape(*all_rows), _shape(*all_rows))
    if not devices.layout_of(inputs, mesh).shares_rows:
        return whole
    # It divides: rows would not be shared otherwise.
    vocab //= tensor
    held_chunk = chunks.size(rows * length * ways, config.train.loss_chunk_tokens)

    def share(shape: tuple[int, ...]) -> float:
        if shape[-1:] == (vocab,):
            # Logits [C, V], or numbers of tokens [V], which nothing keeps.
            return held_chunk / shape[0] / ways
        if vocab in shape:
            return 1 / ways
        if shape in ((rows * length, width), (rows, length, width)):
            return ways
        return 1.0

    return share


def _shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)
