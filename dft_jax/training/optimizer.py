"""AdamW with the paper's recipe: clip, moments, decoupled weight decay, warm-up and schedule."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from dft_jax.runtime.options import ABOVE_0, AT_LEAST_0, BELOW_1, Config, Option
from dft_jax.types import Params

SCHEDULES = ("cosine", "linear", "constant")
DECAYS = ("all", "matrices")
# Of the first and of the second moment; None is that of the parameters. A bfloat16 has 8 bits, so
# an average that moves by less than 1/512 to 1/256 of itself stays where it is. With b1 = 0.9 and
# b2 = 0.95 that is a moment within 4 and 8 % of where it should be; with b2 = 0.999 the second
# moment could never shrink (config.py refuses that).
MOMENT_DTYPES = {
    "param": (None, None),
    "bfloat16_first": (jnp.bfloat16, None),
    "bfloat16": (jnp.bfloat16, jnp.bfloat16),
}
# How bfloat16 parameters take an update. Beside a weight w their values lie |w|/256 to |w|/128
# apart, and an update of less than half of that is rounded away: at 5e-5 six weights in seven never
# moved. "stochastic" rounds up or down with the odds that make it right on average; "nearest" is
# what the authors' run did.
ROUNDINGS = ("stochastic", "nearest")
# The rate of the first update of a warm-up over W of them. "step" is 1/W of the peak; from "zero",
# as in the authors' run, that update changes nothing: one in twelve of a short run.
WARMUPS = ("step", "zero")
# config.optimizer
SECTION = {
    "learning_rate": Option(5e-5, "at the peak of the schedule", ABOVE_0),
    "schedule": Option("cosine", "how the rate falls to 0 after the warm-up", SCHEDULES),
    "warmup_fraction": Option(0.1, "of the steps, in which the rate rises to its peak", BELOW_1),
    "warmup_from": Option(
        "step", "rate of the first update: a step above 0; or zero, as in the authors' run", WARMUPS
    ),
    "b1": Option(0.9, "decay of the first moment, each step", BELOW_1),
    "b2": Option(0.95, "decay of the second moment, each step", BELOW_1),
    "eps": Option(1e-8, "added to the root of the second moment", ABOVE_0),
    "weight_decay": Option(0.01, "times the learning rate, of each weight, each step", AT_LEAST_0),
    "decay": Option("all", "matrices: not norms and biases", DECAYS),
    "moment_dtype": Option(
        "param",
        "that of the parameters; bfloat16_first, bfloat16: of one moment, of both",
        tuple(MOMENT_DTYPES),
    ),
    "clip_norm": Option(1.0, "the most that the gradient's norm may be", ABOVE_0),
    "rounding": Option(
        "stochastic",
        "of bfloat16 parameters; nearest, as in the authors' run, loses small updates",
        ROUNDINGS,
    ),
}
_RATES_MULTIPLE = 1024  # so that runs of about as many steps share a compiled step


def problems(moment_dtype: str, b2: float) -> list[str]:
    """A bfloat16 keeps 8 bits: an average that should shrink by less than 1/256 of itself a step
    never would.
    """
    if moment_dtype != "bfloat16" or 1 - b2 >= 1 / 256:
        return []
    what = f"config.optimizer.moment_dtype='bfloat16' cannot hold a second moment with b2={b2}"
    remedy = "use 'bfloat16_first', or optimizer.b2 of at most 0.996"
    return [f"{what}: rounding would undo every decrease; {remedy}"]


def make_schedule(config: Config, steps: int) -> optax.Schedule:
    """Learning rate against the count of updates, from 0: a linear warm-up over W of them, then the
    named decay to 0 at `steps`.

    Update t of the warm-up has (t + 1)/W of the peak, so the last one has it; with
    `warmup_from="zero"` it has t/W, as in the authors' run.
    """
    peak, warmup = config.learning_rate, round(config.warmup_fraction * steps)
    decay = {
        "cosine": optax.cosine_decay_schedule(peak, max(steps - warmup, 1)),
        "linear": optax.linear_schedule(peak, 0.0, max(steps - warmup, 1)),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    rise = optax.linear_schedule(0.0, peak, max(warmup, 1))
    if warmup_from(config) == "step":
        return optax.join_schedules([lambda count: rise(count + 1), decay], [warmup])
    return optax.join_schedules([rise, decay], [warmup])


def rates(config: Config, steps: int) -> Float[np.ndarray, " U"]:
    """The learning rate of each update, float32, with the last one repeated up to a multiple of
    1,024.

    Compiled, as it was when it was part of the step: outside of a program the cosine has other last
    bits.
    """
    schedule = make_schedule(config, steps)
    table = np.asarray(
        jax.jit(jax.vmap(lambda count: jnp.float32(schedule(count))))(
            np.arange(steps, dtype=np.int32)
        )
    )
    return np.pad(table, (0, -steps % _RATES_MULTIPLE), mode="edge")


def make_optimizer(config: Config) -> optax.GradientTransformationExtraArgs:
    """`config` is `config.optimizer`; `update` takes `rate`, the learning rate.

    Takes float32 gradients and clips them as such (a bf16 norm is off by 2 %). Moments have the
    dtype of the parameters unless `moment_dtype` names another. So has, with rounding to nearest,
    all that is computed from them, as in the authors' run; else it is float32, where the weight
    decay is not lost beside the rest of the update.
    """
    is_short = rounding_of(config) == "nearest"
    return optax.chain(
        optax.stateless(lambda grads, params: _clip(grads, config.clip_norm)),
        optax.stateless(lambda grads, params: _like(grads, params) if is_short else grads),
        optax.chain(
            _scale_by_adam(config.b1, config.b2, config.eps, *MOMENT_DTYPES[config.moment_dtype]),
            optax.add_decayed_weights(
                config.weight_decay, None if config.decay == "all" else _is_matrix
            ),
            _scale_by_rate(),
        ),
    )


def rounding_of(config: Config) -> str:
    """Of `config.optimizer`; a run from before the key was there rounded to nearest."""
    return config.get("rounding", "nearest")


def warmup_from(config: Config) -> str:
    """Of `config.optimizer`; a run from before the key was there began at a rate of zero."""
    return config.get("warmup_from", "zero")


def _clip(grads, largest: float):
    """Gradients with a global norm of at most `largest`: multiplied by one factor, where
    `optax.clip_by_global_norm` divides each element, which XLA does once for all its readers, into
    a second copy of the gradients.
    """
    factor = largest / jnp.maximum(optax.tree.norm(grads), largest)
    return jax.tree.map(lambda grad: grad * factor.astype(grad.dtype), grads)


def _scale_by_adam(b1, b2, eps, mu_dtype, nu_dtype) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_adam`, but it computes the update from the moments as they are kept.

    Those are the old ones where `is_finite` is False. Were it computed from new moments that are
    selected afterwards, it would read the old ones too, so that XLA could not write the new ones in
    their place: it would copy old ones as the step begins and keep the copies to its end (with what
    _clip saves, 6.2 of 31 GiB for 1.5B on one device).
    """

    def init(params):
        mu = optax.tree.zeros_like(params, dtype=mu_dtype)
        nu = optax.tree.zeros_like(params, dtype=nu_dtype)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mu, nu)

    def update(updates, state, params=None, *, is_finite: Any = True, **extra_args):
        grads, state = updates, cast(optax.ScaleByAdamState, state)

        def kept(new, old):
            # A moment stays in the type in which it is kept.
            def select(new_leaf, old_leaf):
                chosen = jnp.where(is_finite, new_leaf, old_leaf.astype(new_leaf.dtype))
                return chosen.astype(old_leaf.dtype)

            return jax.tree.map(select, new, old)

        count = jnp.where(is_finite, optax.safe_increment(state.count), state.count)
        mu = kept(optax.tree.update_moment(grads, _like(state.mu, grads), b1, 1), state.mu)
        nu = kept(
            optax.tree.update_moment_per_elem_norm(grads, _like(state.nu, grads), b2, 2), state.nu
        )
        mu_hat = optax.tree.bias_correction(_like(mu, grads), b1, count)
        nu_hat = optax.tree.bias_correction(_like(nu, grads), b2, count)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu_hat, nu_hat)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def _like(tree, other):
    return jax.tree.map(lambda leaf, model: leaf.astype(model.dtype), tree, other)


