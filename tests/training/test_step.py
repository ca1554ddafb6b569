"""The train step: the same update on any mesh, accumulation and packing; faults skipped; numerics
as promised.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dft_jax.data import batches, packing
from dft_jax.losses import devices, objectives
from dft_jax.models.model import build, head
from dft_jax.runtime import errors
from dft_jax.training import guards, optimizer as optimizer_lib
from dft_jax.training.heldout import HeldOut
from dft_jax.training.step import StepOptions, make_hyperparameters, make_loss, make_train_step
from dft_jax.types import Frozen
from tests import commands
from tests.conftest import make_mesh
from tests.make_curves import CASES, FILE, curve
from tests.marks import slow_but
from tests.tiny_trainer import Trainer, tiny_config, tiny_examples

CHUNK = 1024  # trained tokens whose logits exist at once
# mesh, accumulation
ARRANGEMENTS = [((1, 1, 1), 4), ((1, 4, 1), 2), ((2, 2, 2), 1), ((1, 1, 2), 1)]
ARRANGEMENTS += [((1, 2, 2, 2), 1), ((1, 1, 1, 4), 2)]  # rows cut along `sequence`


@pytest.fixture(scope="module")
def plain_curves(mesh1):
    return {name: curve(Trainer(mesh1, **case)) for name, case in CASES.items()}


@pytest.mark.parametrize("case", CASES)
def test_golden_curves(case, plain_curves):
    golden = json.loads(FILE.read_text())[case]
    message = "training computes something else than it did; if that is meant: python -m tests.make_curves, and say why"
    np.testing.assert_allclose(plain_curves[case], golden, rtol=1e-5, err_msg=message)


@pytest.mark.parametrize(
    "objective, shape, accumulation",
    slow_but(
        [],
        [(objective, *one) for objective in ("sft", "dft") for one in ARRANGEMENTS],
        slow=[("dft", *ARRANGEMENTS[0]), ("sft", *ARRANGEMENTS[1]), ("dft", *ARRANGEMENTS[4])],
    ),
)
def test_meshes_and_accumulation_give_the_same_curve(objective, shape, accumulation, plain_curves):
    overrides = {"objective": objective, "train.accumulation": accumulation}
    trainer = Trainer(make_mesh(*shape), **overrides)
    np.testing.assert_allclose(curve(trainer), plain_curves[objective], rtol=1e-4)
    assert trainer.take(0)["tokens"] == trainer.packed[0].batch.mask_BL.sum(), (
        "of all micro-batches"
    )


@pytest.mark.parametrize("shape", slow_but([], [((1, 4, 1),), ((2, 2, 2),)], slow=[((2, 2, 2),)]))
def test_sharing_rows_gives_the_same_curve(shape, plain_curves, monkeypatch):
    """As where a vocabulary is large (losses/devices.py); this one has 264 entries."""
    monkeypatch.setattr(devices, "_can_share_rows", lambda inputs, mesh: True)
    trainer = Trainer(make_mesh(*shape), objective="dft")
    np.testing.assert_allclose(curve(trainer), plain_curves["dft"], rtol=1e-4)


@pytest.mark.slow
def test_held_out_metrics_are_those_of_all_batches(mesh1):
    """Twenty examples in batches of eight, eight and four, and all of them in one."""
    trainer = Trainer(mesh1)
    heldout = dataclasses.replace(tiny_examples(), examples=tiny_examples().examples[:20])
    found = []
    for size in (8, 20):
        trainer.config.train.global_batch = size
        sft, config = objectives.make_objective("sft"), trainer.config
        length = batches.row_length(config.data)
        measured = HeldOut.of(config.train, length, trainer.model, sft, heldout)
        found.append(measured.measure(trainer.state.params))
    in_parts, at_once = found
    assert in_parts["heldout/supervised_tokens"] == sum(
        e.trained[1:].sum() for e in heldout.examples
    )
    assert in_parts.keys() == at_once.keys()
    for name in in_parts:
        np.testing.assert_allclose(in_parts[name], at_once[name], rtol=1e-5, err_msg=name)


def test_sft_learns_and_dft_from_random_weights_hardly_does(plain_curves):
    """From random weights p is about 1/264, and DFT's gradient with it (configs/tiny.py says so)."""
    assert plain_curves["sft"][-1, 1] < plain_curves["sft"][0, 1] - 0.5
    ratio = plain_curves["dft"][0, 2] / plain_curves["sft"][0, 2]
    assert 1 / 1000 < ratio < 1 / 100


