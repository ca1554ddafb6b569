"""Causal attention within segments, in plain JAX and by the kernels of TPUs and GPUs.

`blocked` runs everywhere, `splash` on TPUs, `cudnn` on Hopper and Blackwell GPUs. All compute what
`masked.causal_attention` says. The last two see one device's rows and heads, and serve only after
`select` has compared them with the first. Padding is a segment like others, so that each query sees
a key.

Letters besides the legend's: Q queries of a block, S keys that it can reach, M segments of a row.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dft_jax import sharding
from dft_jax.types import MORE_SEGMENTS, AnyArray

# What a kernel's output and statistics are called in policies of rematerialisation.
RESULT = "attention"
# Queries, and keys, that splash takes at once, at least.
TILE = 128


def blocked(
    q_BLHK: Float[Array, "B L H K"],
    k_BLGK: Float[Array, "B L G K"],
    v_BLGK: Float[Array, "B L G K"],
    segments_BL: Int[AnyArray, "B L"],
    *,
    window: int | None,
    block: int,
) -> Float[Array, "B L H K"]:
    """In plain JAX, with a float32 softmax.

    Queries go in blocks; a block only multiplies the keys it can reach, so the upper triangle costs
    nothing beyond the diagonal blocks, and the scores in memory are [B, H, block, L] at most. Short
    rows are cut too.
    """
    B, L, H, K = q_BLHK.shape
    block = min(block, max(L // 4, 64))
    G = k_BLGK.shape[2]
    q_BLGRK = q_BLHK.reshape(B, L, G, H // G, K)
    outputs = []
    for start in range(0, L, block):
        end = min(start + block, L)
        # The first key that the block's first query sees; later queries see none before it.
        first = 0
        if window is not None:
            first = max(0, start - window + 1)
        may_see_BQS = may_see(
            segments_BL[:, start:end],
            segments_BL[:, first:end],
            jnp.arange(start, end),
            jnp.arange(first, end),
            window,
        )
        outputs.append(
            attend(q_BLGRK[:, start:end], k_BLGK[:, first:end], v_BLGK[:, first:end], may_see_BQS)
        )
    return jnp.concatenate(outputs, axis=1).reshape(B, L, H, K)


def attend(
    q_BQGRK: Float[Array, "B Q G R K"],
    k_BSGK: Float[Array, "B S G K"],
    v_BSGK: Float[Array, "B S G K"],
    may_see_BQS: Bool[Array, "B Q S"],
) -> Float[Array, "B Q G R K"]:
    """What queries make of the values of the keys that they see, with a float32 softmax."""
    dtype = jnp.promote_types(jnp.float32, q_BQGRK.dtype)
    scores_BGRQS = jnp.einsum("BQGRK,BSGK->BGRQS", q_BQGRK, k_BSGK, preferred_element_type=dtype)
    scores_BGRQS = scores_BGRQS * q_BQGRK.shape[-1] ** -0.5
    # Finite, not -inf: no row is ever all masked (each position sees itself), but gradients stay
    # NaN-free.
    scores_BGRQS = jnp.where(may_see_BQS[:, None, None], scores_BGRQS, jnp.finfo(dtype).min)
    weights_BGRQS = jax.nn.softmax(scores_BGRQS, axis=-1).astype(v_BSGK.dtype)
    return jnp.einsum("BGRQS,BSGK->BQGRK", weights_BGRQS, v_BSGK)


def may_see(
    segments_BQ: Int[AnyArray, "B Q"],
    segments_BS: Int[AnyArray, "B S"],
    queries_Q: Int[Array, " Q"],
    keys_S: Int[Array, " S"],
    window: int | None,
) -> Bool[Array, "B Q S"]:
    """Which keys the queries see, by the segments and the positions in the row of both."""
    queries_Q1 = queries_Q[:, None]
    in_reach_QS = keys_S[None, :] <= queries_Q1
    if window is not None:
        in_reach_QS &= queries_Q1 - keys_S[None, :] < window
    same_BQS = segments_BQ[:, :, None] == segments_BS[:, None, :]
    return same_BQS & in_reach_QS[None]


def splash(
    q_BLHK: Float[Array, "B L H K"],
    k_BLGK: Float[Array, "B L G K"],
    v_BLGK: Float[Array, "B L G K"],
    segments_BL: Int[AnyArray, "B L"],
    *,
    window: int | None,
    block: int,
    interpret: bool = False,
) -> Float[Array, "B L H K"]:
    """JAX's Pallas kernel for TPUs.

    Rows are padded to whole tiles at their end, which no query of theirs sees.
    """
    L, H = q_BLHK.shape[1:3]
    padding = -L % TILE
    padded = []
    for x in (q_BLHK, k_BLGK, v_BLGK):
        padded.append(jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))))
    segments_BL = jnp.pad(segments_BL, ((0, 0), (0, padding)))
    kernel = splash_kernel(L + padding, H, window=window, block=block, interpret=interpret)
    return by_splash(kernel, *padded, segments_BL, segments_BL)[:, :L]


def is_tiled(length: int, n_parts: int) -> bool:
    """Whether the two pieces of each part of a row that is cut are whole tiles of splash's."""
    # Its mask asks for the square besides, which 3 does not divide of a row of 2,304.
    return length % (TILE * 2 * n_parts) == 0 and length % n_parts**2 == 0


