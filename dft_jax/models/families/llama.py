"""Llama 2 and 3.x, DeepSeekMath: no biases by default, every scaling of RoPE."""

from dft_jax.models.hf.config_reader import ConfigReader, read_common
from dft_jax.models.spec import DecoderSpec

HF_MODEL_TYPE = "llama"

# Parameter of ours -> tensor of a checkpoint. Above: once; below: of each layer.
TENSORS = {
    "embed": "model.embed_tokens.weight",
    "head": "lm_head.weight",
    "final_norm.scale": "model.norm.weight",
    #
    "attention_norm.scale": "model.layers.{layer}.input_layernorm.weight",
    "attention.q.kernel": "model.layers.{layer}.self_attn.q_proj.weight",
    "attention.q.bias": "model.layers.{layer}.self_attn.q_proj.bias",
    "attention.k.kernel": "model.layers.{layer}.self_attn.k_proj.weight",
    "attention.k.bias": "model.layers.{layer}.self_attn.k_proj.bias",
    "attention.v.kernel": "model.layers.{layer}.self_attn.v_proj.weight",
    "attention.v.bias": "model.layers.{layer}.self_attn.v_proj.bias",
    "attention.o.kernel": "model.layers.{layer}.self_attn.o_proj.weight",
    "attention.o.bias": "model.layers.{layer}.self_attn.o_proj.bias",
    "mlp_norm.scale": "model.layers.{layer}.post_attention_layernorm.weight",
    "mlp.gate.kernel": "model.layers.{layer}.mlp.gate_proj.weight",
    "mlp.gate.bias": "model.layers.{layer}.mlp.gate_proj.bias",
    "mlp.up.kernel": "model.layers.{layer}.mlp.up_proj.weight",
    "mlp.up.bias": "model.layers.{layer}.mlp.up_proj.bias",
    "mlp.down.kernel": "model.layers.{layer}.mlp.down_proj.weight",
    "mlp.down.bias": "model.layers.{layer}.mlp.down_proj.bias",
}


def read(reader: ConfigReader) -> DecoderSpec:
    """Biases of attention and feed-forward are each one key."""
    reader.expect("is_llama_config", True)  # a note of the program that trained it
    reader.expect("pretraining_tp", 1)
    attention_bias = reader.take("attention_bias", bool, False)
    mlp_bias = reader.take("mlp_bias", bool, False)
    spec = read_common(reader)
    return spec.with_layers(qkv_bias=attention_bias, o_bias=attention_bias, mlp_bias=mlp_bias)
