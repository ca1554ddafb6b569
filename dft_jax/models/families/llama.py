"""Llama 2 and 3.x, DeepSeekMath: no biases by default, RoPE scaling `linear`, `llama3` or `yarn`."""

from dft_jax.models.hf.config_reader import ConfigReader, read_common
from dft_jax.models.spec import DecoderSpec

HF_MODEL_TYPE = "llama"


def read(reader: ConfigReader) -> DecoderSpec:
    reader.expect("is_llama_config", True)  # a note of the program that trained it
    reader.expect("pretraining_tp", 1)
    bias, mlp_bias = (reader.take(name, bool, False) for name in ("attention_bias", "mlp_bias"))
    return DecoderSpec(**read_common(reader), qkv_bias=bias, o_bias=bias, mlp_bias=mlp_bias)