REFERENCES = [("asft(kl=1)", "dft"), ("iw_sft", "sft")]


@pytest.mark.parametrize("objective, first_as", slow_but([], REFERENCES, slow=REFERENCES[1:]))
def test_objectives_with_a_reference(objective, first_as, plain_curves, mesh1, mesh8):
    """At the first step the model is its reference: no divergence, every importance weight 1; later
    they differ.
    """
    # The first update moves nothing: two do by the fourth step, as few as can be compared closely.
    rate = {"optimizer.warmup_from": "zero"}
    one = curve(Trainer(mesh1, objective=objective, **rate))
    np.testing.assert_allclose(one[0], plain_curves[first_as][0], rtol=1e-5)
    assert abs(one[-1, 0] / plain_curves[first_as][-1, 0] - 1) > 1e-3
    found = curve(Trainer(mesh8, objective=objective, **rate))
    # then Adam has made more of the rounding
    np.testing.assert_allclose(found[:4], one[:4], rtol=1e-4)


def make_gradient(trainer):
    """Gradient of Σ loss / N by plain autodiff over a single [B, L] batch, as a function of the
    batch.
    """
    loss = make_loss(trainer.model, objectives.make_objective("dft"), CHUNK)
    compiled = jax.jit(jax.grad(lambda params, batch: loss(params, batch, batch.mask_BL.sum())[0]))
    return lambda batch: compiled(trainer.state.params, batch)


