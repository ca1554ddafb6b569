"""A checkpoint's tensors: compared with the model's, streamed onto the mesh, and read back."""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding
from safetensors import SafetensorError

from dft_jax import sharding
from dft_jax.models.hf.merging import Pair, Pairs, merged
from dft_jax.models.hf.safetensors import DTYPES, EMBEDDING, HEAD, REMEDY, Checkpoint
from dft_jax.models.hf.tensors import Tensor, carried_tensors, tensor_table
from dft_jax.models.model import Model
from dft_jax.models.parts import VISION
from dft_jax.runtime import distributed, errors, progress
from dft_jax.runtime.files import FETCH
from dft_jax.types import Params

# Of what models/vision.py computes: another one where that changes, so that kept features are of
# the tower as it is.
_TOWER_VERSION = 1


def check_tensors(checkpoint: Checkpoint, model: Model) -> None:
    """Compares names, shapes and dtypes with the model's; one UserError says all differences."""
    headers = checkpoint.headers
    if checkpoint.is_respelled and model.config.vision is None:
        raise errors.UserError(
            f"{checkpoint.folder}: tensors are named as those of a model with images, which"
            f" model_type={model.config.family!r} is not; {REMEDY}"
        )
    every = [*tensor_table(model), *carried_tensors(model)]
    expected = {tensor.name: tensor.whole_shape for tensor in every}
    tied_head = HEAD in headers and model.config.tie_embeddings
    if tied_head:
        expected[HEAD] = expected[EMBEDDING]
    # a buffer of old Llama files
    ignored = {name for name in headers if name.endswith(".rotary_emb.inv_freq")}
    missing = expected.keys() - headers.keys()
    unexpected = headers.keys() - expected.keys() - ignored
    problems = []
    for what, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            problems.append(f"{len(names)} {what} tensors: {', '.join(sorted(names))}; {REMEDY}")
    for name in sorted(expected.keys() & headers.keys()):
        shape, dtype = headers[name]
        if shape != expected[name]:
            problems.append(
                f"{name} has shape {list(shape)}, config.json says {list(expected[name])}; {REMEDY}"
            )
        if dtype not in DTYPES:
            problems.append(f"{name} has dtype {dtype}; save it as one of {', '.join(DTYPES)}")
    if tied_head and not problems and not _heads_are_equal(checkpoint):
        problems.append(
            f"{HEAD} differs from the embedding, but config.json has tie_word_embeddings=true;"
            " set it to false to keep the head"
        )
    errors.raise_if_any([f"{checkpoint.folder}: {problem}" for problem in problems])


def _heads_are_equal(checkpoint: Checkpoint) -> bool:
    return np.array_equal(checkpoint.read(HEAD), checkpoint.read(EMBEDDING))


def load_params(
    checkpoint: Checkpoint,
    model: Model,
    pairs: Pairs | None = None,
    only: Params | None = None,
) -> Params:
    """Reads every tensor to its place on the mesh, in the model's dtype.

    All processes of the mesh take part. Each reads an equal share of the rows of every tensor, and
    the devices exchange them: P processes read the files once, each a part in P, whatever the mesh
    cuts and whatever it copies. The values are the same, to the bit, for any mesh and any P.

    The `pairs` of an adapter are added on the way, in float32. `only` is a part of the abstract
    parameters, where no others are wanted.

    Host memory stays at this process's share of one tensor. Each stacked array is allocated on the
    devices once, and one layer after the other is written into it in place.

    Raises:
      UserError: a tensor that holds NaN or infinity, with which every step would be skipped, or
      that cannot be read; on all processes, whichever has found it.
    """
    pairs = pairs or {}
    arrays: dict[tuple[str, ...], jax.Array] = {}
    leaves: dict[Any, Any] = flatten_dict(only or model.abstract_params)
    table = [tensor for tensor in tensor_table(model) if tensor.path in leaves]
    problems: list[str] = []
    # One disk may be minutes slower than another, up to here and from tensor to tensor.
    distributed.meet("weights")
    for tensor in progress.bar(table, desc="import", unit="tensor"):
        path, leaf = tensor.path, leaves[tensor.path]
        rows = _read_rows(checkpoint, tensor, pairs.get(tensor.name), leaf, problems)
        if not tensor.index:
            arrays[path] = _placed(rows, leaf)
        else:
            if path not in arrays:
                zeros = functools.partial(jnp.zeros, leaf.shape, leaf.dtype)
                arrays[path] = jax.jit(zeros, out_shardings=leaf.sharding)()
            arrays[path] = _write_rows(arrays[path], rows, tensor.index, leaf.sharding)
        # Else a process with a fast disk would hold the rows of many tensors.
        arrays[path].block_until_ready()
    with distributed.together("weights read"):
        errors.raise_if_any(problems)
    return unflatten_dict(arrays)


