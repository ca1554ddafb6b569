"""Blocked causal attention against a dense float64 oracle: segments, windows, groups, any block
size.
"""

import jax
import numpy as np
import pytest

from dft_jax.models.attention.masked import causal_attention


def dense_attention(q, k, v, segments_BL, window):
    """Oracle: a loop over heads and positions in numpy."""
    B, L, H, K = q.shape
    R = H // k.shape[2]
    out = np.zeros_like(q)
    for b in range(B):
        for h in range(H):
            for i in range(L):
                first = 0 if window is None else max(0, i - window + 1)
                js = [j for j in range(first, i + 1) if segments_BL[b, j] == segments_BL[b, i]]
                scores = np.array([q[b, i, h] @ k[b, j, h // R] for j in js]) / np.sqrt(K)
                weights = np.exp(scores - scores.max())
                out[b, i, h] = (weights / weights.sum()) @ v[b, js, h // R]
    return out


@pytest.mark.parametrize("block", [3, 8, 64])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_equals_dense(block, window, groups):
    rng = np.random.default_rng(0)
    B, L, H, K = 2, 17, 4, 6
    # Compiled operation by operation it takes several times as long.
    attend = jax.jit(causal_attention, static_argnames=("window", "block"))
    with jax.enable_x64(True):
        q = rng.normal(size=(B, L, H, K))
        k, v = rng.normal(size=(2, B, L, groups, K))
        segments_BL = np.array([[1] * 5 + [2] * 9 + [0] * 3, [1] * 17], np.int32)
        found = attend(q, k, v, segments_BL, window=window, block=block)
        np.testing.assert_allclose(
            found, dense_attention(q, k, v, segments_BL, window), rtol=1e-12, atol=1e-12
        )
