"""Parameters that are not allocated: their shapes, dtypes and layouts."""

from typing import Any

import flax.linen as nn
import jax
from jax.sharding import NamedSharding

from dft_jax import sharding
from dft_jax.types import AnyMesh


def abstract_of(boxes: Any, mesh: AnyMesh) -> Any:
    """Shape, dtype and sharding of every leaf of a tree of nn.Partitioned."""

    def abstract(box: nn.Partitioned) -> jax.ShapeDtypeStruct:
        axes: Any = box.names  # every one has a name here
        layout = NamedSharding(mesh, sharding.spec(box.value.shape, axes, mesh))
        return jax.ShapeDtypeStruct(box.value.shape, box.value.dtype, sharding=layout)

    return jax.tree.map(abstract, boxes, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))


def layouts_of(abstract: Any) -> Any:
    """The layout of every leaf."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)
