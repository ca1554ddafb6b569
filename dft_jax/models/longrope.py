"""LongRoPE: frequencies by the length of the text that a token is in (spec.LongRope says why)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dft_jax.models import layers
from dft_jax.models.spec import LongRope
from dft_jax.types import AnyArray


def angles_of_texts(
    rope: LongRope,
    head_dim: int,
    positions_BL: Int[AnyArray, "B L"],
    is_long_BL: Bool[AnyArray, "B L"],
) -> Float[Array, "B L k"]:
    """What `rotate` turns by: tokens of a long text with the long factors (see LongRope)."""
    wavelengths_k = layers.unscaled_wavelengths(rope, head_dim)
    # Stretched first and divided by then, as the reference rounds.
    short_k = 1 / (np.array(rope.short_factors, np.float32) * wavelengths_k)
    long_k = 1 / (np.array(rope.long_factors, np.float32) * wavelengths_k)
    frequencies_BLk = jnp.where(
        is_long_BL[:, :, None], jnp.asarray(long_k)[None, None], jnp.asarray(short_k)[None, None]
    )
    return positions_BL[:, :, None].astype(jnp.float32) * frequencies_BLk


def is_in_long_text(
    segments_BL: Int[AnyArray, "B L"], positions_BL: Int[AnyArray, "B L"], context: int
) -> Bool[AnyArray, "B L"]:
    """Which tokens of packed rows belong to an example that has more than `context` of them.

    With a context of 2:

        segments   1 1 1 2 2 0
        positions  0 1 2 0 1 0
        long       1 1 1 0 0 0

    That is seen from the token `context` places after the first of the example: it belongs to the
    same one.
    """
    L = segments_BL.shape[1]
    if context >= L:
        return jnp.zeros(segments_BL.shape, bool)
    there_BL = jnp.arange(L)[None, :] - positions_BL + context
    found_BL = jnp.take_along_axis(segments_BL, jnp.minimum(there_BL, L - 1), axis=1)
    return (there_BL < L) & (found_BL == segments_BL) & (segments_BL > 0)
