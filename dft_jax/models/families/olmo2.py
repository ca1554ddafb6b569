"""OLMo-2: norms after attention and feed-forward, and over the whole width of queries and keys."""

from dft_jax.models.families import llama
from dft_jax.models.hf.config_reader import ConfigReader, read_common
from dft_jax.models.spec import DecoderSpec

HF_MODEL_TYPE = "olmo2"
TENSORS = llama.TENSORS | {
    "attention.q_norm.scale": "model.layers.{layer}.self_attn.q_norm.weight",
    "attention.k_norm.scale": "model.layers.{layer}.self_attn.k_norm.weight",
    "attention_norm.scale": "model.layers.{layer}.post_attention_layernorm.weight",
    "mlp_norm.scale": "model.layers.{layer}.post_feedforward_layernorm.weight",
}


def read(reader: ConfigReader) -> DecoderSpec:
    """Every layer is the same; nothing is normalised before attention or feed-forward."""
    bias = reader.take("attention_bias", bool, False)
    spec = read_common(reader)
    return spec.with_layers(norm="after", qk_norm="width", qkv_bias=bias, o_bias=bias)
