"""The training step of Tunix's `PeftTrainer`, all parameters trained, inside the loop of its
`train()`.

python -m experiments.performance.contenders.tunix_side --folder=HF --examples=FILE --objective=sft

As its documentation has it: the Qwen2 model from safetensors on a mesh, inputs with
`gen_model_input_fn`, an optax optimizer. `sft` is the trainer's own loss. It has no DFT; `dft` is
the same loss weighted, through `with_loss_fn`. The data iterator holds the loop between turns.
float32 and no rematerialisation are the model's defaults.
"""

import argparse
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from tunix.models.qwen2 import model as qwen2, params as qwen2_params
from tunix.sft import peft_trainer, utils

from experiments.performance.protocol import Meter, versions
from experiments.performance.workload import Examples


def model_config(folder: str) -> qwen2.ModelConfig:
    c = json.loads((Path(folder) / "config.json").read_text())
    return qwen2.ModelConfig(
        num_layers=c["num_hidden_layers"],
        vocab_size=c["vocab_size"],
        embed_dim=c["hidden_size"],
        hidden_dim=c["intermediate_size"],
        num_heads=c["num_attention_heads"],
        head_dim=c["hidden_size"] // c["num_attention_heads"],
        num_kv_heads=c["num_key_value_heads"],
        rope_theta=c["rope_theta"],
        norm_eps=c["rms_norm_eps"],
        use_tied_embedding=c["tie_word_embeddings"],
    )


def dft_loss(model, input_tokens, input_mask, positions, attention_mask):
    """The trainer's own loss, each token weighted by its probability."""
    logits, _ = model(input_tokens, positions, None, attention_mask)
    logp_BL = jnp.take_along_axis(
        jax.nn.log_softmax(logits[:, :-1]), input_tokens[:, 1:, None], axis=-1
    )[..., 0]
    mask_BL = input_mask[:, 1:]
    loss_BL = -jax.lax.stop_gradient(jnp.exp(logp_BL)) * logp_BL
    return jnp.sum(loss_BL * mask_BL) / (jnp.sum(mask_BL) + 1e-8)


class KeptMetrics(peft_trainer.MetricsLogger):
    """Remembers the first loss and gradient norm, which the trainer logs while it works on the
    second step.
    """

    def __init__(self, meter: Meter):
        super().__init__()
        self.meter, self.known = meter, {}

    def log(self, prefix, name, value, mode, step):
        if name in ("loss", "grad_norm") and name not in self.known:
            self.known[name] = float(value)
            self.meter.note(**{name.replace("grad_norm", "gradient_norm"): float(value)})
        super().log(prefix, name, value, mode, step)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True)
    parser.add_argument("--examples", required=True)
    parser.add_argument("--objective", choices=["sft", "dft"], required=True)
    arguments = parser.parse_args()
    meter = Meter(versions("google-tunix", "jax", "jaxlib", "flax", "optax"))
    examples = Examples.load(arguments.examples)
    assert (examples.lengths_N == examples.ids_NL.shape[1]).all(), "every position is a token"
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with mesh:
        model = qwen2_params.create_model_from_safe_tensors(
            arguments.folder, model_config(arguments.folder), mesh
        )
    adamw = optax.adamw(1e-5, b1=0.9, b2=0.95, weight_decay=0.01)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), adamw)
    trainer = peft_trainer.PeftTrainer(
        model,
        optimizer,
        peft_trainer.TrainingConfig(eval_every_n_steps=1_000_000),
        metrics_logger=KeptMetrics(meter),
    )

    def model_input(example: peft_trainer.TrainingInput):
        # `input_mask` says which targets count; attention and positions see every token.
        is_token = jnp.ones_like(example.input_mask)
        return {
            "input_tokens": example.input_tokens,
            "input_mask": example.input_mask,
            "positions": utils.build_positions_from_mask(is_token),
            "attention_mask": utils.make_causal_attn_mask(is_token),
        }

    trainer.with_gen_model_input_fn(model_input)
    if arguments.objective == "dft":
        trainer.with_loss_fn(dft_loss)
    batch = peft_trainer.TrainingInput(
        input_tokens=examples.ids_NL, input_mask=examples.trained_NL()
    )

    def batches():
        for _ in itertools.count():
            meter.tick(lambda: jax.block_until_ready(nnx.state(trainer.model)))
            yield batch

    with mesh:
        trainer.train(batches())


if __name__ == "__main__":
    main()
