"""Benchmarks: the real files when they are here, small files with one mistake each always."""

import json

import pytest

from dft_jax.evals.tasks import benchmarks
from dft_jax.runtime import errors

# From the published sets: the first id, and answers by id that need reading.
KNOWN = {
    "math500": (
        500,
        {
            "test/precalculus/807.json": r"\left( 3, \frac{\pi}{2} \right)",
            "test/algebra/2584.json": r"\frac{14}{3}",
        },
    ),
    "minerva": (272, {"0": "1.6", "271": "10.1"}),
    "olympiadbench": (675, {"1606": "2"}),
    "aime24": (30, {"60": "204", "67": "025"}),
    "aime25": (30, {"0": "468", "29": "735"}),
    "amc23": (40, {"0": "27", "49": "8"}),
    "gsm8k": (1319, {"0": "18"}),
}


# In test_code.py.
OF_PROGRAMS = ("humaneval", "humaneval_plus", "mbpp", "mbpp_plus")
# In test_pictured.py.
WITH_IMAGES = ("mathverse", "mathvision", "wemath")


@pytest.mark.parametrize("name", KNOWN)
def test_real_files(name, shared):
    count, answers = KNOWN[name]
    problems = benchmarks.load(name, str(shared / "data"))
    assert len(problems) == count == benchmarks.BENCHMARKS[name].count
    assert benchmarks.count_warning(name, problems) == ""
    assert all(problem.answer.strip() and problem.question.strip() for problem in problems)
    answer_of = {problem.id: problem.answer for problem in problems}
    assert len(answer_of) == count
    for id_, answer in answers.items():
        assert answer_of[id_] == answer
    assert not any("boxed" in problem.answer or "####" in problem.answer for problem in problems)


def test_gsm8k_answers_are_the_numbers_after_the_hashes(shared):
    problems = benchmarks.load("gsm8k", str(shared / "data"))
    assert all(float(problem.answer) == int(problem.answer) for problem in problems)


# Name -> row, the ground truth it should give.
ROWS = {
    "float": ("amc23", {"id": 3, "question": "?", "answer": 3159.0}, "3159"),
    "fraction of a number": ("aime25", {"problem": "?", "answer": 0.5}, "0.5"),
    "int": ("aime25", {"problem": "?", "answer": -7}, "-7"),
    "leading zero stays": ("aime24", {"id": 1, "problem": "?", "answer": "025"}, "025"),
    "hub rows of aime24": ("aime24", {"id": 1, "problem": "?", "solution": r"\boxed{204}"}, "204"),
    "hub rows of minerva": ("minerva", {"question": "?", "answer": "1.6"}, "1.6"),
    "last of two boxes": (
        "minerva",
        {"problem": "?", "solution": r"\boxed{1}, no: \boxed{\frac{1}{2}} m"},
        r"\frac{1}{2}",
    ),
    "escaped braces": (
        "minerva",
        {"problem": "?", "solution": r"\boxed{\{1, \frac{1}{2}\}} so"},
        r"\{1, \frac{1}{2}\}",
    ),
    "thousands": ("gsm8k", {"question": "?", "answer": "1 #### no\n#### 1,234,567"}, "1234567"),
    "first of several": (
        "olympiadbench",
        {"id": 1, "question": "?", "final_answer": ["$a$,$b$", "c"]},
        "$a$,$b$",
    ),
    "nothing beside the question": (
        "olympiadbench",
        {
            "id": 1,
            "problem": None,
            "question": "?",
            "context": None,
            "image_1": None,
            "final_answer": ["2"],
        },
        "2",
    ),
    "the same question twice": (
        "aime24",
        {"id": 1, "problem": "?", "question": "? ", "answer": "2"},
        "2",
    ),
    "a solution for an answer": (
        "math500",
        {"unique_id": "a", "problem": "?", "answer": r"so $x=\boxed{\pi}$"},
        r"\pi",
    ),
    "math500": ("math500", {"unique_id": "a/1.json", "problem": "?", "answer": r"\pi"}, r"\pi"),
}


@pytest.mark.parametrize("case", ROWS)
def test_ground_truth(case, tmp_path):
    name, row, answer = ROWS[case]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    [problem] = benchmarks.load(name, str(file))
    assert problem.answer == answer
    assert benchmarks.count_warning(name, [problem]).startswith(f"{name} has 1 problems here, ")


GOOD = b'{"id": 1, "problem": "1+1?", "answer": "2"}\n'

