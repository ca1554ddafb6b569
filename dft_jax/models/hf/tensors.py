"""Which tensor of a checkpoint is which parameter here: names and shapes."""

import dataclasses
import math
from typing import Any

from flax.traverse_util import flatten_dict

from dft_jax.models.families import FAMILIES
from dft_jax.models.lora import MODULES
from dft_jax.models.model import Model
from dft_jax.models.parts import VISION, text_of
from dft_jax.models.vision import Tower, build_tower

# Parameters of attention whose first two axes are the number and the width of heads, unless they
# are one head's alone; a checkpoint has the two joined.
_BY_HEAD = ("q", "k", "v", "q_norm", "k_norm")


@dataclasses.dataclass(frozen=True)
class Rows:
    """Where a parameter lies in a tensor that holds several, one after another along its rows."""

    start: int
    stop: int
    of: int  # rows of the whole tensor


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a checkpoint, or some rows of one, and the parameter here that it is, or a layer
    of it.
    """

    name: str
    shape: tuple[int, ...]
    path: tuple[str, ...]  # of the parameter in the tree
    # Along the parameter's first axes, of layers where they are stacked, and of experts; else ().
    index: tuple[int, ...]
    layer: int | None  # the layer of the model; None outside the layers
    rows: Rows | None = None  # None where it is the whole tensor

    @property
    def row_slice(self) -> slice | None:
        """Its rows in the checkpoint's tensor; None for all."""
        return None if self.rows is None else slice(self.rows.start, self.rows.stop)

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """Of the checkpoint's tensor; `shape` is that of the parameter."""
        return self.shape if self.rows is None else (self.rows.of, *self.shape[1:])


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
    leaves: dict[Any, Any] = flatten_dict(text_of(model.abstract_params))
    loop_names = {loop.name for loop in model.config.loops}
    table = []
    if model.tower is not None:
        table = _tower_table(model.tower, model.config.family)
    for path, leaf in leaves.items():
        if path[0] not in loop_names:
            table.append(Tensor(names[".".join(path)], leaf.shape, path, index=(), layer=None))
    for layer, place in enumerate(model.config.layer_places()):
        depth = len(place.path)
        for path, leaf in leaves.items():
            if path[:depth] == place.path:
                name = names[".".join(path[depth:])]
                stacked = Tensor(name, leaf.shape[1:], path, (place.trip,), layer)
                table += _tensors_of_layer(stacked, depth)
    table = _with_rows(table, list(names))
    return sorted(table, key=lambda tensor: (tensor.path, tensor.index))


def _tensors_of_layer(parameter: Tensor, depth: int) -> list[Tensor]:
    """The tensors of one layer's parameter, which has its own shape and a name to be filled in:
    one, or of experts one each. `depth` keys of its path lead to the layer.
    """
    name, layer = parameter.name, parameter.layer
    if "{expert}" not in name:
        shape = tensor_shape(parameter.path[depth:], parameter.shape)
        return [dataclasses.replace(parameter, name=name.format(layer=layer), shape=shape)]
    n_experts, *shape = parameter.shape
    found = []
    for expert in range(n_experts):
        one = name.format(layer=layer, expert=expert)
        index = (*parameter.index, expert)
        found.append(dataclasses.replace(parameter, name=one, shape=tuple(shape), index=index))
    return found


def _with_rows(table: list[Tensor], order: list[str]) -> list[Tensor]:
    """The table with the rows of those that are one tensor of the checkpoint together.

    They are joined in the `order` of the family's table of names: q, k and v of Phi-3's qkv_proj.
    """
    parts_of: dict[str, list[Tensor]] = {}
    for tensor in sorted(table, key=lambda tensor: _place_in(order, tensor)):
        parts_of.setdefault(tensor.name, []).append(tensor)
    found = []
    for parts in parts_of.values():
        n_rows, start = sum(part.shape[0] for part in parts), 0
        for part in parts:
            rows = Rows(start, start + part.shape[0], n_rows)
            start = rows.stop
            found.append(part if len(parts) == 1 else dataclasses.replace(part, rows=rows))
    return found


def _place_in(order: list[str], tensor: Tensor) -> int:
    """Of a parameter in the family's table, whose keys are the ends of paths; the tower's have none
    there.
    """
    for length in range(1, len(tensor.path) + 1):
        key = ".".join(tensor.path[-length:])
        if key in order:
            return order.index(key)
    return len(order)


def _tower_table(tower: Tower, family: str) -> list[Tensor]:
    """Every tensor of the tower of a checkpoint, as `tensor_table`; layers are its blocks."""
    names = FAMILIES[family].TOWER_TENSORS
    leaves: dict[Any, Any] = flatten_dict(tower.abstract_params)
    table = []
    for path, leaf in leaves.items():
        name = names[".".join(path[path[0] == "blocks" :])]
        if path[0] != "blocks":
            shape = _tower_shape(path, leaf.shape)
            table.append(Tensor(name, shape, (VISION, *path), index=(), layer=None))
            continue
        shape = _tower_shape(path[1:], leaf.shape[1:])
        for block in range(tower.config.depth):
            one = Tensor(name.format(layer=block), shape, (VISION, *path), (block,), block)
            table.append(one)
    return table


def _tower_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """As `tensor_shape`: number and width of heads joined, and before them queries, keys, values.

    ("qkv", "kernel"), (3, 4, 16, 64)  ->  (192, 64)
    """
    if path[0] == "qkv":
        return (math.prod(shape[:3]), *shape[3:])
    if path == ("o", "kernel"):
        return (shape[0], math.prod(shape[1:]))
    return shape


def carried_tensors(model: Model) -> list[Tensor]:
    """The tensors of a checkpoint that are no parameters of the model: those of a tower that it is
    built without.

    Nothing of text reads them and nothing trains them, so they are not loaded; an export has them
    as they are in the source.
    """
    vision = model.config.vision
    if vision is None or model.tower is not None:
        return []
    return _tower_table(build_tower(vision, model.mesh), model.config.family)


def adaptable_tensors(model: Model) -> list[Tensor]:
    """The matrices of a checkpoint that can have an adapter (models/lora.py): those of the text."""
    found = []
    for tensor in tensor_table(model):
        is_text = tensor.path[0] != VISION
        if is_text and tensor.path[-1] == "kernel" and tensor.path[-2] in MODULES:
            found.append(tensor)
    return found
