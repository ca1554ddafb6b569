"""The laboratory's studies: names of trials, intervals against direct computations, one trial,
every notebook.
"""

import dataclasses
import importlib
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import special

import dft_jax as dft
from dft_jax import assets, config as config_lib
from dft_jax.evals import scores
from dft_jax.evals.graders import programs
from dft_jax.runtime import errors
from experiments.intervals import coverage
from experiments.lab import results, run, trials
from tests import xla
from tests.commands import ROOT, run_command
from tests.marks import slow_but

LAB = ROOT / "experiments/lab"
# A study that was not run yet is a gap, named in experiments/lab/README.md.
NOTEBOOKS = sorted(
    file for file in (ROOT / "experiments").rglob("notebook.py") if any(file.parent.glob("*.csv"))
)
SMALLER = {"theory": ["--small"]}  # computes its results itself
# Those that CI runs: between them they use all of results.py and common.py.
SEEN = {"main_comparison", "again", "code", "rates"}


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
        # the file of which is made on the way
        if trial.objective != "none" and trial.data != "rejection":
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
        assert results.pass_at_k(rows, k)[0].mean() == pytest.approx(
            scores.pass_at_k(correct_PS, k).mean()
        )
    # One seed: the interval over its problems.
    one = results.shares(rows)[:1]
    expected = scores.mean_of_shares(one[0])
    assert results.interval(one) == pytest.approx((expected.mean, *expected.interval_95))


def lab_values(n_sets, n_seeds, seed_sd, samples=8, n_problems=48):
    """Shares of two settings, the second better by half a logit, and the true means of both, [N, S,
    P] each.
    """
    random = np.random.default_rng(0)

    def chances(n_sets, n_seeds, n_problems):
        problem = 1 + 1.5 * random.normal(size=(n_sets, 1, n_problems))
        seed = seed_sd * random.normal(size=(2, n_sets, n_seeds, 1))
        return special.expit(problem + seed[0]), special.expit(problem + 0.5 + seed[1])

    truths = [each.mean() for each in chances(2000, 500, 1)]
    return truths, [
        random.binomial(samples, p) / samples for p in chances(n_sets, n_seeds, n_problems)
    ]


@pytest.mark.parametrize("n_seeds", [3, 5])
@pytest.mark.parametrize("seed_sd", [0.0, 0.3, 1.0])
def test_intervals_cover_where_seeds_dominate_and_where_they_do_not(n_seeds, seed_sd):
    """A bootstrap of seeds and problems held the truth in 77 to 99 % of these;
    experiments/intervals has more.
    """
    truths, (base, better) = lab_values(600, n_seeds, seed_sd)
    own = [results.interval(value_SP) for value_SP in base]
    paired = [results.interval_of_difference(value_SP, 8) for value_SP in better - base]
    for truth, triples in ((truths[0], own), (truths[1] - truths[0], paired)):
        # 93 %, less two standard deviations of 600 sets.
        assert np.mean([low <= truth <= high for _, low, high in triples]) >= 0.93 - 0.02
        assert all(low <= mean <= high for mean, low, high in triples)


def test_no_interval_is_without_width():
    """Nothing right, everything right, nothing different, in every seed."""
    for share in (0.0, 1.0):
        mean, low, high = results.interval(np.full((3, 48), share))
        assert mean == share and 0.05 < high - low < 0.07
    mean, low, high = results.interval_of_difference(np.zeros((3, 48)), samples=8)
    assert mean == 0 and high == -low and 0.01 < high < 0.02


def test_differences_are_paired_by_seed_and_problem():
    rng = np.random.default_rng(1)
    counts_SP = rng.integers(0, 7, size=(3, 50))
    better, worse = frame(counts_SP + 2), frame(counts_SP)
    mean, low, high = results.difference(better, worse)
    # All differences are equal: what width there is comes from the imagined problems.
    assert mean == pytest.approx(0.25) and 0.2 < low < mean < high < 0.3
    fewer = better[better.seed != 1].sample(frac=1, random_state=0)  # a missing seed, another order
    mean, low, high = results.difference(fewer, worse)
    assert mean == pytest.approx(0.25) and 0.2 < low < mean < high < 0.3


def environment(tmp_path):
    """As a user's: one device, not the eight of the tests."""
    return os.environ | {
        "XLA_FLAGS": xla.flags(1),
        "PYTHONPATH": str(ROOT),
        "MPLCONFIGDIR": str(tmp_path),
    }


@pytest.mark.slow
def test_the_base_of_code_writes_programs(tmp_path):
    """The shipped weights solve what the study says they do, and do not solve all of it."""
    programs.require(["lab_code"])
    base = dft.load(assets.LAB_CODE)
    asked = {"prompt": "plain", "temperature": 0.0, "max_problems": 16, "context": 256}
    [greedy] = dft.evaluate(base, "lab_code", show_progress=False, **asked).results
    assert greedy["temperature"] == 0 and greedy["truncation_rate"] == 0
    assert greedy["avg_at_k"]["mean"] >= 0.5
    assert greedy["verdicts"]["no_answer"] == greedy["verdicts"]["timeout"] == 0