def _scale_by_rate() -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_learning_rate`, its state as well, with the rate as an argument."""

    def init(params):
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, *, rate: Any = None, **extra_args):
        state = cast(optax.ScaleByScheduleState, state)
        updates = jax.tree.map(lambda u: jnp.asarray(-rate, u.dtype) * u, updates)
        return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def apply(
    optimizer: optax.GradientTransformationExtraArgs,
    grads: Params,
    opt_state: Any,
    params: Params,
    is_finite: Bool[Array, ""],
    rate: Float[Array, ""],
    key: jax.Array | None = None,
) -> tuple[Params, Any, dict[str, Array]]:
    """Parameters and optimizer state after the update; where `is_finite` is False, those from
    before it.

    Args:
      rate: the learning rate.
      key: of random numbers for stochastic rounding; None to round to nearest.

    Returns:
      With the two, of bfloat16 parameters what `moved` says of them.
    """

    def kept(new, old):  # selected, because NaN times zero is NaN
        return jax.tree.map(lambda n, o: jnp.where(is_finite, n, o), new, old)

    updates, new_state = optimizer.update(grads, opt_state, params, is_finite=is_finite, rate=rate)
    # Only the schedule's own count is left to select; the moments have been.
    *others, last = cast(tuple, new_state)
    last = (*last[:-1], kept(last[-1], opt_state[-1][-1]))
    if key is None:
        new_params = optax.apply_updates(params, updates)
    else:
        new_params = add_rounded(params, updates, key)
    sums = {}
    if all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(params)):
        sums = moved(params, updates, new_params)
    return kept(new_params, params), (*others, last), sums


def add_rounded(params: Params, updates: Params, key: jax.Array) -> Params:
    """params + updates, rounded to bfloat16 at random, and right on average.

    Up with the odds of what is left of a step between two values. Each weight has bits of its own,
    from `key` and its place, whatever the mesh.
    """
    leaves, tree = jax.tree.flatten(params)
    rounded: list[jax.Array] = []
    for number, (param, update) in enumerate(zip(leaves, tree.flatten_up_to(updates), strict=True)):
        # One after the other, or XLA makes the random bits of all of them at once.
        if rounded:
            number, rounded[-1] = jax.lax.optimization_barrier((jnp.uint32(number), rounded[-1]))
        leaf_key = jax.random.fold_in(key, number)
        total = param.astype(jnp.float32) + update.astype(jnp.float32)
        rounded.append(_round(total, leaf_key))
    return tree.unflatten(rounded)


def _round(x: Float[Array, "..."], key) -> Float[Array, "..."]:
    """float32 to bfloat16, which is its upper 16 bits: random lower ones are added, and carry with
    their odds.

    0 01111111 0000000 | 0100000000000000    1 + a quarter of a step
                       + 1011111111111111    and three in four of all random bits do not carry
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + jax.random.bits(key, x.shape, jnp.uint16)
    return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)


def moved(params: Params, updates: Params, new_params: Params) -> dict[str, Array]:
    """What became of an update of bfloat16 parameters.

    Returns:
      moved_share: of all weights, those that are not what they were.
      update_lost: 1 - <change, update> / |update|²: the share of the update that did not arrive. 0
      where the change is
        the update, or is so on average; 1 where nothing moved.
    """

    def of_leaf(old, update, new):
        # XLA may skip a rounding that is taken back at once, but not this one.
        new = jax.lax.reduce_precision(new.astype(jnp.float32), 8, 7)
        old, update = old.astype(jnp.float32), update.astype(jnp.float32)
        change = new - old
        # Not `change != 0`: XLA would compare with the zeros from which gradients were added up, an
        # array in float32, and keep it for that (17 GiB of a model with 7 billion parameters).
        count = jnp.sum(new != old, dtype=jnp.uint32).astype(jnp.float32)
        return jnp.stack([count, jnp.sum(change * update), jnp.sum(update * update)])

    parts = jax.tree.leaves(jax.tree.map(of_leaf, params, updates, new_params))
    # Python's sum: leaf after leaf, as a reader would add them.
    count, along, whole = cast(Array, sum(parts))
    # Float, because no int32 holds 7 billion.
    n_weights = float(sum(leaf.size for leaf in jax.tree.leaves(params)))
    # A rate of 0 loses nothing.
    lost = jnp.where(whole > 0, 1 - along / jnp.where(whole > 0, whole, 1), 0.0)
    return {"moved_share": count / n_weights, "update_lost": lost}


def _is_matrix(params):
    """True for weights of matrix products and embeddings; False for norms and biases, stacked over
    layers or not.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key not in ("scale", "bias"), params
    )


def update_count(opt_state: Any) -> jax.Array:
    """Updates applied so far: the count that the schedule reads (skipped steps do not move it)."""
    return opt_state[-1][0].count
