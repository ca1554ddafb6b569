"""The evaluation command with sampling: what it writes, that it goes on where it was killed, what
it refuses.
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from dft_jax import assets, main, sharding
from dft_jax.checkpoints.manager import Gone
from dft_jax.commands import evaluate, evaluate_model, model_flags
from dft_jax.data.stops import find_stops
from dft_jax.data.templates import Template
from dft_jax.evals import evaluation, grading, journal, planning, runner
from dft_jax.evals.graders import pool
from dft_jax.evals.records import Prediction
from dft_jax.evals.settings import Settings
from dft_jax.evals.tasks import benchmarks, task
from dft_jax.models.hf.export import export
from dft_jax.models.hf.load import load_params
from dft_jax.models.hf.locate import load_tokenizer, read_config
from dft_jax.models.hf.provenance import Origin
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.model import Batch, build, head
from dft_jax.runtime import errors, folders, interrupts
from dft_jax.sampling import sampler
from tests import commands, xla
from tests.commands import ROOT, TINY, run_command, tree
from tests.faults.launch import free_port

PROBLEMS = [
    {"question": f"What is {i}+{i}?" * (1 + i), "answer": f"…\n#### {2 * i}"} for i in range(6)
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The embedded model with random weights, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    model = build(read_config(assets.TINY), sharding.make_mesh(-1, 1, 1))
    export(model.init(jax.random.key(0)), model, assets.TINY, folder, origin=Origin(init="random"))
    return folder


@pytest.fixture
def folder(tmp_path):
    write_rows(tmp_path / "data" / "gsm8k_test.jsonl", PROBLEMS)
    return tmp_path


def write_rows(file, rows):
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def run(checkpoint, folder, capfd, monkeypatch):
    """run(*flags): samples the six problems three times and greedily, 12 tokens each; returns
    outcome and scores.
    """
    fixed = [
        f"--model={checkpoint}",
        "--benchmarks=gsm8k",
        f"--benchmark_data={folder}/data",
        "--prompt=plain",
    ]
    fixed += [
        "--samples=3",
        "--max_new_tokens=12",
        "--slots=8",
        "--last_number",
        f"--out={folder}/out",
    ]

    def run(*arguments):
        outcome = run_command(evaluate.main, [*fixed, *arguments], capfd, monkeypatch)
        assert outcome.code == 0, outcome.stderr
        return outcome, json.loads((folder / "out" / "scores.json").read_text())

    return run


def comparable(folder):
    """Predictions and scores without what differs by the command line and the clock."""
    scores = json.loads((folder / "out" / "scores.json").read_text())
    scores["environment"].pop("command")
    scores.pop("speed")
    return read_rows(folder / "out" / "predictions.jsonl"), scores


def count_sampled(monkeypatch):
    """A list that gets the number of requests of every call of the sampler."""
    counts, sample = [], sampler.Sampler.sample

    def counted(self, params, requests, progress=True, watch=None):
        requests = list(requests)
        counts.append(len(requests))
        return sample(self, params, requests, progress, watch)

    monkeypatch.setattr(sampler.Sampler, "sample", counted)
    return counts


def test_what_an_evaluation_writes(run, folder, checkpoint):
    outcome, summary = run("--temperature=0.5,1")
    assert sorted(tree(folder / "out")) == [
        ".lock",
        "evaluation.json",
        "predictions.jsonl",
        "scores.json",
    ]
    rows = read_rows(folder / "out" / "predictions.jsonl")
    assert len(rows) == 6 * (1 + 3 + 3)
    order = [(row["temperature"], row["id"], row["sample"]) for row in rows if row["id"] == "4"]
    assert order == [(0.0, "4", 0), *[(t, "4", s) for t in (0.5, 1.0) for s in range(3)]]
    for row in rows:
        assert row["prompt"] == PROBLEMS[int(row["id"])]["question"] + "\n"
        assert row["reference"] == str(2 * int(row["id"]))
        assert 1 <= row["tokens"] <= 12 and row["truncated"] == (row["tokens"] == 12)
        assert 4 < row["entropy"] <= np.log(264) and row["verdict"] in (
            "correct",
            "wrong",
            "no_answer",
        )
    results = summary["results"]
    assert [(r["benchmark"], r["temperature"], r["samples_per_problem"]) for r in results] == [
        ("gsm8k", 0.0, 1),
        ("gsm8k", 0.5, 3),
        ("gsm8k", 1.0, 3),
    ]
    assert results[1]["mean_token_entropy"] < results[2]["mean_token_entropy"]
    at_one = [row for row in rows if row["temperature"] == 1]
    assert results[2]["avg_at_k"]["mean"] == np.mean(
        [row["verdict"] == "correct" for row in at_one]
    )
    assert list(results[2]["correct_share_of_problem"]) == [str(i) for i in range(6)]
    assert summary["model"]["name"] == "model" and len(summary["model"]["sha256"]) == 64
    assert summary["stop_sources"] == {"tokenizer": [0], "config.json": [0]} and summary[
        "stop_ids"
    ] == [0]
    assert summary["settings"]["seed"] == 0 and summary["environment"]["versions"]["jax"]
    speed = summary["speed"]
    assert speed["sampled_completions"] == len(rows) == 42
    assert speed["sampled_tokens"] == sum(row["tokens"] for row in rows)
    assert speed["sampling_s"] > 0 and speed["grading_s"] > 0 and speed["peak_host_gib"] > 0.1
    assert speed["tokens_per_s"] == pytest.approx(
        speed["sampled_tokens"] / speed["sampling_s"], rel=0.05
    )
    assert summary["compute_dtype"] == "float32" and summary["intervals"]["level"] == 0.95
    for result in results:
        assert len(set(result["sha256_of_problem"].values())) == 6
        assert result["sha256_is_of"] == "question and reference"
    lines = outcome.stdout.splitlines()
    assert lines[0].startswith("benchmark  T ") and lines[1].startswith("gsm8k      greedy  6/1319")
    assert "gsm8k has 6 problems here, 1319 as published" in outcome.stderr


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(run, folder, monkeypatch):
    run("--temperature=1")
    whole = comparable(folder)
    shutil.rmtree(folder / "out")

    class Killed(BaseException):
        pass

    sample = sampler.Sampler.sample

    def die_after_seven(self, params, requests, progress=True, watch=None):
        for number, completion in enumerate(sample(self, params, requests, progress, watch)):
            if number == 7:
                raise Killed
            yield completion

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(sampler.Sampler, "sample", die_after_seven)
        run("--temperature=1")
    assert sorted(tree(folder / "out")) == [".lock", "evaluation.json", "journal.jsonl"]
    with open(folder / "out" / "journal.jsonl", "a") as lines:
        # as a kill in the middle of a line leaves it
        lines.write('{"benchmark": "gsm8k", "id": "5", "samp')
    counts = count_sampled(monkeypatch)
    run("--temperature=1", "--slots=3")
    assert counts == [6 * 4 - 7]
    rows, scores = comparable(folder)
    whole[1]["settings"]["slots"] = 3
    assert scores == whole[1]
    assert rows == whole[0]


@pytest.mark.slow
def test_a_finished_evaluation_is_not_done_again(run, folder, monkeypatch):
    run()
    before = tree(folder / "out")
    counts = count_sampled(monkeypatch)
    outcome, _ = run()
    assert counts == [] and tree(folder / "out") == before and "gsm8k" in outcome.stdout


@pytest.mark.slow
def test_samples_problems_and_temperatures_can_be_added(run, folder, monkeypatch):
    run("--samples=3", "--temperature=1", "--seed=7")
    whole = comparable(folder)
    shutil.rmtree(folder / "out")
    counts = count_sampled(monkeypatch)
    run("--samples=1", "--temperature=0.5", "--seed=7", "--nogreedy", "--max_problems=2")
    run("--samples=2", "--temperature=1", "--seed=7", "--nogreedy")
    run("--samples=3", "--temperature=1", "--seed=7")
    assert counts == [2, 12, 6 * 4 - 12]
    rows, scores = comparable(folder)
    assert [row for row in rows if row["temperature"] != 0.5] == whole[0]
    assert "has 2 completions more than were asked for now" in scores["warnings"].pop()
    assert scores == whole[1]


def test_scores_of_known_completions(run, folder, checkpoint, monkeypatch):
    """Even problems are answered rightly by every sample, problem 1 by the first one, the others
    never.
    """
    tokenizer = load_tokenizer(checkpoint)

    def sample(self, params, requests, progress=True, watch=None):
        for request in requests:
            number = int(request.problem.partition("/")[2])
            is_right = number % 2 == 0 or (number == 1 and request.sample == 0)
            ids = tokenizer(f"#### {2 * number if is_right else 1000}")["input_ids"]
            yield sampler.Completion(request, (*ids, tokenizer.eos_token_id), False, 0.5)

    monkeypatch.setattr(sampler.Sampler, "sample", sample)
    _, summary = run("--temperature=1", "--nolast_number")
    greedy, sampled = summary["results"]
    assert greedy["avg_at_k"]["mean"] == pytest.approx(4 / 6)
    assert sampled["avg_at_k"]["mean"] == pytest.approx((3 + 1 / 3) / 6)
    assert sampled["pass_at_k"] == pytest.approx(
        {"1": (3 + 1 / 3) / 6, "2": (3 + 2 / 3) / 6, "3": 4 / 6}
    )
    assert sampled["maj_at_k"]["mean"] == 3 / 6 and sampled["mean_token_entropy"] == 0.5
    assert sampled["correct_share_of_problem"]["1"] == pytest.approx(1 / 3)
    # without the stop token
    assert read_rows(folder / "out" / "predictions.jsonl")[0]["completion"] == "#### 0"


@pytest.mark.slow
def test_changed_answers_are_scored_anew(run, folder, monkeypatch):
    _, before = run("--samples=1")
    changed = [PROBLEMS[0] | {"answer": "#### 999"}, *PROBLEMS[1:]]
    write_rows(folder / "data" / "gsm8k_test.jsonl", changed)
    counts = count_sampled(monkeypatch)
    _, after = run("--samples=1")
    assert counts == [] and after["problems_sha256"] != before["problems_sha256"]
    assert read_rows(folder / "out" / "predictions.jsonl")[0]["reference"] == "999"


@pytest.mark.slow
def test_killed_between_predictions_and_scores(run, folder, monkeypatch):
    run("--samples=1")
    whole = comparable(folder)
    write_json = runner.files.write_json

    def die(file, value):
        if file.name == "scores.json":
            raise KeyboardInterrupt
        write_json(file, value)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runner.files, "write_json", die)
        run("--samples=1", "--mode=paper")
    assert not (folder / "out" / "scores.json").exists()
    run("--samples=1")
    assert comparable(folder) == whole


@pytest.mark.slow
def test_a_smaller_plan_keeps_the_rest_and_says_so(run, folder, monkeypatch):
    run("--samples=2")
    rows = read_rows(folder / "out" / "predictions.jsonl")
    outcome, summary = run("--samples=1", "--max_problems=2")
    assert "has 14 completions more than were asked for now" in outcome.stderr
    assert sum(sum(result["verdicts"].values()) for result in summary["results"]) == 4
    key = ("temperature", "id", "sample")
    after = read_rows(folder / "out" / "predictions.jsonl")
    assert sorted(after, key=lambda r: [r[k] for k in key]) == sorted(
        rows, key=lambda r: [r[k] for k in key]
    )


@pytest.mark.slow
def test_grading_does_not_overwrite_an_evaluation(run, folder, capfd, monkeypatch):
    run("--samples=1")
    arguments = [f"--grade={folder}/out/predictions.jsonl", f"--benchmark_data={folder}/data"]
    expected = ["the scores of an evaluation are there; give another folder"]
    commands.check_refused(evaluate.main, arguments, expected, folder, capfd, monkeypatch)
    outcome = run_command(
        evaluate.main, [*arguments, f"--out={folder}/graded", "--last_number"], capfd, monkeypatch
    )
    assert outcome.code == 0, outcome.stderr
    ours, theirs = (
        json.loads((folder / name / "scores.json").read_text())["results"]
        for name in ("out", "graded")
    )
    assert ours == theirs


@pytest.mark.slow
def test_a_renamed_model_is_the_same_model(run, folder, checkpoint, monkeypatch):
    run("--samples=1")
    shutil.copytree(checkpoint, folder / "renamed")
    counts = count_sampled(monkeypatch)
    run("--samples=2", f"--model={folder}/renamed")
    assert counts == [6]


@pytest.mark.slow
def test_another_order_and_batch_give_the_same(run, folder):
    run("--temperature=1")
    rows, _ = comparable(folder)
    shutil.rmtree(folder / "out")
    write_rows(folder / "data" / "gsm8k_test.jsonl", PROBLEMS[::-1])
    run("--temperature=1", "--slots=24")
    key = ("prompt", "temperature", "sample")
    found = {
        tuple(r[k] for k in key): r["completion"]
        for r in read_rows(folder / "out" / "predictions.jsonl")
    }
    # Ids are numbers of rows here, so problems are told by their prompts, and noise belongs to
    # another problem …
    assert found.keys() == {tuple(r[k] for k in key) for r in rows}
    greedy = [r for r in rows if r["temperature"] == 0]
    # … so the greedy ones are compared
    assert all(found[r["prompt"], 0.0, 0] == r["completion"] for r in greedy)


@pytest.mark.slow
def test_scores_of_an_older_version_are_made_anew(run, folder, monkeypatch):
    """Votes by text, a bootstrap's intervals, no digests: the same command replaces them, without
    sampling.
    """
    run("--samples=2")
    whole = comparable(folder)
    file = folder / "out" / "scores.json"
    old = json.loads(file.read_text())
    del old["format"]
    for result in old["results"]:
        del result["sha256_of_problem"]
        result["avg_at_k"]["interval_95"] = [0.0, 0.0]
    file.write_text(json.dumps(old))
    counts = count_sampled(monkeypatch)
    _, summary = run("--samples=2")
    assert counts == [] and comparable(folder) == whole
    assert summary["speed"]["sampled_tokens"] == 0 and summary["speed"]["tokens_per_s"] is None


@pytest.mark.slow
def test_damaged_files_of_a_folder_are_refused_by_name(run, folder, checkpoint, capfd, monkeypatch):
    """One line with file and key or line, exit code 2: scores.json, evaluation.json,
    predictions.jsonl.
    """
    run("--samples=1")
    out = folder / "out"
    scores, rows = (
        json.loads((out / "scores.json").read_text()),
        read_rows(out / "predictions.jsonl"),
    )
    cut = [
        {key: value for key, value in result.items() if key != "avg_at_k"}
        for result in scores["results"]
    ]
    damages = [
        (
            "scores.json",
            json.dumps(scores | {"results": cut}),
            ["scores.json: results[0].avg_at_k is missing"],
        ),
        (
            "scores.json",
            "{",
            ["scores.json:1: not JSON", "remove it; the same command then scores"],
        ),
        (
            "evaluation.json",
            '{"seed": NaN}',
            ["evaluation.json: cannot be read", "give another folder"],
        ),
    ]
    for field, value in [
        ("tokens", 10**400),
        ("tokens", True),
        ("tokens", -3),
        ("tokens", 1.5),
        ("sample", -1),
        ("temperature", float("nan")),
        ("entropy", float("inf")),
        ("truncated", 1),
        ("completion", None),
    ]:
        lines = [json.dumps(row) + "\n" for row in [rows[0], rows[1] | {field: value}, *rows[2:]]]
        damages.append(
            (
                "predictions.jsonl",
                "".join(lines),
                ["predictions.jsonl:2: not a completion", repr(field)],
            )
        )
    arguments = [
        f"--model={checkpoint}",
        "--benchmarks=gsm8k",
        f"--benchmark_data={folder}/data",
        "--prompt=plain",
    ]
    arguments += [
        "--samples=1",
        "--max_new_tokens=12",
        "--slots=8",
        "--last_number",
        f"--out={out}",
    ]
    for name, text, expected in damages:
        whole = (out / name).read_text()
        (out / name).write_text(text)
        commands.check_refused(evaluate.main, arguments, expected, folder, capfd, monkeypatch)
        (out / name).write_text(whole)


def test_logits_that_are_not_finite_are_an_error_and_no_score(run, folder, monkeypatch):
    def sample(self, params, requests, progress=True, watch=None):
        for request in requests:
            yield sampler.Completion(request, (1, 2), True, float("nan"))

    monkeypatch.setattr(sampler.Sampler, "sample", sample)
    with pytest.raises(AssertionError, match="gsm8k '0': the model's logits are not finite"):
        run("--samples=1")
    assert not (folder / "out" / "scores.json").exists()
    assert (folder / "out" / "journal.jsonl").read_text() == ""


@pytest.mark.slow
def test_regrading_needs_no_sampling(run, folder, monkeypatch):
    run("--samples=1")
    counts = count_sampled(monkeypatch)
    outcome, summary = run("--samples=1", "--mode=paper")
    assert counts == [] and summary["grader"]["mode"] == "paper"
    only = summary["results"][1]["paper_against_strict"]
    assert set(only) == {"only_paper", "only_strict"}
    assert "the paper's rules accept" in outcome.stderr
    rows = read_rows(folder / "out" / "predictions.jsonl")
    disagree = [
        r
        for r in rows
        if r["temperature"] == 1
        and (r["verdict"] == "correct") != (r["strict_verdict"] == "correct")
    ]
    assert only["only_paper"]["count"] + only["only_strict"]["count"] == len(disagree)


# Name -> (arguments, what stderr must say). {} is the folder.
BAD = {
    "unknown benchmark": (
        ["--benchmarks=gsm8k,aime"],
        ["--benchmarks: benchmark 'aime' is unknown", "known: math500"],
    ),
    "benchmark twice": (
        ["--benchmarks=gsm8k,gsm8k"],
        ["--benchmarks=gsm8k,gsm8k should be one or more, none of them"],
    ),
    "no benchmark": (["--benchmarks="], ["nothing to evaluate", "--heldout"]),
    "no out": (["--out="], ["--out is required"]),
    "missing file": (
        ["--benchmarks=amc23"],
        ["amc23.jsonl does not exist; put the benchmark's rows there"],
    ),
    "no such data": (
        ["--benchmark_data={}/none"],
        ["none: no such file or folder; correct the path"],
    ),
    "malformed row": (
        ["--benchmark_data={}/bad.jsonl"],
        ["bad.jsonl:2: not JSON at column 2", "fix or remove"],
    ),
    "no answer": (
        ["--benchmark_data={}/no_answer.jsonl"],
        ["no_answer.jsonl:1: not a row of gsm8k", "'#### 42'"],
    ),
    "long prompt": (
        ["--benchmark_data={}/long.jsonl"],
        [
            "gsm8k '1': its prompt has 701 tokens, which leaves no room for an answer within 512",
            "reads more",
        ],
    ),
    "no room": (
        ["--context=20"],
        [
            "gsm8k '1': its prompt has 25 tokens, which leaves no room for an answer within 20",
            "give a larger context",
        ],
    ),
    "unknown style": (
        ["--prompt=qwen-box"],
        ["--prompt='qwen-box' is unknown (did you mean 'qwen-boxed'?)", "llama-ins-boxed"],
    ),
    "missing template": (["--prompt={}/none.jinja"], ["none.jinja' cannot be read"]),
    "template that fails": (
        ["--prompt={}/fails.jinja"],
        ["gsm8k '0': template", "TypeError", "fix it"],
    ),
    "template without text": (["--prompt={}/empty.jinja"], ["empty.jinja': the template is empty"]),
    "template with an error": (
        ["--prompt={}/wrong.jinja"],
        ["--prompt=", "wrong.jinja':1:", "fix it"],
    ),
    "half a surrogate": (
        ["--benchmark_data={}/half.jsonl"],
        ["half.jsonl:1:", "half a surrogate pair"],
    ),
    # As Python reads the bytes of Latin-1 in a command line.
    "an instruction in Latin-1": (
        ["--instruction=caf\udce9", "--answer_prefix=\udce9"],
        ["--instruction=caf\\udce9 should be text in UTF-8", "--answer_prefix=\\udce9 should be"],
    ),
    "no tensor": (["--tensor=0"], ["tensor", "0"]),
    "a bucket": (["--out=gs://bucket/x"], ["--out=gs://bucket/x: give a local or mounted folder"]),
    "a bucket of benchmarks": (
        ["--benchmark_data=gs://bucket/data"],
        ["benchmark data='gs://bucket/data': only files and folders of this machine", "mount"],
    ),
    "a bucket as model": (
        ["--model=s3://bucket/base"],
        ["model='s3://bucket/base': only files and folders of this machine", "mount the"],
    ),
    "a bucket of completions": (
        ["--grade=gs://bucket/predictions.jsonl", "--model="],
        ["--grade='gs://bucket/predictions.jsonl': only files and folders of this", "mount"],
    ),
    "no samples": (["--samples=0"], ["--samples=0 should be at least 1"]),
    "temperature in words": (
        ["--temperature=warm"],
        ["--temperature='warm' should be numbers, separated by commas"],
    ),
    "negative temperature": (
        ["--temperature=-1"],
        ["--temperature=-1.0 should be numbers from 0 (greedy) to 10"],
    ),
    "no temperature": (
        ["--temperature=", "--nogreedy"],
        ["--greedy=False should be true where no temperature"],
    ),
    "top_p of 0": (["--top_p=0"], ["--top_p=0.0 should be above 0, at most 1"]),
    "several": (
        ["--top_k=-1", "--slots=0"],
        ["--top_k=-1 should be at least 0", "--slots=0 should be at least 1"],
    ),
    "unknown mode": (["--mode=lenient"], ["--mode=lenient should be strict or paper"]),
    "no model": (["--model={}/none"], ["error: model='", "none' is not a folder, nor a hub id"]),
    "not a model": (["--model={}/data"], ["config.json is missing"]),
    "tensor of 3": (["--tensor=3"], ["tensor=3", "8 devices"]),
    "too many heads": (
        ["--tensor=4"],
        ["does not divide the model's 2 key/value heads; legal here: 1, 2"],
    ),
    "unknown flag": (["--temperatur=1"], ["temperatur"]),
    "out is a file": (
        ["--out={}/bad.jsonl"],
        ["bad.jsonl", "cannot be used", "give another folder"],
    ),
    "unknown rows": (
        ["--heldout={}/bad.jsonl", "--rows=gms8k", "--benchmarks="],
        ["--rows=gms8k is unknown (did you"],
    ),
    "no heldout": (["--heldout={}/none.jsonl", "--benchmarks="], ["none.jsonl"]),
    "no room for held out": (
        ["--heldout={}/bad.jsonl", "--benchmarks=", "--context=1"],
        ["--context=1 should be at least 2"],
    ),
    "bad heldout": (
        ["--heldout={}/bad.jsonl", "--benchmarks="],
        ["bad.jsonl:1: field 'prompt' is missing"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_and_nothing_is_written(case, checkpoint, folder, capfd, monkeypatch):
    arguments, expected = BAD[case]
    good = json.dumps(PROBLEMS[0])
    (folder / "bad.jsonl").write_text(good + "\n{'a'}\n")
    (folder / "no_answer.jsonl").write_text(json.dumps({"question": "1+1?", "answer": "2"}) + "\n")
    (folder / "long.jsonl").write_text(
        good + "\n" + json.dumps({"question": "x" * 700, "answer": "#### 1"}) + "\n"
    )
    (folder / "fails.jinja").write_text("{{ 'a' + 1 }}")
    (folder / "empty.jinja").write_text("")
    (folder / "wrong.jinja").write_text("{{ 'a' ")
    (folder / "half.jsonl").write_text('{"question": "\\ud800?", "answer": "#### 1"}\n')
    fixed = [
        f"--model={checkpoint}",
        "--benchmarks=gsm8k",
        f"--benchmark_data={folder}/data",
        "--prompt=plain",
    ]
    given = [argument.replace("{}", str(folder)) for argument in arguments]
    commands.check_refused(
        evaluate.main, [*fixed, f"--out={folder}/out", *given], expected, folder, capfd, monkeypatch
    )


@pytest.mark.parametrize(
    "flag,expected",
    [
        ("--seed=1", "seed: 0 -> 1"),
        pytest.param("--top_p=0.5", "top_p: 1.0 -> 0.5", marks=pytest.mark.slow),
        pytest.param("--max_new_tokens=13", "max_new_tokens: 12 -> 13", marks=pytest.mark.slow),
        pytest.param(
            "--prompt=qwen-boxed", "prompt: 'plain' -> 'qwen-boxed'", marks=pytest.mark.slow
        ),
        pytest.param(
            "--benchmark_data={}/other.jsonl",
            "gsm8k '0' has another prompt now",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_folder_with_another_evaluation_is_refused(
    flag, expected, run, checkpoint, folder, capfd, monkeypatch
):
    """And what was sampled stays as it is."""
    run("--samples=1")
    write_rows(folder / "other.jsonl", [{"question": "Else?", "answer": "#### 1"}])
    arguments = [
        f"--model={checkpoint}",
        "--benchmarks=gsm8k",
        f"--benchmark_data={folder}/data",
        "--prompt=plain",
    ]
    arguments += ["--max_new_tokens=12", f"--out={folder}/out", flag.replace("{}", str(folder))]
    commands.check_refused(
        evaluate.main, arguments, [expected, "give another folder"], folder, capfd, monkeypatch
    )


@pytest.mark.parametrize("kind", ["sampling", "held out", "grading"])
def test_a_second_job_in_one_folder_is_refused_at_once(
    kind, checkpoint, folder, capfd, monkeypatch
):
    """It would erase at its end what the first one sampled meanwhile."""
    write_rows(folder / "text.jsonl", [{"prompt": "1+1?", "completion": "2"}])
    write_rows(
        folder / "made.jsonl", [{"benchmark": "gsm8k", "id": "0", "sample": 0, "completion": "2"}]
    )
    arguments = {
        "sampling": [f"--model={checkpoint}", "--benchmarks=gsm8k", "--prompt=plain"],
        "held out": [f"--model={checkpoint}", f"--heldout={folder}/text.jsonl", "--prompt=plain"],
        "grading": [f"--grade={folder}/made.jsonl"],
    }[kind]
    arguments += [f"--benchmark_data={folder}/data", f"--out={folder}/out"]
    expected = [f"--out={folder}/out: another process is at work there", "wait for it"]
    with folders.locked(folder / "out", "--out"):
        commands.check_refused(evaluate.main, arguments, expected, folder, capfd, monkeypatch)


def test_a_checkpoint_that_goes_meanwhile_is_replaced_once_by_the_newest(
    tmp_path, monkeypatch, capsys
):
    seen = []

    def gone(path, asked, heldout_data, out, step):
        seen.append(out)
        if len(seen) < 2:
            raise Gone("checkpoints/8: is gone; run the same command again")

    monkeypatch.setattr(evaluate_model, "_evaluate", gone)
    evaluate_model.evaluate_newest("run", Settings(), None, tmp_path)
    assert (
        seen == [tmp_path] * 2 and "checkpoints/8: is gone; the newest" in capsys.readouterr().err
    )
    monkeypatch.setattr(evaluate_model, "_evaluate", lambda *_: seen.clear() or gone(*_))
    with pytest.raises(Gone, match="run the same command again"):
        evaluate_model.evaluate_newest("run", Settings(), None, tmp_path)


def test_a_checkpoint_that_is_gone_leaves_the_folder_as_it_was(run, folder, monkeypatch):
    """Else it would be said to be of a model of which there is no sample, and refuse the next."""

    def gone():
        raise Gone("gone")

    before = model_flags.open_lm
    monkeypatch.setattr(
        model_flags,
        "open_lm",
        lambda *path, **given: dataclasses.replace(before(*path, **given), read=gone),
    )
    with pytest.raises(AssertionError, match="error: gone"):
        run()
    assert list(tree(folder / "out")) == [".lock"]


def test_only_what_the_tokenizer_has_is_sampled(checkpoint, folder, tmp_path):
    """The embedded model has 264 rows for 259 tokens. An id that a file says ends a text may still
    be drawn.
    """

    def vocab_size(source):
        model = build(read_config(source), sharding.make_mesh(-1, 1, 1))
        settings = Settings(benchmarks=("gsm8k",), benchmark_data=f"{folder}/data", prompt="plain")
        return planning.plan(settings, load_tokenizer(source), model).sampler.vocab_size

    assert vocab_size(checkpoint) == 259 < read_config(checkpoint).vocab_size == 264
    ends = shutil.copytree(checkpoint, tmp_path / "ends")
    (ends / "generation_config.json").write_text(json.dumps({"eos_token_id": 261}))
    assert vocab_size(ends) == 262


def test_a_signal_is_heard_while_grading():
    """With the next verdict; the journal goes only when all is graded."""
    row = {"completion": r"\boxed{1+1}"}
    predictions = [Prediction("here", row, "gsm8k", "0", 0, 1.0, "2")]
    with interrupts.Interrupts() as caught:
        interrupts.check()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(errors.Stopped, match="SIGTERM"):
            grading.grade(
                predictions,
                {},
                mode="strict",
                last_number=False,
                answer_markers=("box",),
                workers=1,
            )
        assert caught.handled == "SIGTERM"


def test_a_last_line_without_its_newline_is_sampled_again(tmp_path):
    """The next would be joined to it, and both be lost."""
    plan = object.__new__(planning.Plan)
    for name in ("prompts", "images"):
        object.__setattr__(plan, name, {})
    row = {name: kind() for name, kind in journal.FIELDS.items()}
    line, another = (json.dumps(row | {"sample": number}) for number in (0, 1))
    file = tmp_path / journal.JOURNAL_NAME
    for rest in (another, another[:20]):
        file.write_text(f"{line}\n{rest}")
        assert list(journal.completions(plan, tmp_path)) == [("", 0.0, "", 0)]
        assert file.read_text() == f"{line}\n"


@pytest.mark.slow
def test_a_damaged_journal_is_named(run, folder, checkpoint, capfd, monkeypatch):
    run("--samples=1")
    file = folder / "out" / "predictions.jsonl"
    file.write_text(file.read_text().replace('"sample"', '"simple"', 1))
    fixed = [
        f"--model={checkpoint}",
        "--benchmarks=gsm8k",
        f"--benchmark_data={folder}/data",
        "--prompt=plain",
    ]
    fixed += ["--max_new_tokens=12", f"--out={folder}/out"]
    expected = [
        "predictions.jsonl:1: not a completion (field 'sample' is missing",
        "remove the line",
    ]
    commands.check_refused(evaluate.main, fixed, expected, folder, capfd, monkeypatch)


@pytest.mark.slow
def test_from_a_training_config_and_of_a_run(folder, capfd, monkeypatch):
    """Every n steps and at the end; and `--model=RUN` gives what the end of training gave."""
    eval_ = dict(
        benchmarks="gsm8k",
        benchmark_data=f"{folder}/data",
        prompt="plain",
        samples=2,
        max_new_tokens=8,
    )
    eval_ |= dict(benchmarks_every=2, slots=8)
    arguments = [
        TINY,
        f"--workdir={folder}/run",
        "--config.train.steps=3",
        "--config.log.tensorboard=False",
    ]
    arguments += [f"--config.eval.{name}={value}" for name, value in eval_.items()]
    arguments += [
        "--config.data.heldout=",
        "--config.data.max_rows=32",
        "--config.export.enabled=False",
    ]
    outcome = run_command(main.main, arguments, capfd, monkeypatch)
    assert outcome.code == 0, outcome.stderr
    assert sorted(os.listdir(folder / "run" / "eval")) == ["2", "3"]
    curve = {
        row["step"]: row
        for row in read_rows(folder / "run" / "metrics.jsonl")
        if "eval/gsm8k_T1_avg_at_2" in row
    }
    assert sorted(curve) == [2, 3] and "eval/gsm8k_T0_mean_token_entropy" in curve[3]
    asked = [f"--{name}={value}" for name, value in eval_.items() if name != "benchmarks_every"]
    outcome = run_command(
        evaluate.main, [f"--model={folder}/run", f"--out={folder}/out", *asked], capfd, monkeypatch
    )
    assert outcome.code == 0, outcome.stderr
    ours = read_rows(folder / "out" / "predictions.jsonl")
    assert ours == read_rows(folder / "run" / "eval" / "3" / "predictions.jsonl")
    summary = json.loads((folder / "out" / "scores.json").read_text())
    assert (summary["model"]["name"], summary["model"]["step"]) == ("run", 3)
    made_of = json.loads((folder / "run" / "env.json").read_text())
    origin = {name: made_of[name] for name in ("run_id", "base", "data")}
    assert summary["model"]["origin"] == origin and origin["run_id"] and origin["data"]["sha256"]
    in_training = json.loads((folder / "run" / "eval" / "3" / "scores.json").read_text())["model"]
    assert (
        in_training["run_id"] == origin["run_id"]
        and in_training["origin"]["base"] == origin["base"]
    )
    assert (
        f"run {origin['run_id']}, step 3, begun with {assets.TINY}, random weights"
        in outcome.stdout
    )


EVALS = ("eval.old-1", "eval")


@pytest.mark.slow
def test_training_does_not_report_the_scores_of_another_run(folder, capfd, monkeypatch):
    """Begun anew in its folder it is another run: what the first one left is set aside, and sampled
    anew.
    """
    plain = [
        TINY,
        f"--workdir={folder}/run",
        "--config.train.steps=2",
        "--config.log.tensorboard=False",
    ]
    plain += [
        "--config.data.heldout=",
        "--config.data.max_rows=32",
        "--config.export.enabled=False",
    ]
    eval_ = dict(
        benchmarks="gsm8k",
        benchmark_data=f"{folder}/data",
        prompt="plain",
        samples=1,
        max_new_tokens=4,
    )
    arguments = plain + [f"--config.eval.{name}={value}" for name, value in eval_.items()]
    assert run_command(main.main, plain, capfd, monkeypatch).code == 0
    outcome = run_command(main.main, arguments, capfd, monkeypatch)
    assert outcome.code == 0 and os.listdir(folder / "run" / "eval") == ["2"], (
        "asked of a finished run, it is made"
    )
    first = tree(folder / "run" / "eval")
    shutil.rmtree(folder / "run" / "checkpoints")
    counts = count_sampled(monkeypatch)
    outcome = run_command(main.main, arguments, capfd, monkeypatch)
    assert outcome.code == 0 and "eval: 2 set aside in eval.old-1" in outcome.stderr, outcome.stderr
    assert counts == [2 * len(PROBLEMS)] and tree(folder / "run" / "eval.old-1") == first
    run_ids = [
        json.loads((folder / "run" / name / "2" / "evaluation.json").read_text())["run_id"]
        for name in EVALS
    ]
    assert (
        run_ids[0] != run_ids[1] == json.loads((folder / "run" / "env.json").read_text())["run_id"]
    )
    outcome = run_command(main.main, arguments, capfd, monkeypatch)
    assert outcome.code == 0 and len(counts) == 1, "the same run goes on: nothing is sampled twice"


@pytest.mark.parametrize(
    "override,expected",
    [
        (
            "benchmarks=gsm9k",
            "config.eval.benchmarks: benchmark 'gsm9k' is unknown (did you mean 'gsm8k'?)",
        ),
        ("samples=0", "config.eval.samples=0 should be at least 1"),
        ("temperature=hot", "config.eval.temperature='hot' should be numbers"),
        ("prompt=plane", "config.eval.prompt='plane' is unknown (did you mean 'plain'?)"),
        ("benchmark_data=/none", "no such file or folder"),
    ],
)
def test_bad_eval_configs_are_refused(override, expected, refused):
    rows = "--config.data.rows=gsm8k"  # of the data that a run reads before its benchmarks
    refused([rows, "--config.eval.benchmarks=gsm8k", f"--config.eval.{override}"], [expected])


@pytest.mark.slow
def test_two_processes_give_what_one_gives(run, folder, checkpoint):
    run("--samples=2")
    alone = read_rows(folder / "out" / "predictions.jsonl")
    command = [
        sys.executable,
        "-m",
        "dft_jax.evaluate",
        f"--model={checkpoint}",
        "--benchmarks=gsm8k",
        "--slots=8",
    ]
    command += [
        f"--benchmark_data={folder}/data",
        "--prompt=plain",
        "--samples=2",
        "--max_new_tokens=12",
    ]
    command += [f"--out={folder}/two", "--last_number"]
    shared_ = {
        **os.environ,
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": "2",
    }
    shared_["XLA_FLAGS"] = xla.flags(2)
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**shared_, "JAX_PROCESS_ID": str(i)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert read_rows(folder / "two" / "predictions.jsonl") == alone


@pytest.mark.slow
def test_heldout_metrics_equal_all_logits_at_once(checkpoint, folder, capfd, monkeypatch):
    rows = [{"question": f"What is {i}+1?", "answer": f"It is {i + 1}."} for i in range(9)]
    write_rows(folder / "text.jsonl", rows)
    arguments = [
        f"--model={checkpoint}",
        f"--heldout={folder}/text.jsonl",
        "--rows=gsm8k",
        "--prompt=plain",
    ]
    outcome = run_command(evaluate.main, [*arguments, f"--out={folder}/out"], capfd, monkeypatch)
    assert outcome.code == 0, outcome.stderr
    found = json.loads((folder / "out" / "heldout.json").read_text())
    model = build(read_config(checkpoint), sharding.make_mesh(-1, 1, 1))
    params, tokenizer = load_params(Checkpoint(checkpoint), model), load_tokenizer(checkpoint)
    p = []
    for row in rows:
        prompt = Template("plain", tokenizer).prompt_ids(row["question"])
        ids = [*prompt, *tokenizer(row["answer"] + tokenizer.eos_token)["input_ids"]]
        tokens_BL = np.tile(np.array(ids, np.int32), (8, 1))
        positions_BL = np.tile(np.arange(len(ids), dtype=np.int32), (8, 1))
        batch = Batch(tokens_BL, tokens_BL, tokens_BL > 0, np.ones_like(tokens_BL), positions_BL)
        logits_LV = np.asarray(model.apply(params, batch)[0] @ head(params).T, np.float64)
        p_LV = np.exp(logits_LV) / np.exp(logits_LV).sum(axis=1, keepdims=True)
        p += [p_LV[i - 1, ids[i]] for i in range(len(prompt), len(ids))]
    assert found["metrics"]["heldout/supervised_tokens"] == len(p)
    assert found["metrics"]["heldout/nll"] == pytest.approx(-np.mean(np.log(p)), rel=1e-5)
    assert found["metrics"]["heldout/mean_p"] == pytest.approx(np.mean(p), rel=1e-5)
    assert found["metrics"]["heldout/share_of_p_below_0.01"] == pytest.approx(
        np.mean(np.array(p) < 0.01)
    )
    assert "heldout/nll" in outcome.stdout and "p in" in outcome.stdout


def test_stop_tokens_come_from_tokenizer_and_style(shared):
    qwen = load_tokenizer(shared / "tokenizers" / "qwen2")
    endoftext, im_end = 151643, 151645
    expected = {
        "qwen-boxed": [endoftext, im_end],
        "qwen25-math-cot": [endoftext, im_end],
        "plain": [endoftext],
    }
    expected |= {
        "deepseek-math": [endoftext],
        "llama-base-boxed": [endoftext],
        "tokenizer": [endoftext, im_end],
    }
    assert {style: find_stops(Template(style, qwen)).ids for style in expected} == expected


@pytest.mark.slow
def test_every_eos_of_the_checkpoint_ends_a_completion(run, folder, checkpoint):
    """A list in generation_config.json was not read: the model wrote on to the limit."""
    every = shutil.copytree(checkpoint, folder / "every")
    (every / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(1, 264))}))
    outcome, summary = run(f"--model={every}")
    assert {row["tokens"] for row in read_rows(folder / "out" / "predictions.jsonl")} == {1}
    assert (
        summary["stop_sources"]["generation_config.json"]
        == summary["stop_ids"][1:]
        == list(range(1, 264))
    )
    assert any(
        line.startswith("the tokenizer's eos_token is 0 (<|endoftext|>), generat")
        for line in summary["warnings"]
    )
    assert "warning: the tokenizer's eos_token is 0" in outcome.stderr


@pytest.mark.slow
def test_an_evaluation_keeps_its_date(run, folder, monkeypatch):
    """Under a template that writes the date, samples can be added on the next day."""
    template = folder / "dated.jinja"
    template.write_text("{{ strftime_now('%d %b %Y') }}: {{ messages[0].content }}\n")
    monkeypatch.setattr(evaluation, "today", lambda: "2026-01-31")
    run("--samples=1", f"--prompt={template}")
    monkeypatch.setattr(evaluation, "today", lambda: "2026-02-01")
    counts = count_sampled(monkeypatch)
    run("--samples=2", f"--prompt={template}")
    assert counts == [6]
    assert all(
        row["prompt"].startswith("31 Jan 2026: ")
        for row in read_rows(folder / "out" / "predictions.jsonl")
    )
    assert json.loads((folder / "out" / "evaluation.json").read_text())["date"] == "2026-01-31"


def test_the_settings_of_config_and_command_are_the_same():
    from dft_jax import config as config_lib
    from dft_jax.evals import settings

    names = {field.name for field in runner.dataclasses.fields(Settings)}
    assert names <= set(config_lib.get_default().eval)
    assert settings.of_config(config_lib.get_default().eval) == Settings()


def known_completions(monkeypatch):
    """Completions of no model: quick, where only what is done with them matters."""

    def sample(self, params, requests, progress=True, watch=None):
        for request in requests:
            yield sampler.Completion(request, (1, 2), True, 0.5)

    monkeypatch.setattr(sampler.Sampler, "sample", sample)


def of_version(monkeypatch, version):
    changed = dataclasses.replace(benchmarks.BENCHMARKS["gsm8k"], version=version)
    monkeypatch.setitem(benchmarks.BENCHMARKS, "gsm8k", changed)


@pytest.mark.parametrize("state", ["finished", "killed while sampling"])
def test_completions_of_another_version_of_a_benchmark_are_refused(
    state, run, checkpoint, folder, capfd, monkeypatch
):
    """A raised version says that its problems, prompts or verdicts have changed."""
    known_completions(monkeypatch)
    _, summary = run()
    assert summary["benchmark_versions"] == {"gsm8k": 1}
    out = folder / "out"
    if state != "finished":
        (out / "scores.json").unlink()
        (out / "predictions.jsonl").rename(out / "journal.jsonl")
    of_version(monkeypatch, 2)
    arguments = [
        f"--model={checkpoint}",
        "--benchmarks=gsm8k",
        f"--benchmark_data={folder}/data",
        "--prompt=plain",
        "--max_new_tokens=12",
        f"--out={out}",
    ]
    expected = [
        f"{out} holds another evaluation; give another folder",
        "version of the benchmark gsm8k: 1 -> 2",
    ]
    commands.check_refused(evaluate.main, arguments, expected, folder, capfd, monkeypatch)


def test_an_evaluation_from_before_versions_were_recorded_goes_on(run, folder, monkeypatch):
    known_completions(monkeypatch)
    run()
    out = folder / "out"
    for name in ("evaluation.json", "scores.json"):
        content = json.loads((out / name).read_text())
        del content["benchmark_versions"]
        (out / name).write_text(json.dumps(content))
    before = tree(out)
    of_version(monkeypatch, 2)
    run()
    assert tree(out) == before, "finished: nothing is sampled, graded or written"
    _, summary = run("--samples=4")
    assert summary["benchmark_versions"] == {"gsm8k": 2}
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["benchmark_versions"] == {"gsm8k": 2}


def test_a_benchmark_that_is_added_has_its_version_recorded(run, folder, monkeypatch):
    known_completions(monkeypatch)
    run()
    rows = [{"id": 60, "problem": "?", "answer": "204"}]
    write_rows(folder / "data" / "aime24.jsonl", rows)
    run("--benchmarks=aime24")
    evaluation = json.loads((folder / "out" / "evaluation.json").read_text())
    assert evaluation["benchmark_versions"] == {"gsm8k": 1, "aime24": 1}


def test_recorded_versions_that_are_no_object_are_refused(
    run, checkpoint, folder, capfd, monkeypatch
):
    known_completions(monkeypatch)
    run()
    file = folder / "out" / "evaluation.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"benchmark_versions": [1]}))
    arguments = [f"--model={checkpoint}", "--benchmarks=gsm8k", f"--out={folder}/out"]
    arguments += [f"--benchmark_data={folder}/data", "--prompt=plain", "--max_new_tokens=12"]
    expected = ["evaluation.json: benchmark_versions should be an object; give another folder"]
    commands.check_refused(evaluate.main, arguments, expected, folder, capfd, monkeypatch)


class Loud(task.Task):
    """A benchmark that is asked in capitals."""

    def prompt(self, problem, template):
        return problem.question.upper()


class Approving(pool.Grader):
    """Accepts whatever is said."""

    def grade(self, items, *arguments, **options):
        return [pool.Graded("correct", completion) for completion, _ in items]


def test_a_benchmark_says_what_is_asked_and_who_judges(run, folder, monkeypatch):
    """Beside one that another grader judges: each gets its own, and rows keep their order."""
    known_completions(monkeypatch)
    gsm8k = benchmarks.BENCHMARKS["gsm8k"]
    loud = Loud("loud", source="", count=6, answer=gsm8k.answer, grader="approving")
    monkeypatch.setitem(benchmarks.BENCHMARKS, "loud", loud)
    module = types.SimpleNamespace(Grader=Approving)
    monkeypatch.setitem(grading._GRADERS, "approving", module)
    write_rows(folder / "data" / "loud.jsonl", PROBLEMS)
    _, summary = run("--benchmarks=gsm8k,loud", "--nogreedy")
    rows = read_rows(folder / "out" / "predictions.jsonl")
    assert [row["benchmark"] for row in rows] == ["gsm8k"] * 18 + ["loud"] * 18
    for row in rows:
        question = PROBLEMS[int(row["id"])]["question"]
        if row["benchmark"] == "loud":
            assert row["prompt"] == question.upper() + "\n" and row["verdict"] == "correct"
        else:
            assert row["prompt"] == question + "\n" and row["verdict"] != "correct"
    means = {result["benchmark"]: result["avg_at_k"]["mean"] for result in summary["results"]}
    assert means == {"gsm8k": 0, "loud": 1}


def test_every_benchmark_has_a_grader():
    known = grading._GRADERS.keys() | {task.PROGRAM}
    assert {one.grader for one in benchmarks.BENCHMARKS.values()} <= known


def test_prompts_are_one_text_to_be_hashed():
    """Sorted, as the hashes of runs and evaluations of several processes have always been made."""
    prompts = {("math500", "b"): "ü?", ("aime24", "9"): "1", ("aime24", "10"): "2"}
    plan = types.SimpleNamespace(prompts=prompts, images={}, shown=lambda *_: [])
    made = planning.Plan.prompts_json(plan)
    assert made == '[["aime24", "10", "2"], ["aime24", "9", "1"], ["math500", "b", "\\u00fc?"]]'
