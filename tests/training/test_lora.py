"""Training adapters: what one step does, against full fine-tuning where the two must agree; that
the base is left alone; meshes, micro-batches and objectives with a reference.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dft_jax import config as config_lib
from dft_jax.losses import fused, objectives
from dft_jax.models.adapters import layer_of, merged_layer
from dft_jax.models.model import head
from dft_jax.training.adapters import lines_of_ends
from dft_jax.training.exporting import trained_of
from dft_jax.training.step import make_loss
from tests.conftest import make_mesh
from tests.jaxprs import equations
from tests.marks import slow_but
from tests.tiny_trainer import Trainer

LORA = {"lora.rank": 4, "lora.alpha": 7.0}


def with_b(trainer, seed=0, std=0.05):
    """The state with adapters whose B is not zero."""
    numbers = np.random.default_rng(seed)

    def values(leaf, layout):
        return jax.device_put(
            numbers.normal(0, std, leaf.shape).astype(np.float32), layout.sharding
        )

    params = jax.tree.map(values, trainer.state.params, trainer.model.abstract_adapters)
    trainer.state = dataclasses.replace(trainer.state, params=params)
    return trainer


def test_an_end_token_that_the_base_does_not_know_is_warned_of():
    [said] = lines_of_ends(0.25)
    assert said == "lora: end tokens of held-out answers have a mean p of 0.25 before training"
    said, warning = lines_of_ends(3e-6)
    assert "mean p of 3e-06" in said
    assert "objective=floored_dft" in warning and "lora.rank=0" in warning
    assert len(lines_of_ends(1e-4)) == 1
    assert "no held-out answer" in lines_of_ends(None)[0]


@pytest.mark.parametrize("path", ["base", "nobody/base", "hf://nobody/base"])
def test_an_adapter_names_its_base_as_others_find_it(path, tmp_path, monkeypatch):
    """From any folder, and with PEFT; a hub id as the hub has it."""
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    config = config_lib.get_default()
    config.model.path, config.lora.rank = path, 4
    trained = trained_of({}, config, {"fingerprint": {"base_sha256": "5a"}})
    named = {"base": str(tmp_path / "base")}.get(path, "nobody/base")
    assert trained.base == {"path": named, "revision": "main", "sha256": "5a"}


def kernels(params, part, name):
    return np.asarray(params["layers"][part][name]["kernel"])


@pytest.mark.parametrize("target", slow_but([], ["q", "o", "gate", "up"], slow=["q", "gate"]))
def test_full_rank_is_full_fine_tuning(target, mesh1):
    """With A the identity, B zero and s = 1, W + B A moves in a step of Adam as W would alone.

    A stands still: its gradient is Bᵀ dW = 0.
    """
    part = "attention" if target in "qkvo" else "mlp"
    same = {
        "optimizer.weight_decay": 0.0,
        "optimizer.clip_norm": 1e9,
        "optimizer.eps": 1e-3,
        "optimizer.warmup_fraction": 0.0,
    }
    full = Trainer(mesh1, **same)
    base = jax.device_get(full.state.params)
    rank = 64  # its inputs
    lora = {"lora.rank": rank, "lora.alpha": float(rank), "lora.targets": f"{target}_proj"}
    adapted = Trainer(mesh1, **same, **lora)
    pair = adapted.state.params["layers"][part][target]
    identity = np.broadcast_to(
        np.eye(rank, dtype=np.float32).reshape(pair["a"].shape[1:]), pair["a"].shape
    )
    pair["a"] = jnp.asarray(identity)
    adapted.state = dataclasses.replace(adapted.state, params={"layers": {part: {target: pair}}})
    full.take(0)
    adapted.take(0)
    moved = jax.device_get(adapted.state.params)["layers"][part][target]
    np.testing.assert_array_equal(moved["a"], identity)
    expected = kernels(full.state.params, part, target) - kernels(base, part, target)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(moved["b"].reshape(expected.shape), expected, atol=1e-6)


@pytest.mark.slow
def test_gradient_descent_of_full_rank_is_that_of_the_kernel(mesh1):
    """Five steps of plain descent on B, with A the identity and held, and on W alone."""
    full = Trainer(mesh1)
    lora = {"lora.rank": 64, "lora.alpha": 64.0, "lora.targets": "up_proj"}
    adapted = Trainer(mesh1, **lora)
    rate, sft = 1e-3, objectives.make_objective("sft")
    dense, sparse = (make_loss(trainer.model, sft, 64) for trainer in (full, adapted))

    def with_kernel(kernel):
        params = dict(full.state.params)
        layers = params["layers"] | {"mlp": dict(params["layers"]["mlp"])}
        layers["mlp"]["up"] = {"kernel": kernel}
        return params | {"layers": layers}

    def with_b(b):
        a = jnp.broadcast_to(jnp.eye(64)[None], (2, 64, 64))
        return adapted.model.join({"layers": {"mlp": {"up": {"a": a, "b": b}}}}, adapted.base)

    of_kernel = jax.jit(jax.grad(lambda kernel, batch: dense(with_kernel(kernel), batch, 1.0)[0]))
    of_b = jax.jit(jax.grad(lambda b, batch: sparse(with_b(b), batch, 1.0)[0]))
    begun = kernel = full.state.params["layers"]["mlp"]["up"]["kernel"]
    b = jnp.zeros_like(kernel)
    for step in range(5):
        batch = jax.tree.map(lambda x_ABL: x_ABL[0], full.batch(step))
        kernel = kernel - rate * of_kernel(kernel, batch)
        b = b - rate * of_b(b, batch)
    assert np.abs(kernel - begun).max() > 1e-2
    np.testing.assert_allclose(b, kernel - begun, atol=1e-5)


@pytest.mark.slow
def test_the_base_is_left_alone(mesh1):
    trainer = Trainer(mesh1, **LORA, **{"train.steps": 20})
    before = jax.device_get(trainer.base)
    adapters = jax.device_get(trainer.state.params)
    for step in range(20):
        sums = trainer.take(step)
    assert sums["is_finite"]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(trainer.base), before)
    for old, new in zip(
        jax.tree.leaves(adapters), jax.tree.leaves(trainer.state.params), strict=True
    ):
        assert new.dtype == jnp.float32 and np.abs(old - np.asarray(new)).max() > 1e-4


def test_state_and_gradients_are_of_the_adapters_alone(mesh1):
    """Neither the state nor the program of a step has an array like a gradient of the base, of the
    head or of the embedding.
    """
    trainer = Trainer(mesh1, **LORA)
    base = jax.tree.leaves(trainer.base)
    n_base = sum(leaf.size for leaf in base)
    n_trained = sum(leaf.size for leaf in jax.tree.leaves(trainer.state.params))
    n_state = sum(leaf.size for leaf in jax.tree.leaves(trainer.state))
    assert n_state < 3 * n_trained + 10 and 3 * n_trained < n_base

    program = trainer.step.func.trace(trainer.step.args[0], trainer.state, trainer.batch(0)).jaxpr
    V, D = head(trainer.base).shape
    matrices = {leaf.shape for leaf in base if leaf.ndim > 1}
    made = {eqn.outvars[0].aval.shape for eqn in equations(program, "dot_general")}
    made |= {eqn.outvars[0].aval.shape for eqn in equations(program, "scatter-add")}
    assert made and not made & (matrices | {shape[1:] for shape in matrices} | {(D, V)})


@pytest.mark.slow
def test_a_step_computes_two_thirds_and_a_little_more(mesh1):
    def flops(of):
        step = of.step.func.lower(of.step.args[0], of.state, of.batch(0)).compile()
        return step.cost_analysis()["flops"]

    lora = {"lora.rank": 1, "lora.alpha": 1.0}
    assert flops(Trainer(mesh1, **lora)) < 0.8 * flops(Trainer(mesh1))


@pytest.mark.parametrize("objective", slow_but([], ["asft", "iw_sft"], slow=["iw_sft"]))
def test_the_reference_is_the_base(objective, mesh1):
    """At first the model is its reference; later it is compared with the base, held once."""
    trainer = Trainer(mesh1, objective=objective, **LORA)
    chosen = objectives.make_objective(objective)
    batch = jax.tree.map(lambda x: x[0], trainer.batch(0))

    def stats(weights):
        model = trainer.model
        params, adapters = weights.params, weights.adapters
        reference = model.apply(params, batch), head(params)
        hidden_BLD = model.apply(params, batch, adapters)
        found = fused.token_stats(
            hidden_BLD,
            head(params),
            batch.targets_BL,
            batch.mask_BL,
            batch.segments_BL,
            reference,
            chunk_tokens=64,
            mesh=model.mesh,
        )
        return found, reference[0], hidden_BLD

    first, *hidden = jax.jit(stats)(trainer.model.join(trainer.state.params, trainer.base))
    np.testing.assert_array_equal(*hidden)
    # Of equal logits XLA adds up the two sums of exponentials in different orders: of 333 tokens
    # two differed, by the last bit of log p (4.8e-7), as they do of one array that is given twice.
    np.testing.assert_allclose(first.kl_BL, 0, atol=1e-6)
    np.testing.assert_allclose(first.logp_BL, first.reference_logp_BL, atol=1e-6)

    with_b(trainer)
    weights = trainer.model.join(trainer.state.params, trainer.base)
    loss = make_loss(trainer.model, chosen, 64)
    found, _ = jax.jit(lambda w, b: loss(w, b, 1.0))(weights, batch)
    # A model of its own with merged weights, compared with a second copy of the base.
    full = Trainer(mesh1, objective=objective)
    scale = trainer.model.lora.scale
    merged = dict(trainer.base)
    layers = []
    for place in trainer.model.config.layer_places():
        parts = [layer_of(tree, place) for tree in (trainer.base, trainer.state.params)]
        layers.append(merged_layer(*parts, scale))
    merged["layers"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    copy = jax.tree.map(jnp.copy, trainer.base)
    dense = make_loss(full.model, chosen, 64)
    expected, _ = jax.jit(lambda p, b, r: dense(p, b, 1.0, r))(merged, batch, copy)
    unmoved, _ = jax.jit(lambda p, b, r: dense(p, b, 1.0, r))(trainer.base, batch, copy)
    assert abs(float(expected - unmoved)) > 1e-2 * abs(float(unmoved))
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def curve(mesh, **overrides):
    trainer = with_b(Trainer(mesh, **LORA, **overrides))
    found = []
    for step in range(3):
        sums = trainer.take(step)
        found.append((sums["loss"] / sums["tokens"], sums["gradient_norm"]))
    return np.array(found)


@pytest.fixture(scope="module")
def plain_curve(mesh1):
    return curve(mesh1)


WAYS = {
    "accumulation": ((1, 1, 1), {"train.accumulation": 4}),
    "all": ((2, 2, 2), {}),
    "tensor": ((1, 1, 2), {}),
    "fsdp": ((1, 2, 1), {"train.accumulation": 2, "objective": "sft"}),
    "remat": ((1, 1, 1), {"model.remat": "full"}),
}


@pytest.mark.parametrize("way", slow_but([], WAYS, slow=["accumulation", "all"]))
def test_any_mesh_trains_the_same(way, plain_curve):
    sizes, overrides = WAYS[way]
    found = curve(make_mesh(*sizes), **overrides)
    np.testing.assert_allclose(found[:, 0], plain_curve[:, 0], atol=5e-6)
    np.testing.assert_allclose(found[:, 1], plain_curve[:, 1], rtol=1e-4)


def test_rank_0_ignores_the_other_keys(mesh1):
    """And is the program of a config without them."""
    programs = []
    for overrides in ({}, {"lora.alpha": 99.0, "lora.rslora": True, "lora.targets": "mlp"}):
        trainer = Trainer(mesh1, **overrides)
        assert trainer.model.lora is None
        traced = trainer.step.func.trace(trainer.step.args[0], trainer.state, trainer.batch(0))
        programs.append(str(traced.jaxpr))
    assert programs[0] == programs[1]
    assert "lora" not in programs[0]
