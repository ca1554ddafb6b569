"""Evaluations side by side: differences against a direct computation, gaps as gaps, the picture drawn."""

import csv
import json

import numpy as np
import pytest

from dft_jax.analysis import compare
from dft_jax.evals import scores
from tests import commands
from tests.commands import run_command


def result(benchmark, share_of, temperature=1.0, k=4):
    average = scores.mean_with_error(np.array(list(share_of.values())))
    return {
        "benchmark": benchmark,
        "temperature": temperature,
        "problems": {"scored": len(share_of)},
        "avg_at_k": {"k": k, "mean": average.mean, "standard_error": 0.01, "interval_95": average.interval_95},
        "pass_at_k": {str(k): 0.9},
        "maj_at_k": {"k": k, "mean": 0.5},
        "correct_share_of_problem": share_of,
        "mean_token_entropy": 0.8,
        "mean_length_tokens": None,
        "truncation_rate": 0.25,
    }


def shares(seed, n=50, shift=0.0):
    random = np.random.default_rng(0)
    difficulty = random.uniform(size=n)
    own = np.clip(difficulty + shift + 0.1 * np.random.default_rng(seed).normal(size=n), 0, 1)
    return {str(i): float(value) for i, value in enumerate(own)}


@pytest.fixture
def runs(tmp_path):
    """base and sft as evaluations, dft as a run directory with evaluations at steps 9 and 10."""
    content = {
        "base": [result("math500", shares(1)), result("gsm8k", shares(2)), result("gsm8k", shares(3), 0.0, 1)],
        "sft": [result("math500", shares(4, shift=0.05))],
        "dft": [result("math500", shares(5, shift=0.2)), result("gsm8k", shares(6, shift=0.2))],
    }
    folders = {"base": tmp_path / "base", "sft": tmp_path / "sft", "dft": tmp_path / "dft" / "eval" / "10"}
    for name, folder in folders.items():
        folder.mkdir(parents=True)
        (folder / "scores.json").write_text(json.dumps({"results": content[name]}))
    (tmp_path / "dft" / "eval" / "9").mkdir()
    (tmp_path / "dft" / "eval" / "9" / "scores.json").write_text(json.dumps({"results": []}))
    return tmp_path


def row_of(rows, **values):
    (found,) = [row for row in rows if all(row.get(name) == value for name, value in values.items())]
    return found


def test_differences_are_paired_over_problems(runs):
    rows, warnings = compare.compare([compare.read(f"{runs}/{name}") for name in ("base", "sft", "dft")])
    row = row_of(rows, benchmark="math500", run="dft", temperature=1.0)
    base, dft = (np.array(list(s.values())) for s in (shares(1), shares(5, shift=0.2)))
    assert row["difference"] == pytest.approx(np.mean(dft - base))
    error = np.std(dft - base) / np.sqrt(50)
    assert row["difference_low"] == pytest.approx(row["difference"] - 1.96 * error, abs=0.1 * error)
    assert row["difference_high"] == pytest.approx(row["difference"] + 1.96 * error, abs=0.1 * error)
    unpaired = np.hypot(np.std(dft), np.std(base)) / np.sqrt(50)
    assert error < unpaired / 2, "the pairing is what this is for"
    assert "difference" not in row_of(rows, benchmark="math500", run="base")
    mean = row_of(rows, benchmark="mean", run="dft")
    assert mean["avg_at_k"] == pytest.approx(np.mean([dft.mean(), np.mean(list(shares(6, shift=0.2).values()))]))
    assert mean["difference_low"] < mean["difference"] < mean["difference_high"]


def test_a_missing_benchmark_is_a_gap(runs):
    rows, warnings = compare.compare([compare.read(f"{runs}/{name}") for name in ("base", "sft", "dft")])
    assert [row["run"] for row in rows if row["benchmark"] == "gsm8k" and row["temperature"] == 1] == ["base", "dft"]
    assert [row["run"] for row in rows if row["benchmark"] == "mean"] == ["base", "dft"]
    assert warnings == ["sft has no gsm8k at T=1: a gap", "sft has no gsm8k at greedy: a gap"] + [
        "dft has no gsm8k at greedy: a gap"
    ]


def test_other_settings_are_said(runs):
    content = {"results": [result("gsm8k", shares(1))], "settings": {"prompt": "plain", "samples": 4, "workers": 2}}
    other = content | {"settings": {"prompt": "qwen-boxed", "samples": 4, "workers": 3}, "grader": {"mode": "strict"}}
    for name, text in (("lr=1e-5", content), ("b", other)):
        (runs / name).mkdir()
        (runs / name / "scores.json").write_text(json.dumps(text))
    _, warnings = compare.compare([compare.read(f"{runs}/lr=1e-5"), compare.read(f"{runs}/b")])
    assert warnings == ["b has prompt='qwen-boxed', lr=1e-5 has 'plain'"]


def test_problems_in_one_run_only_are_said(runs):
    first, second = (
        compare.Evaluation(n, {("gsm8k", 1.0): result("gsm8k", s)})
        for n, s in [("a", {"1": 0.0, "2": 1.0, "3": 0.5}), ("b", {"2": 0.5, "3": 0.5, "9": 1.0})]
    )
    rows, warnings = compare.compare([first, second])
    assert rows[1]["difference"] == -0.25
    assert warnings == ["gsm8k at T=1, a and b: 2 problems are in one only; the difference is over 2"]


def test_command(runs, capfd, monkeypatch):
    arguments = [f"{runs}/base", f"{runs}/sft", f"Δ-model={runs}/dft", f"--out={runs}/out"]
    outcome = run_command(compare.main, arguments, capfd, monkeypatch)
    assert outcome.code == 0, outcome.stderr
    lines = outcome.stdout.splitlines()
    assert lines[0].split()[:4] == ["benchmark", "T", "run", "problems"]
    assert any(line.startswith("math500") and "Δ-model" in line and "+" in line for line in lines)
    sheet = list(csv.DictReader((runs / "out" / "comparison.csv").read_text().splitlines()))
    assert len(sheet) == len(lines) - 2 and {row["run"] for row in sheet} == {"base", "sft", "Δ-model"}
    assert (runs / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "warning: sft has no gsm8k" in outcome.stderr


@pytest.mark.parametrize(
    "arguments,expected",
    [
        ([], ["RUN", "is required"]),
        (["{}/none"], ["none: no scores.json there", "dft_jax.evaluate"]),
        (["{}/base", "{}/base"], ["two runs are called 'base'; name them: name=folder"]),
        (["{}/base", "--ouput=x"], ["ouput"]),
        (["{}/base", "--out={}/base/scores.json"], ["cannot be made", "another folder"]),
        (["{}/broken"], ["scores.json:1: not JSON"]),
        (["{}/old"], ["no results in it; evaluate again"]),
        (["{}/empty"], ["no results in it; evaluate again"]),
    ],
)
def test_bad_input_is_refused(arguments, expected, runs, capfd, monkeypatch):
    for name, text in (("broken", "{"), ("old", "{}"), ("empty", '{"results": []}')):
        (runs / name).mkdir()
        (runs / name / "scores.json").write_text(text)
    given = [argument.replace("{}", str(runs)) for argument in arguments]
    monkeypatch.setattr(compare, "table", lambda rows: "")
    commands.check_refused(compare.main, given, expected, runs, capfd, monkeypatch)
