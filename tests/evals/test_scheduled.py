"""Benchmark evaluations of a training run: what they compile, and when."""

import json

import pytest

from dft_jax import api
from dft_jax.evals.scheduled import BenchmarkEvaluator
from dft_jax.sampling.sampler import Sampler
from tests import commands
from tests.marks import slow_but
from tests.tiny_trainer import tiny_config

PROBLEMS = 6
CONFIG = {
    "train.steps": 4,
    "checkpoint.every": 2,
    "export.enabled": False,
    "eval.every": 0,
    "eval.benchmarks": "gsm8k",
    "eval.benchmarks_every": 2,
    "eval.prompt": "plain",
    "eval.samples": 2,
    "eval.slots": 8,
    # With prompts of 13 to 208 tokens: the smallest cache, of 256, is not enough.
    "eval.max_new_tokens": 60,
}


class Killed(BaseException):
    """Nothing catches it, as nothing catches a SIGKILL."""


@pytest.fixture
def config(tmp_path):
    rows = []
    for number in range(PROBLEMS):
        question = f"What is {number}+{number}? " * (1 + 3 * number)
        rows.append(json.dumps({"question": question, "answer": f"#### {2 * number}"}))
    file = tmp_path / "problems.jsonl"
    file.write_text("\n".join(rows))
    return tiny_config(**CONFIG | {"eval.benchmark_data": str(file)})


@pytest.fixture
def compiled(monkeypatch):
    """A list that gets, of each evaluation, its step and the names of what XLA compiled in it."""
    found = []
    run = BenchmarkEvaluator.run

    def counted(self, step, params):
        before = len(commands.compiled)
        try:
            return run(self, step, params)
        finally:
            found.append((step, commands.compiled[before:]))

    monkeypatch.setattr(BenchmarkEvaluator, "run", counted)
    return found


def samples(workdir, step):
    """Completions with what names them, in order."""
    made = []
    for line in (workdir / "eval" / str(step) / "predictions.jsonl").read_text().splitlines():
        row = json.loads(line)
        made.append([row[name] for name in ("id", "temperature", "sample", "completion")])
    return made


@pytest.mark.slow
def test_nothing_compiles_in_the_first_evaluation_of_a_run(config, compiled, tmp_path):
    config.train.steps, config.eval.benchmarks_every = 2, 1
    config.eval.max_problems, config.eval.max_new_tokens = 2, 8
    config.mesh.fsdp, config.mesh.tensor = 2, 2
    api.train(config, tmp_path / "run")
    assert compiled == [(1, []), (2, [])]


@pytest.mark.parametrize("fsdp,tensor", slow_but([], [(1, 1), (2, 2)], slow=[(2, 2)]))
def test_nothing_compiles_in_the_evaluation_that_a_killed_run_left(
    fsdp, tensor, config, compiled, tmp_path, monkeypatch
):
    """It samples only what is missing; and what it samples is what an uninterrupted run has."""
    config.mesh.fsdp, config.mesh.tensor = fsdp, tensor
    api.train(config, tmp_path / "whole")
    assert compiled == [(2, []), (4, [])]
    sample = Sampler.sample

    def die_after_three(self, params, requests, progress=True, watch=None):
        for number, completion in enumerate(sample(self, params, requests, progress, watch)):
            if number == 3:
                raise Killed
            yield completion

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Sampler, "sample", die_after_three)
        api.train(config, tmp_path / "killed")
    compiled.clear()
    asked = []

    def counted(self, params, requests, progress=True, watch=None):
        asked.append(len(requests))
        return sample(self, params, requests, progress, watch)

    monkeypatch.setattr(Sampler, "sample", counted)
    api.train(config, tmp_path / "killed")
    n_all = PROBLEMS * (2 + 1)
    assert asked == [n_all - 3, n_all]
    assert compiled == [(2, []), (4, [])]
    for step in (2, 4):
        assert samples(tmp_path / "killed", step) == samples(tmp_path / "whole", step)


@pytest.mark.slow
def test_what_is_compiled_ahead_changes_no_sample(config, compiled, tmp_path, monkeypatch):
    api.train(config, tmp_path / "ahead")
    monkeypatch.setattr(BenchmarkEvaluator, "compile_programs", lambda self: None)
    compiled.clear()
    api.train(config, tmp_path / "as_met")
    assert compiled[0][1], "the sampler's programs were compiled by the evaluation"
    for step in (2, 4):
        assert samples(tmp_path / "ahead", step) == samples(tmp_path / "as_met", step)
