"""One token from each row's final hidden state: exact draws from the softmax, block by block.

The logits of all tokens exist at once only where a filter needs them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from dft_jax.models import cached
from dft_jax.sampling import filters as token_filters
from dft_jax.sampling.filters import Filter
from dft_jax.types import Leaf

# A logit that is never drawn; finite, so that 0 · _NEVER is 0.
_NEVER = float(jnp.finfo(jnp.float32).min)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Summaries:
    """Of each block: the largest logit m, Σ w with w = exp((logit − m)/scale), Σ w · (logit − m).

    The differences to m, not the logits: where all logits are near 10,000, their weighted mean has
    errors of 0.001 to 1, and the entropy, which is made of small differences, is off by nats.
    """

    max_BM: Leaf
    sum_BM: Leaf
    weighted_BM: Leaf


@dataclasses.dataclass(frozen=True)
class _Candidates:
    """What a token is drawn from: blocks, and the logits in one of them."""

    summaries: _Summaries
    entropy_B: Float[Array, " B"]  # before filters
    logits_of: Callable[[Int[Array, " B"]], Float[Array, "B W"]]  # of one block of each row


def draw(
    hidden_BD: Float[Array, "B D"],
    head_UDMW: Float[Array, "U D M W"],
    keys_B: Key[Array, " B"],
    temperatures_B: Float[Array, " B"],
    *,
    vocab_size: int,
    mesh: Mesh,
    filters: Sequence[Filter] = (),
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """A token for each row, exactly from softmax(logits / temperature), and its entropy in nats.

    The largest of logit/T + Gumbel noise over all tokens is such a draw, and it can be found in two
    steps with noise for few of them: the largest of a block is distributed as its log-sum-exp plus
    Gumbel noise, so a block is drawn first, and a token inside it then (Maddison et al. 2014, arXiv
    1411.0030, on the maximum of a region). A rounding error of 1e-6 changes the token only where
    the two best are as close as that; with an inverse of the cumulative distribution it would
    change most tokens of the far tail.

    Rows of the head from `vocab_size` on are no tokens: they are never drawn, and have no part in
    the distribution. The entropy is that of the distribution before filters.

    At temperature 0 the most probable token is taken, and the entropy is that of temperature 1.
    """
    # A scale of 1 where it is greedy: nothing is divided by 0, and the entropy is that of
    # temperature 1.
    is_greedy_B1 = temperatures_B[:, None] <= 0
    scale_B1 = jnp.where(is_greedy_B1, 1.0, temperatures_B[:, None])
    if filters:
        candidates = _filtered(hidden_BD, head_UDMW, scale_B1, vocab_size, filters)
    else:
        candidates = _all_tokens(hidden_BD, head_UDMW, scale_B1, vocab_size, mesh)
    summaries = _real_blocks(candidates.summaries, vocab_size)
    # One key for the block, one for the token in it: with the same noise twice, a block would be
    # drawn together with the token at its place.
    keys_B2 = jax.vmap(jax.random.split)(keys_B)

    def noisy(logits_BX: Float[Array, "B X"], keys_B: Key[Array, " B"]) -> Float[Array, "B X"]:
        def noise_of(key: Key[Array, ""]) -> Float[Array, " X"]:
            return jax.random.gumbel(key, logits_BX.shape[1:], mode="high")

        noise_BX = jax.vmap(noise_of)(keys_B)
        return jnp.where(is_greedy_B1, logits_BX, logits_BX / scale_B1 + noise_BX)

    # As a logit that stands for its block: scale · logsumexp(logits / scale); the largest one where
    # that is wanted.
    stands_for_BM = summaries.max_BM + jnp.where(
        is_greedy_B1, 0.0, scale_B1 * jnp.log(summaries.sum_BM)
    )
    block_B = jnp.argmax(noisy(stands_for_BM, keys_B2[:, 0]), axis=1)
    within_B = jnp.argmax(noisy(candidates.logits_of(block_B), keys_B2[:, 1]), axis=1)
    token_B = (block_B * cached.VOCAB_BLOCK + within_B).astype(jnp.int32)
    return token_B, candidates.entropy_B


def _filtered(
    hidden_BD: Float[Array, "B D"],
    head_UDMW: Float[Array, "U D M W"],
    scale_B1: Float[Array, "B 1"],
    vocab_size: int,
    filters: Sequence[Filter],
) -> _Candidates:
    """The tokens that filters keep; a filter needs all logits at once."""

    def logits_of_chunk(head_DMW: Array, blocks_M: Array) -> Float[Array, "B M W"]:
        return _logits(hidden_BD, head_DMW, blocks_M, vocab_size)

    logits_BMW = _in_chunks(logits_of_chunk, head_UDMW)
    entropy_B = _entropy(_summaries(logits_BMW, scale_B1), scale_B1, vocab_size)
    scaled_BV = logits_BMW.reshape(len(logits_BMW), -1) / scale_B1
    is_kept_BV = token_filters.keep(scaled_BV, filters)
    kept_BMW = jnp.where(is_kept_BV.reshape(logits_BMW.shape), logits_BMW, _NEVER)

    def logits_of(block_B: Int[Array, " B"]) -> Float[Array, "B W"]:
        return jnp.take_along_axis(kept_BMW, block_B[:, None, None], axis=1)[:, 0]

    return _Candidates(_summaries(kept_BMW, scale_B1), entropy_B, logits_of)


def _all_tokens(
    hidden_BD: Float[Array, "B D"],
    head_UDMW: Float[Array, "U D M W"],
    scale_B1: Float[Array, "B 1"],
    vocab_size: int,
    mesh: Mesh,
) -> _Candidates:
    """All tokens; the logits of a chunk are summed up, those of the drawn block are made again."""

    def summaries_of_chunk(head_DMW: Array, blocks_M: Array) -> _Summaries:
        return _summaries(_logits(hidden_BD, head_DMW, blocks_M, vocab_size), scale_B1)

    summaries = _in_chunks(summaries_of_chunk, head_UDMW)
    dtype = summaries.max_BM.dtype

    def logits_of(block_B: Int[Array, " B"]) -> Float[Array, "B W"]:
        # One block for each row: 256 logits made twice, instead of 150,000 kept.
        head_BDW = cached.head_rows(head_UDMW, block_B, mesh)
        logits_BW = jnp.einsum("BD,BDW->BW", hidden_BD, head_BDW, preferred_element_type=dtype)
        return jnp.where(_is_token(block_B, vocab_size), logits_BW, _NEVER)

    return _Candidates(summaries, _entropy(summaries, scale_B1, vocab_size), logits_of)


def _logits(
    hidden_BD: Float[Array, "B D"],
    head_DMW: Float[Array, "D M W"],
    blocks_M: Int[Array, " M"],
    vocab_size: int,
) -> Float[Array, "B M W"]:
    """Logits of some blocks; beyond the end of the vocabulary one that is never drawn."""
    dtype = jnp.promote_types(jnp.float32, hidden_BD.dtype)
    logits_BMW = jnp.einsum("BD,DMW->BMW", hidden_BD, head_DMW, preferred_element_type=dtype)
    return jnp.where(_is_token(blocks_M, vocab_size)[None], logits_BMW, _NEVER)


def _is_token(blocks_X: Int[Array, " X"], vocab_size: int) -> Bool[Array, "X W"]:
    """Which places of these blocks are tokens, and not padding of the head."""
    W = cached.VOCAB_BLOCK
    return blocks_X[:, None] * W + jnp.arange(W)[None, :] < vocab_size


def _summaries(logits_BMW: Float[Array, "B M W"], scale_B1: Float[Array, "B 1"]) -> _Summaries:
    max_BM = logits_BMW.max(axis=-1)
    below_BMW = logits_BMW - max_BM[:, :, None]
    weights_BMW = jnp.exp(below_BMW / scale_B1[:, :, None])
    # 0 · -inf, of a logit too far below for a float, would be NaN.
    weighted_BMW = jnp.where(weights_BMW > 0, weights_BMW * below_BMW, 0.0)
    return _Summaries(max_BM, weights_BMW.sum(axis=-1), weighted_BMW.sum(axis=-1))


def _in_chunks(make: Callable[[Array, Array], Any], head_UDMW: Float[Array, "U D M W"]) -> Any:
    """The arrays [B, blocks, …] that `make(head_DMW, blocks_M)` gives for the whole head.

    One chunk at a time, so that the logits of one chunk exist at once.
    """
    U, _, M, _ = head_UDMW.shape
    blocks_UM = jnp.arange(U * M).reshape(U, M)
    made_UBM = lax.map(lambda chunk: make(*chunk), (head_UDMW, blocks_UM))

    def joined(x_UBM: Array) -> Array:
        return x_UBM.swapaxes(0, 1).reshape(x_UBM.shape[1], U * M, *x_UBM.shape[3:])

    return jax.tree.map(joined, made_UBM)


def _real_blocks(summaries: _Summaries, vocab_size: int) -> _Summaries:
    """Without the blocks that only pad the head."""
    n_blocks = -(-vocab_size // cached.VOCAB_BLOCK)
    return jax.tree.map(lambda x_BM: x_BM[:, :n_blocks], summaries)


def _entropy(
    all_blocks: _Summaries, scale_B1: Float[Array, "B 1"], vocab_size: int
) -> Float[Array, " B"]:
    """log Σ exp(logit/scale) − Σ p · logit/scale, both relative to the largest logit of the row."""
    summaries = _real_blocks(all_blocks, vocab_size)
    max_BM = summaries.max_BM
    below_BM = (max_BM - max_BM.max(axis=1, keepdims=True)) / scale_B1
    logsumexp_BM = below_BM + jnp.log(summaries.sum_BM)
    total_B = jax.nn.logsumexp(logsumexp_BM, axis=1)
    p_BM = jnp.exp(logsumexp_BM - total_B[:, None])
    # The mean of the scaled logits of a block, below the row's largest.
    mean_BM = below_BM + summaries.weighted_BM / summaries.sum_BM / scale_B1
    # A block with p = 0 may have a mean of -inf, and 0 · -inf would be NaN.
    return total_B - jnp.where(p_BM > 0, p_BM * mean_BM, 0.0).sum(axis=1)
