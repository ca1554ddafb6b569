"""The device mesh, and the one table that maps axes of arrays to axes of the mesh."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import (
    AbstractDevice,
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec as P,
)
from jaxtyping import Shaped

from dft_jax.runtime import errors
from dft_jax.runtime.options import Legal, Option
from dft_jax.types import AnyArray, AnyMesh, Batch, FeatureBatch, ImageBatch


class Sizes(NamedTuple):
    """Devices along each axis of a mesh; -1 is what the others leave."""

    data: int
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1
    expert: int = 1

    @property
    def fixed(self) -> int:
        """Devices that the sizes make, without that of -1."""
        return math.prod(size for size in self if size != -1)

    def on(self, device_count: int) -> "Sizes":
        """With -1 replaced by the number of devices that the other axes leave."""
        rest = device_count // self.fixed
        return Sizes(*(rest if size == -1 else size for size in self))

    def __str__(self) -> str:
        """As in `data=2 × fsdp=4 × tensor=1`; of the other axes those that cut something."""
        axes = self._asdict().items()
        return " × ".join(
            f"{axis}={size}"
            for axis, size in axes
            if axis in ("data", "fsdp", "tensor") or size != 1
        )


# As `Sizes`, of which the last may be left out.
SomeSizes = tuple[int, ...]

MESH_AXES = Sizes._fields
BATCH_AXES = ("data", "fsdp", "expert")  # rows of a batch are spread over them
# Named at every mesh: the default became Explicit in JAX 0.11.
AXIS_TYPES = (AxisType.Auto,) * len(MESH_AXES)

_SIZE = Legal(lambda size: size >= 1 or size == -1, "at least 1, or -1 for the rest")
# config.mesh
SECTION = {
    "data": Option(-1, "replicas; -1 takes the devices that the other axes leave", _SIZE),
    "fsdp": Option(1, "devices over which parameters are sharded, gathered for use", _SIZE),
    "tensor": Option(1, "devices over which heads, feed-forward and vocabulary are split", _SIZE),
    "sequence": Option(1, "devices over which the positions of each row are split", _SIZE),
    "expert": Option(1, "devices over which experts are split, and rows with them", _SIZE),
}

# Logical axis of an array -> axis of the mesh. Parameters name their axes where they are declared
# (models/).
RULES = {
    "batch": BATCH_AXES,
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "experts": "expert",  # each device has some, or all where there is one along that axis
    "router": None,  # the shares of a token's experts are made where the token is
    "embed": "fsdp",
    "embed_activation": None,  # activations keep the width of the model whole
    "length": "sequence",
    "head_dim": None,
    "norm": None,
    "layers": None,
    "rank": None,
    "qkv": None,  # queries, keys and values in one kernel
    "pixels": None,
}


# Over which the width of parameters is cut: copies along `sequence` would take the memory that
# shorter rows save, and along `expert` all but the experts would be copies.
_PARAMETERS = ("fsdp", "expert", "sequence")


def make_mesh(*sizes: int, **of_axes: int) -> Mesh:
    """A mesh over all devices of all processes, of sizes as `Sizes` takes them.

    They are assumed valid (`problems` says what is wrong with them).
    """
    devices = jax.devices()
    return mesh_on(devices, Sizes(*sizes, **of_axes).on(len(devices)))


def mesh_on(devices: Sequence[Any], sizes: SomeSizes) -> Mesh:
    """A mesh over the first of these devices, as many as the sizes make."""
    array = device_array(devices[: math.prod(sizes)], sizes)
    return Mesh(array, MESH_AXES, axis_types=AXIS_TYPES)


def device_array(devices: Sequence[Any], sizes: SomeSizes) -> np.ndarray:
    """The devices as an array of these sizes, neighbours in it near each other on the network."""
    sizes, n_slices = Sizes(*sizes), slice_count(devices)
    if n_slices > 1:
        return across_slices(sizes, devices, n_slices)
    # Not jax.make_mesh, which finds no place on a grid of v5p or v6e for many sizes: for fsdp=8 ×
    # tensor=2 on 4 × 4 chips.
    return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)


def checked_mesh(*sizes: int, **of_axes: int) -> Mesh:
    """`make_mesh` of sizes that a user gives.

    Raises:
      UserError: sizes that do not fit the devices, or their slices.
    """
    given = Sizes(*sizes, **of_axes)
    errors.raise_if_any(problems(given, jax.device_count(), tpu_slices()))
    return make_mesh(*given)


def slice_count(devices: Sequence[Any]) -> int:
    """How many groups of devices there are with a network of their own, faster than the others'.

    That is TPU slices, and of GPUs what one node (or NVLink domain) holds.
    """
    # No attribute: devices that JAX knows no slices of, as CPUs.
    return len({getattr(device, "slice_index", 0) for device in devices})


def across_slices(sizes: Sizes, devices: Sequence[Any], n_slices: int) -> np.ndarray:
    """The devices of several slices as an array of these sizes.

    `data` goes over the network between slices, where gradients meet once in each micro-batch; the
    others, which move parameters and activations in every layer, stay within a slice.
    """
    data, *others = sizes
    if is_within_slices(data, n_slices):
        return mesh_utils.create_hybrid_device_mesh(
            (data // n_slices, *others),
            (n_slices, *[1] * len(others)),
            devices,
            allow_split_physical_axes=True,  # as in `mesh_on`
        )
    # GPUs of several nodes, whose network is slower and still made for it: node after node.
    ordered = sorted(devices, key=lambda device: device.id)
    return np.array(ordered, dtype=object).reshape(sizes)


def is_within_slices(data: int, n_slices: int) -> bool:
    """Whether all axes but `data` stay within a slice."""
    return data % n_slices == 0


def local_mesh(mesh: Mesh) -> Mesh:
    """Those devices of a mesh that this process has, each with rows of its own."""
    devices = np.array(mesh.local_devices, dtype=object).reshape(-1, *[1] * (len(MESH_AXES) - 1))
    return Mesh(devices, MESH_AXES, axis_types=AXIS_TYPES)


def abstract_mesh(sizes: tuple[int, ...], platform: str = "unknown") -> AbstractMesh:
    """A mesh of devices that need not be there; `platform` is "cpu", "gpu" or "tpu"."""
    device = AbstractDevice(device_kind=platform, num_cores=None, platform=platform)
    return AbstractMesh(Sizes(*sizes), MESH_AXES, axis_types=AXIS_TYPES, abstract_device=device)


def platform(mesh: AnyMesh) -> str:
    """What the mesh's devices are, or would be where it is abstract: "cpu", "gpu" or "tpu".

    JAX's default backend may be another one: a step is compiled for a TPU on a machine without any.
    """
    if isinstance(mesh, AbstractMesh):
        return mesh.abstract_device.platform
    return mesh.devices.flat[0].platform


def problems(sizes: Sizes, device_count: int, tpu_slices: int = 1) -> list[str]:
    """What is wrong with the sizes of a mesh on this number of devices, in so many TPU slices."""
    n_free, fixed = sizes.count(-1), sizes.fixed
    if n_free > 1:
        return [f"config.mesh: {sizes}: only one axis can be -1; give the sizes of the others"]
    fits = device_count % fixed == 0 if n_free else device_count == fixed
    if fits:
        return _slice_problems(sizes.on(device_count), sizes, tpu_slices)
    product = f"{fixed} × the rest" if n_free else str(fixed)
    legal = ", ".join(str(n) for n in range(1, device_count + 1) if device_count % n == 0)
    return [
        f"config.mesh: {sizes} makes {product}, but there are {device_count} devices;"
        f" axis sizes should divide {device_count} ({legal}) and multiply to it"
    ]


def _slice_problems(sizes: Sizes, given: Sizes, tpu_slices: int) -> list[str]:
    """Only `data` can go from slice to slice."""
    if is_within_slices(sizes.data, tpu_slices):
        return []
    in_slice = math.prod(sizes) // tpu_slices
    return [
        f"config.mesh: {given} over {tpu_slices} TPU slices: data={sizes.data} is no multiple of"
        f" {tpu_slices}, and nothing else can go from slice to slice; give fsdp and tensor whose"
        f" product divides the {in_slice} devices of a slice"
    ]


def tpu_slices() -> int:
    """How many TPU slices the devices of all processes lie in; 1 where they are no TPUs."""
    devices = jax.devices()
    if devices[0].platform != "tpu":
        return 1
    return slice_count(devices)


def batch_shards(mesh: AnyMesh) -> int:
    """The number of devices that rows are spread over."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def spec(shape: tuple[int, ...], axes: tuple[str, ...], mesh: AnyMesh) -> P:
    """The partition of an array with these logical axes.

    An axis that does not divide evenly is replicated.
    """
    assert len(shape) == len(axes), (shape, axes)
    parts: list[str | tuple[str, ...] | None] = []
    for size, axis in zip(shape, axes, strict=True):
        mesh_axis = RULES[axis]
        if size % _ways(mesh_axis, mesh) != 0:
            mesh_axis = None
        if axis == "embed":
            mesh_axis = _width_axes(size, axes, mesh)
        parts.append(mesh_axis)
    return P(*parts)


