"""Moments in less memory: their dtypes, what an update loses, what is refused, and that a run goes on with them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dft_jax import config as config_lib, errors, optimizer as optimizer_lib, train
from tests.training import tiny_config

DTYPES = {
    "param": ("float32", "float32"),
    "bfloat16_first": ("bfloat16", "float32"),
    "bfloat16": ("bfloat16", "bfloat16"),
}


def after(moment_dtype, steps, b2=0.95):
    """A parameter of 4,096 values after updates with random gradients, and the optimizer's state."""
    config = tiny_config(**{"optimizer.moment_dtype": moment_dtype, "optimizer.b2": b2}).optimizer
    optimizer = optimizer_lib.make_optimizer(config, lambda count: 1e-3)
    apply = jax.jit(functools.partial(optimizer_lib.apply, optimizer))
    params = {"kernel": jnp.zeros(4096)}
    state = optimizer.init(params)
    for seed in range(steps):
        grads = {"kernel": jnp.asarray(np.random.default_rng(seed).normal(size=4096), jnp.float32)}
        params, state = apply(grads, state, params, jnp.asarray(True))
    return params["kernel"], state[-1][0]


def test_rates_of_eight_steps_by_hand():
    """Warm-up of 0.2: 1.6 steps are rounded to 2, then half a cosine over the 6 that are left."""
    config = tiny_config(**{"optimizer.warmup_fraction": 0.2, "optimizer.learning_rate": 4.0}).optimizer
    schedule = optimizer_lib.make_schedule(config, 8)
    expected = [0, 2, 4, *(2 + 2 * np.cos(np.pi * np.arange(1, 6) / 6)), 0]
    np.testing.assert_allclose([float(schedule(count)) for count in range(9)], expected, atol=1e-6)


def test_it_is_optax_adamw():
    config = tiny_config().optimizer
    reference = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(1e-3, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay),
    )
    params = {"kernel": jnp.zeros(4096)}
    state = reference.init(params)
    for seed in range(5):
        grads = {"kernel": jnp.asarray(np.random.default_rng(seed).normal(size=4096), jnp.float32)}
        updates, state = reference.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(after("param", 5)[0], params["kernel"], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("moment_dtype", DTYPES)
def test_moments_have_their_dtype_and_the_update_hardly_changes(moment_dtype):
    found, state = after(moment_dtype, 50)
    assert (state.mu["kernel"].dtype, state.nu["kernel"].dtype) == DTYPES[moment_dtype]
    expected, _ = after("param", 50)
    # Each update is off by at most 2 ** -9 / (1 - b1) of the first moment and 2 ** -9 / (1 - b2) / 2 of the second.
    error = jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected)
    assert error == 0 if moment_dtype == "param" else 1e-5 < error < 0.02
    one, _ = after(moment_dtype, 1)
    np.testing.assert_allclose(one, after("param", 1)[0], rtol=2**-7)


def test_what_bfloat16_cannot_hold_is_refused():
    """With b2 = 0.999 the second moment never shrinks: 1,000 steps without a gradient leave it as it was."""
    nu = jnp.asarray(1.0, jnp.bfloat16)
    for _ in range(1000):
        nu = (0.999 * nu.astype(jnp.float32)).astype(jnp.bfloat16)
    assert nu == 1
    problems = config_lib.validate(tiny_config(**{"optimizer.moment_dtype": "bfloat16", "optimizer.b2": 0.999}))
    assert ["config.optimizer.moment_dtype='bfloat16' cannot hold" in problem for problem in problems] == [True]
    assert not config_lib.validate(tiny_config(**{"optimizer.moment_dtype": "bfloat16_first", "optimizer.b2": 0.999}))


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_moments_and_not_with_others(tmp_path, monkeypatch):
    def run(folder, **overrides):
        changed = {"train.steps": 4, "checkpoint.every": 2, "optimizer.moment_dtype": "bfloat16"} | overrides
        return train.run(tiny_config(**changed), tmp_path / folder)

    whole = run("whole")
    calls = iter(range(3))

    def stop_at_the_fourth(**_):
        if next(calls, None) is None:
            raise errors.Stopped("a test")

    monkeypatch.setattr(train.interrupts, "check", stop_at_the_fourth)
    with pytest.raises(errors.Stopped):
        run("parts")
    monkeypatch.undo()
    again = run("parts")
    one, other = jax.device_get((whole.state, again.state))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(again.state.opt_state) if leaf.ndim} == {"bfloat16"}
    with pytest.raises(errors.UserError, match="config.optimizer.moment_dtype: 'bfloat16' -> 'param'"):
        run("parts", **{"optimizer.moment_dtype": "param"})
