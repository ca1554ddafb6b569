"""The laboratory's studies: names of trials, intervals against direct computations, one trial, every notebook."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dft_jax import config as config_lib, errors
from dft_jax.evals import scores
from experiments.lab import results, run, trials
from tests.commands import ROOT, run_command

LAB = ROOT / "experiments/lab"
# A study that was not run yet is a gap, named in experiments/lab/README.md.
NOTEBOOKS = sorted(file for file in (ROOT / "experiments").rglob("notebook.py") if any(file.parent.glob("*.csv")))
SMALLER = {"theory": ["--small"]}  # computes its results itself


def all_tasks():
    """The tasks of every study, had the validation chosen the first learning rate."""
    for name in run.studies():
        study = importlib.import_module(f"experiments.lab.{name}.study")
        yield from study.candidates()
        yield from study.measurements(lambda trial: dataclasses.replace(trial, learning_rate=3e-4))


def test_every_trial_has_a_name_and_a_sound_config(tmp_path):
    tasks = set(all_tasks())
    assert len(tasks) > 200
    for trial, probe in tasks:
        assert trials.parse(trial.name) == trial and probe in trials.PROBES
        if trial.objective != "none" and trial.data != "rejection":  # the file of which is made on the way
            assert config_lib.validate(trials.config_of(trial, tmp_path)) == []
    names = {trial.name for trial, _ in tasks}
    assert len(names) == len({trial for trial, _ in tasks}) and max(map(len, names)) < 200


def test_trials_of_brackets_and_of_nonsense():
    assert trials.parse("objective=power(alpha=2),seed=1").objective == "power(alpha=2)"
    for name, words in (("objectve=dft", "did you mean 'objective'"), ("seed=x", "should be int")):
        with pytest.raises(errors.UserError, match=words):
            trials.parse(name)


def frame(counts_SP, n=8):
    lines = [" ".join(map(str, counts_P)) for counts_P in counts_SP]
    return pd.DataFrame({"seed": range(len(lines)), "samples": n, "correct": lines})


def test_intervals_and_pass_at_k():
    rng = np.random.default_rng(0)
    counts_SP = rng.integers(0, 9, size=(5, 40))
    rows = frame(counts_SP)
    mean, low, high = results.interval(results.shares(rows))
    assert mean == pytest.approx(counts_SP.mean() / 8) and low < mean < high
    correct_PS = np.arange(8)[None, :] < counts_SP[0][:, None]
    for k in (1, 3, 8):
        assert results.pass_at_k(rows, k)[0].mean() == pytest.approx(scores.pass_at_k(correct_PS, k))
    # One seed: the classic bootstrap over problems, against the normal approximation.
    one = results.shares(rows)[:1]
    error = stats.sem(one[0])
    _, low, high = results.interval(one)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)


def test_differences_are_paired_by_seed_and_problem():
    rng = np.random.default_rng(1)
    counts_SP = rng.integers(0, 7, size=(3, 50))
    better, worse = frame(counts_SP + 2), frame(counts_SP)
    assert results.difference(better, worse) == pytest.approx((0.25, 0.25, 0.25))
    fewer = better[better.seed != 1].sample(frac=1, random_state=0)  # a missing seed, another order
    assert results.difference(fewer, worse) == pytest.approx((0.25, 0.25, 0.25))


def environment(tmp_path):
    """As a user's: one device, not the eight of the tests."""
    return {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(tmp_path)}


@pytest.mark.slow
def test_a_trial_is_made_once_and_is_the_same_again(tmp_path, capfd, monkeypatch):
    """Each time in a new process, which `run` starts."""
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)

    def launch(root):
        arguments = ["trial", "--trial=objective=dft,steps=2,batch=8", "--probe=smoke", f"--root={root}"]
        done = run_command(run.main, arguments, capfd, monkeypatch)
        assert done.code == 0, done.stderr
        return done.stdout

    first = launch(tmp_path / "a")
    [file] = (tmp_path / "a").glob("base=lab*/smoke/rows-*.json")
    [row] = json.loads(file.read_text())
    assert row["benchmark"] == "lab_validation" and len(row["correct"].split()) == 8 and row["step"] == 2
    written = file.stat().st_mtime_ns
    assert launch(tmp_path / "a") == first and file.stat().st_mtime_ns == written
    assert launch(tmp_path / "b") == first


def test_an_unknown_study_is_refused(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.lab.run", "familly", f"--root={tmp_path}/root"],
        **dict(cwd=ROOT, capture_output=True, text=True, env=environment(tmp_path)),
    )
    assert done.returncode == 2 and "did you mean 'family'" in done.stderr and not (tmp_path / "root").exists()


def test_studies_without_results_are_named():
    text = (LAB / "README.md").read_text()
    for name in run.studies():
        line = next(line for line in text.splitlines() if line.startswith((f"| [{name}]", f"| {name} ")))
        assert ("not run yet" in line) != (LAB / name / "results.csv").exists(), name


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.parent.name)
def test_notebooks_run_on_the_committed_results(notebook, tmp_path):
    """All figures of the studies are drawn again, and their tables are those that are committed."""
    module = ".".join(notebook.relative_to(ROOT).with_suffix("").parts)
    done = subprocess.run(
        [sys.executable, "-m", module, f"--out={tmp_path}", *SMALLER.get(notebook.parent.name, [])],
        **dict(cwd=ROOT, capture_output=True, text=True, env=environment(tmp_path)),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    committed = {file.name for file in notebook.parent.glob("*.png")}
    assert committed and {file.name for file in tmp_path.glob("*.png")} == committed
    for table in tmp_path.glob("*.md"):
        assert table.read_text() == (notebook.parent / table.name).read_text(), table.name
