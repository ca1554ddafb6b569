"""Reported numbers against ones worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from dft_jax.training import metrics
from dft_jax.types import TokenStats


def test_flops_of_a_token_by_counting():
    """Two layers of three heads of size five, examples of eight tokens, 100 weights in products.

    Token t attends to t + 1 positions. For each of them a head multiplies and adds K numbers for
    the score, and K for the value; backward is twice forward. The formula takes L / 2 for the
    mean of t + 1, which is (L + 1) / 2.
    """
    layers, heads, K, L = 2, 3, 5, 8
    forward = sum(layers * heads * (2 * K + 2 * K) * (t + 1) for t in range(L)) / L
    counted = 3 * (2 * 100 + forward * L / (L + 1))
    found = metrics.training_flops_per_token(100, layers, heads, K, L)
    assert found == pytest.approx(counted) and found == 2040


def test_tokens_are_counted_in_their_bins():
    """One token in the middle of each bin, two in the last, and an untrained one that counts
    nowhere.
    """
    edges = np.array(metrics.P_BIN_EDGES)
    p = np.append((edges[1:] + edges[:-1]) / 2, [1.0, 0.55])
    mask = np.arange(len(p)) < len(p) - 1
    zeros = np.zeros_like(p)
    stats = TokenStats(np.log(p)[None], zeros[None], zeros[None] > 0, mask[None].astype(int))
    sums = metrics.token_sums(stats, jnp.float32(0), mask[None])
    assert sums["p_histogram"].tolist() == [1.0] * (len(edges) - 2) + [2.0]
    assert sums["tokens"] == len(p) - 1
    np.testing.assert_allclose(sums["p"], p[:-1].sum(), rtol=1e-6)


def test_means_per_token_by_hand():
    """Three tokens with p of 1/2, 1/4 and 0.001, two of them right."""
    p = np.array([0.5, 0.25, 0.001])
    histogram = np.zeros(len(metrics.P_BIN_EDGES) - 1)
    # 0.001 opens the third bin, 0.25 is in 0.2 to 0.3, 0.5 opens the ninth
    histogram[[2, 5, 8]] = 1
    sums = {
        "loss": 6.0,
        "nll": -np.log(p).sum(),
        "p": p.sum(),
        "entropy": 1.5,
        "correct": 2,
        "tokens": 3,
        "p_histogram": histogram,
    }
    found = metrics.per_token(sums, "train")
    assert found["train/loss"] == 2 and found["train/entropy"] == 0.5
    assert found["train/nll"] == pytest.approx((np.log(2) + np.log(4) + np.log(1000)) / 3)
    assert found["train/mean_p"] == pytest.approx(0.751 / 3)
    assert found["train/token_accuracy"] == pytest.approx(2 / 3)
    assert found["train/supervised_tokens"] == 3
    assert found["train/share_of_p_below_0.01"] == pytest.approx(1 / 3)