# Name -> (benchmark, content, what the message must say).
BAD = {
    "not JSON": ("aime24", GOOD + b"oops\n", ["rows.jsonl:2: not JSON", "fix or remove"]),
    "cut off": ("aime24", GOOD + GOOD[:20], ["rows.jsonl:2:", "was the file cut off?"]),
    "one id twice": (
        "aime24",
        GOOD * 2,
        ["rows.jsonl:2: id '1' is that of rows.jsonl:1 too", "remove one"],
    ),
    "no id": (
        "aime24",
        b'{"problem": "?", "answer": "2"}\n',
        ["rows.jsonl:1:", "'id' is missing", "'answer', 'problem'"],
    ),
    "no question": (
        "aime24",
        b'{"id": 1, "answer": "2"}\n',
        ["rows.jsonl:1:", "'problem' is missing"],
    ),
    "null answer": (
        "aime24",
        b'{"id": 1, "problem": "?", "answer": null}\n',
        ["'answer' is missing", "fix the row"],
    ),
    "blank answer": (
        "aime24",
        b'{"id": 1, "problem": "?", "answer": " "}\n',
        ["'answer' should be text, not empty"],
    ),
    "truth for a number": (
        "aime25",
        b'{"problem": "?", "answer": true}\n',
        ["'answer' should be text, not bool"],
    ),
    "no box": (
        "minerva",
        b'{"problem": "?", "solution": "2"}\n',
        ["rows.jsonl:1:", "no answer in \\boxed{}"],
    ),
    "no hashes": (
        "gsm8k",
        b'{"question": "?", "answer": "2"}\n',
        ["rows.jsonl:1:", "no '#### 42'"],
    ),
    "no list": (
        "olympiadbench",
        b'{"id": 1, "question": "?", "final_answer": "2"}\n',
        ["should be a list"],
    ),
    "empty list": (
        "olympiadbench",
        b'{"id": 1, "question": "?", "final_answer": []}\n',
        ["should be a list"],
    ),
    "list as id": (
        "aime24",
        b'{"id": [1], "problem": "?", "answer": "2"}\n',
        ["'id' should be a number or text"],
    ),
    "half a surrogate as id": (
        "aime24",
        b'{"id": "6\\ud800", "problem": "?", "answer": "2"}\n',
        ["rows.jsonl:1:", "field 'id' holds half a surrogate pair"],
    ),
    "two questions": (
        "aime24",
        b'{"id": 1, "problem": "1+1?", "question": "1+2?", "answer": "2"}\n',
        [
            "rows.jsonl:1:",
            "fields 'problem' and 'question' ask different things; keep the right one",
        ],
    ),
    "a context": (
        "olympiadbench",
        b'{"id": 1, "question": "?", "context": "Let x be 2.", "final_answer": ["2"]}\n',
        [
            "rows.jsonl:1:",
            "field 'context' belongs to the question and would be lost",
            "put it into 'question'",
        ],
    ),
    "an image": (
        "olympiadbench",
        b'{"id": 1, "question": "?", "image_1": {"bytes": "x"}, "final_answer": ["2"]}\n',
        ["field 'image_1' belongs to the question"],
    ),
    "choices": (
        "aime25",
        b'{"problem": "Which?", "choices": ["1", "2"], "answer": "2"}\n',
        ["field 'choices' belongs to the question"],
    ),
    "empty file": ("aime24", b"", ["aime24", "has no rows"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_with_place_and_remedy(case, tmp_path):
    name, content, expected = BAD[case]
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    with pytest.raises(errors.UserError) as caught:
        benchmarks.load(name, str(file))
    for text in expected:
        assert text in caught.value.report()


def test_bad_places_are_refused(tmp_path):
    with pytest.raises(
        errors.UserError,
        match="'amie24' is unknown \\(did you mean 'aime24'\\?\\); known: math500, ",
    ):
        benchmarks.load("amie24")
    with pytest.raises(errors.UserError, match="no such file or folder; correct the path"):
        benchmarks.load("aime24", str(tmp_path / "nowhere"))
    with pytest.raises(
        errors.UserError, match="gsm8k_test.jsonl does not exist; put the benchmark's rows there"
    ):
        benchmarks.load("gsm8k", str(tmp_path))


def test_without_a_network_the_hub_is_an_error_with_a_remedy():
    with pytest.raises(
        errors.UserError, match="'math-ai/aime25'.*could not be loaded.*give a local file"
    ):
        benchmarks.load("aime25")


def test_the_laboratorys_are_made_and_need_no_file():
    names = {name for name, task in benchmarks.BENCHMARKS.items() if task.is_made}
    assert names and all(name.startswith("lab") for name in names)
    assert set(benchmarks.BENCHMARKS) - set(KNOWN) - names == {*OF_PROGRAMS, *WITH_IMAGES}
    for name in names:
        problems = benchmarks.load(name, "a/folder/of/other/benchmarks")
        assert len(problems) == benchmarks.find(name).count and problems == benchmarks.load(name)
