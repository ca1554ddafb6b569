"""The walk's rules of what an accelerator's compiler does: on computations small enough to count."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from dft_jax import sharding
from dft_jax.planner import liveness

MIB = 2**20
X = (512, 512)  # 1 MiB in float32


def peak_mib(function, *shapes, adds=True, shares=None):
    """MiB of a function of float32 arrays, which may be overwritten; `shares` are those of the
    arguments that lie on one device.
    """
    shares = shares or [1.0] * len(shapes)
    inputs = []
    for shape, share in zip(shapes, shares, strict=True):
        inputs.append(liveness.Array(4 * math.prod(shape) * share, shape, jnp.dtype("float32")))
    leaves = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    rules = liveness.Rules(adds_inside_products=adds)
    return liveness.total(liveness.peak(jax.make_jaxpr(function)(*leaves), inputs, rules)) / MIB


def plus_product(x, y):
    return y + x @ x


def of_two_products(x, y):
    return x @ y + y @ x


def in_bfloat16(x, y):
    return y.astype(jnp.bfloat16) + (x @ x).astype(jnp.bfloat16)


def read_twice(x, y):
    product = x @ x
    return (y + product) * product.sum()


def plus_transposed(x, y):
    return y + (x @ x).T


def summed_in_a_loop(x, y):
    return jax.lax.fori_loop(0, 9, lambda i, total: total + x @ x, y)


@pytest.mark.parametrize(
    "function, added, beside",
    [
        (plus_product, 2, 3),  # in the place of y
        (of_two_products, 3, 4),  # the later in the place of the earlier
        (in_bfloat16, 2.5, 3),  # the product is written in bfloat16
        (read_twice, 3, 3),  # the product is an array, for the other that reads it
        (plus_transposed, 3, 3),  # no place of y's is where the product's elements go
        (summed_in_a_loop, 2, 3),
    ],
)
def test_a_product_is_made_inside_of_the_sum_that_it_is_a_part_of(function, added, beside):
    """Beside it on a CPU, whose products are calls of a library."""
    assert peak_mib(function, X, X) == pytest.approx(added, abs=0.01)
    assert peak_mib(function, X, X, adds=False) == pytest.approx(beside, abs=0.01)


MESH = sharding.abstract_mesh((1, 1, 1))


def mapped(function):
    return jax.shard_map(function, mesh=MESH, in_specs=(P(), P()), out_specs=P(), check_vma=False)


def by_a_cast(w, x):
    return x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)


def by_a_cast_and_whole(w, x):
    return (by_a_cast(w, x) + w[:1, :1].astype(jnp.bfloat16)).astype(jnp.float32) @ w


def test_what_is_cast_as_it_enters_is_gathered_in_the_narrower_dtype():
    """Of w an eighth lies on a device. Gathered it takes 1/2, beside x's cast and the product."""
    found = peak_mib(mapped(by_a_cast), X, X, shares=[0.125, 1])
    assert found == pytest.approx(0.5 + 1 + 0.5, abs=0.01)
    # Where something else reads it in float32 too, it is gathered so.
    assert peak_mib(mapped(by_a_cast_and_whole), X, X, shares=[0.125, 1]) > 2.5


def test_what_is_cut_outside_is_summed_whole_beside_what_it_is_a_sum_of():
    """Of the product a device keeps an eighth, as of what it is added to: until it is cut there are
    the product, its sum over devices, both whole, and what the computation was given.
    """

    def gradient(w, x):
        return w + mapped(lambda w, x: x @ x)(w, x)

    # Then the sum is there, and nothing of what it is a sum of, while it is added to w.
    cut = peak_mib(gradient, X, X, shares=[0.125, 1])
    assert cut == pytest.approx(0.125 + 1 + 1 + 1, abs=0.01)
    # Nothing is cut: the product is the result, and is added where w was.
    assert peak_mib(gradient, X, X) == pytest.approx(3, abs=0.01)
