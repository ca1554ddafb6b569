"""Which tensor of a checkpoint is which parameter here: names and shapes."""

from collections.abc import Iterator

from flax.traverse_util import flatten_dict

from dft_jax.models.hf.safetensors import EMBEDDING, HEAD
from dft_jax.models.model import Model

# A parameter's path here -> its name there; inside the layers, part by part.
_TOP = {("embed",): EMBEDDING, ("head",): HEAD, ("final_norm", "scale"): "model.norm.weight"}
_RENAMED = {
    "attention": "self_attn",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "o_proj",
    "gate": "gate_proj",
    "up": "up_proj",
    "down": "down_proj",
    "kernel": "weight",
    "scale": "weight",
}


def tensor_name(path: tuple[str, ...], layer: int | None) -> str:
    """The checkpoint's name of a parameter, `layer` for those stacked over layers.

    ("layers", "attention", "q", "kernel"), 3  ->  "model.layers.3.self_attn.q_proj.weight"
    """
    if path in _TOP:
        return _TOP[path]
    return ".".join([f"model.layers.{layer}", *(_RENAMED.get(part, part) for part in path[1:])])


def tensor_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The checkpoint's shape of one layer's parameter: number and width of heads joined, order
    unchanged.
    """
    if path[1:2] == ("attention",) and path[2] in "qkv":
        return (shape[0] * shape[1], *shape[2:])
    if path[-2:] == ("o", "kernel"):
        return (shape[0], shape[1] * shape[2])
    return shape


def tensor_table(
    model: Model,
) -> Iterator[tuple[tuple[str, ...], int | None, str, tuple[int, ...]]]:
    """(path, layer or None, checkpoint name, checkpoint shape) of each tensor, one entry per layer."""
    for path, leaf in sorted(flatten_dict(model.abstract_params).items()):
        stacked = path[0] == "layers"
        shape = tensor_shape(path, leaf.shape[1:] if stacked else leaf.shape)
        for layer in range(model.config.num_layers) if stacked else (None,):
            yield path, layer, tensor_name(path, layer), shape
