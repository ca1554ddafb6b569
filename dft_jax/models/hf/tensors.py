"""Which tensor of a checkpoint is which parameter here: names and shapes."""

import dataclasses
import math
from typing import Any

from flax.traverse_util import flatten_dict

from dft_jax.models.families import FAMILIES
from dft_jax.models.lora import MODULES
from dft_jax.models.model import Model

# Parameters of attention whose first two axes are the number and the width of heads, unless they
# are one head's alone; a checkpoint has the two joined.
_BY_HEAD = ("q", "k", "v", "q_norm", "k_norm")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a checkpoint, and the parameter here that it is, or a layer of it."""

    name: str
    shape: tuple[int, ...]
    path: tuple[str, ...]  # of the parameter in the tree
    index: int | None  # along the parameter's first axis where layers are stacked; else None
    layer: int | None  # the layer of the model; None outside the layers


def tensor_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The checkpoint's shape of one layer's parameter: number and width of heads joined.

    `path` begins within the layer. The order of axes is the same.

    ("attention", "q", "kernel"), (4, 8, 32)  ->  (32, 32)
    """
    if path[0] != "attention":
        return shape
    if path[1] in _BY_HEAD and len(shape) > 1:
        return (math.prod(shape[:2]), *shape[2:])
    if path[1:] == ("o", "kernel"):
        return (*shape[:1], math.prod(shape[1:]))
    return shape


def tensor_table(model: Model) -> list[Tensor]:
    """Every tensor of a checkpoint of the model: by parameter, and of a stack layer after layer."""
    names = FAMILIES[model.config.family].TENSORS
    leaves: dict[Any, Any] = flatten_dict(model.abstract_params)
    loop_names = {loop.name for loop in model.config.loops}
    table = []
    for path, leaf in leaves.items():
        if path[0] not in loop_names:
            table.append(Tensor(names[".".join(path)], leaf.shape, path, index=None, layer=None))
    for layer, place in enumerate(model.config.layer_places()):
        depth = len(place.path)
        for path, leaf in leaves.items():
            if path[:depth] == place.path:
                name = names[".".join(path[depth:])].format(layer=layer)
                shape = tensor_shape(path[depth:], leaf.shape[1:])
                table.append(Tensor(name, shape, path, place.trip, layer))
    return sorted(table, key=lambda tensor: (tensor.path, tensor.index or 0))


def adaptable_tensors(model: Model) -> list[Tensor]:
    """The matrices of a checkpoint that can have an adapter (models/lora.py)."""
    found = []
    for tensor in tensor_table(model):
        if tensor.path[-1] == "kernel" and tensor.path[-2] in MODULES:
            found.append(tensor)
    return found