def splash_kernel(
    length: int,
    n_heads: int,
    *,
    window: int | None,
    block: int,
    n_parts: int = 1,
    interpret: bool = False,
) -> Any:
    """The kernel of a device's heads, of rows that are whole tiles.

    Queries may be cut into `n_parts`, of two pieces each (sharding.places_in_parts); keys are in
    the order of the row.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as lib

    piece = length if n_parts == 1 else length // (2 * n_parts)
    # The largest tile within `block` that a piece is a whole number of; TILE always is.
    sizes = [n for n in (TILE, 256, 512, 1024) if piece % n == 0]
    tile = max(n for n in sizes if n <= max(block, TILE))
    tiles = lib.BlockSizes(
        block_q=tile,
        block_kv=tile,
        block_q_dkv=tile,
        block_kv_dkv=tile,
        block_q_dq=tile,
        block_kv_dq=tile,
    )
    shape = (length, length)
    mask = lib.CausalMask(shape, shard_count=n_parts)
    if window is not None:
        mask = lib.LocalMask(shape, (window - 1, 0), offset=0, shard_count=n_parts)
    if n_parts > 1:
        # The places of queries in the row: by them the kernel knows the tiles that these see.
        mask.q_sequence = sharding.places_in_parts(length, n_parts).astype(np.int32)
    return lib.make_splash_mha(
        lib.MultiHeadMask([mask] * n_heads),
        block_sizes=tiles,
        head_shards=1,
        q_seq_shards=n_parts,
        residual_checkpoint_name=RESULT,
        interpret=interpret,
    )


def by_splash(
    kernel: Any,
    q_BQHK: Float[Array, "B Q H K"],
    k_BSGK: Float[Array, "B S G K"],
    v_BSGK: Float[Array, "B S G K"],
    segments_BQ: Int[AnyArray, "B Q"],
    segments_BS: Int[AnyArray, "B S"],
) -> Float[Array, "B Q H K"]:
    """What a kernel makes of queries and keys; Q and S are the positions that a device has."""
    from jax.experimental.pallas.ops.tpu import splash_attention as lib

    # The kernel does not scale, and takes heads before positions.
    q_BHQK = (q_BQHK * q_BQHK.shape[-1] ** -0.5).swapaxes(1, 2)
    k_BGSK, v_BGSK = k_BSGK.swapaxes(1, 2), v_BSGK.swapaxes(1, 2)
    segments = lib.SegmentIds(segments_BQ, segments_BS)
    out_BHQK: Any = jax.vmap(kernel)(q_BHQK, k_BGSK, v_BGSK, segments)
    return out_BHQK.swapaxes(1, 2)


def cudnn(
    q_BLHK: Float[Array, "B L H K"],
    k_BLGK: Float[Array, "B L G K"],
    v_BLGK: Float[Array, "B L G K"],
    segments_BL: Int[AnyArray, "B L"],
    *,
    window: int | None,
    block: int,
    most_segments: int | None,
) -> Float[Array, "B L H K"]:
    """cuDNN's attention over packed sequences, by JAX's private call of it.

    How many segments a row may have, M, is fixed when compiling and costs memory, a float32 [B·M,
    H, L]. The host knows it (types.Batch): asked on the device, as by `lax.cond`, it would cost the
    residuals of both branches and a pause in every layer. A batch with a row of more goes the
    blocked way, which keeps nothing but its inputs.

    Before JAX 0.11 the call takes the queries' stride for the keys', and with fewer key/value heads
    reads other tokens' keys, silently (github.com/jax-ml/jax/pull/39521); there each is repeated
    for its query heads.
    """
    from jax._src.cudnn import fused_attention_stablehlo as lib

    assert most_segments is not None, "cudnn is compiled for a number of segments: Batch has none"
    if most_segments == MORE_SEGMENTS:
        plain = functools.partial(blocked, segments_BL=segments_BL, window=window, block=block)
        return jax.checkpoint(plain)(q_BLHK, k_BLGK, v_BLGK)
    H, K = q_BLHK.shape[2:]
    starts_BM, lengths_BM = runs(segments_BL, most_segments)
    if jax.__version_info__ < (0, 11):
        n_queries = H // k_BLGK.shape[2]
        k_BLGK = jnp.repeat(k_BLGK, n_queries, axis=2)
        v_BLGK = jnp.repeat(v_BLGK, n_queries, axis=2)
    out_BLHK: Any = lib.dot_product_attention(
        q_BLHK,
        k_BLGK,
        v_BLGK,
        q_seqlen=lengths_BM,
        kv_seqlen=lengths_BM,
        q_offsets=starts_BM,
        kv_offsets=starts_BM,
        scale=K**-0.5,
        mask_type=lib.MaskType.PADDING_CAUSAL,
        sliding_window_length=window,
    )
    return out_BLHK


def runs(
    segments_BL: Int[AnyArray, "B L"], most: int
) -> tuple[Int[Array, "B _"], Int[Array, "B M"]]:
    """First positions [B, most + 1] and lengths [B, most] of a row's segments.

    The last start is -1 if these are all.

    segments  7 7 7 2 0 0, most 4   ->   starts 0 3 4 -1 -1, lengths 3 1 2 -1
    """
    L = segments_BL.shape[1]
    is_first_BL = jnp.pad(
        segments_BL[:, 1:] != segments_BL[:, :-1], ((0, 0), (1, 0)), constant_values=True
    )

    def starts_of(is_first_L: Array) -> Array:
        return jnp.flatnonzero(is_first_L, size=most + 1, fill_value=L)

    starts_BM = jax.vmap(starts_of)(is_first_BL).astype(jnp.int32)
    lengths_BM = jnp.diff(starts_BM, axis=1)
    return jnp.where(starts_BM < L, starts_BM, -1), jnp.where(lengths_BM > 0, lengths_BM, -1)


BACKENDS = {"blocked": blocked, "splash": splash, "cudnn": cudnn}


def is_result(primitive: Any, *_: Any, **params: Any) -> bool:
    """Whether it gives what a kernel's backward pass needs: its output, and statistics of softmax.

    A policy of `jax.checkpoint`: where these are made again, the kernel's forward pass runs twice.
    cuDNN's call gives both at once, and has no names inside.
    """
    if primitive.name == "name":
        return params["name"] == RESULT
    return primitive.name.startswith("dot_product_attention_fwd")
