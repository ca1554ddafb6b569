"""The product's own gradient, which CPUs have, against JAX's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dft_jax import sharding
from dft_jax.models import layers
from dft_jax.models.hf.locate import read_config
from dft_jax.models.model import build
from dft_jax.models.spec import Rope
from dft_jax.types import Batch
from tests.conftest import GOLDEN


@pytest.mark.parametrize("einsum", ["BLD,FD->BLF", "BLD,HKD->BLHK", "BLHK,DHK->BLD", "BLF,DF->BLD"])
@pytest.mark.parametrize("wide", "FHD")  # outputs more than inputs, and fewer
def test_a_product_has_the_gradients_of_einsum(einsum, wide):
    sizes = dict(zip("BLDFHK", (2, 3, 4, 5, 6, 7), strict=True)) | {wide: 32}
    of_x, of_kernel = einsum.split("->")[0].split(",")
    keys = jax.random.split(jax.random.key(0))
    x, kernel = (
        jax.random.normal(key, [sizes[letter] for letter in of])
        for key, of in zip(keys, (of_x, of_kernel), strict=True)
    )

    def loss(product):
        return lambda x, kernel: jnp.sin(product(einsum, x, kernel)).sum()

    @jax.jit
    def gradients(x, kernel):
        own, exact = loss(layers._cpu_product), loss(jnp.einsum)
        return jax.grad(own, (0, 1))(x, kernel), jax.grad(exact, (0, 1))(x, kernel)

    found, exact = gradients(x, kernel)
    for mine, theirs in zip(found, exact, strict=True):
        assert mine.shape == theirs.shape
        assert jnp.abs(mine - theirs).max() <= 1e-5 * jnp.abs(theirs).max()


HALF_A_STEP = 2.0**-8  # of bfloat16, relative: what rounding a result once costs at most


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_a_norm_of_bfloat16_is_computed_in_float32(platform):
    """Against float64 from the same inputs: nothing is rounded but the result."""
    x_BLD = jax.random.normal(jax.random.key(0), (4, 16, 96), jnp.bfloat16)
    norm = layers.RMSNorm((96,), 1e-6, jnp.dtype("bfloat16"), platform)
    found = norm.apply({"params": {"scale": jnp.ones(96, jnp.bfloat16)}}, x_BLD)
    x64 = np.asarray(x_BLD).astype(np.float64)
    exact = x64 / np.sqrt((x64**2).mean(axis=-1, keepdims=True) + 1e-6)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found).astype(np.float64), exact, rtol=1.01 * HALF_A_STEP)


def test_rope_of_bfloat16_is_computed_in_float32():
    """Against float64; positions are small, so that angles in float32 are good enough."""
    x_BLHK = jax.random.normal(jax.random.key(0), (1, 200, 2, 32), jnp.bfloat16)
    positions_BL, frequencies = np.arange(200)[None], layers.rope_frequencies(Rope(1e4), 32)
    found = layers.apply_rope(x_BLHK, positions_BL, frequencies, 1.0)
    angles_LK = positions_BL[0, :, None] * frequencies.astype(np.float64)
    first, second = np.split(np.asarray(x_BLHK).astype(np.float64), 2, axis=-1)
    cos, sin = (f(angles_LK)[None, :, None, :] for f in (np.cos, np.sin))
    exact = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    assert found.dtype == jnp.bfloat16
    found = np.asarray(found).astype(np.float64)
    np.testing.assert_allclose(found, exact, rtol=1.01 * HALF_A_STEP, atol=1e-4)


def has_own_gradients(mesh) -> bool:
    """Whether a model on this mesh multiplies with the product that CPUs have, which is custom."""
    model = build(read_config(GOLDEN / "qwen2_tied"), mesh)
    rows_BL = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    batch = Batch(rows_BL, rows_BL, jax.ShapeDtypeStruct((2, 8), jnp.bool), rows_BL, rows_BL)
    program = str(jax.make_jaxpr(model.apply)(model.abstract_params, batch))
    return program.count("custom_vjp_call") > 1  # the embedding has one, wherever it runs


@pytest.mark.parametrize("default", ["cpu", "tpu"])
def test_the_product_goes_by_the_platform_of_the_mesh(default, monkeypatch, mesh1):
    """A step compiled for a TPU on a machine without one had the CPU's products in it."""
    monkeypatch.setattr(jax, "default_backend", lambda: default)
    assert has_own_gradients(mesh1)
    assert not has_own_gradients(sharding.abstract_mesh((1, 1, 1), "tpu"))
