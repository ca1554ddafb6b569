"""Runs that keep their best step, and what exports and evaluations make of it."""

import json
import shutil

import jax
import numpy as np
import pytest

import dft_jax as dft
from dft_jax import api, assets, config as config_lib
from dft_jax.checkpoints.manager import Checkpoints
from dft_jax.commands import evaluate, export
from dft_jax.runtime import errors
from dft_jax.training import heldout
from tests.commands import run_command
from tests.tiny_trainer import tiny_config

pytestmark = pytest.mark.slow
# What is measured at each step: the base is worse, 3 is the best, and 4 is no number.
VALUES = {0: 5.0, 1: 4.0, 2: 3.0, 3: 1.0, 4: float("nan"), 5: 2.0, 6: 2.5}


def config(**overrides):
    given = {"data.heldout": str(assets.TINY / "heldout.jsonl"), "eval.every": 1}
    given |= {"eval.max_examples": 8, "checkpoint.every": 2, "checkpoint.keep": 1}
    return tiny_config(**given | {"checkpoint.best": "heldout/nll"} | overrides)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("best") / "run"
    values = iter(VALUES.values())
    with pytest.MonkeyPatch.context() as patched:
        measure = heldout.HeldOut.measure
        patched.setattr(
            heldout.HeldOut,
            "measure",
            lambda self, params: measure(self, params) | {"heldout/nll": next(values)},
        )
        return api.train(config(), folder)


def steps_in(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def test_the_best_step_is_kept_beside_the_newest(trained):
    assert steps_in(trained.workdir) == [3, 6]


def test_the_best_step_is_exported_and_loaded(trained, tmp_path, capfd, monkeypatch):
    out = tmp_path / "out"
    arguments = [f"--workdir={trained.workdir}", f"--out={out}", "--step=best"]
    done = run_command(export.main, arguments, capfd, monkeypatch)
    assert done.code == 0 and "exported step 3" in done.stdout, done
    assert json.loads((out / "dft_jax.json").read_text())["step"] == 3
    # float32 weights of the run, exported as such: what is loaded is what was trained.
    best = dft.load(trained.workdir, step="best")
    with Checkpoints(trained.workdir / "checkpoints") as checkpoints:
        saved = checkpoints.restore_params(3, best.model.abstract_params)
    name = next(iter(saved))
    for lm in (best, dft.load(trained.workdir, step=3)):
        assert lm.identify()["step"] == 3
        np.testing.assert_array_equal(_first(lm.params[name]), _first(saved[name]))
    assert dft.load(trained.workdir).identify()["step"] == 6
    dft.export(best, tmp_path / "other")
    assert json.loads((tmp_path / "other/dft_jax.json").read_text())["step"] == 3


def test_the_best_step_is_evaluated(trained, tmp_path, capfd, monkeypatch):
    given = [f"--model={trained.workdir}", f"--heldout={assets.TINY}/heldout.jsonl"]
    given += ["--rows=gsm8k", f"--out={tmp_path}/out"]
    for step, number in (("best", 3), ("newest", 6)):
        done = run_command(evaluate.main, [*given, f"--step={step}"], capfd, monkeypatch)
        assert done.code == 0 and f"run, step {number}:" in done.stderr, done
    done = run_command(evaluate.main, [*given, "--step=4"], capfd, monkeypatch)
    assert done.code == 2 and "no checkpoint of step 4; there: 3, 6" in done.stderr, done


def _first(tree):
    return np.asarray(jax.tree.leaves(tree)[0])


def test_a_folder_has_no_steps():
    with pytest.raises(errors.UserError, match="--step=best: .*is no run"):
        dft.load(assets.LAB, step="best")


def test_other_held_out_examples_are_not_compared_with_earlier_ones(trained, tmp_path):
    """Not refused without the key: the curve goes on, as it did."""
    folder = shutil.copytree(trained.workdir, tmp_path / "run")
    longer = {"eval.max_examples": 4}
    with pytest.raises(errors.UserError, match="measured on other held-out examples"):
        api.train(config(**longer), folder)
    api.train(config(**longer | {"checkpoint.best": ""}), folder)
    assert steps_in(folder) == [6]
    # Steps were measured on either: nor can they be compared from then on.
    for examples in (4, 8):
        with pytest.raises(errors.UserError, match="measured on other held-out examples"):
            api.train(config(**{"eval.max_examples": examples}), folder)


def test_a_run_without_the_key_is_as_before(tmp_path):
    """Its config has the key, empty; what identifies it has not."""
    from dft_jax.training import identity

    assert not any("best" in key for key in identity.kept_on_resume(config_lib.get_default()))
    api.train(config(**{"checkpoint.best": "", "train.steps": 4}), tmp_path / "run")
    assert steps_in(tmp_path / "run") == [4]
