"""Mistral 7B: Llama with a sliding window on every layer (null for none, as from v0.2 on)."""

from dft_jax.models.families import llama
from dft_jax.models.hf.config_reader import ConfigReader, read_common
from dft_jax.models.spec import DecoderSpec

HF_MODEL_TYPE = "mistral"
TENSORS = llama.TENSORS


def read(reader: ConfigReader) -> DecoderSpec:
    """Demands the window, since programs differ in what an absent one means."""
    window = reader.size("sliding_window", None)
    if "sliding_window" not in reader.raw:
        reader.problem(
            "'sliding_window' is missing; write null for none (transformers would assume 4096)"
        )
    return read_common(reader).with_layers(sliding_window=window)