@pytest.mark.slow
def test_packed_and_unpacked_make_the_same_update(mesh1):
    trainer = Trainer(mesh1)
    examples, numbers = tiny_examples().examples, list(range(8))
    rows = packing.best_fit([packing.slots(examples[n]) for n in numbers], 512)
    packed = packing.fill_rows(examples, rows, 512)
    unpacked = packing.fill_rows(examples, [[n] for n in numbers], 160)
    assert packed.tokens_BL.shape[0] < unpacked.tokens_BL.shape[0]
    assert packed.mask_BL.sum() == unpacked.mask_BL.sum()
    gradient = make_gradient(trainer)
    for one, other in zip(*(jax.tree.leaves(gradient(b)) for b in (packed, unpacked)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6 * np.abs(other).max())


@pytest.mark.slow
def test_official_normalisation_adds_micro_batch_means(mesh1):
    """Σ over micro-batches of (Σ loss / its tokens): about A times the global mean, and not
    exactly.
    """
    overrides = {"train.accumulation": 4, "train.loss_normalization": "official"}
    trainer = Trainer(mesh1, objective="dft", **overrides)
    batch, gradient = trainer.packed[0].batch, make_gradient(trainer)
    expected = None
    for a in range(4):
        micro = jax.tree.map(lambda x, a=a: x[a], batch)
        grads = gradient(micro)
        expected = grads if expected is None else jax.tree.map(jnp.add, expected, grads)
    np.testing.assert_allclose(
        trainer.take(0)["gradient_norm"], optax.global_norm(expected), rtol=1e-5
    )


@pytest.mark.slow
def test_gradients_equal_finite_differences(mesh1):
    """Central differences of the whole model's nll along random directions."""
    trainer = Trainer(mesh1)
    loss = make_loss(trainer.model, objectives.make_objective("sft"), CHUNK)
    batch = jax.tree.map(lambda x: x[0], trainer.packed[0].batch)
    n = batch.mask_BL.sum()
    value = jax.jit(lambda params: loss(params, batch, n)[0])
    grads = jax.jit(jax.grad(lambda params: loss(params, batch, n)[0]))(trainer.state.params)
    for seed in range(3):
        leaves, tree = jax.tree.flatten(trainer.state.params)
        rng = np.random.default_rng(seed)
        step = jax.tree.unflatten(
            tree, [0.02 * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
        )
        # Central difference: error O(h²) and rounding O(1/h) meet near h = 0.05 in float32.
        moved = [
            value(jax.tree.map(lambda p, d, h=h: p + h * d, trainer.state.params, step))
            for h in (0.05, -0.05)
        ]
        slope = sum(
            jnp.vdot(g, d)
            for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(step), strict=True)
        )
        np.testing.assert_allclose((moved[0] - moved[1]) / 0.1, slope, rtol=2e-2, atol=2e-4)


def loss_of(value, where):
    """An objective whose loss has this value at one position of the first row, `where` it is
    trained or not.
    """

    def weight(stats):
        at = (stats.logp_BL < 0) == where  # log p is 0 exactly where nothing is trained
        first = at & (jnp.cumsum(at).reshape(at.shape) == 1)
        return jnp.where(first, value, 1.0) * -stats.logp_BL

    return weight


def gradient_of(value):
    """The model's parameters through an identity that gives one leaf's gradient this value at one
    entry.
    """

    @jax.custom_vjp
    def leaf(x):
        return x

    leaf.defvjp(lambda x: (x, None), lambda _, g: (g.at[0].set(value),))

    def poison(params):
        return params | {"final_norm": {"scale": leaf(params["final_norm"]["scale"])}}

    return poison


def poisoned_step(trainer, value, where):
    """The train step, with a non-finite number in the loss or in one leaf of the gradient."""
    train, optimizer = trainer.config.train, trainer.config.optimizer
    given = make_hyperparameters(optimizer, train.seed, train.steps, trainer.mesh)
    model, objective = trainer.model, objectives.make_objective("sft")
    if where == "loss":
        objective = objectives.Objective(loss_of(value, True))
    else:
        poison = gradient_of(value)
        model = dataclasses.replace(
            model, apply=lambda params, *others: trainer.model.apply(poison(params), *others)
        )
    step = make_train_step(model, objective, trainer.optimizer, StepOptions.of(train, optimizer))
    return functools.partial(step, Frozen(given))


@pytest.mark.parametrize(
    "where, value",
    slow_but([("loss", jnp.nan)], [("loss", jnp.nan), ("one gradient leaf", jnp.inf)]),
)
def test_exactly_the_non_finite_steps_are_skipped(where, value, mesh1):
    """Steps 1 and 2 of five: as a run that never saw their batches, moments, counts and schedule
    included.
    """
    trainer, clean = Trainer(mesh1), Trainer(mesh1)
    bad_step, skipped = poisoned_step(trainer, value, where), []
    for n in range(5):
        step = bad_step if n in (1, 2) else trainer.step
        trainer.state, sums = step(trainer.state, trainer.batch(n))
        skipped.append(int(sums["skipped"]))
        assert bool(sums["is_finite"]) == (n not in (1, 2))
        if n not in (1, 2):
            clean.state, expected = clean.step(clean.state, clean.batch(n))
            assert sums["learning_rate"] == expected["learning_rate"]
    assert skipped == [0, 1, 2, 2, 2] and int(trainer.state.step) == 5
    one, other = jax.device_get((trainer.state, clean.state))
    jax.tree.map(
        np.testing.assert_array_equal, (one.params, one.opt_state), (other.params, other.opt_state)
    )


@pytest.mark.slow
def test_a_non_finite_number_at_a_masked_position_is_not_seen(mesh1):
    trainer, clean = Trainer(mesh1, loss_of(jnp.nan, False)), Trainer(mesh1)
    sums, expected = trainer.take(0), clean.take(0)
    assert sums["is_finite"] and sums["loss"] == expected["loss"] and sums["skipped"] == 0
    jax.tree.map(
        np.testing.assert_array_equal, *jax.device_get((trainer.state.params, clean.state.params))
    )


def test_too_many_skips_in_a_row_end_the_run():
    guard = guards.SkipGuard(3)
    for step, finite in enumerate([False, False, True, False, False], start=1):
        guard.count(step, finite, ("a.jsonl:3",))
    with pytest.raises(errors.UserError, match="step 6: .*in a row.*learning_rate") as refusal:
        guard.count(6, False, ("a.jsonl:1", "a.jsonl:9"))
    assert "the 2 examples of step 6: a.jsonl:1, a.jsonl:9" in str(refusal.value)


def test_an_empty_batch_gives_loss_zero_and_no_nan(mesh1):
    trainer = Trainer(mesh1)
    batch = trainer.batch(0)
    empty = dataclasses.replace(batch, mask_BL=jnp.zeros_like(batch.mask_BL))
    trainer.state, sums = trainer.step(trainer.state, empty)
    assert sums["loss"] == 0 and sums["gradient_norm"] == 0 and bool(sums["is_finite"])


def test_compilations_are_as_few_as_row_counts(mesh1):
    trainer = Trainer(mesh1)
    commands.compiled.clear()
    for n in range(20):
        trainer.take(n % 12)
    shapes = {trainer.packed[n].n_rows for n in range(12)}
    n_compiled = sum("train_step" in name for name in commands.compiled)
    assert n_compiled == len(shapes) <= len(trainer.packed.packer.row_counts)


def test_float32_masters_move_where_bfloat16_does_not():
    """300 updates of 1e-5 on a parameter of 0.02: bf16 rounds every one of them away."""

    def after(dtype):
        param = jnp.full((), 0.02, dtype)
        for _ in range(300):
            param = optax.apply_updates(param, jnp.asarray(-1e-5, dtype))
        return float(param)

    assert after(jnp.bfloat16) == float(jnp.asarray(0.02, jnp.bfloat16))
    assert after(jnp.float32) == pytest.approx(0.017, abs=1e-6)


@pytest.mark.slow
def test_bfloat16_parameters_train_in_bfloat16_throughout(mesh1):
    trainer = Trainer(mesh1, **{"model.param_dtype": "bfloat16", "model.compute_dtype": "bfloat16"})
    first = trainer.take(0)
    moments = [leaf.dtype for leaf in jax.tree.leaves(trainer.state.opt_state) if leaf.ndim > 0]
    assert set(moments) == {jnp.dtype("bfloat16")} and np.isfinite(first["loss"])
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(trainer.state.params))