def _width_axes(size: int, axes: tuple[str, ...], mesh: AnyMesh) -> str | tuple[str, ...] | None:
    """Over which a parameter's width of so many elements is cut; `axes` are all of its own."""
    several = [axis for axis in _PARAMETERS if axis == "fsdp" or mesh.shape[axis] > 1]
    if "experts" in axes and "expert" in several:
        several.remove("expert")  # which cuts another of its axes
    if len(several) > 1 and size % _ways(tuple(several), mesh) == 0:
        return tuple(several)
    return "fsdp" if size % mesh.shape["fsdp"] == 0 else None


def _ways(mesh_axis: str | tuple[str, ...] | None, mesh: AnyMesh) -> int:
    """The number of parts that an array's axis is cut into along an axis, or axes, of the mesh."""
    if mesh_axis is None:
        return 1
    if isinstance(mesh_axis, str):
        return mesh.shape[mesh_axis]
    return math.prod(mesh.shape[axis] for axis in mesh_axis)


def named(mesh: AnyMesh, *parts: Any) -> NamedSharding:
    """The layout with these axes of the mesh, one for each axis of an array; replicated without."""
    return NamedSharding(mesh, P(*parts))


def as_axes(part: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The axes of the mesh in one entry of a partition."""
    if part is None:
        return ()
    return (part,) if isinstance(part, str) else tuple(part)


def cutting(layout: NamedSharding) -> tuple[str, ...]:
    """The axes of the mesh that cut an array of this layout, in the order of its own axes."""
    found: tuple[str, ...] = ()
    for part in layout.spec:
        found += as_axes(part)
    return found


def copying(layout: NamedSharding) -> tuple[str, ...]:
    """The axes of the mesh along which devices have copies of an array of this layout."""
    cut = cutting(layout)
    return tuple(axis for axis in layout.mesh.axis_names if axis not in cut)


def with_layout(x: Any, mesh: AnyMesh, *parts: Any) -> Any:
    """Lays an array, or each of a tree, out along these axes of the mesh, inside jit.

    It is replicated without any.
    """
    return jax.lax.with_sharding_constraint(x, named(mesh, *parts))


def with_logical_layout(x: jax.Array, mesh: AnyMesh, *axes: str) -> jax.Array:
    """Lays an activation out by its logical axes, inside jit; XLA might choose another layout."""
    return with_layout(x, mesh, *spec(x.shape, axes, mesh))


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
    """Sharding of every array [A, B, …] of a step's batch: rows over BATCH_AXES."""
    return named(mesh, None, BATCH_AXES, None)


def device_batch(batch: Batch, mesh: Mesh, n_rows: int) -> Batch:
    """Puts this process's rows [A, b, …] of a batch with `n_rows` rows in all on its devices."""
    layout = batch_sharding(mesh)

    def place(rows: np.ndarray) -> jax.Array:
        A, _, *rest = rows.shape
        # No process has the rows of another: each gives those that its own devices hold.
        return jax.make_array_from_process_local_data(layout, rows, (A, n_rows, *rest))

    return jax.tree.map(place, batch)


def abstract_batch(
    shape_ABL: tuple[int, int, int],
    mesh: AnyMesh,
    most_segments: int | None = None,
    with_weights: bool = False,
    images: ImageBatch | FeatureBatch | None = None,
) -> Batch:
    """Shapes, dtypes and shardings of the arrays of a step's batch.

    `images` are `abstract_images`, or `abstract_features`.
    """
    layout = batch_sharding(mesh)
    ints_ABL = jax.ShapeDtypeStruct(shape_ABL, jnp.int32, sharding=layout)
    weights_ABL = None
    if with_weights:
        weights_ABL = jax.ShapeDtypeStruct(shape_ABL, jnp.float32, sharding=layout)
    return Batch(
        tokens_BL=ints_ABL,
        targets_BL=ints_ABL,
        mask_BL=jax.ShapeDtypeStruct(shape_ABL, jnp.bool, sharding=layout),
        segments_BL=ints_ABL,
        positions_BL=ints_ABL,
        most_segments=most_segments,
        weights_BL=weights_ABL,
        images=images,
    )


def abstract_images(
    shape_ABL: tuple[int, int, int], layout: NamedSharding | None, patches_IX: tuple[int, int]
) -> ImageBatch:
    """Those of the images of a step's batch, on no devices where `layout` is None.

    `patches_IX` are the patches that a row has room for, and the values of each.
    """
    A, B, L = shape_ABL
    I, X = patches_IX

    def ints(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=layout)

    return ImageBatch(
        patches_BIX=jax.ShapeDtypeStruct((A, B, I, X), jnp.uint8, sharding=layout),
        rows_BI=ints(A, B, I),
        cols_BI=ints(A, B, I),
        images_BI=ints(A, B, I),
        windows_BI=ints(A, B, I),
        units_BL=ints(A, B, L),
        positions_BL3=ints(A, B, L, 3),
    )


def abstract_features(
    shape_ABL: tuple[int, int, int],
    layout: NamedSharding | None,
    features_JD: tuple[int, int],
    dtype: str,
) -> FeatureBatch:
    """As `abstract_images`, of images whose features are kept.

    `features_JD` are the units that a row has room for, and the width of the features.
    """
    A, B, L = shape_ABL
    return FeatureBatch(
        features_BJD=jax.ShapeDtypeStruct((A, B, *features_JD), jnp.dtype(dtype), sharding=layout),
        units_BL=jax.ShapeDtypeStruct(shape_ABL, jnp.int32, sharding=layout),
        positions_BL3=jax.ShapeDtypeStruct((*shape_ABL, 3), jnp.int32, sharding=layout),
    )


# ---- the order of positions where rows are cut ---------------------------------------------------


def n_parts(length: int, mesh: AnyMesh) -> int:
    """Over how many devices `sequence` cuts rows of so many positions: two pieces for each.

    Rows that do not divide so are whole on every device; there is one part.
    """
    n = mesh.shape["sequence"]
    return n if length % (2 * n) == 0 else 1


def places_in_parts(length: int, n: int) -> np.ndarray:
    """The place in the row of each position as it lies on n devices, one part [length / n] each.

    Device i has pieces i and 2n - 1 - i of 2n: an early one, whose queries see few keys, and a late
    one, whose queries see many. Of two devices and a row of eight:

        place   0 1 6 7 | 2 3 4 5
    """
    early, late = np.arange(length).reshape(2, n, -1)
    return np.stack([early, late[::-1]], axis=1).reshape(-1)


def in_parts(x_BL: Shaped[AnyArray, "B L ..."], n: int) -> Shaped[AnyArray, "B L ..."]:
    """Positions from the order of the row to that of n devices' parts; as they are for one.

    Of arrays that every device has whole, as those of a batch, nothing is exchanged.
    """
    if n == 1:
        return x_BL
    B, L, *rest = x_BL.shape
    halves_B2npX = x_BL.reshape(B, 2, n, L // (2 * n), *rest)
    early_BnpX, late_BnpX = halves_B2npX[:, 0], halves_B2npX[:, 1, ::-1]
    return jnp.stack([early_BnpX, late_BnpX], axis=2).reshape(x_BL.shape)


def in_row_order(x_BL: Shaped[AnyArray, "B L ..."], n: int) -> Shaped[AnyArray, "B L ..."]:
    """The way back from `in_parts`.

    Both cut and join pieces: looked up by place, keys would get their gradients by a scatter.
    """
    if n == 1:
        return x_BL
    B, L, *rest = x_BL.shape
    parts_Bn2pX = x_BL.reshape(B, n, 2, L // (2 * n), *rest)
    early_BnpX, late_BnpX = parts_Bn2pX[:, :, 0], parts_Bn2pX[:, ::-1, 1]
    return jnp.concatenate([early_BnpX, late_BnpX], axis=1).reshape(x_BL.shape)


def process_rows(mesh: Mesh, n_rows: int) -> list[int]:
    """Which of `n_rows` rows the devices of this process hold, in order."""
    held: set[int] = set()
    indices_of = batch_sharding(mesh).addressable_devices_indices_map((1, n_rows, 1))
    for index in indices_of.values():
        assert index is not None, "every device of the mesh holds a part"
        # Devices along `tensor` and `sequence` hold the same rows.
        held.update(range(*index[1].indices(n_rows)))
    return sorted(held)
