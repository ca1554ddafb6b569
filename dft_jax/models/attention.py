"""Causal attention within the segments of packed rows."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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