# where the seed rounds
SHORT = {"model.param_dtype": "bfloat16", "model.compute_dtype": "bfloat16"}


@pytest.fixture(scope="module")
def sweep(mesh1):
    """Two runs of one sweep, and a batch for both."""
    other = {
        "optimizer.learning_rate": 3e-3,
        "optimizer.schedule": "linear",
        "optimizer.warmup_fraction": 0.5,
    }
    runs = [Trainer(mesh1, **SHORT), Trainer(mesh1, **SHORT, **other, **{"train.seed": 5})]
    return runs, runs[0].batch(0)


def test_a_sweep_compiles_once(sweep):
    """Rate, schedule, warm-up and seed are arguments: the program is the same."""
    runs, batch = sweep
    one, two = (run.step.func.lower(*run.step.args, run.state, batch).as_text() for run in runs)
    assert one == two


@pytest.mark.slow
def test_one_program_does_what_each_run_of_a_sweep_asks(sweep):
    runs, batch = sweep
    states, program = [jax.tree.map(jnp.copy, run.state) for run in runs], runs[0].step.func
    for n in range(2):
        for i, run in enumerate(runs):
            states[i], sums = program(*run.step.args, states[i], batch)
            schedule = optimizer_lib.make_schedule(run.config.optimizer, 6)
            assert sums["learning_rate"] == jax.jit(schedule)(n)
    assert program._cache_size() == 1
    kernels = [
        np.asarray(state.params["layers"]["mlp"]["up"]["kernel"], np.float32) for state in states
    ]
    assert (kernels[0] != kernels[1]).any()


