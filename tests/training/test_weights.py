"""Weights of rows and prompts in the whole step: the same update however a batch is cut."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dft_jax import assets, config as config_lib, sharding
from dft_jax.data import batches, formats, packing
from dft_jax.data.examples import load_examples
from dft_jax.data.sources.rows import BadRow
from dft_jax.losses import objectives
from dft_jax.models.hf.locate import load_tokenizer
from dft_jax.runtime import errors
from dft_jax.training import metrics
from dft_jax.training.heldout import HeldOut
from dft_jax.training.inputs import make_steps
from tests.conftest import make_mesh
from tests.marks import slow_but
from tests.tiny_trainer import Trainer, tiny_config, tiny_examples

# mesh, accumulation
ARRANGEMENTS = [((1, 1, 1), 4), ((1, 4, 1), 2), ((2, 2, 2), 1)]


def weighted_examples(prompt_weight=0.25):
    """The tiny examples, whose weights are 0.5, 1, 1.5 and 2 in turn."""
    weighted = []
    for number, example in enumerate(tiny_examples().examples):
        weight = 0.5 * (1 + number % 4)
        weighted.append(dataclasses.replace(example, weight=weight, prompt_weight=prompt_weight))
    return dataclasses.replace(tiny_examples(), examples=weighted)


def weighted_trainer(shape, **overrides):
    """A trainer of these examples."""
    trainer = Trainer(make_mesh(*shape), **overrides)
    trainer.packed = make_steps(trainer.config, weighted_examples(), trainer.model)
    return trainer


def curve(trainer, steps=3):
    found = []
    for n in range(steps):
        sums = trainer.take(n)
        values = metrics.per_token(sums, "train")
        found.append(
            [values["train/loss"], values["train/nll"], values["train/mean_p"]]
            + [values["train/weight"], float(sums["gradient_norm"])]
        )
    return np.array(found)


@pytest.fixture(scope="module")
def plain():
    return curve(weighted_trainer((1, 1, 1), objective="dft"))


@pytest.mark.parametrize(
    "shape, accumulation", slow_but([], ARRANGEMENTS, slow=ARRANGEMENTS[1:]), ids=str
)
def test_weights_give_the_same_curve_however_a_batch_is_cut(shape, accumulation, plain):
    trainer = weighted_trainer(shape, objective="dft", **{"train.accumulation": accumulation})
    np.testing.assert_allclose(curve(trainer), plain, rtol=1e-4)


def dense_sums(trainer, n):
    """Σ w·nll, Σ w·p and Σ w of a step in float64, and Σ w · (∂ -log p) by plain autodiff."""
    packed = trainer.packed[n]
    found = np.zeros(3)
    gradient = None
    for a in range(packed.batch.tokens_BL.shape[0]):
        batch = jax.tree.map(lambda x, a=a: x[a], packed.batch)
        weights_BL, targets_BL = batch.weights_BL, batch.targets_BL

        def dense(params, batch=batch, weights_BL=weights_BL, targets_BL=targets_BL):
            hidden_BLD = trainer.model.apply(params, batch)
            table = params["lm_head"] if "lm_head" in params else params["embed"]
            logits_BLV = hidden_BLD @ jax.tree.leaves(table)[0].T
            logp_BLV = jax.nn.log_softmax(logits_BLV)
            logp_BL = jnp.take_along_axis(logp_BLV, targets_BL[:, :, None], axis=-1)[:, :, 0]
            return -(weights_BL * logp_BL).sum() / weights_BL.sum(), logp_BL

        grads, logp_BL = jax.jit(jax.grad(dense, has_aux=True))(trainer.state.params)
        logp_BL, weights_BL = np.float64(logp_BL), np.float64(weights_BL)
        found += [
            (weights_BL * -logp_BL).sum(),
            (weights_BL * np.exp(logp_BL)).sum(),
            weights_BL.sum(),
        ]
        gradient = grads if gradient is None else jax.tree.map(jnp.add, gradient, grads)
    return found, gradient


@pytest.mark.parametrize("normalization", slow_but([], ["global", "official"], slow=["official"]))
def test_means_and_gradient_are_those_of_the_dense_oracle(normalization):
    """`official` adds the means of micro-batches, each by its own Σ w; the loss reported does not."""
    accumulation = 1 if normalization == "global" else 4
    overrides = {"train.accumulation": accumulation, "train.loss_normalization": normalization}
    trainer = weighted_trainer((1, 1, 1), objective="sft", **overrides)
    (nll, p, weight), gradient = dense_sums(trainer, 0)
    sums = trainer.take(0)
    values = metrics.per_token(sums, "train")
    np.testing.assert_allclose(values["train/weight"], weight, rtol=1e-6)
    np.testing.assert_allclose(values["train/loss"], nll / weight, rtol=1e-5)
    np.testing.assert_allclose(values["train/nll"], nll / weight, rtol=1e-5)
    np.testing.assert_allclose(values["train/mean_p"], p / weight, rtol=1e-5)
    np.testing.assert_allclose(sum(values["train/p_histogram"]), 1, rtol=1e-5)
    np.testing.assert_allclose(sums["gradient_norm"], optax.global_norm(gradient), rtol=1e-4)
    examples = [weighted_examples().examples[n] for n in trainer.packed.stream[0]]
    assert values["train/supervised_tokens"] == sum(len(one.ids) - 1 for one in examples)


@pytest.mark.slow
def test_held_out_means_are_weighted_and_those_of_sources_add_up(mesh1):
    from dft_jax.data.order import Share

    trainer = Trainer(mesh1)
    both = weighted_examples()
    shares = (Share("one", 20, 20), Share("two", 44, 44))
    listed = dataclasses.replace(both, shares=shares)
    length, sft = batches.row_length(trainer.config.data), objectives.make_objective("sft")
    found = []
    for examples in (both, listed):
        heldout = HeldOut.of(trainer.config.train, length, trainer.model, sft, examples)
        found.append(heldout.measure(trainer.state.params))
    whole, by_source = found
    for name, value in whole.items():
        np.testing.assert_allclose(by_source[name], value, rtol=1e-5, err_msg=name)
    total = weighted = 0.0
    for name, first, past in (("one", 0, 20), ("two", 20, 64)):
        expected = sum(float(e.target_weights().sum()) for e in both.examples[first:past])
        np.testing.assert_allclose(by_source[f"heldout/{name}/weight"], expected, rtol=1e-6)
        total += expected
        weighted += expected * by_source[f"heldout/{name}/nll"]
    np.testing.assert_allclose(weighted / total, whole["heldout/nll"], rtol=1e-5)


# ---- from rows to weights


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(assets.TINY)


def load(folder, given, tokenizer, **changes):
    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in given))
    config = tiny_config().data
    config.update({"rows": "fields", "template": "plain", "weight_field": "w"} | changes)
    return load_examples(str(file), config, tokenizer, 264)


def row(weight, **more):
    return {"prompt": "1+1?", "completion": "2", "w": weight} | more


def test_a_row_weighs_what_its_field_says(tmp_path, tokenizer):
    examples = load(tmp_path, [row(0.5), row(2), row(1)], tokenizer, prompt_weight=0.25)
    half, two, one = examples.examples
    n_prompt = len(tokenizer.encode("1+1?\n"))
    answered = len(half.ids) - n_prompt
    expected = [0.25] * (n_prompt - 1) + [1.0] * answered
    np.testing.assert_array_equal(half.target_weights(), 0.5 * np.array(expected))
    np.testing.assert_array_equal(two.target_weights(), 2 * np.array(expected))
    assert one.target_mask().all() and len(one.target_mask()) == len(one.ids) - 1
    report = examples.report
    assert report["weights"] == {
        "smallest_of_a_row": 0.5,
        "largest_of_a_row": 2.0,
        "of_prompt_tokens": 0.25,
        "sum_over_tokens": 3.5 * sum(expected),
    }
    assert report["tokens"]["supervised"] == 3 * (n_prompt - 1 + answered)
    assert report["columns"] == {
        "read": ["completion", "conversations", "messages", "prompt", "w"],
        "unread": {},
    }
    batch = packing.fill_rows(examples.examples, [[1, 0], []], 40, with_weights=True)
    assert batch.weights_BL.dtype == np.float32 and batch.weights_BL.shape == (2, 40)
    np.testing.assert_array_equal(
        batch.weights_BL[0, : 2 * len(expected)],
        np.array([2.0] * len(expected) + [0.5] * len(expected)) * (expected * 2),
    )
    np.testing.assert_array_equal(batch.weights_BL > 0, batch.mask_BL)


def test_rows_of_weight_0_are_left_out_and_counted(tmp_path, tokenizer):
    """They are no loss: the data says so. Without another row there is nothing to train on."""
    report = load(tmp_path, [row(1), *[row(0)] * 9], tokenizer).report
    assert report["rows"] == {
        "read": 10,
        "used_whole": 1,
        "truncated": 0,
        "dropped": {"weight_0": 9},
    }
    from dft_jax.data import account

    assert account.refusals("data.train", report, 0.0) == account.warnings("x", report) == []
    assert "9 of the dropped rows have weight 0" in account.lines("data.train", report)[1]
    with pytest.raises(errors.UserError, match=r"no example to train on \(2 weight_0\)"):
        load(tmp_path, [row(0), row(0.0)], tokenizer)


NO_WEIGHTS = [-1, "2", None, True, float("nan"), float("inf"), [1]]
# To the float32 of the loss the first is inf and the second 0; the third is no float of any size.
BEYOND = [1e39, 1e-50, 10**400]


@pytest.mark.parametrize("weight", [*NO_WEIGHTS, *BEYOND], ids=lambda weight: str(weight)[:9])
def test_what_is_no_weight_is_refused(weight, tmp_path, tokenizer):
    with pytest.raises(errors.UserError, match=r"train.jsonl:1: field 'w' is .*"):
        load(tmp_path, [row(weight)], tokenizer)
    with pytest.raises(BadRow, match="field 'w' is missing"):
        formats.take_weight(formats.Columns({"prompt": "?"}), "w")


def test_a_weight_of_prompts_is_one_of_the_loss():
    for weight, is_right in {0: True, 1e-12: True, 1e12: True, 1e39: False, 1e-50: False}.items():
        config = tiny_config(**{"data.prompt_weight": float(weight)})
        problems = [line for line in config_lib.validate(config) if "prompt_weight" in line]
        assert len(problems) == (not is_right)
        assert all("should be 0, or from 1e-12 to 1e+12" in line for line in problems)


def test_a_weight_beside_messages_is_read_where_it_is_named(tmp_path, tokenizer):
    talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    rows = [{"messages": talk, "weight": 3}]
    with pytest.raises(errors.UserError, match="data.weight_field='weight' weighs rows by it"):
        load(tmp_path, rows, tokenizer, rows="messages", weight_field="")
    [example] = load(tmp_path, rows, tokenizer, rows="messages", weight_field="weight").examples
    assert example.weight == 3
    only_read = [*talk[:1], talk[1] | {"weight": 0}, *talk]
    changes = {"rows": "messages", "weight_field": "", "template": "tokenizer", "prompt_weight": 1}
    with pytest.raises(errors.UserError, match="an answer has weight 0, and data.prompt_weight=1"):
        load(tmp_path, [{"messages": only_read}], tokenizer, **changes)


@pytest.mark.slow
def test_weights_of_1_are_no_weights(tmp_path, tokenizer, mesh1):
    """No array and no other program: the step is the one of a run without weights."""
    ones = load(tmp_path, [row(1), row(1.0), row(1)], tokenizer)
    plain = load(tmp_path, [row(1)] * 3, tokenizer, weight_field="")
    whole = load(tmp_path, [row(1)] * 3, tokenizer, prompt_weight=1.0)
    halves = load(tmp_path, [row(1), row(0.5), row(1)], tokenizer)
    config = tiny_config(**{"train.global_batch": 3, "train.steps": 1})
    trainer = Trainer(mesh1)
    found = {}
    for name, examples in {"ones": ones, "plain": plain, "whole": whole, "halves": halves}.items():
        packed = make_steps(config, examples, trainer.model)
        batch = sharding.device_batch(packed[0].batch, mesh1, packed[0].n_rows)
        assert (batch.weights_BL is not None) == packed.packer.with_weights == (name == "halves")
        program = jax.make_jaxpr(trainer.step.func)(*trainer.step.args, trainer.state, batch)
        found[name] = len(program.jaxpr.invars), len(program.jaxpr.eqns[0].params["jaxpr"].eqns)
    assert found["ones"] == found["plain"] == found["whole"]
    assert found["halves"][0] == found["plain"][0] + 1
    assert ones.report["sha256"] == plain.report["sha256"] != whole.report["sha256"]
    assert halves.report["sha256"] != plain.report["sha256"]
