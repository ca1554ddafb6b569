"""Benchmarks with images: hand-made rows in the hub's form, what is asked, and malformed rows."""

import io
import json
import pathlib

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from dft_jax.evals.tasks import benchmarks, mathverse, pictured, wemath
from dft_jax.evals.tasks.task import Option
from dft_jax.models.hf.locate import read_config
from dft_jax.runtime import errors

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"


def png(colour="red"):
    file = io.BytesIO()
    Image.new("RGB", (30, 30), colour).save(file, "PNG")
    return file.getvalue()


QUESTION = "What is the size of angle CED?\nChoices:\nA:40°\nB:60°\nC:120°\nD:140°"
COT = "First reason, then give the letter."
MATHVERSE = {
    "sample_index": "1",
    "problem_index": "1",
    "problem_version": "Text Dominant",
    "question": QUESTION,
    "image": "images/1.png",
    "answer": "D",
    "question_type": "multi-choice",
    "metadata": {"split": "testmini", "subject": "Plane Geometry", "subfield": "Angle"},
    "query_wo": f"Give the letter.\nQuestion: {QUESTION}",
    "query_cot": f"{COT}\nQuestion: {QUESTION}",
}
FREE = MATHVERSE | {"question_type": "free-form", "question": "Find L.", "answer": "14"}
ONLY = MATHVERSE | {"problem_version": "Vision Only", "question": "", "query_cot": COT}
MATHVISION = {
    "id": "4",
    "question": "Which kite has the longest string?\n<image1>",
    "options": ["A", "B", "C", "D", "E"],
    "image": "images/4.jpg",
    "answer": "C",
    "solution": None,
    "level": 1,
    "subject": "counting",
}
WEMATH = {
    "ID": "2steps_17",
    "split": "testmini",
    "knowledge concept": "Area",
    "question": "The length is ( ) m.",
    "option": "A. 300, 400;B. 3 km; C. No correct answer",
    "answer": "B",
    "image_path": "2steps/image/17-1.png",
    "key": "2steps_1",
    "question number": 17,
}


