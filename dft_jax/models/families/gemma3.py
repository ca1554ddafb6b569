"""Gemma 3 for text (arXiv 2503.19786): norms before and after, five layers of six with a window and
positions of their own, a scaled embedding, GELU; the sizes whose config.json says `gemma3_text`.
"""

import dataclasses
import math

from dft_jax.models.families import llama
from dft_jax.models.hf.config_reader import (
    FULL,
    SLIDING,
    ConfigReader,
    read_common,
    take_layer_types,
)
from dft_jax.models.spec import DecoderSpec, Rope

HF_MODEL_TYPE = "gemma3_text"
TENSORS = llama.TENSORS | {
    "attention.q_norm.scale": "model.layers.{layer}.self_attn.q_norm.weight",
    "attention.k_norm.scale": "model.layers.{layer}.self_attn.k_norm.weight",
    "attention_norm_after.scale": "model.layers.{layer}.post_attention_layernorm.weight",
    "mlp_norm.scale": "model.layers.{layer}.pre_feedforward_layernorm.weight",
    "mlp_norm_after.scale": "model.layers.{layer}.post_feedforward_layernorm.weight",
}


def read(reader: ConfigReader) -> DecoderSpec:
    """Layers differ in window and rope: those with a window turn by a smaller base."""
    reader.expect("hidden_activation", "gelu_pytorch_tanh")
    reader.expect("attn_logit_softcapping", None)
    reader.expect("final_logit_softcapping", None)
    reader.expect("use_bidirectional_attention", False)
    reader.ignore("cache_implementation")
    # transformers assumes 256 and 4096 where they are absent; explicit ones are demanded instead
    head_dim = reader.size("head_dim")
    window = reader.size("sliding_window")
    query_scale = reader.positive("query_pre_attn_scalar", 256.0)
    bias = reader.take("attention_bias", bool, False)
    of_windows = _take_rope_of_windows(reader)
    spec = read_common(reader, ties_by_default=True)
    spec = spec.with_layers(
        norm="both", qk_norm="head", feed_forward="geglu", qkv_bias=bias, o_bias=bias
    )
    layers = []
    for layer, kind in zip(spec.layers, _kinds(reader, spec.num_layers), strict=True):
        if kind == SLIDING:
            layer = dataclasses.replace(layer, sliding_window=window, rope=of_windows)
        layers.append(layer)
    return dataclasses.replace(
        spec,
        layers=tuple(layers),
        scales_embeddings=True,
        norm_offset=1.0,
        query_factor=math.sqrt(head_dim / query_scale),
    )


def _take_rope_of_windows(reader: ConfigReader) -> Rope:
    """That of layers with a window; that of the others is left for `read_common`.

    transformers 5 has settings for each kind beneath `rope_parameters`; older files have the base
    of these layers as a key of its own, and scale only the others.
    """
    nested = reader.raw.get("rope_parameters")
    if not isinstance(nested, dict) or not nested.keys() & {FULL, SLIDING}:
        return Rope(reader.positive("rope_local_base_freq", 10_000.0))
    unknown = sorted(nested.keys() - {FULL, SLIDING})
    if unknown:
        reader.problem(f"rope_parameters has {unknown} beside {FULL!r} and {SLIDING!r}")
    reader.raw["rope_parameters"] = nested.get(FULL)
    place = f"{reader.place}: rope_parameters of {SLIDING!r}"
    of_windows = ConfigReader({"rope_parameters": nested.get(SLIDING)}, place)
    rope = of_windows.rope(0)
    if rope.type != "default":
        of_windows.problem(f"rope_type={rope.type!r} is not supported there: only 'default'")
    base = reader.take("rope_local_base_freq", float, rope.theta)
    if base != rope.theta:
        reader.problem(f"rope_local_base_freq={base} is not the {rope.theta} of rope_parameters")
    reader.problems += of_windows.problems
    return rope


def _kinds(reader: ConfigReader, num_layers: int) -> list[str]:
    """Of each layer, as listed; without a list every sixth, or as the file says, has no window."""
    # Beside a list this is a note: transformers writes 6 there whatever the list is.
    note = reader.size("_sliding_window_pattern", 6)
    every = reader.size("sliding_window_pattern", note)
    default = []
    for number in range(1, num_layers + 1):
        default.append(FULL if number % every == 0 else SLIDING)
    return take_layer_types(reader, default)
