"""The training step: a pure function, and its compiled forms."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from dft_jax import sharding
from dft_jax.data import batches
from dft_jax.losses import fused, objectives
from dft_jax.models.model import Model, head
from dft_jax.runtime import distributed, interrupts
from dft_jax.training import metrics, optimizer as optimizer_lib
from dft_jax.training.state import abstract_state
from dft_jax.types import Batch, Hyperparameters, Params, TrainState


def make_loss(model: Model, objective: objectives.Objective, config: ConfigDict) -> Callable:
    """Returns loss(params, batch [B, L], denominator, reference) -> (Σ loss / denominator, sums
    over trained tokens).

    `reference` are the parameters that the objective compares with, None for the others.
    """

    def loss(params, batch: Batch, denominator, reference=None):
        total, stats = fused.loss_and_stats(
            model.apply(params, batch),
            head(params),
            batch.targets_BL,
            batch.mask_BL,
            batch.segments_BL,
            None if reference is None else (model.apply(reference, batch), head(reference)),
            objective=objective,
            chunk_tokens=config.train.loss_chunk_tokens,
            mesh=model.mesh,
        )
        return total / denominator, metrics.token_sums(stats, total, batch.mask_BL)

    return loss


def make_hyperparameters(config: ConfigDict, steps: int, mesh: Mesh) -> Hyperparameters:
    """Those of a run of `steps` updates, on the devices of `mesh`."""
    values = Hyperparameters(
        optimizer_lib.rates(config.optimizer, steps), np.uint32(config.train.seed)
    )
    return jax.device_put(values, sharding.named(mesh))


def make_train_step(
    model: Model,
    objective: objectives.Objective,
    optimizer,
    hyperparameters: Hyperparameters,
    config: ConfigDict,
    reference: Params = None,
) -> Callable:
    """Returns the jitted step(state, batch [A, B, L]) -> (state, sums over the step's trained
    tokens).

    The update is the gradient of Σ loss / N with N the trained tokens of the whole global batch,
    whatever the number of micro-batches (A) and devices. With `loss_normalization="official"` each
    micro-batch is divided by its own count instead, and the means are added, as the authors' code
    does. A step with a non-finite loss or gradient changes nothing but `state.step`. `reference`
    are parameters for objectives that compare.

    Rate, schedule and seed are arguments of the program (`hyperparameters`, arrays or their
    shapes), not part of it: a sweep over them compiles once.
    """
    layouts = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, optimizer))
    replicated = sharding.named(model.mesh)
    compiled = jax.jit(
        make_update(model, objective, optimizer, config),
        in_shardings=(
            None if reference is None else layouts.params,
            replicated,
            layouts,
            sharding.batch_sharding(model.mesh),
        ),
        out_shardings=(layouts, replicated),
        donate_argnums=2,
    )
    return functools.partial(compiled, reference, hyperparameters)


def make_update(
    model: Model, objective: objectives.Objective, optimizer, config: ConfigDict
) -> Callable:
    """Returns update(reference, hyperparameters, state, batch [A, B, L]) -> (state, sums), not
    jitted: see make_train_step.
    """
    is_random = (
        config.model.param_dtype == "bfloat16"
        and optimizer_lib.rounding_of(config.optimizer) == "stochastic"
    )
    loss = make_loss(model, objective, config)
    layouts = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, optimizer))

    def gradients(reference, params, batch: Batch):
        n_tokens_A = batch.mask_BL.sum(axis=(1, 2))
        n_tokens = n_tokens_A.sum() if config.train.loss_normalization == "global" else n_tokens_A

        def accumulate(total, micro):
            micro_batch, denominator = micro
            (_, sums), grads = jax.value_and_grad(loss, has_aux=True)(
                params, micro_batch, denominator, reference
            )
            total = jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, grads)
            return jax.lax.with_sharding_constraint(total, layouts.params), sums

        zeros = jax.tree.map(
            lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), params
        )
        denominators_A = jnp.broadcast_to(jnp.maximum(n_tokens, 1), n_tokens_A.shape)
        grads, sums_A = jax.lax.scan(accumulate, zeros, (batch, denominators_A))
        return grads, jax.tree.map(lambda x: x.sum(axis=0), sums_A)

    def train_step(reference, hyperparameters: Hyperparameters, state: TrainState, batch: Batch):
        grads, sums = gradients(reference, state.params, batch)
        gradient_norm = optax.tree.norm(grads)
        is_finite = jnp.isfinite(gradient_norm) & jnp.isfinite(sums["loss"])
        rate = hyperparameters.rates_U[optimizer_lib.update_count(state.opt_state)]
        key = (
            jax.random.fold_in(jax.random.key(hyperparameters.seed), state.step)
            if is_random
            else None
        )
        params, opt_state, moved = optimizer_lib.apply(
            optimizer, grads, state.opt_state, state.params, is_finite, rate, key
        )
        sums |= moved
        sums |= {
            "skipped": state.step + 1 - optimizer_lib.update_count(opt_state),
            "gradient_norm": gradient_norm,
            "is_finite": is_finite,
            "learning_rate": rate,
        }
        return TrainState(state.step + 1, params, opt_state), sums

    return train_step


def compile_ahead(
    train_step: Callable, state: TrainState, mesh: Mesh, packer: batches.Packer
) -> Callable:
    """As `train_step`, compiled for every row count that its steps have, so that nothing compiles
    while training.

    Args:
      state: arrays, or their shapes.
    """
    jitted, first_arguments = train_step.func, train_step.args

    @functools.cache
    def compiled(n_rows: int):
        interrupts.check()
        shape = (packer.accumulation, n_rows, packer.row_length)
        return jitted.lower(*first_arguments, state, sharding.abstract_batch(shape, mesh)).compile()

    counts = [count // packer.accumulation for count in packer.row_counts]
    for n_rows in tqdm(
        counts, desc="compile", unit="shape", leave=False, disable=jax.process_index() > 0
    ):
        compiled(n_rows)
    distributed.meet("compiled")
    return lambda state, batch: compiled(batch.tokens_BL.shape[1])(*first_arguments, state, batch)


def make_evaluate(
    model: Model,
    objective: objectives.Objective,
    heldout: batches.Examples | None,
    config: ConfigDict,
    reference: Params = None,
) -> Callable:
    """Returns evaluate(params) -> held-out metrics (no entries without held-out data)."""
    if heldout is None:
        return lambda params: {}
    loss = make_loss(model, objective, config)
    sizes = dict(global_batch=config.train.global_batch, row_length=batches.row_length(config.data))
    steps = batches.SequentialBatches(heldout, model.mesh, **sizes)

    @functools.partial(jax.jit, out_shardings=sharding.named(model.mesh))
    def eval_step(reference, params, batch: Batch):
        return loss(params, jax.tree.map(lambda x_ABL: x_ABL[0], batch), 1.0, reference)[1]

    def evaluate(params) -> dict[str, Any]:
        total = None
        for step in tqdm(steps, desc="held out", leave=False, disable=jax.process_index() > 0):
            interrupts.check()
            sums = eval_step(
                reference, params, sharding.device_batch(step.batch, model.mesh, step.n_rows)
            )
            # float32 could not count beyond 2**24 tokens
            sums = jax.tree.map(np.float64, jax.device_get(sums))
            total = sums if total is None else jax.tree.map(lambda a, b: a + b, total, sums)
        return metrics.per_token(total, "heldout")

    return evaluate
