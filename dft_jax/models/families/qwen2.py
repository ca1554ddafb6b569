"""Qwen2 and Qwen2.5, Math and Coder included: biases on q, k and v; full attention."""

from dft_jax.models.families import llama
from dft_jax.models.hf.config_reader import ConfigReader, read_common, refuse_window
from dft_jax.models.spec import DecoderSpec

HF_MODEL_TYPE = "qwen2"
TENSORS = llama.TENSORS


def read(reader: ConfigReader) -> DecoderSpec:
    """Refuses the sliding window, which no published file switches on."""
    reader.expect("is_qwen2_config", True)  # a note of the program that trained it
    spec = read_common(reader)
    refuse_window(reader, spec.num_layers)
    reader.expect("use_mrope", False)
    return spec.with_layers(qkv_bias=True)
