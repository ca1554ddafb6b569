"""Causal attention within the segments of packed rows, and of one new token to a cache of keys and values."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec as P
from jaxtyping import Array, Float, Int

from dft_jax.sharding import BATCH_AXES

# A cache [B, G, S, K]: rows along the batch's axes, key/value heads along `tensor`.
CACHE_SPEC = P(BATCH_AXES, "tensor", None, None)


def causal_attention(
    q_BLHK: Float[Array, "B L H K"],
    k_BLGK: Float[Array, "B L G K"],
    v_BLGK: Float[Array, "B L G K"],
    segments_BL: Int[Array, "B L"],
    *,
    window: int | None,
    block: int,
) -> Float[Array, "B L H K"]:
    """Each position attends to the positions of its own segment up to itself; float32 softmax.

    Queries go in blocks; a block only multiplies the keys it can reach, so the upper triangle costs
    nothing beyond the diagonal blocks, and the scores in memory are [B, H, block, L] at most.

    segments  1 1 2 2 2       query 3 (segment 2) sees keys 2, 3
    window    2               query 4 sees keys 3, 4 (the last `window`, itself included)

    Query head h belongs to key/value head h // R, as in the published checkpoints (H = G·R).
    """
    B, L, H, K = q_BLHK.shape
    G = k_BLGK.shape[2]
    q_BLGRK = q_BLHK.reshape(B, L, G, H // G, K)
    outputs = []
    for start in range(0, L, block):
        end = min(start + block, L)
        first = 0 if window is None else max(0, start - window + 1)
        outputs.append(
            _attend(
                q_BLGRK[:, start:end],
                k_BLGK[:, first:end],
                v_BLGK[:, first:end],
                _may_see(segments_BL, start, first, end, window),
            )
        )
    return jnp.concatenate(outputs, axis=1).reshape(B, L, H, K)


def _attend(q_BQGRK, k_BSGK, v_BSGK, may_see_BQS):
    dtype = jnp.promote_types(jnp.float32, q_BQGRK.dtype)
    scores_BGRQS = jnp.einsum("BQGRK,BSGK->BGRQS", q_BQGRK, k_BSGK, preferred_element_type=dtype)
    scores_BGRQS = scores_BGRQS * q_BQGRK.shape[-1] ** -0.5
    # Finite, not -inf: no row is ever all masked (each position sees itself), but gradients stay NaN-free.
    scores_BGRQS = jnp.where(may_see_BQS[:, None, None], scores_BGRQS, jnp.finfo(dtype).min)
    weights_BGRQS = jax.nn.softmax(scores_BGRQS, axis=-1).astype(v_BSGK.dtype)
    return jnp.einsum("BGRQS,BSGK->BQGRK", weights_BGRQS, v_BSGK)


def _may_see(segments_BL, start, first, end, window):
    queries, keys = jnp.arange(start, end)[:, None], jnp.arange(first, end)[None, :]
    in_reach_QS = keys <= queries
    if window is not None:
        in_reach_QS &= queries - keys < window
    same_BQS = segments_BL[:, start:end, None] == segments_BL[:, None, first:end]
    return same_BQS & in_reach_QS[None]


def cached_attention(
    q_BHK: Float[Array, "B H K"],
    k_BGK: Float[Array, "B G K"],
    v_BGK: Float[Array, "B G K"],
    cache: tuple[Float[Array, "B G S K"], Float[Array, "B G S K"]],
    positions_B: Int[Array, " B"],
    *,
    window: int | None,
    mesh: Mesh,
) -> tuple[Float[Array, "B H K"], tuple]:
    """Writes one token's key and value at its position of each row; its query attends to all up to there.

    Each device works on its own rows and heads: nothing is exchanged. Entries beyond the position are never seen,
    so a cache may hold anything there.

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


def _attend_to_cache(q_BHK, k_BGK, v_BGK, cache, positions_B, *, window):
    B, H, K = q_BHK.shape
    rows_B = jnp.arange(B)
    past_k_BGSK, past_v_BGSK = (
        past_BGSK.at[rows_B, :, positions_B].set(new_BGK)
        for past_BGSK, new_BGK in zip(cache, (k_BGK, v_BGK), strict=True)
    )
    G, S = past_k_BGSK.shape[1:3]
    age_BS = positions_B[:, None] - jnp.arange(S)[None, :]
    may_see_BS = (age_BS >= 0) if window is None else (age_BS >= 0) & (age_BS < window)
    dtype = jnp.promote_types(jnp.float32, q_BHK.dtype)
    q_BGRK = q_BHK.reshape(B, G, H // G, K)
    scores_BGRS = jnp.einsum("BGRK,BGSK->BGRS", q_BGRK, past_k_BGSK, preferred_element_type=dtype) * K**-0.5
    scores_BGRS = jnp.where(may_see_BS[:, None, None], scores_BGRS, jnp.finfo(dtype).min)
    weights_BGRS = jax.nn.softmax(scores_BGRS, axis=-1).astype(past_v_BGSK.dtype)
    out_BGRK = jnp.einsum("BGRS,BGSK->BGRK", weights_BGRS, past_v_BGSK)
    return out_BGRK.reshape(B, H, K), (past_k_BGSK, past_v_BGSK)
