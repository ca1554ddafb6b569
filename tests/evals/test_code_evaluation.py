"""An evaluation on a benchmark of programs by the real command: what it writes, that it resumes with
the same verdicts, that programs can be judged elsewhere.
"""

import hashlib
import json
import shutil

import jax
import pytest

from dft_jax import assets, sharding
from dft_jax.analysis import comparison
from dft_jax.commands import evaluate
from dft_jax.data.sources import programs as made
from dft_jax.evals import grading
from dft_jax.evals.graders import programs
from dft_jax.models.hf.export import export
from dft_jax.models.hf.locate import load_tokenizer, read_config
from dft_jax.models.hf.provenance import Origin
from dft_jax.models.model import build
from dft_jax.runtime import errors
from dft_jax.sampling import sampler
from dft_jax.sampling.sampler import Completion
from tests.commands import run_command

ROWS = list(made.Excerpt("test", n=8).rows())
N_COMPLETIONS = 8 * (1 + 3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The embedded model with random weights, which never matter here."""
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    model = build(read_config(assets.TINY), sharding.make_mesh(-1, 1, 1))
    export(model.init(jax.random.key(0)), model, assets.TINY, folder, origin=Origin(init="random"))
    return folder


def written(request):
    """What the stand-in for a model writes: by problem and number right, wrong, or worse."""
    number = int(request.problem.rpartition("/")[2])
    kind = hashlib.sha256(f"{number} {request.sample} {request.temperature}".encode()).digest()[0]
    body = ROWS[number]["canonical_solution"]
    return {
        0: body,
        1: f"{body}\n\ndef other():\n    pass\n",
        2: body.replace("return", "return 1 +"),
        3: "    raise ValueError(object())\n",
        4: "    import random\n    return random.random()\n",
        5: "    import os\n    os._exit(0)\n",
    }[kind % 6]


class Killed(BaseException):
    pass


@pytest.fixture
def run(checkpoint, tmp_path, capfd, monkeypatch):
    """run(*flags, kill_after=): samples eight problems three times and greedily."""
    programs.require(["lab_code"])
    tokenizer = load_tokenizer(assets.TINY)

    def run(*arguments, kill_after=None):
        def sample(self, weights, requests, progress=True, watch=None):
            # In another order each time, as slots free themselves.
            for number, request in enumerate(
                sorted(requests, key=lambda one: (-one.sample, one.problem))
            ):
                if number == kill_after:
                    raise Killed
                ids = (*tokenizer.encode(written(request)), self.stop_ids[0])
                yield Completion(request, ids, False, 1.0)

        monkeypatch.setattr(sampler.Sampler, "sample", sample)
        fixed = [f"--model={checkpoint}", "--benchmarks=lab_code", "--prompt=plain"]
        fixed += ["--max_problems=8", "--samples=3", f"--out={tmp_path}/out"]
        outcome = run_command(evaluate.main, [*fixed, *arguments], capfd, monkeypatch)
        assert outcome.code == 0, outcome.stderr
        return outcome, json.loads((tmp_path / "out" / "scores.json").read_text())

    return run


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def comparable(summary):
    summary = {name: value for name, value in summary.items() if name != "speed"}
    summary["environment"] = {k: v for k, v in summary["environment"].items() if k != "command"}
    return summary


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_verdict_file(run, tmp_path):
    _, whole = run()
    file = tmp_path / "out" / "predictions.jsonl"
    expected = file.read_bytes()
    rows = read(file)
    assert len(rows) == N_COMPLETIONS
    assert {row["verdict"] for row in rows} >= {"correct", "wrong", "error"}
    for row in rows:
        assert row["prompt"] == ROWS[int(row["id"].rpartition("/")[2])]["prompt"]
        assert (row["reason"] == "") == (row["verdict"] == "correct")
        is_right = "return 1 +" not in row["completion"] and "import" not in row["completion"]
        is_right = is_right and "raise" not in row["completion"]
        assert (row["verdict"] == "correct") == is_right, row
        # Not what was written behind the function.
        assert row["extracted"].startswith(row["prompt"]) and "other" not in row["extracted"]
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(Killed):
        run(kill_after=11)
    assert (tmp_path / "out" / "journal.jsonl").exists()
    _, resumed = run()
    assert file.read_bytes() == expected
    assert comparable(resumed) == comparable(whole)

    greedy, sampled = whole["results"]
    assert greedy["maj_at_k"] is None and "majority_correct_of_problem" not in greedy
    assert sampled["pass_at_k"]["3"] > sampled["pass_at_k"]["1"] > 0
    assert sampled["pass_at_k"]["1"] == pytest.approx(sampled["avg_at_k"]["mean"])
    description = whole["grader"]["programs"]
    assert description["fences"][:2] == ["limits", "seccomp"] and len(description["fences"]) > 2
    assert whole["benchmark_versions"] == {"lab_code": 1}


@pytest.mark.slow
def test_judged_elsewhere_and_compared(run, tmp_path, capfd, monkeypatch):
    """`--programs=skip` samples; `--grade` of its file gives the verdicts; both compare."""
    with monkeypatch.context() as patch:
        patch.setattr(programs, "_require", lambda name: pytest.fail("nothing is to be run"))
        outcome, skipped = run("--programs=skip")
    assert skipped["results"] == [] and f"{N_COMPLETIONS} programs were not run" in outcome.stderr
    file = tmp_path / "out" / "predictions.jsonl"
    assert {row["verdict"] for row in read(file)} == {None}
    graded = tmp_path / "graded"
    flags = [f"--grade={file}", f"--out={graded}"]
    outcome = run_command(evaluate.main, flags, capfd, monkeypatch)
    assert outcome.code == 0, outcome.stderr
    _, whole = run()
    assert read(file) == read(graded / "predictions.graded.jsonl")
    compared = comparison.compare(
        [comparison.read(f"{tmp_path}/out"), comparison.read(f"{graded}")]
    )
    row = compared.rows[-1]
    assert row["difference"] == 0 and row["pass_at_k_difference"] == 0
    assert "maj_at_k" not in row and "maj_at_k_difference" not in row


@pytest.mark.slow
def test_a_machine_that_confines_nothing_is_refused_before_sampling(run, monkeypatch):
    def refuse(name):
        raise errors.UserError(f"{name} runs programs, and this machine …")

    monkeypatch.setattr(programs, "_require", refuse)
    with pytest.raises(AssertionError, match="lab_code runs programs"):
        run()


@pytest.mark.slow
def test_an_answer_begins_as_asked(run, tmp_path):
    """The beginning is part of the prompt, and of what is extracted; another needs another folder."""
    chat = ["--prompt=qwen-boxed", "--answer_prefix=```python\n"]
    run(*chat)
    row = read(tmp_path / "out" / "predictions.jsonl")[0]
    assert row["prompt"].endswith("<|im_start|>assistant\n```python\n")
    assert "Complete this Python function." in row["prompt"]
    assert row["answer_prefix"] == "```python\n"
    identity = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert identity["answer_prefix"] == "```python\n" and identity["prompt"] == "qwen-boxed"
    with pytest.raises(AssertionError, match="answer_prefix"):
        run("--prompt=qwen-boxed", "--answer_prefix=Sure.")
    with pytest.raises(
        AssertionError, match="answer_prefix=Sure. should be empty with prompt=plain"
    ):
        run("--answer_prefix=Sure.")


def test_only_programs_are_set_aside():
    def prediction(benchmark):
        return grading.Prediction("", {"id": "1"}, benchmark, "1", 0, None, "r")

    both = [prediction("lab_code"), prediction("gsm8k")]
    assert grading.split(both, programs.RUN) == (both, [])
    kept, rows = grading.split(both, programs.SKIP)
    assert kept == both[1:]
    assert rows == [{"id": "1", "reference": "r", "extracted": None, "verdict": None}]
