"""Qwen3, dense: a norm on each query and key head, and a head width of its own; full attention."""

from dft_jax.models.hf.config_reader import ConfigReader, read_common
from dft_jax.models.spec import DecoderSpec

HF_MODEL_TYPE = "qwen3"


def read(reader: ConfigReader) -> DecoderSpec:
    # transformers assumes 128 when it is absent; an explicit one is demanded instead
    reader.size("head_dim")
    common = read_common(reader)
    reader.expect("use_sliding_window", False)
    reader.expect("layer_types", ["full_attention"] * common["num_layers"], None)
    reader.ignore("sliding_window", "max_window_layers")
    bias = reader.take("attention_bias", bool, False)
    return DecoderSpec(**common, qkv_bias=bias, o_bias=bias, qk_norm=True)
