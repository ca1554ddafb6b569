"""Qwen3-MoE (arXiv 2505.09388): Qwen3 with experts in the place of the feed-forward, in all layers
or some.
"""

import dataclasses

from dft_jax.models.families import qwen3
from dft_jax.models.hf.config_reader import (
    ConfigReader,
    read_common,
    refuse_window,
    take_experts,
)
from dft_jax.models.spec import DecoderSpec

HF_MODEL_TYPE = "qwen3_moe"
TENSORS = qwen3.TENSORS | {
    "mlp.router.kernel": "model.layers.{layer}.mlp.gate.weight",
    "mlp.expert_gate": "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight",
    "mlp.expert_up": "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight",
    "mlp.expert_down": "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight",
}


def read(reader: ConfigReader) -> DecoderSpec:
    """Refuses the sliding window, which no published file switches on."""
    count = _take_count(reader)
    width = reader.size("moe_intermediate_size")
    normalised = reader.take("norm_topk_prob", bool, False)
    experts = take_experts(reader, count, width, normalised=normalised)
    spec = read_common(reader)
    refuse_window(reader, spec.num_layers)
    bias = reader.take("attention_bias", bool, False)
    spec = spec.with_layers(qkv_bias=bias, o_bias=bias, qk_norm="head")
    layers = []
    for layer, is_dense in zip(spec.layers, _dense_layers(reader, spec.num_layers), strict=True):
        layers.append(layer if is_dense else dataclasses.replace(layer, feed_forward="experts"))
    return dataclasses.replace(spec, layers=tuple(layers), experts=experts)


def _take_count(reader: ConfigReader) -> int:
    """The number of experts, for which transformers 5 writes a key of its own."""
    key, other = "num_experts", "num_local_experts"
    if reader.raw.get(key) is None and reader.raw.get(other) is not None:
        key, other = other, key
    count = reader.size(key)
    reader.expect(other, count, None)
    return count


def _dense_layers(reader: ConfigReader, num_layers: int) -> list[bool]:
    """Which layers have no experts: those listed, and all but every `decoder_sparse_step`-th."""
    step = reader.size("decoder_sparse_step", 1)
    listed = reader.take("mlp_only_layers", list, [])
    for number in listed:
        if type(number) is not int or not 0 <= number < num_layers:
            reader.problem(
                f"mlp_only_layers={listed} should have numbers of layers, from 0 to"
                f" {num_layers - 1}"
            )
            return [False] * num_layers
    return [number in listed or (number + 1) % step != 0 for number in range(num_layers)]
