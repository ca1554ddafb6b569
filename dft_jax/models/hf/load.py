"""A checkpoint's tensors: compared with the model's, streamed onto the mesh, and read back."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding

from dft_jax import sharding
from dft_jax.models.hf.merging import Pairs, merged
from dft_jax.models.hf.safetensors import DTYPES, EMBEDDING, HEAD, REMEDY, Checkpoint
from dft_jax.models.hf.tensors import Tensor, carried_tensors, tensor_table
from dft_jax.models.model import Model
from dft_jax.models.parts import VISION
from dft_jax.models.spec import at
from dft_jax.runtime import distributed, errors, progress
from dft_jax.types import Params

# From a tensor of the model to its values, whole on the host of every process, in its shape.
TensorReader = Callable[[Tensor], np.ndarray]
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
    """Streams every tensor to its place on the mesh, in the model's dtype.

    The `pairs` of an adapter are added on the way, in float32. `only` is a part of the abstract
    parameters, where no others are wanted.

    Host memory stays at the arrays themselves plus about one tensor: each stacked array is
    allocated on the devices once, and one layer after the other is written into it in place.

    Raises:
      UserError: a tensor that holds NaN or infinity, with which every step would be skipped.
    """
    pairs = pairs or {}
    arrays: dict[tuple[str, ...], jax.Array] = {}
    leaves: dict[Any, Any] = flatten_dict(only or model.abstract_params)
    table = [tensor for tensor in tensor_table(model) if tensor.path in leaves]
    for tensor in progress.bar(table, desc="import", unit="tensor"):
        path, leaf = tensor.path, leaves[tensor.path]
        host = _read_finite(checkpoint, tensor)
        host = merged(host, pairs.get(tensor.name), tensor.row_slice)
        if not tensor.index:
            arrays[path] = _place(host.reshape(leaf.shape), leaf.sharding, leaf.dtype)
            continue
        if path not in arrays:
            zeros = functools.partial(jnp.zeros, leaf.shape, leaf.dtype)
            arrays[path] = jax.jit(zeros, out_shardings=leaf.sharding)()
        # One layer, or expert of it, is cut as its stack is, whose first axes stay whole.
        n_axes = len(tensor.index)
        layout = sharding.named(model.mesh, *leaf.sharding.spec[n_axes:])
        one = _place(host.reshape(leaf.shape[n_axes:]), layout, leaf.dtype)
        arrays[path] = _write_layer(arrays[path], one, tensor.index)
    distributed.meet("weights")  # one disk may be minutes slower than another
    return unflatten_dict(arrays)


def _read_finite(checkpoint: Checkpoint, tensor: Tensor) -> np.ndarray:
    """A tensor as it is in the checkpoint; UserError where it holds NaN or infinity."""
    name = tensor.name
    host = checkpoint.read(name, tensor.row_slice)
    if not np.isfinite(host).all():
        file = checkpoint.folder / checkpoint.file_of[name]
        raise errors.UserError(
            f"{file}: {checkpoint.spelled(name)} holds NaN or infinity; fetch it again, or take"
            " another checkpoint"
        )
    return host


def merged_reader(checkpoint: Checkpoint, pairs: Pairs) -> TensorReader:
    """Returns read(tensor): that of the checkpoint, with what an adapter adds to it in float32.

    What no pair adds to is as it is in the file.
    """

    def read(tensor: Tensor) -> np.ndarray:
        rows = tensor.row_slice
        return merged(checkpoint.read(tensor.name, rows), pairs.get(tensor.name), rows)

    return read


def _place(host: np.ndarray, layout: NamedSharding, dtype: jnp.dtype) -> jax.Array:
    """The array on its devices; each part is converted by itself, so that no whole copy is made."""
    return jax.make_array_from_callback(host.shape, layout, lambda index: host[index].astype(dtype))


@functools.partial(jax.jit, donate_argnums=0)
def _write_layer(stacked: jax.Array, one: jax.Array, index: tuple[Any, ...]) -> jax.Array:
    """`stacked` with `one` at `index` of its first axes, which is no part of the program."""
    starts = (*index, *[0] * one.ndim)
    return jax.lax.dynamic_update_slice(
        stacked, jnp.expand_dims(one, tuple(range(len(index)))), starts
    )


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


def tensor_reader(params: Params, model: Model) -> TensorReader:
    """Returns read(tensor): its part of `params`, whole on the host of every process.

    Its shape is that of the checkpoint. All processes read the same tensors in the same order.
    """
    # Without axes: every device, and so every host, gets all of it.
    layout = sharding.named(model.mesh)

    def one_of(array: jax.Array, index: tuple[Any, ...]) -> jax.Array:
        return array[index]

    take = jax.jit(one_of, out_shardings=layout)

    def read(tensor: Tensor) -> np.ndarray:
        leaf = at(params, tensor.path)
        return np.asarray(take(leaf, tensor.index).addressable_data(0)).reshape(tensor.shape)

    return read
