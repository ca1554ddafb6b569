"""Causal attention within segments: `blocked` everywhere, `splash` on TPUs, `cudnn` on Hopper and
Blackwell GPUs.

All compute what `attention.causal_attention` says. The last two see one device's rows and heads,
and serve only after `attention_choice` has compared them with the first. Padding is a segment like
others, so that each query sees a key.
"""

import functools

import jax
import jax.numpy as jnp


def blocked(q_BLHK, k_BLGK, v_BLGK, segments_BL, *, window, block):
    """In plain JAX, float32 softmax.

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
        first = 0 if window is None else max(0, start - window + 1)
        may_see_BQS = _may_see(segments_BL, start, first, end, window)
        outputs.append(
            _attend(q_BLGRK[:, start:end], k_BLGK[:, first:end], v_BLGK[:, first:end], may_see_BQS)
        )
    return jnp.concatenate(outputs, axis=1).reshape(B, L, H, K)


def _attend(q_BQGRK, k_BSGK, v_BSGK, may_see_BQS):
    dtype = jnp.promote_types(jnp.float32, q_BQGRK.dtype)
    scores_BGRQS = jnp.einsum("BQGRK,BSGK->BGRQS", q_BQGRK, k_BSGK, preferred_element_type=dtype)
    scores_BGRQS = scores_BGRQS * q_BQGRK.shape[-1] ** -0.5
    # Finite, not -inf: no row is ever all masked (each position sees itself), but gradients stay
    # NaN-free.
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


def splash(q_BLHK, k_BLGK, v_BLGK, segments_BL, *, window, block, interpret=False):
    """JAX's Pallas kernel for TPUs. Rows are padded to whole tiles at their end, which no query of
    theirs sees.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as lib

    L, H, K = q_BLHK.shape[1:]
    padding = -L % 128
    shape = (L + padding, L + padding)
    tile = max(n for n in (128, 256, 512, 1024) if shape[0] % n == 0 and n <= max(block, 128))
    tiles = lib.BlockSizes(
        **{f"block_{of}": tile for of in ("q", "kv", "q_dkv", "kv_dkv", "q_dq", "kv_dq")}
    )
    mask = (
        lib.CausalMask(shape) if window is None else lib.LocalMask(shape, (window - 1, 0), offset=0)
    )
    masks = lib.MultiHeadMask([mask] * H)
    kernel = lib.make_splash_mha(
        masks, block_sizes=tiles, head_shards=1, q_seq_shards=1, interpret=interpret
    )
    inputs = (q_BLHK * K**-0.5, k_BLGK, v_BLGK)  # the kernel does not scale
    inputs = [jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))).swapaxes(1, 2) for x in inputs]
    segments_BL = jnp.pad(segments_BL, ((0, 0), (0, padding)))
    out_BHLK = jax.vmap(kernel)(*inputs, lib.SegmentIds(segments_BL, segments_BL))
    return out_BHLK.swapaxes(1, 2)[:, :L]


def cudnn(q_BLHK, k_BLGK, v_BLGK, segments_BL, *, window, block):
    """cuDNN's attention over packed sequences, by the private call beneath
    `jax.nn.dot_product_attention`.

    How many segments a row may have is fixed when compiling and costs memory, a float32 [B·M, H,
    L]: one for each 32 positions here. A batch with a row of more goes the blocked way, which keeps
    nothing but its inputs.

    Before JAX 0.11 the call takes the queries' stride for the keys', and with fewer key/value heads
    reads other tokens' keys, silently (github.com/jax-ml/jax/pull/39521); there each is repeated
    for its query heads.
    """
    from jax._src.cudnn import fused_attention_stablehlo as lib

    L, H, K = q_BLHK.shape[1:]
    starts_BM, lengths_BM = runs(segments_BL, max(L // 32, 2))

    def packed(q_BLHK, k_BLGK, v_BLGK):
        if jax.__version_info__ < (0, 11):
            k_BLGK, v_BLGK = (jnp.repeat(x, H // x.shape[2], axis=2) for x in (k_BLGK, v_BLGK))
        where = dict(
            q_seqlen=lengths_BM, kv_seqlen=lengths_BM, q_offsets=starts_BM, kv_offsets=starts_BM
        )
        how = dict(
            scale=K**-0.5, mask_type=lib.MaskType.PADDING_CAUSAL, sliding_window_length=window
        )
        return lib.dot_product_attention(q_BLHK, k_BLGK, v_BLGK, **where, **how)

    plain = jax.checkpoint(
        functools.partial(blocked, segments_BL=segments_BL, window=window, block=block)
    )
    return jax.lax.cond((starts_BM[:, -1] < 0).all(), packed, plain, q_BLHK, k_BLGK, v_BLGK)


def runs(segments_BL, most: int):
    """First positions [B, most + 1] and lengths [B, most] of a row's segments; the last start is -1
    if they are all.

    segments  7 7 7 2 0 0, most 4   ->   starts 0 3 4 -1 -1, lengths 3 1 2 -1
    """
    L = segments_BL.shape[1]
    is_first_BL = jnp.pad(
        segments_BL[:, 1:] != segments_BL[:, :-1], ((0, 0), (1, 0)), constant_values=True
    )
    starts_BM = jax.vmap(lambda x_L: jnp.flatnonzero(x_L, size=most + 1, fill_value=L))(
        is_first_BL
    ).astype(jnp.int32)
    lengths_BM = jnp.diff(starts_BM, axis=1)
    return jnp.where(starts_BM < L, starts_BM, -1), jnp.where(lengths_BM > 0, lengths_BM, -1)


BACKENDS = {"blocked": blocked, "splash": splash, "cudnn": cudnn}
