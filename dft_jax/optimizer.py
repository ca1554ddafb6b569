"""AdamW with the paper's recipe: clip, moments, decoupled weight decay, warm-up and schedule."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

SCHEDULES = ("cosine", "linear", "constant")
DECAYS = ("all", "matrices")
# Of the first and of the second moment; None is that of the parameters. A bfloat16 has 8 bits, so an average that moves
# by less than 1/512 to 1/256 of itself stays where it is. With b1 = 0.9 and b2 = 0.95 that is a moment within 4 and 8 %
# of where it should be; with b2 = 0.999 the second moment could never shrink (config.py refuses that).
MOMENT_DTYPES = {
    "param": (None, None),
    "bfloat16_first": (jnp.bfloat16, None),
    "bfloat16": (jnp.bfloat16, jnp.bfloat16),
}


def make_schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """Learning rate against the count of updates: linear warm-up from 0, then the named decay to 0 at `steps`.

    The count of the first update is 0, so with a warm-up the first update has rate 0, as in the authors' run.
    """
    peak, warmup = config.learning_rate, round(config.warmup_fraction * steps)
    decay = {
        "cosine": optax.cosine_decay_schedule(peak, max(steps - warmup, 1)),
        "linear": optax.linear_schedule(peak, 0.0, max(steps - warmup, 1)),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(warmup, 1)), decay], [warmup])


def make_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """`config` is `config.optimizer`. Takes float32 gradients and clips them as such (a bf16 norm is off by 2 %);
    the update has the dtype of the parameters, and so have the moments unless `moment_dtype` names another."""
    return optax.chain(
        optax.stateless(lambda grads, params: _clip(grads, config.clip_norm)),
        optax.stateless(lambda grads, params: jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)),
        optax.chain(
            _scale_by_adam(config.b1, config.b2, config.eps, *MOMENT_DTYPES[config.moment_dtype]),
            optax.add_decayed_weights(config.weight_decay, None if config.decay == "all" else _is_matrix),
            optax.scale_by_learning_rate(schedule),
        ),
    )


def _clip(grads, largest: float):
    """Gradients with a global norm of at most `largest`: multiplied by one factor, where `optax.clip_by_global_norm`
    divides each element, which XLA does once for all its readers, into a second copy of the gradients."""
    factor = largest / jnp.maximum(optax.tree.norm(grads), largest)
    return jax.tree.map(lambda grad: grad * factor.astype(grad.dtype), grads)


def _scale_by_adam(b1, b2, eps, mu_dtype, nu_dtype) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_adam`, but it computes the update from the moments as they are kept.

    Those are the old ones where `is_finite` is False. Were it computed from new moments that are selected afterwards,
    it would read the old ones too, so that XLA could not write the new ones in their place: it would copy old ones as
    the step begins and keep the copies to its end (with what _clip saves, 6.2 of 31 GiB for 1.5B on one device).
    """

    def init(params):
        moments = (optax.tree.zeros_like(params, dtype=dtype) for dtype in (mu_dtype, nu_dtype))
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), *moments)

    def update(grads, state, params=None, *, is_finite=True, **_):
        def kept(new, old):
            return jax.tree.map(lambda n, o: jnp.where(is_finite, n, o.astype(n.dtype)).astype(o.dtype), new, old)

        count = jnp.where(is_finite, optax.safe_increment(state.count), state.count)
        mu = kept(optax.tree.update_moment(grads, _like(state.mu, grads), b1, 1), state.mu)
        nu = kept(optax.tree.update_moment_per_elem_norm(grads, _like(state.nu, grads), b2, 2), state.nu)
        mu_hat = optax.tree.bias_correction(_like(mu, grads), b1, count)
        nu_hat = optax.tree.bias_correction(_like(nu, grads), b2, count)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu_hat, nu_hat)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def _like(moments, grads):
    return jax.tree.map(lambda moment, grad: moment.astype(grad.dtype), moments, grads)


def apply(
    optimizer: optax.GradientTransformationExtraArgs, grads, opt_state, params, is_finite, peak=None
) -> tuple[Any, Any]:
    """Parameters and optimizer state after the update; where `is_finite` is False, those from before it.

    `peak` multiplies the update, for an optimizer whose schedule has a peak of 1.
    """

    def kept(new, old):  # selected, because NaN times zero is NaN
        return jax.tree.map(lambda n, o: jnp.where(is_finite, n, o), new, old)

    updates, new_state = optimizer.update(grads, opt_state, params, is_finite=is_finite)
    if peak is not None:
        updates = jax.tree.map(lambda update: (update * peak).astype(update.dtype), updates)
    # Only the schedule's own count is left to select; the moments have been.
    new_state = (*new_state[:-1], (*new_state[-1][:-1], kept(new_state[-1][-1], opt_state[-1][-1])))
    return kept(optax.apply_updates(params, updates), params), new_state


def _is_matrix(params):
    """True for weights of matrix products and embeddings; False for norms and biases, stacked over layers or not."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in ("scale", "bias"), params)


def update_count(opt_state) -> jax.Array:
    """Updates applied so far: the count that the schedule reads (skipped steps do not move it)."""
    return opt_state[-1][0].count
