"""Mistral 7B: Llama with a sliding window on every layer (null for none, as from v0.2 on)."""

from dft_jax.models.hf.config_reader import ConfigReader, read_common
from dft_jax.models.spec import DecoderSpec

HF_MODEL_TYPE = "mistral"


def read(reader: ConfigReader) -> DecoderSpec:
    window = reader.size("sliding_window", None)
    if "sliding_window" not in reader.raw:
        reader.problem(
            "'sliding_window' is missing; write null for none (transformers would assume 4096)"
        )
    return DecoderSpec(**read_common(reader), sliding_window=window)
