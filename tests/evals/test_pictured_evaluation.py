"""Completions of benchmarks with images, graded by the command: files, tables, and refusals."""

import json
import random

import pytest

from dft_jax import assets
from dft_jax.commands import evaluate
from dft_jax.evals import saved
from dft_jax.runtime import errors
from tests.commands import assert_refused, run_command
from tests.evals.tasks.test_pictured import FREE, MATHVERSE, MATHVISION, QUESTION, WEMATH

VERSIONS = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only")


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prediction(benchmark, id_, completion, **more):
    row = {"benchmark": benchmark, "id": id_, "sample": 0, "completion": completion}
    return row | {"temperature": 0} | more


@pytest.fixture
def folder(tmp_path):
    """Two problems in five versions, two of MATH-Vision, and two composites."""
    (tmp_path / "data").mkdir()
    verses = []
    for number, base in enumerate([MATHVERSE, FREE]):
        for version in VERSIONS:
            more = {"sample_index": str(len(verses)), "problem_index": str(number)}
            row = base | more | {"problem_version": version}
            if number:
                row |= {"metadata": {"subject": "Functions"}}
            if version == "Vision Only":
                row |= {"question": "", "question_for_eval": QUESTION}
            verses.append(row)
    write(tmp_path / "data" / "mathverse.jsonl", verses)
    second = {"id": "5", "options": [], "answer": "11", "level": 5, "subject": "algebra"}
    write(tmp_path / "data" / "mathvision.jsonl", [MATHVISION, MATHVISION | second])
    parts = []
    for name, steps in (("2steps_1", 2), ("3steps_1", 3)):
        for part in (*range(1, steps + 1), "multi"):
            parts.append(WEMATH | {"ID": name, "key": f"{name.split('_')[0]}_{part}"})
    write(tmp_path / "data" / "wemath.jsonl", parts)
    return tmp_path


def grade(folder, rows, capfd, monkeypatch, *flags):
    write(folder / "predictions.jsonl", rows)
    arguments = [f"--grade={folder}/predictions.jsonl", f"--benchmark_data={folder}/data"]
    arguments += [f"--out={folder}/out", *flags]
    return run_command(evaluate.main, arguments, capfd, monkeypatch)


def results_of(folder):
    content = saved.read_scores(folder / "out" / "scores.json", "again")
    return {result["benchmark"]: result for result in content["results"]}


def all_rows():
    verses = []
    for number in range(10):
        # The first problem is answered rightly but for Vision Only, the second for Text Lite only.
        completion = r"\boxed{\text{(A) 40}}"
        if number < 4:
            completion = "The answer is D because of the angles."
        if number >= 5:
            completion = r"\boxed{14 \text{ cm}}" if number == 6 else "no idea"
        verses.append(prediction("mathverse", str(number), completion))
    visions = [
        prediction("mathvision", "4", r"\boxed{C}"),
        prediction("mathvision", "5", r"\boxed{12}"),
    ]
    # Inadequate generalization, and rote memorization with two of three steps right.
    answers = {"2steps_1": "BBA", "3steps_1": "BABB"}
    parts = []
    for name, letters in answers.items():
        names = [*map(str, range(1, len(letters))), "multi"]
        for part, letter in zip(names, letters, strict=True):
            parts.append(prediction("wemath", f"{name}/{part}", f"({letter}) \\boxed{{{letter}}}"))
    return verses + visions + parts


@pytest.mark.slow
def test_groups_and_composites(folder, capfd, monkeypatch):
    rows = all_rows()
    random.Random(0).shuffle(rows)
    outcome = grade(folder, rows, capfd, monkeypatch)
    assert outcome.code == 0, outcome.stderr
    results = results_of(folder)
    verse = results["mathverse"]
    assert verse["avg_at_k"]["mean"] == 0.5 and verse["problems"]["scored"] == 10
    means = {name: group["mean"] for name, group in verse["groups"]["problem_version"].items()}
    expected = {"Text Dominant": 0.5, "Text Lite": 1, "Vision Intensive": 0.5}
    assert means == expected | {"Vision Dominant": 0.5, "Vision Only": 0}
    assert list(means) == list(VERSIONS)
    assert {group["problems"] for group in verse["groups"]["problem_version"].values()} == {2}
    subjects = verse["groups"]["subject"]
    assert [subjects[name]["mean"] for name in ("Plane Geometry", "Functions")] == [0.8, 0.2]
    # Five versions of one problem say nothing of other problems.
    assert subjects["Functions"]["interval_95"] is None
    vision = results["mathvision"]["groups"]
    assert vision["subject"]["counting"]["mean"] == 1 and list(vision["level"]) == ["1", "5"]
    math = results["wemath"]
    steps = {name: group["mean"] for name, group in math["groups"]["steps"].items()}
    assert steps == {"one-step": 0.8, "two-step": 0, "three-step": 1}
    strict, loose = math["composites"]["strict"], math["composites"]["loose"]
    assert (strict["score"]["mean"], loose["score"]["mean"]) == (0.25, 0.75)
    assert strict["inadequate_generalization"]["mean"] == 0.5 == loose["complete_mastery"]["mean"]
    assert strict["rote_memorization"]["mean"] == 0.5 and math["composites"]["scored"] == 2
    for line in ("Vision Intensive  2", "three-step", "strict  2", "loose   2", "Plane Geometry"):
        assert line in outcome.stdout, outcome.stdout
    for name in results:
        warning = f"{name}: compare these scores with each other"
        assert outcome.stderr.count(warning) == 1
    extracted = {}
    for line in (folder / "out" / "predictions.graded.jsonl").read_text().splitlines():
        row = json.loads(line)
        extracted[row["benchmark"], row["id"]] = (row["extracted"], row["reference"])
    assert extracted["mathverse", "0"] == ("D", "D") and extracted["mathverse", "4"] == ("A", "D")
    assert extracted["mathverse", "9"] == (None, "14")


