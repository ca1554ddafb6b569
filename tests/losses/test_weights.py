"""Weights of tokens in the loss: Σ w·loss, against repeated rows and a dense oracle in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dft_jax.losses import fused, objectives
from dft_jax.training import metrics
from tests.conftest import make_mesh
from tests.losses.test_fused import problem
from tests.marks import slow_but

TIMES = [3, 1, 2, 1]  # how often each row is there; the second has no trained token
MESHES = [(1, 1, 1), (2, 2, 1), (1, 2, 2)]


def loss_of(objective, mesh, hidden_BLD, head_VD, targets_BL, mask_BL, weights_BL=None):
    """Σ loss, sums over tokens, and the gradients of both inputs."""
    rng = np.random.default_rng(7)
    # The reference of a row is the same however often the row is there.
    moved_11D = jnp.asarray(0.3 * rng.normal(size=(1, 1, hidden_BLD.shape[-1])), jnp.float32)
    reference = (hidden_BLD + moved_11D, head_VD)
    segments_BL = np.broadcast_to(1 + np.arange(mask_BL.shape[1]) // 6, mask_BL.shape)

    def loss(hidden_BLD, head_VD):
        total, stats = fused.loss_and_stats(
            hidden_BLD,
            head_VD,
            targets_BL,
            mask_BL,
            segments_BL,
            jax.lax.stop_gradient(reference),
            objective=objective,
            chunk_tokens=8,
            mesh=mesh,
            weights_BL=weights_BL,
        )
        return total, metrics.token_sums(stats, total, mask_BL, weights_BL)

    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (total, sums), gradients = compiled(hidden_BLD, head_VD)
    return total, sums, gradients


@pytest.mark.parametrize(
    "name",
    slow_but(
        ["talr"], list(objectives.OBJECTIVES), slow=["sft", "eaft", "geometric", "gift", "iw_sft"]
    ),
)
def test_a_weight_of_3_is_a_row_that_is_there_three_times(name, mesh1):
    """For every objective, those that look at the tokens of an example or a micro-batch as well."""
    objective = objectives.make_objective(name)
    hidden_BLD, head_VD, targets_BL, mask_BL = problem()
    rows = np.repeat(np.arange(4), TIMES)
    expected, sums, (d_rows_BLD, d_head_VD) = loss_of(
        objective, mesh1, hidden_BLD[rows], head_VD, targets_BL[rows], mask_BL[rows]
    )
    weights_BL = np.where(mask_BL, np.array(TIMES)[:, None], 0).astype(np.float32)
    found, weighted, gradients = loss_of(
        objective, mesh1, hidden_BLD, head_VD, targets_BL, mask_BL, weights_BL
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(gradients[1], d_head_VD, rtol=1e-4, atol=1e-5)
    d_hidden_BLD = jax.ops.segment_sum(d_rows_BLD, rows, num_segments=4)
    np.testing.assert_allclose(gradients[0], d_hidden_BLD, rtol=1e-4, atol=1e-5)
    assert weighted["weight"] == sums["tokens"] == mask_BL[rows].sum()
    assert weighted["tokens"] == mask_BL.sum()
    for key in ("nll", "p", "entropy", "correct", "p_histogram"):
        np.testing.assert_allclose(weighted[key], sums[key], rtol=1e-5, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "dft"])
@pytest.mark.parametrize("data, fsdp, tensor", MESHES)
def test_fractional_weights_against_dense_logits(data, fsdp, tensor, name):
    """In float64, on meshes that cut rows and vocabulary; the oracle is numpy's."""
    hidden_BLD, head_VD, targets_BL, mask_BL = problem()
    rng = np.random.default_rng(3)
    weights_BL = np.where(mask_BL, rng.uniform(0.01, 2, mask_BL.shape), 0).astype(np.float32)
    total, sums, gradients = loss_of(
        objectives.make_objective(name),
        make_mesh(data, fsdp, tensor),
        hidden_BLD,
        head_VD,
        targets_BL,
        mask_BL,
        weights_BL,
    )
    hidden, head = np.asarray(hidden_BLD, np.float64), np.asarray(head_VD, np.float64)
    logits_BLV = hidden @ head.T
    p_BLV = np.exp(logits_BLV - logits_BLV.max(axis=-1, keepdims=True))
    p_BLV /= p_BLV.sum(axis=-1, keepdims=True)
    p_BL = np.take_along_axis(p_BLV, targets_BL[:, :, None], axis=-1)[:, :, 0]
    of_token_BL = weights_BL * (p_BL if name == "dft" else 1)
    np.testing.assert_allclose(total, (of_token_BL * -np.log(p_BL)).sum(), rtol=1e-5)
    d_logits_BLV = of_token_BL[:, :, None] * (p_BLV - np.eye(len(head))[targets_BL])
    np.testing.assert_allclose(gradients[0], d_logits_BLV @ head, rtol=1e-4, atol=1e-5)
    d_head_VD = np.einsum("BLV,BLD->VD", d_logits_BLV, hidden)
    np.testing.assert_allclose(gradients[1], d_head_VD, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(sums["nll"], (weights_BL * -np.log(p_BL)).sum(), rtol=1e-5)
    np.testing.assert_allclose(sums["weight"], weights_BL.sum(dtype=np.float64), rtol=1e-5)


@pytest.mark.parametrize("weights", [[1, 1, 1, 1], [2, 1, 1, 2], [5, 1, 1, 1], [1, 2, 3, 4]])
def test_the_median_counts_a_token_as_often_as_it_weighs(weights):
    values = np.array([0.3, 0.1, 0.9, 0.7], np.float32)
    padded = np.array([[*values, 0.2, 8.0]], np.float32)
    is_trained = np.array([[True] * 4 + [False] * 2])
    weights_BL = np.array([[*weights, 0, 0]], np.float32)
    found = objectives._median(
        jnp.asarray(padded), jnp.asarray(is_trained), jnp.asarray(weights_BL)
    )
    assert found == np.median(np.repeat(values, weights))


def test_a_batch_without_a_trained_token_has_loss_0(mesh1):
    hidden_BLD, head_VD, targets_BL, mask_BL = problem()
    none_BL = np.zeros_like(mask_BL)
    for name in ("dft", "talr"):
        total, sums, gradients = loss_of(
            objectives.make_objective(name),
            mesh1,
            hidden_BLD,
            head_VD,
            targets_BL,
            none_BL,
            np.zeros(none_BL.shape, np.float32),
        )
        assert total == 0 and np.isfinite(gradients[0]).all() and (gradients[1] == 0).all()
        assert metrics.per_token(jax.device_get(sums), "train")["train/loss"] == 0