def test_trials_of_code_are_about_code():
    """Their demonstrations, held-out examples, benchmarks and base go together."""
    study = importlib.import_module("experiments.lab.code.study")
    tasks = study.candidates() + study.measurements(lambda trial: trial)
    assert len(tasks) == 16 + 21
    for trial, probe in tasks:
        config = trials.config_of(trial, LAB)
        assert config.model.path == str(assets.LAB_CODE) and config.data.rows == "humaneval"
        assert config.data.train.startswith("programs(split=train")
        assert config.data.heldout.startswith("programs(split=validation")
        assert all(name.startswith("lab_code") for name in trials.settings_of(probe).benchmarks)
    tuning = {trial.seed for trial, probe in tasks if probe == "code_validation"}
    measuring = {t.seed for t, probe in tasks if probe == "code" and t.objective != "none"}
    assert tuning == {0} and len(measuring) == 5 and not tuning & measuring


def test_names_of_measured_trials_are_what_they_were():
    """Every row that is committed can be made again by its name."""
    n_names = 0
    for name in run.studies():
        file = LAB / name / "results.csv"
        if not file.exists():
            continue
        rows = results.read(file)
        if "trial" in rows:
            for trial in rows.trial.unique():
                assert trials.parse(trial).name == trial
                n_names += 1
    assert n_names > 300


@pytest.mark.slow
def test_a_trial_is_made_once_and_is_the_same_again(tmp_path, capfd, monkeypatch):
    """Each time in a new process, which `run` starts."""
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)

    def launch(root):
        arguments = [
            "trial",
            "--trial=objective=dft,steps=2,batch=8",
            "--probe=smoke",
            f"--root={root}",
        ]
        done = run_command(run.main, arguments, capfd, monkeypatch)
        assert done.code == 0, done.stderr
        return done.stdout

    first = launch(tmp_path / "a")
    [file] = (tmp_path / "a").glob("base=lab*/smoke/rows-*.json")
    [row] = json.loads(file.read_text())
    assert (
        row["benchmark"] == "lab_validation"
        and len(row["correct"].split()) == 8
        and row["step"] == 2
    )
    written = file.stat().st_mtime_ns
    assert launch(tmp_path / "a") == first and file.stat().st_mtime_ns == written
    assert launch(tmp_path / "b") == first


def test_an_unknown_study_is_refused(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.lab.run", "familly", f"--root={tmp_path}/root"],
        **dict(cwd=ROOT, capture_output=True, text=True, env=environment(tmp_path)),
    )
    assert (
        done.returncode == 2
        and "did you mean 'family'" in done.stderr
        and not (tmp_path / "root").exists()
    )


def test_studies_without_results_are_named():
    text = (LAB / "README.md").read_text()
    for name in run.studies():
        line = next(
            line for line in text.splitlines() if line.startswith((f"| [{name}]", f"| {name} "))
        )
        assert ("not run yet" in line) != (LAB / name / "results.csv").exists(), name


@pytest.mark.parametrize(
    "notebook",
    slow_but([], NOTEBOOKS, slow=[one for one in NOTEBOOKS if one.parent.name in SEEN]),
    ids=lambda file: file.parent.name,
)
def test_notebooks_run_on_the_committed_results(notebook, tmp_path):
    """All figures of the studies are drawn again, and their tables are those that are committed."""
    module = ".".join(notebook.relative_to(ROOT).with_suffix("").parts)
    done = subprocess.run(
        [sys.executable, "-m", module, f"--out={tmp_path}", *SMALLER.get(notebook.parent.name, [])],
        **dict(cwd=ROOT, capture_output=True, text=True, env=environment(tmp_path)),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    committed = {file.name for file in notebook.parent.glob("*.png")}
    assert {file.name for file in tmp_path.glob("*.png")} == committed
    tables = list(tmp_path.glob("*.md"))
    assert committed or tables
    for table in tables:
        assert table.read_text() == (notebook.parent / table.name).read_text(), table.name


def test_the_study_of_coverage_says_what_its_results_say():
    """Its table is made of results.csv, and no cell of scores or differences is below 93 %."""
    folder = ROOT / "experiments/intervals"
    rows = pd.read_csv(folder / "results.csv").to_dict("records")
    text = coverage.table(rows)
    assert text == (folder / "table.md").read_text() and text in (folder / "README.md").read_text()
    of_scores = [row["after_coverage"] for row in rows if not row["kind"].startswith("lab")]
    assert len(of_scores) == 80 and min(of_scores) >= 93


def test_the_study_of_coverage_runs(tmp_path, monkeypatch):
    for name, values in (("PROBLEMS", (30,)), ("MEANS", (0.1,)), ("SEEDS", (3,))):
        monkeypatch.setattr(coverage, name, values)
    for part in (coverage.of_evaluations, coverage.of_differences, coverage.of_seeds):
        for row in part(200, np.random.default_rng(0)):
            assert row["after_coverage"] >= 87 and row["before_width"] > 0
