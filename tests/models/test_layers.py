"""The product's own gradient, which CPUs have, against JAX's."""

import jax
import jax.numpy as jnp
import pytest

from dft_jax import models, sharding
from dft_jax.models import hf, layers
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


def has_own_gradients(mesh) -> bool:
    """Whether a model on this mesh multiplies with the product that CPUs have, which is custom."""
    model = models.build(hf.read_config(GOLDEN / "qwen2_tied"), mesh)
    rows_BL = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    batch = Batch(rows_BL, rows_BL, jax.ShapeDtypeStruct((2, 8), jnp.bool), rows_BL, rows_BL)
    return "custom_vjp_call" in str(jax.make_jaxpr(model.apply)(model.abstract_params, batch))


@pytest.mark.parametrize("default", ["cpu", "tpu"])
def test_the_product_goes_by_the_platform_of_the_mesh(default, monkeypatch, mesh1):
    """A step compiled for a TPU on a machine without one had the CPU's products in it."""
    monkeypatch.setattr(jax, "default_backend", lambda: default)
    assert has_own_gradients(mesh1)
    assert not has_own_gradients(sharding.abstract_mesh((1, 1, 1)))
