"""Adapters of a model (models/lora.py): how they begin, and what they make of its kernels."""

import math
import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dft_jax.models.model import Model, layouts_of
from dft_jax.models.spec import LayerPlace, at
from dft_jax.types import Params


def init_adapters(key: jax.Array, model: Model) -> Params:
    """A uniform within ±1/√inputs and B zero, as PEFT has them: the model begins as it was.

    An adapter's values depend on its place in the tree alone: not on the mesh, nor on which other
    modules have one.
    """
    layouts = layouts_of(model.abstract_adapters)

    def init(key: jax.Array) -> Params:
        def leaf_init(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            n_layers, *shape = leaf.shape
            if path[-1].key == "b":
                return jnp.zeros(leaf.shape, leaf.dtype)
            # PEFT's kaiming_uniform with a slope of √5; `a` is [layers, rank, *inputs].
            most = 1 / math.sqrt(math.prod(shape[1:]))
            keys = jax.random.split(jax.random.fold_in(key, zlib.crc32(name.encode())), n_layers)
            return jax.vmap(lambda one: jax.random.uniform(one, shape, leaf.dtype, -most, most))(
                keys
            )

        return jax.tree_util.tree_map_with_path(leaf_init, model.abstract_adapters)

    return jax.jit(init, out_shardings=layouts)(key)


def layer_of(stacked: Params, place: LayerPlace) -> Params:
    """The part of a tree that is one layer's."""
    return jax.tree.map(lambda leaf: leaf[place.trip], at(stacked, place.path))


def merged_layer(layer: Params, adapters: Params, scale: float) -> Params:
    """The parameters of one layer with its adapters in their kernels: W + s · B A, float32."""
    merged = dict(layer)
    for name, part in adapters.items():
        if "a" in part:
            kernel = _merged(layer[name]["kernel"], part["a"], part["b"], scale)
            merged[name] = layer[name] | {"kernel": kernel}
        else:
            merged[name] = merged_layer(layer[name], part, scale)
    return merged


def _merged(
    kernel: Float[Array, "..."], a: Float[Array, "Z ..."], b: Float[Array, "... Z"], scale: float
) -> Float[Array, "..."]:
    # Else TPUs and GPUs would multiply in bfloat16 or tf32.
    update = jnp.tensordot(b, a, axes=1, precision="highest")
    return kernel.astype(jnp.float32) + scale * update
