"""AdamW with the paper's recipe: clip, moments, decoupled weight decay, warm-up and schedule."""

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

SCHEDULES = ("cosine", "linear", "constant")
DECAYS = ("all", "matrices")


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


def make_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """`config` is `config.optimizer`. Takes float32 gradients and clips them as such (a bf16 norm is off by 2 %);
    moments and update have the dtype of the parameters."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.stateless(lambda grads, params: jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)),
        optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=None if config.decay == "all" else _is_matrix,
        ),
    )


def _is_matrix(params):
    """True for weights of matrix products and embeddings; False for norms and biases, stacked over layers or not."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in ("scale", "bias"), params)


def update_count(opt_state) -> jax.Array:
    """Updates applied so far: the count that the schedule reads (skipped steps do not move it)."""
    return opt_state[-1][0].count


def select_update(is_finite, new, old):
    """`new` where the step is finite, else `old`, leaf by leaf: selection, because NaN times zero is NaN."""
    return jax.tree.map(lambda n, o: jnp.where(is_finite, n, o), new, old)
