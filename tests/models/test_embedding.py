"""The embedding's gradient: sums of many positions, in whatever type the table is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dft_jax import sharding
from dft_jax.models import layers

V, D = 64, 16


def case(n_positions, seed=0):
    """Tokens [1, N], of which every third is 7, and cotangents [1, N, D] that do not cancel."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, V, size=(1, n_positions)).astype(np.int32)
    tokens[:, ::3] = 7
    return tokens, jnp.asarray(rng.normal(size=(1, n_positions, D)) + 0.5, jnp.bfloat16)


def gradient(table, tokens, cotangents):
    _, pull = jax.vjp(lambda t: layers.embed(t, tokens, cotangents.dtype), table)
    return pull(cotangents)[0]


def expected(tokens, cotangents):
    total = np.zeros((V, D))
    np.add.at(total, tokens[0], np.asarray(cotangents[0], np.float64))
    return total


@pytest.mark.parametrize("dtype, most", [("bfloat16", 0.01), ("float32", 1e-5)])
def test_the_gradient_of_a_frequent_token_is_whole(dtype, most):
    """In bfloat16 sums, 90 % of this row's gradient is lost."""
    tokens, cotangents = case(65_536)
    found = jax.jit(gradient)(jnp.zeros((V, D), dtype), tokens, cotangents)
    assert found.dtype == dtype
    truth = expected(tokens, cotangents)
    for rows in ([7], slice(None)):
        error = np.linalg.norm(np.asarray(found, np.float64)[rows] - truth[rows])
        assert error < most * np.linalg.norm(truth[rows])


def test_rows_are_those_of_the_table_in_the_compute_dtype():
    table = jnp.arange(V * D, dtype=jnp.float32).reshape(V, D)
    rows = layers.embed(table, jnp.asarray([[3, 0]]), jnp.dtype("bfloat16"))
    assert rows.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rows, table.astype(jnp.bfloat16)[jnp.asarray([[3, 0]])])


def test_the_gradient_is_the_same_on_eight_devices(mesh8):
    """Rows of tokens over data and fsdp, the table over vocabulary and width."""
    tokens, cotangents = case(4096)
    tokens, cotangents = tokens.reshape(8, -1), cotangents.reshape(8, -1, D)
    alone = jax.jit(gradient)(jnp.zeros((V, D), jnp.bfloat16), tokens, cotangents)
    layout = sharding.named(mesh8, "tensor", "fsdp")
    batch = sharding.named(mesh8, ("data", "fsdp"))
    table = jax.device_put(jnp.zeros((V, D), jnp.bfloat16), layout)
    here = jax.device_put((tokens, cotangents), batch)
    found = jax.jit(gradient, out_shardings=layout)(table, *here)
    assert found.sharding == layout
    np.testing.assert_allclose(
        np.asarray(found, np.float32), np.asarray(alone, np.float32), rtol=2**-7
    )
