"""A checkpoint's tensors: compared with the model's, streamed onto the mesh, and read back from it."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from tqdm import tqdm

from dft_jax import sharding
from dft_jax.models.hf.safetensors import _REMEDY, DTYPES, EMBEDDING, HEAD, Checkpoint
from dft_jax.models.hf.tensors import tensor_table
from dft_jax.models.model import Model
from dft_jax.runtime import distributed, errors
from dft_jax.types import Params


def check_tensors(checkpoint: Checkpoint, model: Model) -> None:
    """Compares the checkpoint's names, shapes and dtypes with the model's; all differences in one
    UserError.
    """
    headers, expected = (
        checkpoint.headers,
        {name: shape for _, _, name, shape in tensor_table(model)},
    )
    # a buffer of old Llama files
    ignored = {name for name in headers if name.endswith(".rotary_emb.inv_freq")}
    tied_head = HEAD in headers and model.config.tie_embeddings
    if tied_head:
        expected[HEAD] = expected[EMBEDDING]
    others = {
        "missing": expected.keys() - headers.keys(),
        "unexpected": headers.keys() - expected.keys() - ignored,
    }
    found = [
        (len(names), what, ", ".join(sorted(names))) for what, names in others.items() if names
    ]
    problems = [f"{count} {what} tensors: {names}; {_REMEDY}" for count, what, names in found]
    for name in sorted(expected.keys() & headers.keys()):
        shape, dtype = headers[name]
        if shape != expected[name]:
            problems.append(
                f"{name} has shape {list(shape)}, config.json says {list(expected[name])}; {_REMEDY}"
            )
        if dtype not in DTYPES:
            problems.append(f"{name} has dtype {dtype}; save it as one of {', '.join(DTYPES)}")
    if (
        tied_head
        and not problems
        and not np.array_equal(checkpoint.read(HEAD), checkpoint.read(EMBEDDING))
    ):
        remedy = "set it to false to keep the head"
        problems.append(
            f"{HEAD} differs from the embedding, but config.json has tie_word_embeddings=true; {remedy}"
        )
    errors.raise_if_any([f"{checkpoint.folder}: {problem}" for problem in problems])


def load_params(checkpoint: Checkpoint, model: Model) -> Params:
    """Streams every tensor to its place on the mesh, in the model's dtype.

    Host memory stays at the arrays themselves plus about one tensor: each stacked array is
    allocated on the devices once, and one layer after the other is written into it in place.

    Raises:
      UserError: a tensor that holds NaN or infinity, with which every step would be skipped.
    """
    arrays: dict[tuple[str, ...], jax.Array] = {}
    leaves = flatten_dict(model.abstract_params)
    table = list(tensor_table(model))
    for path, layer, name, _ in tqdm(
        table, desc="import", unit="tensor", disable=jax.process_index() > 0
    ):
        leaf = leaves[path]
        host = checkpoint.read(name).reshape(leaf.shape if layer is None else leaf.shape[1:])
        if not np.isfinite(host).all():
            where = checkpoint.folder / checkpoint.file_of[name]
            raise errors.UserError(
                f"{where}: {name} holds NaN or infinity; fetch it again, or take another checkpoint"
            )
        if layer is None:
            arrays[path] = _place(host, leaf.sharding, leaf.dtype)
        else:
            if path not in arrays:
                zeros = functools.partial(jnp.zeros, leaf.shape, leaf.dtype)
                arrays[path] = jax.jit(zeros, out_shardings=leaf.sharding)()
            layout = sharding.named(model.mesh, *leaf.sharding.spec[1:])
            arrays[path] = _write_layer(arrays[path], _place(host, layout, leaf.dtype), layer)
    distributed.meet("weights")  # one disk may be minutes slower than another
    return unflatten_dict(arrays)


def _place(host: np.ndarray, layout, dtype) -> jax.Array:
    return jax.make_array_from_callback(host.shape, layout, lambda index: host[index].astype(dtype))


@functools.partial(jax.jit, donate_argnums=0)
def _write_layer(stacked: jax.Array, one: jax.Array, layer) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stacked, one, layer, 0)


def tensor_reader(
    params: Params, model: Model
) -> Callable[[tuple[str, ...], int | None, tuple[int, ...]], np.ndarray]:
    """Returns read(path, layer, shape): one tensor of `params`, whole on every process's host,
    checkpoint-shaped.
    """
    layout = sharding.named(model.mesh)
    take = jax.jit(
        lambda array, layer: array if layer is None else array[layer], out_shardings=layout
    )

    def read(path, layer, shape):
        leaf = functools.reduce(lambda node, key: node[key], path, params)
        return np.asarray(take(leaf, layer).addressable_data(0)).reshape(shape)

    return read
