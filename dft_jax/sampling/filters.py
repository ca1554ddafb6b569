"""Which tokens may be drawn: a filter is a function `logits -> kept`, [B, V] each.

A new filter is one more function here, and a line in `make`. Filters come one after the other: each
sees the logits (divided by the temperature) with those that earlier ones dropped at -inf.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Num

Filter = Callable[[Float[Array, "B V"]], Bool[Array, "B V"]]


def make(top_k: int = 0, top_p: float = 1.0) -> tuple[Filter, ...]:
    """The filters of these settings: none for the defaults, which keep every token."""
    filters: list[Filter] = []
    if top_k:
        filters.append(functools.partial(keep_top_k, k=top_k))
    if top_p < 1:
        filters.append(functools.partial(keep_top_p, p=top_p))
    return tuple(filters)


def keep(logits_BV: Float[Array, "B V"], filters: Sequence[Filter]) -> Bool[Array, "B V"]:
    """The tokens that all filters keep, applied in their order."""
    is_kept_BV = jnp.ones(logits_BV.shape, bool)
    for keep_some in filters:
        is_kept_BV &= keep_some(jnp.where(is_kept_BV, logits_BV, -jnp.inf))
    return is_kept_BV


def keep_top_k(logits_BV: Float[Array, "B V"], k: int) -> Bool[Array, "B V"]:
    """The k largest of each row; tokens as probable as the last of them are kept too."""
    ones_BV = jnp.ones(logits_BV.shape, jnp.int32)
    return _heaviest(logits_BV, ones_BV, min(k, logits_BV.shape[1]))


def keep_top_p(logits_BV: Float[Array, "B V"], p: float) -> Bool[Array, "B V"]:
    """The fewest of each row that hold the share p; tokens as probable as the last are kept too.

    (Nucleus sampling, Holtzman et al. 2020, arXiv 1904.09751.)
    """
    return _heaviest(logits_BV, jax.nn.softmax(logits_BV, axis=1), p)


def _heaviest(
    logits_BV: Float[Array, "B V"], weights_BV: Num[Array, "B V"], wanted: float | int
) -> Bool[Array, "B V"]:
    """The tokens from the highest logit on that together weigh at least `wanted`.

    Without sorting, which takes longer than all else of a token: the bits of a float, with the sign
    turned, are in the order of the floats, so the lowest logit to keep is found bit by bit in 32
    passes.
    """
    bits_BV = lax.bitcast_convert_type(logits_BV, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    # Negative floats have the sign bit, and larger bits the smaller they are.
    order_BV = jnp.where(bits_BV >= sign, ~bits_BV, bits_BV | sign)

    def try_bit(i: Array, threshold_B: Array) -> Array:
        candidate_B = threshold_B | (sign >> i.astype(jnp.uint32))
        weight_B = jnp.where(order_BV >= candidate_B[:, None], weights_BV, 0).sum(axis=1)
        return jnp.where(weight_B >= wanted, candidate_B, threshold_B)

    threshold_B = lax.fori_loop(0, 32, try_bit, jnp.zeros(len(order_BV), jnp.uint32))
    return order_BV >= threshold_B[:, None]
