"""Mixtral (arXiv 2401.04088): Mistral with experts in the place of every feed-forward."""

import dataclasses

from dft_jax.models.families import llama, mistral
from dft_jax.models.hf.config_reader import ConfigReader, take_experts
from dft_jax.models.spec import DecoderSpec

HF_MODEL_TYPE = "mixtral"
_EXPERT = "model.layers.{layer}.block_sparse_moe.experts.{expert}"
TENSORS = llama.TENSORS | {
    "mlp.router.kernel": "model.layers.{layer}.block_sparse_moe.gate.weight",
    "mlp.expert_gate": f"{_EXPERT}.w1.weight",
    "mlp.expert_up": f"{_EXPERT}.w3.weight",
    "mlp.expert_down": f"{_EXPERT}.w2.weight",
}


def read(reader: ConfigReader) -> DecoderSpec:
    """Shares of a token's experts add up to 1; what multiplies inputs by noise is refused."""
    reader.expect("router_jitter_noise", 0.0, 0)
    spec = mistral.read(reader)
    count = reader.size("num_local_experts")
    experts = take_experts(reader, count, spec.intermediate_size, normalised=True)
    return dataclasses.replace(spec.with_layers(feed_forward="experts"), experts=experts)
