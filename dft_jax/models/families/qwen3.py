"""Qwen3, dense: a norm on each query and key head, and a head width of its own; full attention."""

from dft_jax.models.families import llama
from dft_jax.models.hf.config_reader import ConfigReader, read_common, refuse_window
from dft_jax.models.spec import DecoderSpec

HF_MODEL_TYPE = "qwen3"
TENSORS = llama.TENSORS | {
    "attention.q_norm.scale": "model.layers.{layer}.self_attn.q_norm.weight",
    "attention.k_norm.scale": "model.layers.{layer}.self_attn.k_norm.weight",
}


def read(reader: ConfigReader) -> DecoderSpec:
    """Refuses the sliding window, which no published file switches on."""
    # transformers assumes 128 when it is absent; an explicit one is demanded instead
    reader.size("head_dim")
    spec = read_common(reader)
    refuse_window(reader, spec.num_layers)
    bias = reader.take("attention_bias", bool, False)
    return spec.with_layers(qkv_bias=bias, o_bias=bias, qk_norm="head")