def load(name, rows, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return benchmarks.load(name, str(file))


def one(name, row, tmp_path):
    [problem] = load(name, [row], tmp_path)
    return problem


def asked(name, problem):
    return benchmarks.find(name).prompt(problem, "tokenizer")


def test_mathverse(tmp_path):
    problem = one("mathverse", MATHVERSE, tmp_path)
    assert (problem.id, problem.answer, problem.question) == ("1", "D", QUESTION)
    assert problem.options == (
        Option("A", "40°"),
        Option("B", "60°"),
        Option("C", "120°"),
        Option("D", "140°"),
    )
    assert problem.groups == (("problem_version", "Text Dominant"), ("subject", "Plane Geometry"))
    assert problem.cluster == "1"
    text = f"{COT}\nQuestion: {QUESTION}\n{pictured.OF_OPTIONS}"
    assert asked("mathverse", problem) == text and text.endswith("\\boxed{}.")
    free = one("mathverse", FREE, tmp_path)
    assert (free.answer, free.options) == ("14", ())
    assert asked("mathverse", free).endswith(pictured.OF_VALUE)


def test_mathverse_with_its_question_in_the_image_only(tmp_path):
    """Its options are in the question for the judge, or nowhere."""
    problem = one("mathverse", ONLY, tmp_path)
    assert problem.question == "" and problem.options == pictured.UNSEEN
    assert asked("mathverse", problem) == f"{COT}\n{pictured.OF_OPTIONS}"
    known = one("mathverse", ONLY | {"question_for_eval": QUESTION, "answer": "140°"}, tmp_path)
    assert (known.options[3], known.answer) == (Option("D", "140°"), "D")
    with pytest.raises(errors.UserError, match="none of the options A, B.*'question_for_eval'"):
        one("mathverse", ONLY | {"answer": "False"}, tmp_path)


@pytest.mark.parametrize(
    "text, texts",
    [
        ("?\nChoices:\nA:40°\nB:60°", ["40°", "60°"]),
        ("?\nChoices:\nA.8\nB.10 ", ["8", "10"]),
        ("?\nChoice:\nA. True\nB. False", ["True", "False"]),
        ("?\nChoices:\nA:two\nlines\nB:x: 4 m", ["two\nlines", r"x: 4 \mathrm{m}"]),
    ],
)
def test_options_in_a_question(text, texts):
    assert [option.text for option in mathverse.options_in(text)] == texts


@pytest.mark.parametrize(
    "answer, read",
    [
        ("777 ", "777"),
        (r"Area $=9 \pi \mathrm{cm}^{2}$", r"9 \pi \mathrm{cm}^{2}"),
        ("S.A. of rectangular prism $=4371.46$", "4371.46"),
        ("Volume $=452.389$ cubic units", "$452.389$ cubic units"),
        ("slope =-4", "-4"),
        ("Center $=(20,10)$", "(20,10)"),
        ("$r=5$", "r=5"),
        (r"y=\sin x=\left(90^\circ ,5\right)", r"y=\sin x=\left(90^\circ ,5\right)"),
        ("4.4 m", r"4.4 \mathrm{m}"),
        ("$1690cm^2$", r"1690 \mathrm{cm}^2"),
        ("$10km / h$", r"10 \mathrm{km / h}"),
        ("2x m", "2x m"),
        ("118掳T", r"118° \mathrm{T}"),
        (r"315^\circT", r"315^\circ \mathrm{T}"),
        ("even", "even"),
        ("domain: [-4,4] and range: [0,2]", "domain: [-4,4] and range: [0,2]"),
    ],
)
def test_answers_of_mathverse(answer, read):
    assert mathverse.answer_of(FREE | {"answer": answer}) == read


def test_mathvision(tmp_path):
    problem = one("mathvision", MATHVISION, tmp_path)
    assert (problem.id, problem.answer) == ("4", "C")
    assert problem.groups == (("subject", "counting"), ("level", "1")) and problem.cluster == ""
    lines = asked("mathvision", problem).split("\n")
    # The mark stays in the text; the image comes before all of it.
    assert lines[:3] == ["Which kite has the longest string?", "<image1>", "(A) A"]
    assert lines[-2:] == ["(E) E", pictured.OF_OPTIONS]
    valued = one("mathvision", MATHVISION | {"options": [], "answer": "11 "}, tmp_path)
    assert (valued.answer, valued.options) == ("11", ())
    assert asked("mathvision", valued) == f"{MATHVISION['question']}\n{pictured.OF_VALUE}"


@pytest.mark.parametrize(
    "answer, read",
    [
        (r"$\boxed{\frac{16}{7}}$", r"\frac{16}{7}"),
        ("\x0crac{36}{13}", r"\frac{36}{13}"),
        ("69{degrees}", r"69^\circ"),
        (r"8\sqrt{3}{squareinches}", r"8\sqrt{3}\text{ square inches}"),
    ],
)
def test_answers_of_mathvision(answer, read, tmp_path):
    row = MATHVISION | {"options": [], "answer": answer}
    assert one("mathvision", row, tmp_path).answer == read


def test_wemath(tmp_path):
    rows = [
        WEMATH,
        WEMATH | {"key": "2steps_2"},
        WEMATH | {"key": "2steps_multi"},
        WEMATH | {"ID": "3steps_17", "key": "3steps_multi"},
    ]
    problems = load("wemath", rows, tmp_path)
    ids = [problem.id for problem in problems]
    assert ids == ["2steps_17/1", "2steps_17/2", "2steps_17/multi", "3steps_17/multi"]
    steps = [dict(problem.groups)["steps"] for problem in problems]
    assert steps == ["one-step", "one-step", "two-step", "three-step"]
    assert [problem.cluster for problem in problems] == ["2steps_17"] * 3 + ["3steps_17"]
    first = problems[0]
    assert first.options[1] == Option("B", r"3 \mathrm{km}") and first.answer == "B"
    expected = f"{WEMATH['question']}\n{WEMATH['option']}\n{pictured.OF_OPTIONS}"
    assert asked("wemath", first) == expected


@pytest.mark.parametrize(
    "text, found",
    [
        ("A. ①;B．②;C. ③", [("A", "①"), ("B", "②"), ("C", "③")]),
        ("A. B; B. C; C. D", [("A", "B"), ("B", "C"), ("C", "D")]),
        ("A. to ;C.  ;B. to;C. No", [("A", "to ;C."), ("B", "to"), ("C", "No")]),
        ("A. ∠AB;E.; B. none", [("A", "∠AB;E."), ("B", "none")]),
        ("A. ①; ③; B. ②; ③", [("A", "①; ③"), ("B", "②; ③")]),
        (
            "A. Yes.;B. No.; F. No correct answer",
            [("A", "Yes."), ("B", "No."), ("F", "No correct answer")],
        ),
        ("A. Move to B. then up;  B. Down", [("A", "Move to B. then up"), ("B", "Down")]),
    ],
)
def test_options_of_wemath(text, found):
    assert [(option.letter, option.text) for option in wemath.options_in(text)] == found


# ---- images


@pytest.mark.parametrize(
    "name, row, fields",
    [
        ("mathverse", MATHVERSE, ["image"]),
        ("mathvision", MATHVISION, ["decoded_image"]),
        ("wemath", WEMATH, ["image_path"]),
    ],
)
def test_images_are_bytes_or_paths_below_the_folder_of_the_file(name, row, fields, tmp_path):
    by_path = one(name, row, tmp_path).images
    assert len(by_path) == 1 and by_path[0].folder == tmp_path and by_path[0].content is None
    place = tmp_path / by_path[0].name
    place.parent.mkdir(parents=True)
    place.write_bytes(png("blue"))
    assert by_path[0].read() == png("blue")
    # As the hub's parquet files have it; of MATH-Vision the path stays beside the bytes.
    [field] = fields
    rows = [row | {field: {"bytes": png(), "path": "x.png"}}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    [problem] = benchmarks.load(name, str(tmp_path))
    assert problem.images[0].content == png() == problem.images[0].read()
    # A file of its name in a folder, .jsonl first.
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    [problem] = benchmarks.load(name, str(tmp_path))
    assert problem.images == by_path


def test_an_image_that_leads_out_of_the_folder_is_not_read(tmp_path):
    problem = one("mathverse", MATHVERSE | {"image": "../../etc/passwd"}, tmp_path)
    with pytest.raises(ValueError, match="leads out of the folder"):
        problem.images[0].read()


@pytest.mark.slow
def test_rows_of_the_hub_have_bytes(monkeypatch):
    import datasets

    features = {name: datasets.Value("string") for name in WEMATH if name != "question number"}
    features |= {"question number": datasets.Value("int64"), "image_path": datasets.Image()}
    row = WEMATH | {"image_path": {"bytes": png(), "path": None}}
    table = datasets.Dataset.from_list([row] * 2, features=datasets.Features(features))
    asked_for = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *names, **more: asked_for.append((names, more)) or table
    )
    with pytest.raises(errors.UserError, match=r"We-Math/We-Math\[1\]: id '2steps_17/1' is that"):
        benchmarks.load("wemath")
    assert asked_for == [(("We-Math/We-Math", None), {"split": "testmini", "revision": None})]
    table = table.select([0])
    [problem] = benchmarks.load("wemath")
    assert problem.images[0].content == png()
    path = datasets.Dataset.from_list([WEMATH])
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **more: path)
    with pytest.raises(errors.UserError, match="is a path, and the row is of no file"):
        benchmarks.load("wemath")


