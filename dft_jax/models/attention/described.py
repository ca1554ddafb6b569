"""cuDNN's attention as shapes alone, for programs that are traced to be planned and never run.

JAX's call of it asks the machine that traces for its GPU. What takes memory is known without: the
backward pass needs queries, keys, values and the output, and the statistics of the softmax.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from dft_jax.models.attention.kernels import RESULT
from dft_jax.types import AnyArray


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
    """The shapes of `kernels.cudnn`, of its residuals and of its gradients."""
    B, L, H, _ = q_BLHK.shape
    assert most_segments, "a plan is for rows of so many segments"
    statistics = jax.ShapeDtypeStruct((B * most_segments, H, L), jnp.float32)

    @jax.custom_vjp
    def attend(*qkv: Array) -> Array:
        return forward(*qkv)[0]

    def forward(*qkv: Array) -> tuple[Array, tuple[Array, ...]]:
        out_BLHK, kept = _call((qkv[0], statistics), *qkv)
        out_BLHK, kept = checkpoint_name(out_BLHK, RESULT), checkpoint_name(kept, RESULT)
        return out_BLHK, (*qkv, out_BLHK, kept)

    def backward(residuals: tuple[Array, ...], d_out_BLHK: Array) -> tuple[Array, ...]:
        return tuple(_call(residuals[:3], *residuals, d_out_BLHK))

    attend.defvjp(forward, backward)
    return attend(q_BLHK, k_BLGK, v_BLGK)


def _call(results: tuple[Any, ...], *operands: Array) -> Any:
    """An operation that has these operands and results in memory; nobody knows how it works."""
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in results]
    return jax.pure_callback(_never, shapes, *operands)


def _never(*_: Any) -> Any:
    raise AssertionError("a program that was made to be planned is being run")
