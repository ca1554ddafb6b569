"""The product's own gradient, which CPUs have, against JAX's."""

import jax
import jax.numpy as jnp
import pytest

from dft_jax.models import layers


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

    found, exact = (jax.grad(loss(product), (0, 1))(x, kernel) for product in (layers._cpu_product, jnp.einsum))
    for mine, theirs in zip(found, exact, strict=True):
        assert mine.shape == theirs.shape
        assert jnp.abs(mine - theirs).max() <= 1e-5 * jnp.abs(theirs).max()
