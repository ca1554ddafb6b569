"""Restarts at awkward moments, in one process; tests/test_end_to_end.py kills real ones."""

import json
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from dft_jax import api, assets, config as config_lib
from dft_jax.checkpoints.manager import Checkpoints
from dft_jax.data import account, order
from dft_jax.data.examples import load_examples
from dft_jax.lab import recipe
from dft_jax.lm.run import open_run
from dft_jax.models.hf.locate import load_tokenizer, read_config
from dft_jax.models.model import build
from dft_jax.runtime import errors
from dft_jax.training import (
    announcement,
    earlier,
    identity,
    loop,
    optimizer as optimizer_lib,
    reporter,
)
from dft_jax.training.inputs import make_steps
from dft_jax.training.preparation import prepare
from dft_jax.training.state import abstract_state
from tests.conftest import make_mesh
from tests.faults import launch, state as faults_state
from tests.marks import slow_but
from tests.tiny_trainer import tiny_config

CONFIG = {"train.steps": 4, "checkpoint.every": 2, "eval.every": 2, "eval.max_examples": 8}


def config(**overrides):
    return tiny_config(**CONFIG | {"data.heldout": str(assets.TINY / "heldout.jsonl")} | overrides)


def steps_of(folder, metric):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if metric in row]


class Killed(BaseException):
    """Nothing catches it, as nothing catches a SIGKILL."""


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [2, 4])
@pytest.mark.parametrize(
    "where", [(Checkpoints, "save"), (reporter.Reporter, "evaluate")], ids=["save", "evaluate"]
)
def test_killed_between_a_checkpoint_and_its_evaluation(where, killed_at, tmp_path, monkeypatch):
    """Before the first checkpoint (2) and at the very end (4): no row twice, none missing."""
    original = getattr(*where)

    def die(self, step, *arguments):
        if step == killed_at:
            raise Killed
        return original(self, step, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(*where, die)
        with pytest.raises(Killed):
            api.train(config(), tmp_path)
    assert killed_at not in steps_of(tmp_path, "heldout/nll")
    run = api.train(config(), tmp_path)
    assert int(run.state.step) == 4
    assert steps_of(tmp_path, "heldout/nll") == [0, 2, 4]
    assert steps_of(tmp_path, "train/nll") == [1, 2, 3, 4]


@pytest.mark.parametrize("objective", slow_but([], ["asft", "iw_sft"], slow=["iw_sft"]))
def test_a_resumed_run_compares_with_the_model_it_began_from(objective, tmp_path, monkeypatch):
    """Not with the one that it resumes from: the same parameters in the end, bit for bit, as
    without a stop.
    """
    overrides = {"objective": objective, "eval.every": 0, "data.heldout": ""}
    whole = api.train(config(**overrides), tmp_path / "whole")
    save = Checkpoints.save

    def die(self, step, *arguments):
        save(self, step, *arguments)
        self.wait()
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", die)
        with pytest.raises(Killed):
            api.train(config(**overrides), tmp_path / "stopped")
    resumed = api.train(config(**overrides), tmp_path / "stopped")
    assert [int(run.state.step) for run in (whole, resumed)] == [4, 4]
    assert steps_of(tmp_path / "stopped", "train/nll") == [1, 2, 3, 4]
    jax.tree.map(np.testing.assert_array_equal, resumed.state.params, whole.state.params)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    api.train(config(), folder)
    return folder


def other_model(folder, name, **changes):
    """The tiny model's folder with some keys of one of its files changed."""
    copy = shutil.copytree(assets.TINY, folder / "model")
    content = json.loads((copy / name).read_text()) | changes
    (copy / name).write_text(json.dumps(content))
    return {"model.path": str(copy)}


def other_template(folder):
    """The tokenizer's own template with a comment before it: the very same text and tokens come
    out.
    """
    own = load_tokenizer(assets.TINY).get_chat_template()
    (folder / "same.jinja").write_text("{#- renamed -#}" + own)
    return {"data.template": str(folder / "same.jinja")}


# What changed -> the overrides, and what the refusal says of it.
CHANGES = {
    "data content": ({"data.max_rows": 48}, "training_data_sha256: '"),
    "tokenizer": (
        lambda folder: other_model(folder, "tokenizer_config.json", note="x"),
        "tokenizer_sha256: '",
    ),
    "chat template": (other_template, "chat_template_sha256: '"),
    "length": ({"data.max_length": 128}, "config.data.max_length: 160 -> 128"),
    "global batch": ({"train.global_batch": 16}, "config.train.global_batch: 8 -> 16"),
    "seed": ({"train.seed": 1}, "config.train.seed: 0 -> 1"),
    "objective": ({"objective": "dft"}, "config.objective: 'sft' -> 'dft'"),
    "its parameters": (
        {"objective": "power(alpha=0.5)"},
        "config.objective: 'sft' -> 'power(alpha=0.5)'",
    ),
    "learning rate": (
        {"optimizer.learning_rate": 1e-3},
        "config.optimizer.learning_rate: 0.01 -> 0.001",
    ),
    "schedule": (
        {"optimizer.schedule": "linear"},
        "config.optimizer.schedule: 'cosine' -> 'linear'",
    ),
    "steps": ({"train.steps": 8}, "steps: 4 -> 8"),
    "parameter tree": (
        lambda folder: other_model(folder, "config.json", tie_word_embeddings=False),
        "parameters.head: 'absent' -> 'float32[264, ",
    ),
    "normalisation": (
        {"train.loss_normalization": "official"},
        "config.train.loss_normalization: 'global' -> 'official'",
    ),
    "precision": (
        {"model.param_dtype": "bfloat16"},
        "config.model.param_dtype: 'float32' -> 'bfloat16'",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_run_is_refused(change, finished, tmp_path):
    overrides, words = CHANGES[change]
    with pytest.raises(errors.UserError) as refusal:
        api.train(config(**(overrides(tmp_path) if callable(overrides) else overrides)), finished)
    assert words in str(refusal.value) and "give a new --workdir" in str(refusal.value)


@pytest.mark.slow
def test_a_named_change_is_accepted_and_remembered(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    changed = {"train.steps": 6, "optimizer.learning_rate": 1e-3}
    with pytest.raises(errors.UserError, match="config.optimizer.learning_rate: 0.01 -> 0.001"):
        api.train(config(**changed, **{"resume.allow_changed": "train.steps, steps"}), folder)
    with pytest.raises(
        errors.UserError,
        match="'train.stpes' is not in a run's fingerprint .did you mean 'train.steps'",
    ):
        api.train(config(**changed, **{"resume.allow_changed": "train.stpes"}), folder)
    run = api.train(
        config(**changed, **{"resume.allow_changed": "train.steps,steps,optimizer"}), folder
    )
    assert int(run.state.step) == 6
    changes = Checkpoints(folder / "checkpoints").run_of(6)["changes"]
    assert "step 4: config.optimizer.learning_rate: 0.01 -> 0.001" in changes and len(changes) == 3
    # from now on it is the run that it is
    assert int(api.train(config(**changed), folder).state.step) == 6


MESHES = [(1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 4, 1), (2, 2, 1), (2, 2, 2), (8, 1, 1)]
MESHES += [(1, 1, 1, 4), (1, 2, 1, 2)]  # each row on several devices


@pytest.mark.slow
def test_any_mesh_sees_the_same_examples_and_restores_the_same_bits(finished):
    examples = load_examples(
        str(assets.TINY / "train.jsonl"), config().data, load_tokenizer(assets.TINY), 264
    )
    seen, bits = [], []
    for sizes in MESHES:
        model = build(read_config(assets.TINY), make_mesh(*sizes))
        steps = make_steps(config(), examples, model)
        seen.append([steps[n].origins for n in range(20)])
        optimizer = optimizer_lib.make_optimizer(config().optimizer)
        state = Checkpoints(finished / "checkpoints").restore(4, abstract_state(model, optimizer))
        bits.append([np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)])
    assert all(one == seen[0] for one in seen) and all(one == bits[0] for one in bits)
    assert len(set(seen[0])) == 20 and len(bits[0]) > 40


def test_what_only_says_how_may_change(finished):
    run = api.train(
        config(**{"log.every": 2, "mesh.fsdp": 2, "train.loss_chunk_tokens": 64}), finished
    )
    assert int(run.state.step) == 4


@pytest.mark.slow
def test_another_reference_is_refused(tmp_path):
    """asft compares with the model before training: other weights under the same path make it
    another run.
    """
    config = recipe.lab_config("asft")
    config.train.update(steps=2, global_batch=8)
    config.data.train = config.data.heldout = "world(split=validation, n=16)"
    config.model.path = str(shutil.copytree(assets.LAB, tmp_path / "base"))
    run = api.train(config, tmp_path / "run")
    assert int(run.state.step) == 2
    assert int(api.train(config, tmp_path / "run").state.step) == 2  # the same is taken up again
    shutil.copy(assets.LAB_CLEAN / "model.safetensors", tmp_path / "base")
    with pytest.raises(errors.UserError, match="reference_sha256"):
        api.train(config, tmp_path / "run")


def saved_steps(folder, monkeypatch, **overrides):
    saved, save = [], Checkpoints.save
    monkeypatch.setattr(
        Checkpoints, "save", lambda self, step, *a: saved.append(step) or save(self, step, *a)
    )
    api.train(config(**{"checkpoint.every": 100, "eval.every": 0} | overrides), folder)
    return saved


@pytest.mark.parametrize("minutes, expected", [(1e-9, [1, 2, 3, 4]), (0.0, [4]), (10.0, [4])])
def test_a_run_saves_by_the_clock_as_well(minutes, expected, tmp_path, monkeypatch):
    assert saved_steps(tmp_path, monkeypatch, **{"checkpoint.every_minutes": minutes}) == expected


def test_a_run_of_before_there_were_minutes_goes_on(finished, tmp_path):
    """Its config.json and its checkpoints know nothing of the keys that came later."""
    folder = shutil.copytree(finished, tmp_path / "run")
    held = json.loads((folder / "config.json").read_text())
    del held["checkpoint"]["every_minutes"]
    (folder / "config.json").write_text(json.dumps(held))
    fingerprint = Checkpoints(folder / "checkpoints").run_of(4)["fingerprint"]
    assert not [key for key in fingerprint if "checkpoint" in key or "export" in key]
    assert open_run(folder).step == 4
    assert int(api.train(config(), folder).state.step) == 4


@pytest.mark.more
def test_two_processes_save_by_the_clock_at_the_same_steps(tmp_path):
    """About every 30 ms, some steps apart, and each whole; the end is that of a run without."""
    (tmp_path / "runs").mkdir()
    steps = ("--config.train.steps=24", "--config.checkpoint.every=100", "--config.eval.every=0")
    often = (*steps, "--config.checkpoint.every_minutes=0.0005")
    for name, arguments in (("often", often), ("once", steps)):
        processes = launch.start_many(tmp_path / "runs" / name, 2, {}, arguments=arguments)
        codes = [launch.wait(process) for process in processes]
        assert codes == [0, 0], launch.log(tmp_path / "runs" / name)[-3000:]
    saved = [phase for phase in launch.phases(tmp_path / "runs/often") if phase.startswith("save ")]
    assert len(set(saved)) > 2 and sorted(saved) == sorted(2 * list(set(saved)))
    one, other = (faults_state.summary(tmp_path / "runs" / name) for name in ("often", "once"))
    assert (one["state"], one["export"]) == (other["state"], other["export"])


def test_runs_from_before_row_length_resume_and_another_row_is_another_run():
    """The key is in a fingerprint only where it says something."""
    before = identity.kept_on_resume(config())
    assert "data.row_length" not in before
    longer = identity.kept_on_resume(config(**{"data.row_length": 320}))
    changes = errors.differences(before, longer)
    assert list(changes.values()) == ["data.row_length: 'absent' -> 320"]
    assert identity.digest(config()) != identity.digest(config(**{"data.row_length": 320}))


SHORT = {"model.param_dtype": "bfloat16"}


def test_a_bfloat16_run_from_before_there_was_a_choice_goes_on_rounding_to_nearest(tmp_path, capfd):
    """Its config.json has no such key and its fingerprint neither; a run that begins now rounds at
    random.
    """
    new = config(**SHORT)
    assert earlier.with_first_rounding(new, tmp_path).optimizer.rounding == "stochastic"
    held = json.loads(config_lib.to_json(new))
    del held["optimizer"]["rounding"]
    (tmp_path / "config.json").write_text(json.dumps(held))
    # nothing was saved
    assert earlier.with_first_rounding(new, tmp_path).optimizer.rounding == "stochastic"
    manifest = tmp_path / "checkpoints/4/manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.touch()
    assert capfd.readouterr().err == ""
    goes_on = earlier.with_first_rounding(new, tmp_path)
    assert goes_on.optimizer.rounding == "nearest"
    assert "began with optimizer.rounding=nearest and keeps it" in capfd.readouterr().err
    (tmp_path / "config.json").write_text(config_lib.to_json(goes_on))  # as it is resumed
    assert earlier.with_first_rounding(new, tmp_path).optimizer.rounding == "nearest"
    broken = new.copy_and_resolve_references().unlock()
    del broken.resume
    with pytest.raises(errors.UserError, match="config.resume.allow_changed is missing"):
        api.train(broken, tmp_path)
    named = config(**SHORT, **{"resume.allow_changed": "optimizer.rounding"})
    assert earlier.with_first_rounding(named, tmp_path).optimizer.rounding == "stochastic"
    assert optimizer_lib.rounding_of(ConfigDict(held).optimizer) == "nearest"


def test_a_run_from_before_there_was_a_choice_goes_on_with_its_warmup(tmp_path, capfd):
    """Its fingerprint has no such key, as of any run that begins at a rate of zero."""
    key = "config.optimizer.warmup_from"
    new, zero = config(), config(**{"optimizer.warmup_from": "zero"})
    flat = config(**{"optimizer.warmup_fraction": 0.0})
    held, held_old, held_flat = (
        {f"config.{name}": value for name, value in identity.kept_on_resume(each).items()}
        for each in (new, zero, flat)
    )
    assert held[key] == "step" and key not in held_old and key not in held_flat
    for given, found in (
        (new, None),
        (new, held),
        (zero, held),
        (zero, held_old),
        (flat, held_flat),
    ):
        assert earlier.with_first_warmup(given, tmp_path, found) is given
    assert capfd.readouterr().err == ""
    goes_on = earlier.with_first_warmup(new, tmp_path, held_old)
    assert goes_on.optimizer.warmup_from == "zero"
    assert "began with optimizer.warmup_from=zero and keeps it" in capfd.readouterr().err
    assert identity.kept_on_resume(goes_on) == identity.kept_on_resume(zero)
    named = config(**{"resume.allow_changed": "optimizer.warmup_from"})
    assert earlier.with_first_warmup(named, tmp_path, held_old) is named


def test_rounding_is_in_a_fingerprint_only_where_it_says_something():
    def key(**overrides):
        return identity.kept_on_resume(config(**overrides)).get("optimizer.rounding", "absent")

    assert key() == key(**{"optimizer.rounding": "nearest"}) == "absent"
    assert (
        key(**SHORT) == "stochastic"
        and key(**SHORT, **{"optimizer.rounding": "nearest"}) == "absent"
    )


@pytest.mark.slow
def test_a_resumed_run_rounds_as_one_that_was_not_stopped(tmp_path, monkeypatch):
    """The random numbers of a step come from seed and step; the metrics say what became of the
    updates.
    """
    short = SHORT | {
        "model.compute_dtype": "bfloat16",
        "optimizer.learning_rate": 1e-4,
        "eval.every": 0,
    }
    whole = api.train(config(**short), tmp_path / "whole")
    calls = iter(range(3))

    def stop_at_the_fourth(**_):
        if next(calls, None) is None:
            raise errors.Stopped("a test")

    with monkeypatch.context() as patched:
        patched.setattr(loop.interrupts, "check", stop_at_the_fourth)
        with pytest.raises(errors.Stopped):
            api.train(config(**short), tmp_path / "parts")
    again = api.train(config(**short), tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((whole.state, again.state)))
    rows = [
        json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()
    ]
    shares = [row["optimizer/moved_share"] for row in rows if "optimizer/moved_share" in row]
    assert len(shares) == 4 and min(shares) > 0 and max(shares) < 1
    assert all(
        abs(row["optimizer/update_lost"]) < 0.1 for row in rows if "optimizer/moved_share" in row
    )


def test_a_run_from_before_streams_had_versions_resumes_with_its_own(tmp_path, monkeypatch):
    """Its epochs are rounded down and its later epochs have the orders of other seeds; a new run's
    do not.
    """
    by_epochs = config(**{"train.steps": 0, "train.epochs": 1.5, "data.max_rows": 21})
    new = prepare(by_epochs, tmp_path / "new")
    assert new.steps == 4 and new.fingerprint[order.FINGERPRINT_KEY] == 2
    with monkeypatch.context() as patched:
        patched.setattr(order, "VERSION", 1)
        held = prepare(by_epochs, tmp_path / "new").fingerprint
    assert order.FINGERPRINT_KEY not in held and held["steps"] == 3
    for step, fingerprint in ((9, new.fingerprint), (10, held), (11, held)):
        folder = tmp_path / "old" / "checkpoints" / str(step)
        (folder / "run").mkdir(parents=True)
        (folder / "run" / "metadata").write_text(json.dumps({"fingerprint": fingerprint}))
        (folder / "manifest.json").write_text("{}")
    (folder / "run" / "metadata").write_text("damaged")
    job = prepare(by_epochs, tmp_path / "old")
    expected = order.batches(21, global_batch=8, seed=0, version=1)
    assert job.fingerprint == held
    assert [job.batches.stream[n] for n in range(9)] == [expected[n] for n in range(9)]
    assert [new.batches.stream[n] for n in range(9)] != [expected[n] for n in range(9)]


def test_data_that_is_mostly_cut_is_refused_for_a_new_run_only(finished, tmp_path, monkeypatch):
    """A run that began before this was looked at resumes."""
    monkeypatch.setattr(account, "refusals", lambda *_: ["too much is cut"])
    with pytest.raises(errors.UserError, match="too much is cut"):
        prepare(config(), tmp_path / "new")
    assert prepare(config(), finished).steps == 4


def test_what_is_not_trained_is_said_before_anything_compiles(tmp_path, capsys):
    job = prepare(
        config(**{"data.max_length": 141, "train.steps": 0, "train.global_batch": 128}), tmp_path
    )
    capsys.readouterr()
    announcement.announce(job.train, job.heldout, job.length, job.drawn)
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("data.train: 64 rows read: 64 whole, 0 cut, 0 dropped; ")
    assert [line for line in told if line.startswith("data.heldout: 8 rows read: 8 whole")]
    assert "1 step of 128 examples = 2.00 epochs of 64" in told
    assert any(
        line.startswith("warning: config.train.global_batch=128 is more than the 64 examples")
        for line in told
    )
    assert job.account["length"]["epochs"] == 2.0 and job.account.keys() == {
        "train",
        "heldout",
        "length",
    }


def test_how_the_data_is_named_may_change(finished):
    """A subset that had no effect is refused by now; without it the old run resumes, for its data
    is the same.
    """
    held = json.loads((finished / "checkpoints/4/run/metadata").read_text())
    held["fingerprint"]["config.data.subset"] = "main"
    job = prepare(config(), finished)
    changes = errors.differences(held["fingerprint"], job.fingerprint)
    assert list(changes) == ["config.data.subset"]
    assert identity.refused_changes(changes, ()) == []
    assert identity.refused_changes({"config.train.seed": "x"}, ()) == ["x"]
