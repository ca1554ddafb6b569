"""How a router spreads tokens over experts: what is summed of it, and the loss that balances it.

Letters besides the legend's: E experts, S of a token, X layers that have experts.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dft_jax.types import Leaf

# Of a module's variables, where layers leave their sums.
COLLECTION = "routing"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Routing:
    """Sums over the tokens of each row of a batch, padding left out."""

    pairs_XBE: Leaf  # int32: how many tokens go through each expert
    shares_XBE: Leaf  # of softmax over all experts


def row_sums(
    logits_BLE: Float[Array, "B L E"],
    chosen_BLS: Int[Array, "B L S"],
    is_token_BL: Bool[Array, "B L"],
) -> tuple[Int[Array, "B E"], Float[Array, "B E"]]:
    """Of one layer, the members of Routing. Row by row: rows need not meet before all layers are
    done.
    """
    wide = jnp.promote_types(jnp.float32, logits_BLE.dtype)
    shares_BLE = jax.nn.softmax(logits_BLE.astype(wide), axis=-1)
    numbers_E = jnp.arange(logits_BLE.shape[-1], dtype=chosen_BLS.dtype)
    is_chosen_BLSE = chosen_BLS[..., None] == numbers_E[None, None, None, :]
    is_chosen_BLSE &= is_token_BL[..., None, None]
    pairs_BE = is_chosen_BLSE.sum(axis=(1, 2), dtype=jnp.int32)
    return pairs_BE, jnp.where(is_token_BL[..., None], shares_BLE, 0).sum(axis=1)


def sow(module: nn.Module, pairs_BE: Int[Array, "B E"], shares_BE: Float[Array, "B E"]) -> None:
    """Leaves a layer's sums for `collect`, where the collection is asked for."""
    if module.is_initializing():
        return
    for name, sums_BE in {"pairs": pairs_BE, "shares": shares_BE}.items():
        # The value itself, where flax would make a tuple of all that are left by that name.
        module.sow(COLLECTION, name, sums_BE, reduce_fn=_last, init_fn=_nothing)


def _last(_: Any, value: Array) -> Array:
    return value


def _nothing() -> None:
    return None


def collect(variables: Any) -> Routing:
    """What all layers have left in the collection, one after another."""
    found: dict[str, list[Array]] = {"pairs": [], "shares": []}
    for path, sums_XBE in jax.tree_util.tree_leaves_with_path(variables):
        found[path[-1].key].append(sums_XBE)
    return Routing(jnp.concatenate(found["pairs"]), jnp.concatenate(found["shares"]))


def balance(routing: Routing, per_token: int) -> Float[Array, ""]:
    """E · Σ_e f_e · P_e (arXiv 2101.03961, eq. 4), f_e the experts e for each token, and P_e the
    mean share of e, over all tokens of all layers together.

    It is S where all experts have the same, and E where all tokens have the same ones and no share
    of others (times S / E of the shares that a token has). As `load_balancing_loss_func` of
    transformers with a mask of padding: layers are not balanced each by itself. The gradient is
    that of P. Without any token it is 0.

    Args:
      per_token: S.
    """
    _, _, E = routing.pairs_XBE.shape
    pairs_E = routing.pairs_XBE.sum(axis=(0, 1)).astype(routing.shares_XBE.dtype)
    # Of each layer every token is one.
    n_tokens = jnp.maximum(pairs_E.sum() / per_token, 1)
    shares_E = routing.shares_XBE.sum(axis=(0, 1))
    return E * (pairs_E / n_tokens * (shares_E / n_tokens)).sum()
