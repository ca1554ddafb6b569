"""Attention of one new position to a cache of earlier ones."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from dft_jax.sharding import BATCH_AXES
from dft_jax.types import AnyArray, AnyMesh

# A cache [B, G, S, K]: rows along the batch's axes, key/value heads along `tensor`.
CACHE_SPEC = P(BATCH_AXES, "tensor", None, None)
# Keys and values of one layer.
LayerCache = tuple[Float[Array, "B G S K"], Float[Array, "B G S K"]]


def cached_attention(
    q_BHK: Float[Array, "B H K"],
    k_BGK: Float[Array, "B G K"],
    v_BGK: Float[Array, "B G K"],
    cache: LayerCache,
    positions_B: Int[AnyArray, " B"],
    *,
    window: int | None,
    mesh: AnyMesh,
) -> tuple[Float[Array, "B H K"], LayerCache]:
    """Writes one token's key and value at its position of each row; its query attends to all up to
    there.

    Each device works on its own rows and heads: nothing is exchanged. Entries beyond the position
    are never seen, so a cache may hold anything there.

    Returns:
      The heads' outputs and the cache with the token in it.
    """
    heads = P(BATCH_AXES, "tensor", None)
    return jax.shard_map(
        functools.partial(_attend_to_cache, window=window),
        mesh=mesh,
        in_specs=(heads, heads, heads, (CACHE_SPEC, CACHE_SPEC), P(BATCH_AXES)),
        out_specs=(heads, (CACHE_SPEC, CACHE_SPEC)),
    )(q_BHK, k_BGK, v_BGK, cache, positions_B)


def _attend_to_cache(
    q_BHK: Float[Array, "B H K"],
    k_BGK: Float[Array, "B G K"],
    v_BGK: Float[Array, "B G K"],
    cache: LayerCache,
    positions_B: Int[AnyArray, " B"],
    *,
    window: int | None,
) -> tuple[Float[Array, "B H K"], LayerCache]:
    """On one device, with its own rows and heads."""
    B, H, K = q_BHK.shape
    rows_B = jnp.arange(B)
    past_k_BGSK, past_v_BGSK = cache
    past_k_BGSK = past_k_BGSK.at[rows_B, :, positions_B].set(k_BGK)
    past_v_BGSK = past_v_BGSK.at[rows_B, :, positions_B].set(v_BGK)
    G, S = past_k_BGSK.shape[1:3]
    age_BS = positions_B[:, None] - jnp.arange(S)[None, :]
    may_see_BS = age_BS >= 0
    if window is not None:
        may_see_BS = may_see_BS & (age_BS < window)
    dtype = jnp.promote_types(jnp.float32, q_BHK.dtype)
    q_BGRK = q_BHK.reshape(B, G, H // G, K)
    scores_BGRS = (
        jnp.einsum("BGRK,BGSK->BGRS", q_BGRK, past_k_BGSK, preferred_element_type=dtype) * K**-0.5
    )
    scores_BGRS = jnp.where(may_see_BS[:, None, None], scores_BGRS, jnp.finfo(dtype).min)
    weights_BGRS = jax.nn.softmax(scores_BGRS, axis=-1).astype(past_v_BGSK.dtype)
    out_BGRK = jnp.einsum("BGRS,BGSK->BGRK", weights_BGRS, past_v_BGSK)
    return out_BGRK.reshape(B, H, K), (past_k_BGSK, past_v_BGSK)
