"""Parameters brought to the hosts that want them: each tensor whole on one host, not on all."""

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from dft_jax import sharding
from dft_jax.models.hf.merging import Pairs, merged
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.hf.tensors import Tensor
from dft_jax.models.model import Model
from dft_jax.models.spec import at
from dft_jax.runtime import interrupts
from dft_jax.types import Params

# The tensors that each process wants, by its number; one of them with its values, whole on the host
# and in the shape of the checkpoint; and what gives those of this process, in any order. All
# processes call it with the same, and take all that comes.
Wanted = Sequence[Sequence[Tensor]]
Fetched = tuple[Tensor, np.ndarray]
Fetch = Callable[[Wanted], Iterator[Fetched]]


def merged_fetch(checkpoint: Checkpoint, pairs: Pairs) -> Fetch:
    """Fetches from the checkpoint, with what an adapter adds in float32.

    What no pair adds to is as it is in the file. Every process reads what it wants, and no more.
    """

    def fetch(wanted: Wanted) -> Iterator[Fetched]:
        mine = wanted[jax.process_index()]
        for number in range(max(len(tensors) for tensors in wanted)):
            interrupts.check()  # as often on every process
            if number < len(mine):
                tensor = mine[number]
                host = checkpoint.read(tensor.name, tensor.row_slice)
                yield tensor, merged(host, pairs.get(tensor.name), tensor.row_slice)

    return fetch


def params_fetch(params: Params, model: Model) -> Fetch:
    """Fetches from the parameters of `model`, which lie over the devices of all processes.

    Layers, or experts, of a parameter come as many at a time as there are devices: each device gets
    a whole one that its process wants. So a device holds one tensor, and what goes over the network
    is what is wanted, not that times the number of devices. A parameter that is a single tensor
    comes to every device.
    """

    def fetch(wanted: Wanted) -> Iterator[Fetched]:
        # In the same order on every process.
        paths = sorted({tensor.path for tensors in wanted for tensor in tensors})
        for path in paths:
            of_path = [[one for one in tensors if one.path == path] for tensors in wanted]
            array, layout = at(params, path), at(model.abstract_params, path).sharding
            n_axes = max(len(one.index) for tensors in of_path for one in tensors)
            if n_axes:
                of_one = sharding.named(layout.mesh, *layout.spec[n_axes:])
                yield from _fetch_layers(array, of_one, of_path)
            else:
                yield from _fetch_single(array, layout.mesh, of_path[jax.process_index()])

    return fetch


def _fetch_single(array: jax.Array, mesh: Mesh, mine: list[Tensor]) -> Iterator[Fetched]:
    """A parameter that is one tensor, where this process wants it."""
    interrupts.check()
    # Each device would get one in any case.
    whole = _copied(array, mesh)
    for tensor in mine:
        yield tensor, np.asarray(whole.addressable_data(0)).reshape(tensor.shape)


def _fetch_layers(
    array: jax.Array, layout: NamedSharding, wanted: list[list[Tensor]]
) -> Iterator[Fetched]:
    """What the processes want of a parameter of many layers, of which this one's is yielded.

    `layout` is that of one layer, or expert, of it.
    """
    process_of = _process_of_slots(layout)
    assert set(process_of) == set(range(len(wanted))), "all processes have devices of the mesh"
    left = [list(tensors) for tensors in wanted]
    while any(left):
        interrupts.check()
        slots: list[Tensor | None] = []
        for process in process_of:
            slots.append(left[process].pop(0) if left[process] else None)
        yield from _exchange(array, layout, slots)


def _exchange(
    array: jax.Array, layout: NamedSharding, slots: list[Tensor | None]
) -> Iterator[Fetched]:
    """One tensor for each device, or none; yields those of this process's devices."""
    some = next(tensor for tensor in slots if tensor is not None)
    # A device whose process wants no more gets what another wants, and drops it.
    indices = np.array([(tensor or some).index for tensor in slots], np.int32)
    spread = _spread(array, tuple(indices.T), layout)
    for shard in spread.addressable_shards:
        tensor = slots[shard.index[0].start or 0]
        if tensor is not None:
            yield tensor, np.asarray(shard.data).reshape(tensor.shape)


def _process_of_slots(layout: NamedSharding) -> list[int]:
    """The process that has the device of each slot of `_spread`, of layers of this layout."""
    n_slots = layout.mesh.size
    slots = sharding.named(layout.mesh, (*sharding.copying(layout), *sharding.cutting(layout)))
    process_of = [0] * n_slots
    for device, (slot,) in slots.devices_indices_map((n_slots,)).items():
        process_of[slot.start or 0] = device.process_index
    return process_of


@functools.partial(jax.jit, static_argnames="mesh")
def _copied(array: jax.Array, mesh: Mesh) -> jax.Array:
    """The array, whole on every device (all-gather)."""
    return sharding.with_layout(array, mesh)


@functools.partial(jax.jit, static_argnames="layout")
def _spread(array: jax.Array, indices: tuple[jax.Array, ...], layout: NamedSharding) -> jax.Array:
    """[slots, …], of which each device has a whole one: what a parameter has at `indices`, each
    [slots], of its first axes; a layer of it has this layout.
    """
    mesh, spec = layout.mesh, list(layout.spec)
    # Devices with copies of a layer begin with other slots each.
    axes = sharding.copying(layout)
    spread = array[tuple(sharding.with_layout(index, mesh, axes) for index in indices)]
    spread = sharding.with_layout(spread, mesh, axes, *spec)
    # One axis after another becomes whole, and slots fewer (all-to-all); of all at once XLA would
    # make every slot whole on every device.
    for axis, part in enumerate(spec):
        if part is not None:
            axes += sharding.as_axes(part)
            spec[axis] = None
            spread = sharding.with_layout(spread, mesh, axes, *spec)
    return spread