@pytest.mark.slow
def test_stochastic_rounding_depends_on_seed_and_step_alone(mesh1):
    """At the same rate: another seed gives other bits, the same seed the same ones."""
    trainer = Trainer(mesh1, **SHORT, **{"optimizer.warmup_fraction": 0.0})
    (frozen,) = trainer.step.args
    given = frozen.hyperparameters
    batch, found = trainer.batch(0), []
    for seed in (0, 0, 1):
        values = dataclasses.replace(
            given, seed=jax.device_put(np.uint32(seed), given.seed.sharding)
        )
        state = jax.tree.map(jnp.copy, trainer.state)
        after, sums = trainer.step.func(Frozen(values), state, batch)
        found.append(np.asarray(after.params["embed"]).tobytes())
    assert found[0] == found[1] != found[2]
    assert 0.3 < sums["moved_share"] < 1 and abs(sums["update_lost"]) < 0.05


@pytest.mark.parametrize("begin, first", [("step", 1), ("zero", 0)])
def test_schedule_is_the_recipe(begin, first):
    """Ten updates of warm-up, the first with a tenth of the peak, or with nothing."""
    config = tiny_config(**{"optimizer.warmup_from": begin}).optimizer
    schedule = optimizer_lib.make_schedule(config, 100)
    peak = config.learning_rate
    for count in range(10):
        assert schedule(count) == pytest.approx((count + first) / 10 * peak)
    assert schedule(10) == pytest.approx(peak)
    assert schedule(55) == pytest.approx(0.5 * peak) and schedule(100) == pytest.approx(0, abs=1e-9)


def test_adamw_equals_a_hand_written_one(mesh1):
    """Three updates against the textbook in float64 numpy: clip, moments, bias correction,
    decoupled decay.
    """
    config = tiny_config().optimizer
    optimizer = optimizer_lib.make_optimizer(config)
    rng = np.random.default_rng(0)
    param = {"kernel": jnp.asarray(rng.normal(size=5), jnp.float32)}
    state = optimizer.init(param)
    expected, m, v = np.asarray(param["kernel"]).astype(np.float64), 0.0, 0.0
    for t in range(1, 4):
        g = rng.normal(size=5)
        updates, state = optimizer.update(
            {"kernel": jnp.asarray(g, jnp.float32)}, state, param, rate=1e-2
        )
        param = optax.apply_updates(param, updates)
        g = g * min(1.0, config.clip_norm / np.linalg.norm(g))
        m, v = config.b1 * m + (1 - config.b1) * g, config.b2 * v + (1 - config.b2) * g * g
        m_hat, v_hat = m / (1 - config.b1**t), v / (1 - config.b2**t)
        expected = expected - 1e-2 * (
            m_hat / (np.sqrt(v_hat) + config.eps) + config.weight_decay * expected
        )
    np.testing.assert_allclose(param["kernel"], expected, rtol=1e-5)
    assert optimizer_lib.update_count(state) == 3


def test_weight_decay_mask_spares_norms_and_biases(mesh1):
    model = build(Trainer(mesh1).model.config, mesh1)
    decays = optimizer_lib._is_matrix(model.abstract_params)
    assert decays["embed"] and decays["layers"]["mlp"]["up"]["kernel"]
    assert not decays["final_norm"]["scale"] and not decays["layers"]["attention"]["q"]["bias"]


@pytest.mark.parametrize("decay, of_scale", [("all", 0.9), ("matrices", 1.0)])
def test_what_decays_is_the_configs_choice(decay, of_scale):
    """With a gradient of zero only the decay moves a weight: by 0.1 of it, at a rate of 1."""
    config = tiny_config(**{"optimizer.decay": decay, "optimizer.weight_decay": 0.1}).optimizer
    optimizer = optimizer_lib.make_optimizer(config)
    params = {"up": {"kernel": jnp.ones(3)}, "norm": {"scale": jnp.ones(3)}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params, rate=1.0)
    found = optax.apply_updates(params, updates)
    np.testing.assert_allclose(found["up"]["kernel"], 0.9, rtol=1e-6)
    np.testing.assert_allclose(found["norm"]["scale"], of_scale, rtol=1e-6)


def test_head_of_a_tied_model_is_its_embedding(mesh1):
    params = Trainer(mesh1).state.params
    assert head(params) is params["embed"] and "head" not in params
