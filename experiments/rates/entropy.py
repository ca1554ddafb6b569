"""Entropy of a trained model on the held-out demonstrations, and the temperature that gives it.

Teacher-forced: of the distributions from which each trained token of the demonstrations would be
drawn, so that it depends on no sample. One pass over 256 demonstrations.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy import optimize, special

from dft_jax import sharding
from dft_jax.data import batches
from dft_jax.models.model import Model, head, matmul_precision
from dft_jax.training import inputs
from dft_jax.types import Batch, Params
from experiments.lab import trials
from experiments.lab.trials import Trial

LOWEST, HIGHEST = 0.05, 3.0  # temperatures that are tried
TOLERANCE = 0.005  # nats

Logits = Float[np.ndarray, "T V"]


@functools.cache
def _heldout(base: str, data: str) -> tuple[Model, Any, list[batches.PackedBatch]]:
    """The model, its compiled logits, and the held-out demonstrations of a regime."""
    config = trials.config_of(Trial(base=base, data=data), Path())
    source, model, tokenizer = inputs.open_model(config)
    _, heldout = inputs.load_data(config, source, tokenizer, model)
    steps = batches.SequentialBatches(
        heldout,
        model.mesh,
        global_batch=config.train.global_batch,
        row_length=batches.row_length(config.data),
    )

    @jax.jit
    def logits_of(params: Params, batch: Batch):
        return jnp.einsum("BLD,VD->BLV", model.apply(params, batch), head(params))

    return model, logits_of, list(steps)


def logits(base: str, data: str, params: Params) -> tuple[Logits, Float[np.ndarray, " T"]]:
    """Float64 logits of the T trained tokens, and log p of the tokens that stand there."""
    model, logits_of, steps = _heldout(base, data)
    found, targets = [], []
    with matmul_precision("float32"):
        for step in steps:
            batch = sharding.device_batch(step.batch, model.mesh, step.n_rows)
            one = jax.tree.map(lambda x_ABL: x_ABL[0], batch)
            is_trained_BL = np.asarray(one.mask_BL) > 0
            found.append(np.asarray(logits_of(params, one), np.float64)[is_trained_BL])
            targets.append(np.asarray(one.targets_BL)[is_trained_BL])
    logits_TV, target_T = np.concatenate(found), np.concatenate(targets)
    logp_TV = special.log_softmax(logits_TV, axis=1)
    return logits_TV, logp_TV[np.arange(len(target_T)), target_T]


def entropy(logits_TV: Logits, temperature: float) -> float:
    """Mean entropy of the next token at a temperature, nats."""
    logp_TV = special.log_softmax(logits_TV / temperature, axis=1)
    return float(-(np.exp(logp_TV) * logp_TV).sum(axis=1).mean())


def divergence(logits_TV: Logits, base_TV: Logits) -> float:
    """Mean KL(base ‖ model) at temperature 1, nats."""
    base_logp_TV = special.log_softmax(base_TV, axis=1)
    logp_TV = special.log_softmax(logits_TV, axis=1)
    return float((np.exp(base_logp_TV) * (base_logp_TV - logp_TV)).sum(axis=1).mean())


def temperature_of(logits_TV: Logits, wanted: float) -> float | None:
    """The temperature at which the mean entropy is `wanted`, within TOLERANCE; None where none of
    those from LOWEST to HIGHEST gives it.
    """

    def excess(temperature: float) -> float:
        return entropy(logits_TV, temperature) - wanted

    for end in (LOWEST, HIGHEST):
        if abs(excess(end)) < TOLERANCE:
            return end
    if excess(LOWEST) > 0 or excess(HIGHEST) < 0:
        return None
    return float(optimize.brentq(excess, LOWEST, HIGHEST, xtol=1e-4))
