"""The grading command: from a file of completions to verdicts and scores, and what it refuses."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from dft_jax.commands import evaluate
from dft_jax.evals.graders import pool
from tests import commands
from tests.commands import ROOT, run_command, tree

PROBLEMS = [{"id": id_, "problem": f"1+{id_}?", "answer": str(id_ + 1)} for id_ in range(60, 64)]


def row(id_, sample, completion, **more):
    return {"benchmark": "aime24", "id": id_, "sample": sample, "completion": completion, **more}


def boxed(text):
    return f"So it is \\boxed{{{text}}}."


def write_rows(file, rows):
    file.write_text("".join(json.dumps(each) + "\n" for each in rows))


@pytest.fixture
def folder(tmp_path):
    """`data/aime24.jsonl` with four problems: 60 to 63, whose answers are 61 to 64."""
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "aime24.jsonl", PROBLEMS)
    (tmp_path / "data" / "notes.txt").write_text("Nothing to grade.")
    return tmp_path


class StubGrader(pool.Grader):
    """Grades by equality of the text in the box, at once; "slow" and "bad" stand for grading that
    failed.
    """

    def __init__(self, *, workers, mode, last_number, answer_markers):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def grade(self, items, progress=True, check=None, truncated=()):
        return [self._grade(*item) for item in items]

    def classes(self, answers, verdicts):
        """By the text; all that are correct are one class."""
        known = {}
        keys = [
            "" if verdict == "correct" else answer
            for answer, verdict in zip(answers, verdicts, strict=True)
        ]
        return [None if key is None else known.setdefault(key, len(known)) for key in keys]

    def _grade(self, completion, reference):
        if "\\boxed{" not in completion:
            return pool.Graded("no_answer", None)
        answer = completion.rpartition("\\boxed{")[2].partition("}")[0]
        verdict = {"slow": "timeout", "bad": "error", reference: "correct"}.get(answer, "wrong")
        return pool.Graded(verdict, answer)


@pytest.fixture
def run(folder, capfd, monkeypatch):
    """run(rows, *flags): grades these rows, with the stub, against the four problems; returns
    outcome and scores.
    """
    monkeypatch.setattr(pool, "Grader", StubGrader)

    def run(rows, *arguments):
        write_rows(folder / "predictions.jsonl", rows)
        fixed = [
            f"--grade={folder}/predictions.jsonl",
            f"--benchmark_data={folder}/data",
            f"--out={folder}/out",
        ]
        outcome = run_command(evaluate.main, [*fixed, *arguments], capfd, monkeypatch)
        assert outcome.code == 0, outcome.stderr
        return outcome, json.loads((folder / "out" / "scores.json").read_text())

    return run


FOUR_SAMPLES = [
    *[
        row("60", s, boxed(x), tokens=10 + s, truncated=s == 3)
        for s, x in enumerate(["61", "61", "5", "61"])
    ],
    *[
        row("61", s, boxed(x), tokens=20, truncated=False)
        for s, x in enumerate(["5", "62", "5", "7"])
    ],
    *[
        row(62, s, x, tokens=30, truncated=True)
        for s, x in enumerate(["", boxed("slow"), boxed("bad"), "ab" * 200])
    ],
]


def test_scores_of_a_small_file(run, folder):
    """Correct of four: 3, 1, 0; so avg 4/12, pass@2 the mean of 1, 1/2, 0, maj the mean of 1, 0 and
    a lost vote.
    """
    outcome, summary = run(FOUR_SAMPLES)
    result = summary["results"][0]
    assert result["problems"] == {"expected": 30, "scored": 3, "missing": ["63"]}
    assert result["samples_per_problem"] == result["avg_at_k"]["k"] == 4
    assert result["avg_at_k"]["mean"] == pytest.approx(1 / 3)
    # with one right and one wrong imagined
    analytic = np.std([0.75, 0.25, 0, 1, 0], ddof=1) / np.sqrt(5)
    assert result["avg_at_k"]["standard_error"] == pytest.approx(analytic)
    assert result["pass_at_k"] == pytest.approx({"1": 1 / 3, "2": 0.5, "4": 2 / 3})
    assert (result["maj_at_k"]["k"], result["maj_at_k"]["mean"]) == (4, pytest.approx(1 / 3))
    assert result["majority_correct_of_problem"] == {"60": True, "61": False, "62": False}
    for interval in (result["maj_at_k"]["interval_95"], *result["pass_at_k_interval_95"].values()):
        assert 0 <= interval[0] < interval[1] <= 1
    assert set(result["pass_at_k_interval_95"]) == {"1", "2", "4"}
    expected = {"correct": 4, "wrong": 4, "no_answer": 2, "timeout": 1, "error": 1}
    assert result["verdicts"] == expected and set(expected) == set(pool.VERDICTS)
    assert result["mean_length_tokens"] == pytest.approx((46 + 80 + 120) / 12)
    assert result["mean_length_characters"] == pytest.approx(
        np.mean([len(r["completion"]) for r in FOUR_SAMPLES])
    )
    assert result["truncation_rate"] == pytest.approx(5 / 12)
    assert result["repetition_rate"] == pytest.approx(1 / 12)

    content = (folder / "predictions.jsonl").read_bytes()
    assert summary["predictions"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert (summary["grader"]["mode"], summary["grader"]["last_number"]) == ("strict", False)
    assert (
        summary["environment"]["versions"]["jax"] and summary["grader"]["versions"]["math-verify"]
    )
    assert "aime24     –  3/30      4  33.3% ± " in outcome.stdout
    for text in (
        "aime24 has 4 problems here, 30 as published",
        "the scores are on 3 of 4 problems",
        "1 timeouts and 1 errors of the grader count as not correct",
    ):
        assert text in outcome.stderr
    assert (
        sum(line.startswith("warning: ") for line in outcome.stderr.splitlines())
        == len(summary["warnings"])
        == 3
    )


def test_every_row_comes_back_with_its_verdict(run, folder):
    rows = [
        row("60", 0, boxed("61"), engine="x", seed=[1]),
        row("61", 0, "Mmh …"),
        row("62", 0, "\ud800 " + boxed("2")),
    ]
    run(rows)
    graded = [
        json.loads(line)
        for line in (folder / "out" / "predictions.graded.jsonl").read_text().splitlines()
    ]
    verdicts = [("61", "61", "correct"), ("62", None, "no_answer"), ("63", "2", "wrong")]
    names = ("reference", "extracted", "verdict")
    assert graded == [
        {**r, **dict(zip(names, v, strict=True))} for r, v in zip(rows, verdicts, strict=True)
    ]
    assert sorted(tree(folder / "out")) == [".lock", "predictions.graded.jsonl", "scores.json"]


def test_order_of_rows_and_first_sample_number_do_not_matter(run):
    _, one = run(FOUR_SAMPLES)
    _, other = run([FOUR_SAMPLES[i] for i in np.random.default_rng(0).permutation(12)])
    _, from_one = run([{**r, "sample": r["sample"] + 1} for r in FOUR_SAMPLES])
    assert one["results"] == other["results"] == from_one["results"]


def test_own_references_need_no_benchmark_data(folder, capfd, monkeypatch):
    """Neither a file nor the hub is asked, and by default the output stands beside the input."""
    monkeypatch.setattr(pool, "Grader", StubGrader)
    rows = [
        row("60", 0, boxed("1"), reference="1"),
        {**row("7", 0, boxed("1"), reference="2"), "benchmark": "gsm8k"},
    ]
    write_rows(folder / "predictions.jsonl", rows)
    outcome = run_command(
        evaluate.main, [f"--grade={folder}/predictions.jsonl"], capfd, monkeypatch
    )
    assert outcome.code == 0, outcome.stderr
    results = {
        each["benchmark"]: each
        for each in json.loads((folder / "scores.json").read_text())["results"]
    }
    assert [results[name]["avg_at_k"]["mean"] for name in ("aime24", "gsm8k")] == [1, 0]
    assert results["aime24"]["problems"] == {"expected": 30, "scored": 1, "missing": None}
    assert results["aime24"]["avg_at_k"]["interval_95"] is None
    assert "aime24: the scores are on 1 of 30 problems" in outcome.stderr


def test_a_reference_that_is_a_solution_is_read(run):
    references = ["3 + 58\n#### 61", r"Thus $\boxed{62}$.", "63"]
    rows = [
        row(str(60 + i), 0, boxed(str(61 + i)), reference=text) for i, text in enumerate(references)
    ]
    outcome, summary = run(rows)
    assert summary["results"][0]["avg_at_k"]["mean"] == 1
    assert "another reference" not in outcome.stderr


def test_what_marks_an_answer_is_recorded(run):
    _, summary = run([row("60", 0, "Answer: 61")], "--answer_markers=box,is")
    assert summary["grader"]["answer_markers"] == ["box", "is"]
    assert summary["grader"]["rules"] == pool.RULES


def test_what_could_be_taken_for_granted_is_said(run):
    rows = [
        row("60", 0, "", tokens=3, reference="61"),
        row("61", 0, "", reference="9"),
        row("62", 0, ""),
    ]
    outcome, summary = run(rows)
    assert "1 rows have another reference than the benchmark" in outcome.stderr
    assert "only some rows have 'tokens', so mean_length_tokens is not reported" in outcome.stderr
    result = summary["results"][0]
    assert result["mean_length_tokens"] is None and result["truncation_rate"] is None
    assert result["maj_at_k"]["mean"] == 0


def test_most_without_an_answer_and_most_cut_are_said_with_the_remedy(run):
    """Two of three say nothing: a warning; two of four: none. The same for those that were cut."""

    def warnings_of(n_bad, n):
        rows = [
            row(str(60 + i), 0, "" if i < n_bad else boxed("1"), truncated=i < n_bad)
            for i in range(n)
        ]
        outcome, summary = run(rows)
        assert all(line in outcome.stderr for line in summary["warnings"])
        return [line for line in summary["warnings"] if "of the completions" in line]

    unanswered, cut = warnings_of(2, 3)
    assert unanswered.startswith(
        "aime24 at –: 67% of the completions mark no answer, and count as not correct"
    )
    assert "--prompt" in unanswered and "instruction" in unanswered and "more tokens" in unanswered
    assert (
        cut.startswith("aime24 at –: 67% of the completions were cut") and "--max_new_tokens" in cut
    )
    assert warnings_of(2, 4) == []


def test_digests_are_of_question_and_reference(run, folder):
    """The same whatever the id; another for another question or answer; without the benchmark, of
    the reference.
    """

    def digests(*problems):
        write_rows(folder / "data" / "aime24.jsonl", problems)
        _, summary = run([row(problem["id"], 0, "x") for problem in problems])
        result = summary["results"][0]
        assert result["sha256_is_of"] == "question and reference"
        return list(result["sha256_of_problem"].values())

    first = digests(*PROBLEMS)
    assert len(set(first)) == 4 and all(len(each) == 16 for each in first)
    assert digests(*[problem | {"id": problem["id"] + 100} for problem in PROBLEMS]) == first
    other = digests(
        PROBLEMS[0] | {"problem": "2+60?"}, PROBLEMS[1] | {"answer": "7"}, *PROBLEMS[2:]
    )
    assert [a == b for a, b in zip(first, other, strict=True)] == [False, False, True, True]
    _, summary = run([row("60", 0, "x", reference="61")], "--benchmark_data=")
    result = summary["results"][0]
    assert result["sha256_is_of"] == "reference" and result["sha256_of_problem"]["60"] not in first


def lines(*rows):
    return "".join(json.dumps(each) + "\n" for each in rows).encode()


OK = row("60", 0, "x")

# Name -> (content of predictions.jsonl, other arguments, what stderr must say). {} is the folder.
BAD = {
    "no file": (None, [], ["predictions.jsonl: no such file", "correct the path"]),
    "a folder": (lines(OK), ["--grade={}/data"], ["data: no such file", "correct the path"]),
    "a model": (
        lines(OK),
        ["--model=run", "--heldout=b"],
        ["--grade and --model and --heldout both say what is evaluated; give one of them"],
    ),
    "settings of another way": (
        lines(OK),
        ["--benchmarks=math500", "--programs=skip", "--temperature=1.0"],
        [
            "--benchmarks=math500 has no effect with --grade, which samples nothing",
            "--programs=skip has no effect with --grade",
        ],
    ),
    "unknown ending": (
        lines(OK),
        ["--grade={}/data/notes.txt"],
        ["unknown ending '.txt'; give a .jsonl file"],
    ),
    "empty file": (b"", [], ["predictions.jsonl: the file has no rows", "one completion per line"]),
    "malformed row": (
        lines(OK) + b"{'a'}\n",
        [],
        ["predictions.jsonl:2: not JSON at column 2", "fix or remove"],
    ),
    "cut off": (lines(OK) + lines(OK)[:30], [], ["predictions.jsonl:2:", "was the file cut off?"]),
    "no completion": (
        lines({**OK, "completion": None}),
        [],
        ["predictions.jsonl:1: field 'completion' is missing", "the text of the model"],
    ),
    "text for a number": (
        lines(OK, row("61", "0", "x")),
        [],
        [
            "predictions.jsonl:2: field 'sample' should be the number of the sample,"
            " from 0 to 1000000000, not '0'",
            "fix the row",
        ],
    ),
    "a reference with an empty box": (
        lines({**OK, "reference": r"so \boxed{}"}),
        [],
        ["predictions.jsonl:1: the reference marks an answer", "fix or remove the row"],
    ),
    "unknown marker": (
        lines(OK),
        ["--answer_markers=box,hope"],
        ["--answer_markers=box,hope should be one or more of box, final, hashes, colon, is"],
    ),
    "negative sample": (
        lines(row("60", -1, "x")),
        [],
        [":1: field 'sample' should be", "from 0 to 1000000000, not -1"],
    ),
    "truth for a number": (
        lines(row("60", True, "x")),
        [],
        [":1: field 'sample' should be", "not True"],
    ),
    "a list of completions": (
        lines(row("60", 0, ["x"] * 99)),
        [],
        ["'completion' should be the text", "not list"],
    ),
    "tokens of 400 digits": (
        lines(row("60", 0, "x", tokens=10**400)),
        [],
        [":1: field 'tokens' should be", "not int"],
    ),
    "a sample of 400 digits": (
        lines(row("60", 10**400, "x")),
        [],
        [":1: field 'sample' should be", "not int"],
    ),
    "an id of 400 digits": (
        lines(row(10**400, 0, "x")),
        [],
        [":1: field 'id' should be", "not int"],
    ),
    "temperature of 400 digits": (
        lines(row("60", 0, "x", temperature=10**400)),
        [],
        [":1: field 'temperature' should be a number from 0 (greedy) to 10, not int"],
    ),
    "entropy of 400 digits": (
        lines(row("60", 0, "x", entropy=10**400)),
        [],
        [":1: field 'entropy' should be", "100"],
    ),
    "entropy of 1e308": (
        lines(row("60", 0, "x", entropy=1e308)),
        [],
        [":1: field 'entropy' should be", "not 1e+308"],
    ),
    "NaN": (
        b'{"benchmark": "aime24", "id": "60", "sample": 0, "completion": "x", "entropy": NaN}\n',
        [],
        ["not nan"],
    ),
    "infinite": (
        b'{"benchmark": "aime24", "id": "60", "sample": 0, "completion": "x",'
        b' "temperature": Infinity}\n',
        [],
        [":1: field 'temperature' should be", "not inf"],
    ),
    "negative tokens": (
        lines(row("60", 0, "x", tokens=-1)),
        [],
        [":1: field 'tokens' should be", "not -1"],
    ),
    "half a token": (
        lines(row("60", 0, "x", tokens=1.5)),
        [],
        [":1: field 'tokens' should be", "not 1.5"],
    ),
    "true tokens": (
        lines(row("60", 0, "x", tokens=True)),
        [],
        [":1: field 'tokens' should be", "not True"],
    ),
    "negative temperature": (
        lines(row("60", 0, "x", temperature=-0.5)),
        [],
        ["'temperature' should be", "not -0.5"],
    ),
    "true temperature": (
        lines(row("60", 0, "x", temperature=True)),
        [],
        ["'temperature' should be", "not True"],
    ),
    "truncated as a number": (
        lines(row("60", 0, "x", truncated=1)),
        [],
        ["'truncated' should be true or false, not 1"],
    ),
    "unknown benchmark": (
        lines({**OK, "benchmark": "aime-24"}),
        [],
        [
            "predictions.jsonl:1: benchmark 'aime-24' is unknown (did you mean 'aime24'?)",
            "known: math500,",
        ],
    ),
    "one sample twice": (
        lines(OK, row("61", 0, "x"), row(60, 0, "y")),
        [],
        [
            "predictions.jsonl:3: sample 0 of aime24 '60' is on predictions.jsonl:1 too",
            "number the samples",
        ],
    ),
    "ragged": (
        lines(OK, row("60", 1, "x"), row("60", 2, "x"), row("61", 1, "x")),
        [],
        ["aime24: problem '61' has 1 of 3 samples; missing: sample 0, 2", "leave the problem out"],
    ),
    "unknown id": (
        lines(OK, row("600", 0, "x")),
        [],
        [
            "predictions.jsonl:2: aime24 has no problem '600' (did you mean '60'?)",
            "the benchmark's own ids",
        ],
    ),
    "unlike any id": (lines(row("x", 0, "x")), [], ["aime24 has no problem 'x' (one is '60')"]),
    "many bad rows": (
        lines(*[{}] * 9),
        [],
        ["predictions.jsonl:4:", "and 5 more problems; fix these first"],
    ),
    "out is a file": (
        lines(OK),
        ["--out={}/data/aime24.jsonl"],
        ["--out=", "cannot be made", "another folder"],
    ),
    "out is in a file": (
        lines(OK),
        ["--out={}/data/aime24.jsonl/x"],
        ["cannot be made (Not a directory)"],
    ),
    "no benchmark data": (
        lines(OK),
        ["--benchmark_data={}/none"],
        ["none: no such file or folder; correct the path"],
    ),
    "not in the folder": (
        lines({**OK, "benchmark": "gsm8k"}),
        [],
        ["gsm8k_test.jsonl does not exist; put"],
    ),
    "one file for two": (
        lines(OK, {**OK, "benchmark": "gsm8k"}),
        ["--benchmark_data={}/data/aime24.jsonl"],
        ["is one file for aime24, gsm8k; give the folder"],
    ),
    "no data, no network": (
        lines(OK),
        ["--benchmark_data="],
        ["'math-ai/aime24'", "give a local file"],
    ),
    "unknown mode": (lines(OK), ["--mode=lenient"], ["--mode=lenient should be strict or paper"]),
    "no workers": (lines(OK), ["--workers=0"], ["--workers=0 should be at least 1"]),
    "unknown flag": (lines(OK), ["--modus=strict"], ["modus"]),
    "a loose word": (lines(OK), ["strict"], ["unexpected argument 'strict'", "--name=value"]),
}


class NoGrader:
    def __init__(self, **_):
        raise AssertionError("the mistake was found only when grading began")


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_and_nothing_is_written(case, folder, capfd, monkeypatch):
    content, arguments, expected = BAD[case]
    monkeypatch.setattr(pool, "Grader", NoGrader)
    if content is not None:
        (folder / "predictions.jsonl").write_bytes(content)
    fixed = [
        f"--grade={folder}/predictions.jsonl",
        f"--benchmark_data={folder}/data",
        f"--out={folder}/out",
    ]
    given = [argument.replace("{}", str(folder)) for argument in arguments]
    commands.check_refused(evaluate.main, [*fixed, *given], expected, folder, capfd, monkeypatch)


def test_a_graded_file_does_not_overwrite_itself(run, folder, capfd, monkeypatch):
    run(FOUR_SAMPLES)
    arguments = [
        f"--grade={folder}/out/predictions.graded.jsonl",
        f"--benchmark_data={folder}/data",
    ]
    expected = ["would be overwritten by itself", "give another folder"]
    commands.check_refused(evaluate.main, arguments, expected, folder, capfd, monkeypatch)
    outcome = run_command(evaluate.main, [*arguments, f"--out={folder}/again"], capfd, monkeypatch)
    assert outcome.code == 0, outcome.stderr
    graded = "predictions.graded.jsonl"
    assert (folder / "again" / graded).read_bytes() == (folder / "out" / graded).read_bytes()


def test_a_failure_leaves_the_earlier_scores(run, folder, monkeypatch):
    run(FOUR_SAMPLES)
    before = tree(folder / "out")

    def fail(self, items, progress=True, check=None, truncated=()):
        raise KeyboardInterrupt

    monkeypatch.setattr(StubGrader, "grade", fail)
    with pytest.raises(KeyboardInterrupt):
        run(FOUR_SAMPLES[:4])
    assert tree(folder / "out") == before


REAL = [
    *[
        row("60", s, boxed(answer))
        for s, answer in enumerate(["61", "61.0", r"\frac{122}{2}", "60"])
    ],
    *[row("61", s, "I do not know \ud800, perhaps 62") for s in range(4)],
]


def test_command_as_a_user_starts_it(folder):
    """With worker processes, and answers that are equal as mathematics."""
    write_rows(folder / "predictions.jsonl", REAL)
    command = [
        sys.executable,
        "-m",
        "dft_jax.evaluate",
        "--grade=predictions.jsonl",
        "--benchmark_data=data",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "aime24" in done.stdout and "graded 8 completions" in done.stdout
    assert verdicts(folder) == ["correct"] * 3 + ["wrong"] + ["no_answer"] * 4
    summary = json.loads((folder / "scores.json").read_text())
    assert summary["results"][0]["avg_at_k"]["mean"] == 3 / 8


def test_the_vote_is_by_meaning(folder, capfd, monkeypatch):
    """Three spellings of the right answer outvote a wrong one; two of a wrong one outvote a right
    one (real grader).
    """
    votes = {
        "60": ["61", "61.0", r"\frac{122}{2}", "2", "2"],
        "61": ["62", "0.75", r"\dfrac34", "7", "62.0"],
    }
    votes["62"] = ["63", "0.75", r"\dfrac34", "7", r"\frac{3}{4}"]
    rows = [
        row(id_, s, boxed(answer))
        for id_, answers in votes.items()
        for s, answer in enumerate(answers)
    ]
    write_rows(folder / "predictions.jsonl", rows)
    arguments = [
        f"--grade={folder}/predictions.jsonl",
        f"--benchmark_data={folder}/data",
        "--workers=1",
    ]
    outcome = run_command(evaluate.main, arguments, capfd, monkeypatch)
    assert outcome.code == 0, outcome.stderr
    result = json.loads((folder / "scores.json").read_text())["results"][0]
    # Of 61's, right and wrong have two votes each; the right one's first sample is the earlier.
    assert result["majority_correct_of_problem"] == {"60": True, "61": True, "62": False}
    assert result["correct_share_of_problem"] == pytest.approx({"60": 0.6, "61": 0.4, "62": 0.2})


@pytest.mark.slow
@pytest.mark.parametrize("flag,name", [("--last_number", "strict"), ("--mode=paper", "paper")])
def test_modes_of_the_real_grader(flag, name, folder, capfd, monkeypatch):
    """Both take the last number of a text that marks no answer, and scores.json says so."""
    write_rows(folder / "predictions.jsonl", REAL)
    arguments = [
        f"--grade={folder}/predictions.jsonl",
        f"--benchmark_data={folder}/data",
        "--workers=1",
        flag,
    ]
    outcome = run_command(evaluate.main, arguments, capfd, monkeypatch)
    assert outcome.code == 0, outcome.stderr
    assert verdicts(folder) == ["correct"] * 3 + ["wrong"] + ["correct"] * 4
    summary = json.loads((folder / "scores.json").read_text())
    assert summary["grader"]["mode"] == name
    assert summary["grader"]["last_number"] is True
    assert (
        "warning: completions that mark no answer are graded by the last number" in outcome.stderr
    )


def verdicts(folder):
    rows = (folder / "predictions.graded.jsonl").read_text().splitlines()
    return [json.loads(line)["verdict"] for line in rows]
