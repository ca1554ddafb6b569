"""The training step: a pure function `(frozen, state, batch) -> (state, sums)`, and its compiled
forms.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from dft_jax import sharding
from dft_jax.data.batches import Packer
from dft_jax.losses import fused, objectives
from dft_jax.models.model import (
    Model,
    apply_with_routing,
    balanced,
    cast_layers,
    head,
    layouts_of,
    split,
)
from dft_jax.runtime import distributed
from dft_jax.runtime.options import Config
from dft_jax.training import metrics, optimizer as optimizer_lib
from dft_jax.training.programs import ProgramsByRows
from dft_jax.training.state import abstract_state
from dft_jax.types import Batch, Frozen, Hyperparameters, Params, TrainState, Weights


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """Settings of the step that are part of its compiled program."""

    loss_chunk_tokens: int = 1024  # trained tokens whose logits exist at once on a device
    loss_normalization: str = "global"  # or "official"
    rounding: str = "stochastic"  # or "nearest": of bfloat16 parameters
    balance_weight: float = 0.0  # of the loss that balances experts

    @classmethod
    def of(cls, train: Config, optimizer: Config) -> "StepOptions":
        """Those that these two sections of a config ask for."""
        rounding = optimizer_lib.rounding_of(optimizer)
        return cls(
            train.loss_chunk_tokens, train.loss_normalization, rounding, train.balance_weight
        )


def make_loss(
    model: Model,
    objective: objectives.Objective,
    chunk_tokens: int,
    balance_weight: float = 0.0,
) -> Callable:
    """Returns loss(weights, batch [B, L], denominator, reference, n_routed) -> (Σ loss /
    denominator, sums over trained tokens).

    `reference` are all parameters that the objective compares with, None for the others, and for
    adapters: these are compared with the parameters beneath them.

    With a `balance_weight` that times `routing.balance` of the batch is added, times its share of
    the `n_routed` tokens of the step. Sums have the objective's loss alone.
    """

    def loss(
        weights: Weights, batch: Batch, denominator, reference: Params | None = None, n_routed=1
    ):
        params, adapters = split(weights)
        batch = balanced(batch, model.mesh)
        if adapters is not None and objective.needs_reference:
            reference = params
        compared = None
        if reference is not None:
            compared = model.apply(reference, batch), head(reference)
        hidden_BLD, routed = apply_with_routing(model, params, batch, adapters)
        total, stats = fused.loss_and_stats(
            hidden_BLD,
            head(params),
            batch.targets_BL,
            batch.mask_BL,
            batch.segments_BL,
            compared,
            objective=objective,
            chunk_tokens=chunk_tokens,
            mesh=model.mesh,
            head_gradient=model.trains_head,
            weights_BL=batch.weights_BL,
        )
        mean = total / denominator
        sums = metrics.token_sums(stats, total, batch.mask_BL, batch.weights_BL)
        if routed is not None:
            sums |= metrics.routing_sums(routed, model.config.experts.per_token)
            if balance_weight:
                mean += balance_weight * sums["balance"] / n_routed
        return mean, sums

    return loss


def make_hyperparameters(optimizer: Config, seed: int, steps: int, mesh: Mesh) -> Hyperparameters:
    """Those of a run of `steps` updates, on the devices of `mesh`; `optimizer` is the section."""
    rates_U: Any = optimizer_lib.rates(optimizer, steps)
    numbered: Any = np.uint32(seed)
    values = Hyperparameters(rates_U, numbered)
    return jax.device_put(values, sharding.named(mesh))


def make_train_step(
    model: Model,
    objective: objectives.Objective,
    optimizer: optax.GradientTransformationExtraArgs,
    options: StepOptions,
) -> Callable:
    """Returns the jitted step(frozen, state, batch [A, B, L]) -> (state, sums over the step's
    trained tokens).

    The update is the gradient of Σ loss / N with N the trained tokens of the whole global batch,
    whatever the number of micro-batches (A) and devices; of a batch with weights w it is that of
    Σ w·loss / Σ w. A loss that balances experts (`balance_weight`) is the mean of those of the
    micro-batches, each over all devices: over the whole step it would not be a sum. With
    `loss_normalization="official"` each micro-batch is divided by its own
    count instead, and the means are added, as the authors' code does. A step with a non-finite loss
    or gradient changes nothing but `state.step`.

    Rate, schedule and seed are arguments of the program (`frozen`), not part of it: a sweep over
    them compiles once. The state is donated: its memory is the next one's. Beneath adapters the
    parameters are among what is frozen, and get no gradient.
    """
    layouts = layouts_of(abstract_state(model, optimizer))
    replicated: Any = sharding.named(model.mesh)
    base = layouts_of(model.abstract_base)
    reference = None
    if objective.needs_reference and model.lora is None:
        reference = layouts.params
    return jax.jit(
        make_update(model, objective, optimizer, options),
        in_shardings=(
            Frozen(replicated, reference, base),
            layouts,
            sharding.batch_sharding(model.mesh),
        ),
        out_shardings=(layouts, replicated),
        donate_argnums=1,
        compiler_options=model.compiler_options,
    )


def make_update(
    model: Model,
    objective: objectives.Objective,
    optimizer: optax.GradientTransformationExtraArgs,
    options: StepOptions,
) -> Callable:
    """Returns update(frozen, state, batch [A, B, L]) -> (state, sums), not jitted: see
    make_train_step.
    """
    # Adapters are float32, whatever is beneath them.
    is_bfloat16 = all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(model.trainable))
    is_random = is_bfloat16 and options.rounding == "stochastic"
    is_global = options.loss_normalization == "global"
    loss = make_loss(model, objective, options.loss_chunk_tokens, options.balance_weight)
    layouts = layouts_of(abstract_state(model, optimizer))

    def gradients(params: Params, batch: Batch, frozen: Frozen):
        n_tokens_A, least = batch.mask_BL.sum(axis=(1, 2)), 1
        if batch.weights_BL is not None:
            # Weights may add up to less than 1. Where the sum is 0 all losses are.
            n_tokens_A, least = batch.weights_BL.sum(axis=(1, 2)), np.finfo(np.float32).tiny
        n_tokens = n_tokens_A.sum() if is_global else n_tokens_A
        base = None if frozen.base is None else cast_layers(frozen.base, model)
        # Adapters stay float32.
        computed = params if model.lora is not None else cast_layers(params, model)
        reference = _all_of(frozen.reference, base, model)
        n_routed = jnp.maximum((batch.segments_BL > 0).sum(), 1)

        def loss_of(trained: Params, micro_batch: Batch, denominator):
            return loss(model.join(trained, base), micro_batch, denominator, reference, n_routed)

        def accumulate(total, micro):
            micro_batch, denominator = micro
            (_, sums), grads = jax.value_and_grad(loss_of, has_aux=True)(
                computed, micro_batch, denominator
            )
            total = jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, grads)
            # The sum lies as the parameters do; with fsdp each device then keeps its part only.
            return jax.lax.with_sharding_constraint(total, layouts.params), sums

        def zeros(param):
            return jnp.zeros(param.shape, jnp.promote_types(param.dtype, jnp.float32))

        denominators_A = jnp.broadcast_to(jnp.maximum(n_tokens, least), n_tokens_A.shape)
        grads, sums_A = jax.lax.scan(
            accumulate, jax.tree.map(zeros, params), (batch, denominators_A)
        )
        return grads, jax.tree.map(lambda x: x.sum(axis=0), sums_A)

    def train_step(frozen: Frozen, state: TrainState, batch: Batch):
        grads, sums = gradients(state.params, batch, frozen)
        gradient_norm = optax.tree.norm(grads)
        is_finite = jnp.isfinite(gradient_norm) & jnp.isfinite(sums["loss"])
        rate = frozen.hyperparameters.rates_U[optimizer_lib.update_count(state.opt_state)]
        key = None
        if is_random:
            key = jax.random.fold_in(jax.random.key(frozen.hyperparameters.seed), state.step)
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


def _all_of(reference: Params | None, base: Params | None, model: Model) -> Params | None:
    """All parameters before training, of those that are trained; None where nobody compares."""
    return None if reference is None else model.join(reference, base)


def compile_ahead(
    train_step: Callable, frozen: Frozen, state: TrainState, packer: Packer, backend: str
) -> Callable:
    """`train_step` compiled for every row count that the packer makes, so that nothing compiles
    while training.

    Args:
      train_step: as `make_train_step` returns it.
      frozen: arrays, or their shapes with layouts; so is `state`.
      backend: of the model's attention.

    Returns:
      step(frozen, state, batch), which compiles a shape that was not foreseen when it is met.
    """
    programs = ProgramsByRows(train_step, (frozen, state), packer, backend)
    programs.compile_all()
    distributed.meet("compiled")

    def step(frozen: Frozen, state: TrainState, batch: Batch):
        return programs.run((frozen, state), batch)

    return step