def _read_rows(
    checkpoint: Checkpoint, tensor: Tensor, pair: Pair | None, leaf: Any, problems: list[str]
) -> jax.Array:
    """A tensor as its parameter's type, whose rows lie over all devices: each reads its own.

    At the end are rows of zeros, where they are no multiple of the number of devices. What is wrong
    is added to `problems`, and from then on all is zeros: the other processes would wait for one
    that went no further.
    """
    n_rows, *width = tensor.shape
    mesh = leaf.sharding.mesh
    most = -(-n_rows // mesh.size)
    start = tensor.rows.start if tensor.rows else 0
    # Opened once for all devices: the header of a file of many experts is long.
    view = functools.cache(lambda: checkpoint.view(tensor.name))

    def read(index: tuple[slice, ...]) -> np.ndarray:
        part = np.zeros((most, *width), leaf.dtype)
        first = index[0].start or 0
        n_read = min(most, n_rows - first)
        if n_read <= 0 or problems:
            return part
        rows = slice(start + first, start + first + n_read)
        try:
            host = _read_finite(checkpoint, tensor.name, view, rows)
        except errors.UserError as error:
            problems.extend(error.problems)
            return part
        part[:n_read] = merged(host, pair, rows)
        return part

    # In the order of the devices, so that those of one process read what lies together.
    layout = sharding.named(mesh, mesh.axis_names, *[None] * len(width))
    return jax.make_array_from_callback((most * mesh.size, *width), layout, read)


def _read_finite(
    checkpoint: Checkpoint, name: str, view: Callable[[], Any], rows: slice
) -> np.ndarray:
    """Rows of a tensor as they are in the checkpoint; UserError where they hold NaN or infinity."""
    file = checkpoint.folder / checkpoint.file_of[name]
    with errors.user_errors(f"{file}: cannot be read", FETCH, (OSError, SafetensorError)):
        host = view()[rows]
    if not np.isfinite(host).all():
        raise errors.UserError(
            f"{file}: {checkpoint.spelled(name)} holds NaN or infinity; fetch it again, or take"
            " another checkpoint"
        )
    return host


def _placed(rows: jax.Array, leaf: Any) -> jax.Array:
    """The parameter `leaf`, which is one tensor, of its rows: in their memory where it can be."""
    place = functools.partial(_in_place, shape=leaf.shape, layout=leaf.sharding)
    n_given, n_made = (math.prod(array.sharding.shard_shape(array.shape)) for array in (rows, leaf))
    donated = 0 if n_given == n_made else ()
    return jax.jit(place, out_shardings=leaf.sharding, donate_argnums=donated)(rows)


def _in_place(rows: jax.Array, shape: tuple[int, ...], layout: NamedSharding) -> jax.Array:
    """A tensor as `_read_rows` has it, in this shape and layout."""
    # In two steps, for which XLA has exact answers: devices that hold copies exchange their rows
    # (all-gather), then rows become what a device has of other axes (all-to-all). In one step it
    # would have the whole tensor on each device.
    rows = sharding.with_layout(rows, layout.mesh, sharding.cutting(layout))
    n_rows = math.prod(shape) // math.prod(rows.shape[1:])
    return jax.lax.with_sharding_constraint(rows[:n_rows].reshape(shape), layout)


@functools.partial(jax.jit, donate_argnums=0, static_argnames="layout")
def _write_rows(
    stacked: jax.Array, rows: jax.Array, index: tuple[Any, ...], layout: NamedSharding
) -> jax.Array:
    """`stacked`, of this layout, with a tensor at `index` of its first axes, which is no part of
    the program; the tensor is as `_read_rows` has it.
    """
    # One layer, or expert of it, is cut as its stack is, whose first axes stay whole.
    of_one = sharding.named(layout.mesh, *layout.spec[len(index) :])
    one = _in_place(rows, stacked.shape[len(index) :], of_one)
    starts = (*index, *[0] * one.ndim)
    stacked = jax.lax.dynamic_update_slice(
        stacked, jnp.expand_dims(one, tuple(range(len(index)))), starts
    )
    return jax.lax.with_sharding_constraint(stacked, layout)


def tower_digest(checkpoint: Checkpoint, model: Model) -> str:
    """SHA-256 of all that decides what a model's tower makes of an image: its weights as they are
    in the checkpoint, its architecture, and the dtypes in which it is kept and computed.
    """
    module = model.module
    made_of = {
        "version": _TOWER_VERSION,
        "architecture": dataclasses.asdict(model.config)["vision"],
        "param_dtype": str(module.param_dtype),
        "compute_dtype": str(module.compute_dtype),
    }
    total = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode())
    for tensor in tensor_table(model):
        if tensor.path[0] == VISION:
            host = checkpoint.read(tensor.name)
            # With names and shapes: else the border between two tensors could be moved.
            total.update(f"{tensor.name} {host.dtype} {host.shape}\n".encode())
            total.update(host.tobytes())
    return total.hexdigest()
