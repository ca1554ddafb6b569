"""Restarts at awkward moments, in one process; tests/test_end_to_end.py kills real ones."""

import json
import shutil

import pytest

from dft_jax import assets, errors, progress, train
from dft_jax.analysis import quickstart
from dft_jax.checkpoint import Checkpoints
from tests.training import tiny_config

CONFIG = {"train.steps": 4, "checkpoint.every": 2, "eval.every": 2, "eval.max_examples": 8}


def config(**overrides):
    return tiny_config(**CONFIG, **{"data.heldout": str(assets.TINY / "heldout.jsonl")}, **overrides)


def steps_of(folder, metric):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if metric in row]


class Killed(BaseException):
    """Nothing catches it, as nothing catches a SIGKILL."""


@pytest.mark.parametrize("killed_at", [2, 4])
@pytest.mark.parametrize("where", [(Checkpoints, "save"), (progress.Reporter, "evaluated")], ids=["save", "evaluate"])
def test_killed_between_a_checkpoint_and_its_evaluation(where, killed_at, tmp_path, monkeypatch):
    """Before the first checkpoint (2) and at the very end (4): no row twice, none missing."""
    original = getattr(*where)

    def die(self, step, *arguments):
        if step == killed_at:
            raise Killed
        original(self, step, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(*where, die)
        with pytest.raises(Killed):
            train.run(config(), tmp_path)
    assert killed_at not in steps_of(tmp_path, "heldout/nll")
    run = train.run(config(), tmp_path)
    assert int(run.state.step) == 4
    assert steps_of(tmp_path, "heldout/nll") == [0, 2, 4]
    assert steps_of(tmp_path, "train/nll") == [1, 2, 3, 4]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    train.run(config(), folder)
    return folder


@pytest.mark.parametrize(
    "overrides, words",
    [
        ({"train.seed": 1}, "config.train.seed: 0 -> 1"),
        ({"objective": "dft"}, "config.objective: 'sft' -> 'dft'"),
        ({"data.max_rows": 48}, "training_data_sha256"),
        ({"optimizer.learning_rate": 1e-3}, "config.optimizer.learning_rate: 0.01 -> 0.001"),
    ],
)
def test_another_run_is_refused(overrides, words, finished):
    with pytest.raises(errors.UserError) as refusal:
        train.run(config(**overrides), finished)
    assert words in str(refusal.value) and "give a new --workdir" in str(refusal.value)


def test_what_only_says_how_may_change(finished):
    run = train.run(config(**{"log.every": 2, "mesh.fsdp": 2, "train.loss_chunk_tokens": 64}), finished)
    assert int(run.state.step) == 4


def test_another_reference_is_refused(tmp_path):
    """asft compares with the model before training: other weights under the same path make it another run."""
    config = quickstart.lab_config("asft")
    config.train.update(steps=2, global_batch=8)
    config.data.train = config.data.heldout = "world(split=validation, n=16)"
    config.model.path = str(shutil.copytree(assets.LAB, tmp_path / "base"))
    run = train.run(config, tmp_path / "run")
    assert int(run.state.step) == 2
    assert int(train.run(config, tmp_path / "run").state.step) == 2  # the same is taken up again
    shutil.copy(assets.LAB_CLEAN / "model.safetensors", tmp_path / "base")
    with pytest.raises(errors.UserError, match="reference_sha256"):
        train.run(config, tmp_path / "run")