# ---- malformed rows

BAD = {
    "no image": ("mathverse", MATHVERSE | {"image": ""}, "no image in 'image'"),
    "a number": ("mathverse", MATHVERSE | {"image": 3}, "'image' should be a path"),
    "no bytes": ("wemath", WEMATH | {"image_path": {"bytes": None}}, "'image_path' should be"),
    "a version": (
        "mathverse",
        MATHVERSE | {"problem_version": "Text Only"},
        "'problem_version' should be one of Text Dominant",
    ),
    "a type": ("mathverse", MATHVERSE | {"question_type": "x"}, "one of multi-choice, free-form"),
    "no choices": ("mathverse", MATHVERSE | {"question": "?"}, "no line 'Choices:'"),
    "choices in disorder": (
        "mathverse",
        MATHVERSE | {"question": "?\nChoices:\nA:1\nC:2"},
        "the options 'AC', not A, B, C",
    ),
    "one choice": ("mathverse", MATHVERSE | {"question": "?\nChoices:\nA:1"}, "has 1 options"),
    "an answer beyond": ("mathverse", MATHVERSE | {"answer": "E"}, "'E' is none of the options"),
    "no subject": ("mathverse", MATHVERSE | {"metadata": {}}, "'subject' is missing"),
    "metadata as text": ("mathverse", MATHVERSE | {"metadata": "x"}, "'metadata' should be an"),
    "nothing asked": ("mathverse", MATHVERSE | {"query_cot": None}, "'query_cot' is missing"),
    "no question": ("mathverse", MATHVERSE | {"question": None}, "'question' is missing"),
    "no problem": ("mathverse", MATHVERSE | {"problem_index": None}, "'problem_index' is missing"),
    "options as text": ("mathvision", MATHVISION | {"options": "A"}, "should be a list of texts"),
    "an empty option": ("mathvision", MATHVISION | {"options": ["1", ""]}, "not empty"),
    "a level": ("mathvision", MATHVISION | {"level": 6}, "from 1 to 5, not 6"),
    "a level as text": ("mathvision", MATHVISION | {"level": "1"}, "from 1 to 5, not '1'"),
    "no answer": ("mathvision", MATHVISION | {"answer": None}, "'answer' is missing"),
    "an ID": ("wemath", WEMATH | {"ID": "4steps_1"}, "'ID' should be as 2steps_17"),
    "a key": ("wemath", WEMATH | {"key": "2steps_3"}, "'key' should be as 2steps_1"),
    "a key of another": ("wemath", WEMATH | {"key": "3steps_1"}, "of another kind than ID"),
    "one option": ("wemath", WEMATH | {"option": "A. 3"}, "'option' should be as"),
    "a letter beyond": ("wemath", WEMATH | {"answer": "D"}, "'D' is none of the options A, B, C"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows(case, tmp_path):
    name, row, message = BAD[case]
    with pytest.raises(errors.UserError) as refused:
        load(name, [row], tmp_path)
    assert f"rows.jsonl:1: not a row of {name}: " in str(refused.value)
    assert message in str(refused.value)


def test_a_model_without_a_tower_is_refused_by_name():
    tower = read_config(GOLDEN / "qwen2_5_vl").vision
    benchmarks.require_tower(["gsm8k", "mathverse"], tower, "--benchmarks")
    benchmarks.require_tower(["gsm8k"], None, "--benchmarks")
    with pytest.raises(errors.UserError, match="^--benchmarks: the problems of mathverse, wemath"):
        benchmarks.require_tower(["gsm8k", "mathverse", "wemath"], None, "--benchmarks")