@pytest.mark.slow
def test_a_benchmark_that_was_not_named_is_loaded_for_its_options(folder, capfd, monkeypatch):
    """A row's own reference names an option; where it names none it is refused."""
    rows = [prediction("mathverse", "0", r"\boxed{60}", reference="(B)")]
    outcome = grade(folder, rows, capfd, monkeypatch)
    assert outcome.code == 0 and "1 rows have another reference" in outcome.stderr
    assert results_of(folder)["mathverse"]["avg_at_k"]["mean"] == 1
    rows = [prediction("mathverse", "0", r"\boxed{60}", reference="60 apples")]
    outcome = grade(folder, rows, capfd, monkeypatch)
    assert_refused(outcome, "predictions.jsonl:1", "'60 apples' is none of the options A, B, C, D")
    outcome = grade(folder, [prediction("wemath", "2steps_1", "A")], capfd, monkeypatch)
    assert_refused(outcome, "wemath has no problem '2steps_1'", "did you mean '2steps_1/")


def test_by_vlmevalkit_a_model_that_boxes_scores_nothing(folder, capfd, monkeypatch):
    rows = [row for row in all_rows() if row["benchmark"] == "wemath"]
    outcome = grade(folder, rows, capfd, monkeypatch, "--mode=vlmevalkit")
    assert outcome.code == 0, outcome.stderr
    result = results_of(folder)["wemath"]
    assert result["avg_at_k"]["mean"] == 0 and result["verdicts"]["no_answer"] == 7
    assert result["composites"]["strict"]["insufficient_knowledge"]["mean"] == 1
    rows = [row | {"completion": row["completion"].replace("(", "Answer: (")} for row in rows]
    rows = [row | {"completion": row["completion"].replace("(", "")} for row in rows]
    grade(folder, rows, capfd, monkeypatch, "--mode=vlmevalkit")
    assert results_of(folder)["wemath"]["composites"]["strict"]["score"]["mean"] == 0.25


@pytest.mark.parametrize(
    "flags, messages",
    [
        (["--mode=vlmevalkit"], ["--mode=vlmevalkit has no rules for mathverse (strict)", "apart"]),
        (["--mode=paper"], ["--mode=paper has no rules for mathverse (strict), wemath (strict or"]),
        (["--mode=judge"], ["--mode=judge should be strict or paper or vlmevalkit"]),
        (["--last_number"], ["--last_number=True is not of benchmarks", "(mathverse, wemath)"]),
        (["--answer_markers=box"], ["--answer_markers=box is not of benchmarks whose rules"]),
    ],
)
def test_rules_that_are_not_of_these_benchmarks(flags, messages, folder, capfd, monkeypatch):
    rows = [prediction("mathverse", "0", "A"), prediction("wemath", "2steps_1/1", "A")]
    outcome = grade(folder, rows, capfd, monkeypatch, *flags)
    assert_refused(outcome, *messages)
    assert not (folder / "out").exists()


@pytest.mark.slow
def test_a_model_that_sees_nothing_is_refused_before_its_weights(folder, capfd, monkeypatch):
    arguments = [
        f"--model={assets.LAB_CODE}",
        "--benchmarks=gsm8k,mathverse",
        f"--out={folder}/out",
    ]
    outcome = run_command(evaluate.main, arguments, capfd, monkeypatch)
    assert_refused(outcome, "--benchmarks: the problems of mathverse show images", "no tower")
    limited = [arguments[0], "--benchmarks=gsm8k", "--image_max_pixels=5000", arguments[-1]]
    outcome = run_command(evaluate.main, limited, capfd, monkeypatch)
    assert_refused(outcome, "--image_max_pixels=5000 has no effect", "gsm8k shows an image")
    arguments += ["--mode=vlmevalkit"]
    outcome = run_command(evaluate.main, arguments, capfd, monkeypatch)
    assert_refused(outcome, "--mode=vlmevalkit has no rules for gsm8k (strict or paper)")


@pytest.mark.parametrize(
    "path, value, message",
    [
        (("groups",), 3, "results[0].groups. should be an object"),
        (("groups", "steps"), [], "results[0].groups.steps should be an object"),
        (("groups", "steps", "one-step", "mean"), 2, "one-step.mean should be a number from 0 to"),
        (("composites", "strict"), None, "results[0].composites.strict should be an object"),
        (("composites", "loose", "score", "mean"), "x", "composites.loose.score.mean should be"),
    ],
)
def test_scores_that_were_edited_are_refused(path, value, message, folder, capfd, monkeypatch):
    rows = [row for row in all_rows() if row["benchmark"] == "wemath"]
    grade(folder, rows, capfd, monkeypatch)
    file = folder / "out" / "scores.json"
    content = json.loads(file.read_text())
    place = content["results"][0]
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    file.write_text(json.dumps(content))
    with pytest.raises(errors.UserError) as refused:
        saved.read_scores(file, "again")
    assert message in str(refused.value)
