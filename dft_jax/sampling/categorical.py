"""One token from each row's final hidden state: exact draws from the softmax, without all logits at
once.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from dft_jax.models import cached

# a logit that is never drawn; finite, so that 0 · _NEVER is 0
_NEVER = float(jnp.finfo(jnp.float32).min)


def draw(
    hidden_BD: Float[Array, "B D"],
    head_UDMW: Float[Array, "U D M W"],
    keys_B: Array,
    temperatures_B: Float[Array, " B"],
    *,
    vocab_size: int,
    mesh: Mesh,
    top_k: int = 0,
    top_p: float = 1.0,
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """A token for each row, exactly from softmax(logits / temperature), and that distribution's
    entropy in nats.

    The largest of logit/T + Gumbel noise over all tokens is such a draw, and it can be found in two
    steps with noise for few of them: the largest of a block is distributed as its log-sum-exp plus
    Gumbel noise, so a block is drawn first, and a token inside it then (Maddison et al. 2014, arXiv
    1411.0030, on the maximum of a region). A rounding error of 1e-6 changes the token only where
    the two best are as close as that; with an inverse of the cumulative distribution it would
    change most tokens of the far tail.

    Rows of the head from `vocab_size` on are no tokens: they are never drawn, and have no part in
    the distribution.

    At temperature 0 the most probable token is taken, and the entropy is that of temperature 1.
    """
    is_greedy_B1 = temperatures_B[:, None] <= 0
    scale_B1 = jnp.where(is_greedy_B1, 1.0, temperatures_B[:, None])
    if top_k or top_p < 1:
        logits_BMW = _in_chunks(lambda *chunk: _logits(hidden_BD, *chunk, vocab_size), head_UDMW)
        entropy_B = _entropy(_summaries(logits_BMW, scale_B1), scale_B1, vocab_size)
        scaled_BV = logits_BMW.reshape(len(logits_BMW), -1) / scale_B1
        is_kept_BV = _most_probable(scaled_BV, top_k, top_p)
        logits_BMW = jnp.where(is_kept_BV.reshape(logits_BMW.shape), logits_BMW, _NEVER)
        summaries = _summaries(logits_BMW, scale_B1)

        def logits_of(block_B):
            return jnp.take_along_axis(logits_BMW, block_B[:, None, None], axis=1)[:, 0]
    else:
        summaries = _in_chunks(
            lambda *c: _summaries(_logits(hidden_BD, *c, vocab_size), scale_B1), head_UDMW
        )
        entropy_B = _entropy(summaries, scale_B1, vocab_size)

        def logits_of(block_B):
            head_BDW = cached.head_rows(head_UDMW, block_B, mesh)
            logits_BW = jnp.einsum(
                "BD,BDW->BW", hidden_BD, head_BDW, preferred_element_type=max_BM.dtype
            )
            return jnp.where(_is_token(block_B, vocab_size), logits_BW, _NEVER)

    max_BM, sum_BM, _ = _real_blocks(summaries, vocab_size)
    keys_B2 = jax.vmap(jax.random.split)(keys_B)

    def noisy(logits_BX, keys_B):
        noise_BX = jax.vmap(lambda key: jax.random.gumbel(key, logits_BX.shape[1:], mode="high"))(
            keys_B
        )
        return jnp.where(is_greedy_B1, logits_BX, logits_BX / scale_B1 + noise_BX)

    # As a logit that stands for its block: scale · logsumexp(logits / scale); the largest one where
    # that is wanted.
    stands_for_BM = max_BM + jnp.where(is_greedy_B1, 0.0, scale_B1 * jnp.log(sum_BM))
    block_B = jnp.argmax(noisy(stands_for_BM, keys_B2[:, 0]), axis=1)
    within_B = jnp.argmax(noisy(logits_of(block_B), keys_B2[:, 1]), axis=1)
    return (block_B * cached.VOCAB_BLOCK + within_B).astype(jnp.int32), entropy_B


def _logits(hidden_BD, head_DMW, blocks_M, vocab_size: int) -> Float[Array, "B M W"]:
    """Logits of some blocks; beyond the end of the vocabulary one that is never drawn."""
    dtype = jnp.promote_types(jnp.float32, hidden_BD.dtype)
    logits_BMW = jnp.einsum("BD,DMW->BMW", hidden_BD, head_DMW, preferred_element_type=dtype)
    return jnp.where(_is_token(blocks_M, vocab_size)[None], logits_BMW, _NEVER)


def _is_token(blocks_X, vocab_size: int) -> Bool[Array, "X W"]:
    W = cached.VOCAB_BLOCK
    return blocks_X[:, None] * W + jnp.arange(W)[None, :] < vocab_size


def _summaries(logits_BMW, scale_B1):
    """Of each block: the largest logit m, Σ w with w = exp((logit − m)/scale), and Σ w · (logit −
    m).

    The differences to m, not the logits: where all logits are near 10,000, their weighted mean has
    errors of 0.001 to 1, and the entropy, which is made of small differences, is off by nats.
    """
    max_BM = logits_BMW.max(axis=-1)
    below_BMW = logits_BMW - max_BM[:, :, None]
    weights_BMW = jnp.exp(below_BMW / scale_B1[:, :, None])
    # 0 · -inf, of a logit too far below for a float, would be NaN.
    weighted_BMW = jnp.where(weights_BMW > 0, weights_BMW * below_BMW, 0.0)
    return max_BM, weights_BMW.sum(axis=-1), weighted_BMW.sum(axis=-1)


def _in_chunks(make, head_UDMW):
    """The arrays [B, blocks, …] that `make(head_DMW, blocks_M)` gives for the whole head, one chunk
    at a time.
    """
    U, _, M, _ = head_UDMW.shape
    made_UBM = lax.map(lambda chunk: make(*chunk), (head_UDMW, jnp.arange(U * M).reshape(U, M)))
    return jax.tree.map(
        lambda x: x.swapaxes(0, 1).reshape(x.shape[1], U * M, *x.shape[3:]), made_UBM
    )


def _real_blocks(summaries, vocab_size: int):
    """Without the blocks that only pad the head."""
    n_blocks = -(-vocab_size // cached.VOCAB_BLOCK)
    return jax.tree.map(lambda x_BM: x_BM[:, :n_blocks], summaries)


def _entropy(summaries, scale_B1, vocab_size: int) -> Float[Array, " B"]:
    """log Σ exp(logit/scale) − Σ p · logit/scale, both relative to the largest logit of the row."""
    max_BM, sum_BM, weighted_BM = _real_blocks(summaries, vocab_size)
    below_BM = (max_BM - max_BM.max(axis=1, keepdims=True)) / scale_B1
    logsumexp_BM = below_BM + jnp.log(sum_BM)
    total_B = jax.nn.logsumexp(logsumexp_BM, axis=1)
    p_BM = jnp.exp(logsumexp_BM - total_B[:, None])
    # The mean of the scaled logits of a block, below the row's largest.
    mean_BM = below_BM + weighted_BM / sum_BM / scale_B1
    return total_B - jnp.where(p_BM > 0, p_BM * mean_BM, 0.0).sum(axis=1)


def _most_probable(scaled_BV: Float[Array, "B V"], top_k: int, top_p: float) -> Bool[Array, "B V"]:
    """The top_k largest, and of these the fewest that hold the share top_p; equal ones stay
    together.

    Without sorting: the bits of a float, the sign mended, are in the order of the floats, so the
    threshold is found bit by bit in 32 passes.
    """
    bits_BV = lax.bitcast_convert_type(scaled_BV, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    order_BV = jnp.where(bits_BV >= sign, ~bits_BV, bits_BV | sign)

    def at_least(weights_BV, wanted):
        """Which tokens are above the highest threshold where those above it weigh at least
        `wanted`.
        """

        def try_bit(i, threshold_B):
            candidate_B = threshold_B | (sign >> i.astype(jnp.uint32))
            weight_B = jnp.where(order_BV >= candidate_B[:, None], weights_BV, 0).sum(axis=1)
            return jnp.where(weight_B >= wanted, candidate_B, threshold_B)

        threshold_B = lax.fori_loop(0, 32, try_bit, jnp.zeros(len(order_BV), jnp.uint32))
        return order_BV >= threshold_B[:, None]

    is_kept_BV = jnp.ones(scaled_BV.shape, bool)
    if top_k:
        is_kept_BV = at_least(jnp.ones(scaled_BV.shape, jnp.int32), min(top_k, scaled_BV.shape[1]))
    if top_p < 1:
        p_BV = jax.nn.softmax(jnp.where(is_kept_BV, scaled_BV, -jnp.inf), axis=1)
        is_kept_BV &= at_least(p_BV, top_p)
    return is_kept_BV
