"""The chunked linear cross-entropy, in one pass and in two, against dense logits, on meshes."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dft_jax import sharding
from dft_jax.losses import fused, objectives
from dft_jax.types import TokenStats
from tests.conftest import make_mesh
from tests.marks import slow_but

B, L, D, V = 4, 12, 16, 24
SHAPES = [(1, 1, 1), (4, 1, 2), (2, 2, 1), (1, 2, 4), (1, 1, 8), (1, 2, 2, 2)]


def problem(dtype=np.float32, vocab=V, seed=0):
    rng = np.random.default_rng(seed)
    hidden_BLD = jnp.asarray(rng.normal(size=(B, L, D)).astype(dtype))
    head_VD = jnp.asarray(rng.normal(size=(vocab, D)).astype(dtype))
    targets_BL = rng.integers(vocab, size=(B, L)).astype(np.int32)
    mask_BL = rng.random((B, L)) < 0.6
    mask_BL[1] = False  # a row without trained tokens: its device has fewer chunks than the others
    return hidden_BLD, head_VD, targets_BL, mask_BL


def dense_logp(hidden_BLD, head_VD, targets_BL):
    """Oracle: full logits."""
    logits_BLV = jnp.einsum("BLD,VD->BLV", hidden_BLD, head_VD)
    logp_BLV = jax.nn.log_softmax(logits_BLV, axis=-1)
    return jnp.take_along_axis(logp_BLV, targets_BL[:, :, None], axis=-1)[:, :, 0], logp_BLV


def losses_and_gradients(
    objective, hidden_BLD, head_VD, targets_BL, mask_BL, mesh, chunk_tokens, scale=1.0
):
    """What training computes, what log p made in two passes gives, and a dense oracle.

    The reference is another model, with its own hidden states; `scale` multiplies the loss, as 1/N
    does in training.
    """
    rng = np.random.default_rng(7)
    reference = tuple(
        jnp.asarray(x + 0.3 * rng.normal(size=x.shape).astype(x.dtype))
        for x in (hidden_BLD, head_VD)
    )
    segments_BL = np.broadcast_to(
        1 + 2 * np.arange(mask_BL.shape[1]) // mask_BL.shape[1], mask_BL.shape
    )

    inputs = (targets_BL, mask_BL, segments_BL, reference)

    def trained(hidden_BLD, head_VD):
        loss, _ = fused.loss_and_stats(
            hidden_BLD, head_VD, *inputs, objective=objective, chunk_tokens=chunk_tokens, mesh=mesh
        )
        return scale * loss

    def two_passes(hidden_BLD, head_VD):
        stats = fused.token_stats(
            hidden_BLD,
            head_VD,
            *inputs,
            chunk_tokens=chunk_tokens,
            mesh=mesh,
            needs=(objectives.TOP_ENTROPY, objectives.CONCENTRATION, objectives.REFERENCE_MASS),
        )
        return scale * jnp.where(mask_BL, objective(stats), 0).sum()

    def dense(hidden_BLD, head_VD):
        logp_BL, logp_BLV = dense_logp(hidden_BLD, head_VD, targets_BL)
        reference_BL, reference_BLV = dense_logp(*reference, targets_BL)
        zeros = jnp.zeros_like(logp_BL)
        examples_BL = jnp.where(mask_BL, segments_BL, 0)
        top_BLK = jnp.sort(jnp.exp(logp_BLV))[:, :, -objectives.TOP_TOKENS :]
        top_BLK /= top_BLK.sum(axis=-1, keepdims=True)
        reference_p_BLV = jnp.exp(reference_BLV)
        is_less_BLV = reference_BLV < reference_BL[:, :, None]
        stats = TokenStats(
            logp_BL=logp_BL,
            entropy_BL=-(jnp.exp(logp_BLV) * logp_BLV).sum(axis=-1),
            correct_BL=zeros > 1,
            examples_BL=examples_BL,
            reference_logp_BL=reference_BL,
            kl_BL=(reference_p_BLV * (reference_BLV - logp_BLV)).sum(axis=-1),
            top_entropy_BL=-(top_BLK * jnp.log(top_BLK)).sum(axis=-1),
            concentration_BL=jnp.exp(2 * logp_BLV).sum(axis=-1),
            reference_mass_BL=(
                jnp.exp(reference_BL) + (reference_p_BLV * is_less_BLV).sum(axis=-1)
            ),
        )
        return scale * jnp.where(mask_BL, objective(stats), 0).sum()

    for loss in (trained, two_passes, dense):
        yield jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(hidden_BLD, head_VD)


@pytest.mark.parametrize(
    "shape, name",
    slow_but(
        [((2, 2, 2), name) for name in ("sft", "dft", "asft", "sentence")],
        list(itertools.product([(1, 1, 1), (2, 2, 2)], sorted(objectives.OBJECTIVES))),
        slow=[((1, 1, 1), "dft"), *(((2, 2, 2), name) for name in objectives.OBJECTIVES)],
    ),
)
def test_equals_dense_in_float64(shape, name):
    with jax.enable_x64(True):
        arguments = problem(np.float64)
        objective = objectives.make_objective(name)
        *found_ways, expected = losses_and_gradients(
            objective, *arguments, make_mesh(*shape), chunk_tokens=5, scale=0.3
        )
        for found in found_ways:
            for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "shape, vocab",  # 25 does not divide: the vocabulary stays whole
    slow_but(
        [((1, 2, 4), 25)],
        list(itertools.product(SHAPES, (24, 25))),
        slow=[((4, 1, 2), 24), ((2, 2, 1), 25), ((1, 1, 8), 24), ((1, 2, 2, 2), 25)],
    ),
)
def test_equals_dense_on_every_mesh_in_float32(shape, vocab):
    arguments = problem(vocab=vocab)
    *found_ways, expected = losses_and_gradients(
        objectives.make_objective("dft"), *arguments, make_mesh(*shape), 7
    )
    for found in found_ways:
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.fixture
def as_on_gpu(monkeypatch):
    """The program that GPUs run, on these devices."""
    monkeypatch.setattr(sharding, "platform", lambda mesh: "gpu")


@pytest.mark.parametrize(
    "name",
    slow_but(
        ["dft", "asft", "eaft"],
        sorted(objectives.OBJECTIVES),
        slow=["cayley", "deft", "geometric", "gift", "iw_sft", "prift_mass", "talr"],
    ),
)
def test_one_reading_equals_dense_in_float64(name, as_on_gpu):
    """The vocabulary is cut, so that the parts of two devices are merged too."""
    with jax.enable_x64(True):
        *found_ways, expected = losses_and_gradients(
            objectives.make_objective(name), *problem(np.float64), make_mesh(1, 1, 2), 5, scale=0.3
        )
        for found in found_ways:
            for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_one_reading_equals_two_in_float32(mesh1, monkeypatch):
    """Logits that spread over ±300, of which exp overflows, and targets among the least likely."""
    hidden_BLD, head_VD, targets_BL, mask_BL = problem(vocab=4096)
    found = []
    for platform in ("cpu", "gpu"):
        monkeypatch.setattr(sharding, "platform", lambda mesh, platform=platform: platform)
        arguments = (hidden_BLD, 20 * head_VD, targets_BL, mask_BL)
        found.append(fused.token_stats(*arguments, chunk_tokens=16, mesh=mesh1))
    two_readings, one_reading = found
    assert np.isfinite(one_reading.logp_BL).all() and np.min(one_reading.logp_BL) < -200
    np.testing.assert_array_equal(one_reading.correct_BL, two_readings.correct_BL)
    np.testing.assert_allclose(one_reading.logp_BL, two_readings.logp_BL, rtol=1e-6, atol=1e-6)
    # A difference of numbers near 300, in which a last digit is 3e-5.
    np.testing.assert_allclose(one_reading.entropy_BL, two_readings.entropy_BL, atol=1e-4)


@pytest.mark.parametrize("needs", [(), (objectives.CONCENTRATION,)])
def test_gpus_make_the_statistics_in_one_reduction(needs, mesh1, as_on_gpu):
    """And no other one of the logits: XLA makes one kernel of it (docs/performance.md)."""
    hidden_BLD, head_VD, targets_BL, mask_BL = problem(vocab=4096)

    def logp(hidden_BLD, head_VD):
        stats = fused.token_stats(
            hidden_BLD, head_VD, targets_BL, mask_BL, chunk_tokens=16, mesh=mesh1, needs=needs
        )
        return stats.logp_BL, stats.concentration_BL

    text = str(jax.make_jaxpr(logp)(hidden_BLD, head_VD))
    assert len(re.findall(r" reduce\[", text)) == 1
    assert not re.findall(r"f32\[16\] = (?:reduce_max|reduce_sum)\[", text)


# Products with the vocabulary: logits and two gradients are 3. The logits of a reference are one
# more; a loss of other tokens makes all logits again.
PRODUCTS = dict.fromkeys(objectives.OBJECTIVES, 3)
PRODUCTS |= dict.fromkeys(("asft", "gift", "prift_prob", "prift_mass"), 4)
PRODUCTS |= dict.fromkeys(("sentence", "geometric", "talr", "cayley"), 4) | {"iw_sft": 6}


@pytest.mark.parametrize(
    "name, products",
    slow_but(
        [("sft", 3), ("asft", 4), ("cayley", 4)],
        list(PRODUCTS.items()),
        slow=[("dft", 3), ("iw_sft", 6), ("talr", 4), ("prift_mass", 4), ("trsft", 3)],
    ),
)
def test_logits_are_made_once_where_the_objective_allows(name, products, mesh1):
    hidden_BLD, head_VD, targets_BL, mask_BL = problem()
    needs_reference = objectives.make_objective(name).needs_reference
    reference = (hidden_BLD, head_VD) if needs_reference else None

    def loss(hidden_BLD, head_VD):
        arguments = (hidden_BLD, head_VD, targets_BL, mask_BL, np.ones_like(targets_BL), reference)
        objective = objectives.make_objective(name)
        return fused.loss_and_stats(*arguments, objective=objective, chunk_tokens=4, mesh=mesh1)[0]

    text = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(hidden_BLD, head_VD))
    assert text.count("dot_general[") == products


def test_statistics_equal_dense(mesh8):
    hidden_BLD, head_VD, targets_BL, mask_BL = problem()
    _, logp_BLV = dense_logp(hidden_BLD, head_VD, targets_BL)
    targets_BL = np.where(np.arange(L) % 2, np.asarray(logp_BLV.argmax(-1)), targets_BL).astype(
        np.int32
    )
    stats = fused.token_stats(hidden_BLD, head_VD, targets_BL, mask_BL, chunk_tokens=4, mesh=mesh8)
    logp_BL, logp_BLV = dense_logp(hidden_BLD, head_VD, targets_BL)
    entropy_BL = -(jnp.exp(logp_BLV) * logp_BLV).sum(-1)
    np.testing.assert_allclose(stats.logp_BL, np.where(mask_BL, logp_BL, 0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        stats.entropy_BL, np.where(mask_BL, entropy_BL, 0), rtol=1e-5, atol=1e-5
    )
    is_best_BL = np.asarray(logp_BLV.argmax(-1)) == targets_BL
    np.testing.assert_array_equal(stats.correct_BL, mask_BL & is_best_BL)


@pytest.mark.parametrize("platform", slow_but(["gpu"], ["cpu", "gpu"]))
def test_a_target_is_not_less_probable_than_itself(platform, monkeypatch):
    """Nor than tokens that are as probable. In float32, where log p plus the log of the sum is not
    the logit again: then the least probable target would have its own probability twice.
    """
    monkeypatch.setattr(sharding, "platform", lambda mesh: platform)
    logits_BLV = np.random.default_rng(0).normal(size=(2, 64, V)).astype(np.float32)
    logits_BLV[0, :, 5] = logits_BLV[0, :, 19]  # equals, on two devices
    targets_BL = np.stack([np.full(64, 19), logits_BLV[1].argmin(-1)]).astype(np.int32)
    head_VD = jnp.eye(V)
    stats = fused.token_stats(
        jnp.zeros_like(logits_BLV),
        head_VD,
        targets_BL,
        np.ones((2, 64), bool),
        reference=(jnp.asarray(logits_BLV), head_VD),
        chunk_tokens=32,
        mesh=make_mesh(1, 1, 2),
        needs=(objectives.REFERENCE_MASS,),
    )
    p_BLV = jax.nn.softmax(logits_BLV)
    p_BL1 = np.take_along_axis(p_BLV, targets_BL[:, :, None], axis=-1)
    expected_BL = np.where(p_BLV < p_BL1, p_BLV, 0).sum(-1) + p_BL1[:, :, 0]
    np.testing.assert_allclose(stats.reference_mass_BL, expected_BL, rtol=1e-5)
    least_L = np.exp(stats.reference_logp_BL[1])
    np.testing.assert_allclose(stats.reference_mass_BL[1], least_L, rtol=1e-6)


def test_gradient_of_dft_is_that_of_minus_p_and_p_times_that_of_sft(mesh1):
    with jax.enable_x64(True):
        hidden_BLD, head_VD, targets_BL, mask_BL = problem(np.float64)

        def total(loss_of_logp):
            def f(hidden_BLD):
                stats = fused.token_stats(
                    hidden_BLD, head_VD, targets_BL, mask_BL, chunk_tokens=8, mesh=mesh1
                )
                return jnp.where(mask_BL, loss_of_logp(stats), 0).sum()

            return jax.jit(jax.grad(f))(hidden_BLD)

        dft = total(objectives.make_objective("dft"))
        minus_p = total(lambda stats: -jnp.exp(stats.logp_BL))
        sft = total(objectives.make_objective("sft"))
        p_BL = jnp.exp(dense_logp(hidden_BLD, head_VD, targets_BL)[0])
        np.testing.assert_allclose(dft, minus_p, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(dft, p_BL[:, :, None] * sft, rtol=1e-12, atol=1e-14)


def test_logit_gradient_is_p_times_one_minus_p_on_the_target(mesh1):
    """With an identity head the hidden states are the logits.

    NLL pulls the target by 1 - p, DFT by p (1 - p).
    """
    with jax.enable_x64(True):
        logits_BLD = np.random.default_rng(0).normal(size=(1, 3, D))
        targets_BL, mask_BL = np.array([[4, 0, 7]], np.int32), np.ones((1, 3), bool)

        def loss(logits_BLD, name):
            stats = fused.token_stats(
                logits_BLD, jnp.eye(D), targets_BL, mask_BL, chunk_tokens=2, mesh=mesh1
            )
            return objectives.make_objective(name)(stats).sum()

        gradient = jax.jit(jax.grad(loss), static_argnums=1)
        p_L = jax.nn.softmax(logits_BLD)[0, np.arange(3), targets_BL[0]]
        for name, pull_L in (("sft", 1 - p_L), ("dft", p_L * (1 - p_L))):
            found_L = -gradient(logits_BLD, name)[0, np.arange(3), targets_BL[0]]
            np.testing.assert_allclose(found_L, pull_L, rtol=1e-12)


def test_masked_positions_are_never_read(mesh8):
    hidden_BLD, head_VD, targets_BL, mask_BL = problem()
    poisoned_BLD = np.where(mask_BL[:, :, None], hidden_BLD, np.nan)
    objective = objectives.make_objective("dft")
    *found, _ = losses_and_gradients(
        objective, poisoned_BLD, head_VD, targets_BL, mask_BL, mesh8, 4
    )
    *clean, _ = losses_and_gradients(objective, hidden_BLD, head_VD, targets_BL, mask_BL, mesh8, 4)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(clean), strict=True):
        np.testing.assert_array_equal(one, other)


def test_all_masked_gives_zero_and_finite_gradients(mesh8):
    hidden_BLD, head_VD, targets_BL, _ = problem()
    nothing_BL = np.zeros((B, L), bool)
    *found, _ = losses_and_gradients(
        objectives.make_objective("dft"), hidden_BLD, head_VD, targets_BL, nothing_BL, mesh8, 4
    )
    for leaf in jax.tree.leaves(found):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


def test_bf16_inputs_keep_float32_statistics(mesh1):
    """bf16 hidden and head, float32 logits: log p within 1e-4 nats of the float64 truth.

    The same product rounded to bf16 logits must be ten times worse, or this test would not tell the
    two apart.
    """
    rng = np.random.default_rng(0)
    hidden_BLD = jnp.asarray(rng.normal(size=(B, L, 64)), jnp.bfloat16)
    head_VD = jnp.asarray(rng.normal(size=(4096, 64)), jnp.bfloat16)
    targets_BL, mask_BL = rng.integers(4096, size=(B, L)).astype(np.int32), np.ones((B, L), bool)
    stats = fused.token_stats(hidden_BLD, head_VD, targets_BL, mask_BL, chunk_tokens=16, mesh=mesh1)
    assert stats.logp_BL.dtype == jnp.float32
    with jax.enable_x64(True):
        exact_BL, _ = dense_logp(
            np.asarray(hidden_BLD, np.float64), np.asarray(head_VD, np.float64), targets_BL
        )
        exact_BL = np.asarray(exact_BL)
    rounded_BLV = jnp.einsum("BLD,VD->BLV", hidden_BLD, head_VD)
    rounded_BL = jnp.take_along_axis(jax.nn.log_softmax(rounded_BLV), targets_BL[:, :, None], -1)[
        :, :, 0
    ]
    error = np.abs(np.asarray(stats.logp_BL) - exact_BL).max()
    assert error < 1e-4
    assert np.abs(np.asarray(rounded_BL).astype(np.float64) - exact_BL).max() > 10 * error


def test_memory_does_not_grow_with_the_full_logits(mesh1):
    """XLA's own account of value and gradients, for 4 times the positions and the same chunk."""
    vocab, chunk = 8192, 64

    def temporary_bytes(length):
        def f(hidden_BLD, head_VD, targets_BL, mask_BL):
            objective = objectives.make_objective("dft")
            arguments = (hidden_BLD, head_VD, targets_BL, mask_BL, targets_BL)
            return fused.loss_and_stats(
                *arguments, objective=objective, chunk_tokens=chunk, mesh=mesh1
            )[0]

        shapes = [
            ((1, length, D), np.float32),
            ((vocab, D), np.float32),
            ((1, length), np.int32),
            ((1, length), bool),
        ]
        arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
        compiled = jax.jit(jax.grad(f, argnums=(0, 1))).lower(*arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = temporary_bytes(512), temporary_bytes(2048)
    full_logits = 4 * 2048 * vocab
    assert long < 0.25 * full_logits
    assert long - short < 0.02 * full_logits  # what grows is [L, D] and [L], not [L, V]
