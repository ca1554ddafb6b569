"""The device mesh and the one table that says which axis of an array lies along which axis of the
mesh.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec as P

from dft_jax.types import Batch

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # rows of a batch are spread over both
# said everywhere: the default became Explicit in JAX 0.11
AXIS_TYPES = (AxisType.Auto,) * len(MESH_AXES)

# Logical axis of an array -> axis of the mesh. Parameters name their axes where they are declared
# (models/).
RULES = {
    "batch": BATCH_AXES,
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "embed": "fsdp",
    "embed_activation": None,  # activations keep the width of the model whole
    "length": None,
    "head_dim": None,
    "norm": None,
    "layers": None,
}


def make_mesh(data: int, fsdp: int, tensor: int) -> Mesh:
    """A mesh over all devices of all processes; one size may be -1, for what is left.

    The sizes are assumed valid (config.validate_on says what is wrong with them).
    """
    sizes = mesh_sizes(data, fsdp, tensor, jax.device_count())
    return jax.make_mesh(sizes, MESH_AXES, axis_types=AXIS_TYPES)


def abstract_mesh(sizes: tuple[int, int, int]) -> AbstractMesh:
    """A mesh of devices that need not be there."""
    return AbstractMesh(sizes, MESH_AXES, axis_types=AXIS_TYPES)


def platform(mesh: Mesh | AbstractMesh) -> str:
    """What the mesh's devices are: "cpu", "gpu" or "tpu"; "unknown" where it is abstract.

    JAX's default backend may be another one: a step is compiled for a TPU on a machine without any.
    """
    return "unknown" if isinstance(mesh, AbstractMesh) else mesh.devices.flat[0].platform


def mesh_sizes(data: int, fsdp: int, tensor: int, device_count: int) -> tuple[int, int, int]:
    """Replaces the -1 by the number of devices that the other axes leave."""
    sizes = (data, fsdp, tensor)
    fixed = math.prod(size for size in sizes if size != -1)
    return tuple(device_count // fixed if size == -1 else size for size in sizes)


def batch_shards(mesh: Mesh) -> int:
    """The number of devices that rows are spread over."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def spec(shape: tuple[int, ...], axes: tuple[str, ...], mesh: Mesh) -> P:
    """The partition of an array with these logical axes. An axis that does not divide evenly is
    replicated.
    """
    assert len(shape) == len(axes), (shape, axes)
    parts = []
    for size, axis in zip(shape, axes, strict=True):
        mesh_axis = RULES[axis]
        ways = math.prod(
            mesh.shape[a]
            for a in (mesh_axis if isinstance(mesh_axis, tuple) else (mesh_axis,))
            if a
        )
        parts.append(mesh_axis if size % ways == 0 else None)
    return P(*parts)


def named(mesh: Mesh, *parts) -> NamedSharding:
    return NamedSharding(mesh, P(*parts))


def with_layout(x, mesh: Mesh, *parts):
    """Lays an array, or each of a tree, out along these axes of the mesh, inside jit; replicated
    without any.
    """
    return jax.lax.with_sharding_constraint(x, named(mesh, *parts))


def with_logical_layout(x: jax.Array, mesh: Mesh, *axes: str) -> jax.Array:
    """Pins an activation to the mesh by its logical axes, inside jit."""
    return with_layout(x, mesh, *spec(x.shape, axes, mesh))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of every [A, B, L] array of a step's batch: rows over data and fsdp."""
    return named(mesh, None, BATCH_AXES, None)


def device_batch(batch: Batch, mesh: Mesh, n_rows: int) -> Batch:
    """Puts this process's rows [A, b, L] of a batch with `n_rows` rows in all on its devices."""
    layout = batch_sharding(mesh)

    def place(rows_AbL):
        A, _, L = rows_AbL.shape
        return jax.make_array_from_process_local_data(layout, rows_AbL, (A, n_rows, L))

    return jax.tree.map(place, batch)


def abstract_batch(shape_ABL: tuple[int, int, int], mesh: Mesh) -> Batch:
    """Shapes, dtypes and shardings of the arrays of a step's batch."""
    dtypes = dataclasses.replace(
        Batch(*[jnp.int32] * len(dataclasses.fields(Batch))), mask_BL=jnp.bool
    )
    return jax.tree.map(
        lambda d: jax.ShapeDtypeStruct(shape_ABL, d, sharding=batch_sharding(mesh)), dtypes
    )


def process_rows(mesh: Mesh, n_rows: int) -> list[int]:
    """Which of `n_rows` rows the devices of this process hold, in order."""
    slices = batch_sharding(mesh).addressable_devices_indices_map((1, n_rows, 1)).values()
    return sorted({row for index in slices for row in range(*index[1].indices(n_rows))})
