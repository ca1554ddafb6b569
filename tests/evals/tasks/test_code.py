"""Benchmarks of programs: their rows, their prompts, and the laboratory's made ones."""

import json

import pytest

from dft_jax.data.sources import programs
from dft_jax.data.sources.rows import BadRow
from dft_jax.evals.jail import extraction
from dft_jax.evals.tasks import benchmarks, code
from dft_jax.runtime import errors

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": '\n\ndef f(x):\n    """Twice."""\n',
    "entry_point": "f",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(1) == 2\n",
}
MBPP = {
    "task_id": 11,
    "text": "Write a function to double. ",
    "code": "import math\r\ndef helper(): pass\r\ndef f(x):\r\n  return 2 * x",
    "test_list": ["assert set(f(1)) == 2", "assert f(2) == 4"],
    "test_setup_code": "import math",
    "challenge_test_list": [],
}
MBPP_PLUS = {
    "task_id": 2,
    "prompt": "Write a function to double.",
    "code": "def f(x): return 2 * x",
    "source_file": "x",
    "test_imports": ["import math", "import re"],
    "test_list": ["assert math.isclose(f(1), 2)"],
    "test": "assertion(f(1), 2)",
}


def load(name, rows, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return benchmarks.load(name, str(file))


@pytest.mark.parametrize("name", ["humaneval", "humaneval_plus"])
def test_humaneval(name, tmp_path):
    [problem] = load(name, [HUMANEVAL], tmp_path)
    task = benchmarks.find(name)
    program = problem.program
    assert problem.id == "HumanEval/0" and task.runs_programs and task.version == 1
    assert program.prompt == program.setup == HUMANEVAL["prompt"]
    assert (program.entry_point, program.tests) == ("f", HUMANEVAL["test"])
    assert (program.wall_s, program.imports_numpy) == {
        "humaneval": (10.0, False),
        "humaneval_plus": (60.0, True),
    }[name]
    # What is sampled depends on white space: the template `plain` adds one newline.
    assert task.prompt(problem, "plain") == 'def f(x):\n    """Twice."""'
    asked = task.prompt(problem, "tokenizer")
    assert asked.endswith('```\ndef f(x):\n    """Twice."""\n```') and "whole function" in asked
    changed = load(name, [HUMANEVAL | {"test": "def check(c): pass"}], tmp_path)
    assert changed[0].answer != problem.answer and len(problem.answer) == 64


def test_mbpp(tmp_path):
    [problem] = load("mbpp", [MBPP], tmp_path)
    program = problem.program
    assert problem.id == "11" and program.entry_point == "f"
    expected = '"""\nWrite a function to double.\nassert set(f(1)) == 2\n"""'
    assert problem.question == program.prompt == expected
    assert program.setup == "import math" and program.style == extraction.DOCSTRING
    assert program.tests == "assert set(f(1)) == 2\nassert f(2) == 4"


def test_mbpp_plus(tmp_path):
    [problem] = load("mbpp_plus", [MBPP_PLUS], tmp_path)
    program = problem.program
    assert program.setup == "import math\nimport re" and program.entry_point == "f"
    assert (program.tests, program.wall_s) == ("assertion(f(1), 2)", 60.0)
    assert "assert math.isclose(f(1), 2)" in problem.question


def test_the_name_that_a_test_calls():
    assert code.tested_name("assert (sorted(g(1)), h(2)) == 1", "def h(x): pass") == "h"
    assert code.tested_name("assert len(g(1)) == 1", "K = 1") == "g"
    with pytest.raises(BadRow, match="calls no function"):
        code.tested_name("assert 1", "def f(): pass")
    with pytest.raises(BadRow, match="no Python"):
        code.tested_name("assert f(", "def f(): pass")


BAD = {
    "no tests": ("humaneval", HUMANEVAL | {"test": " "}, "'test' should be text"),
    "no name": ("humaneval", HUMANEVAL | {"entry_point": None}, "'entry_point' is missing"),
    "no id": ("humaneval", HUMANEVAL | {"task_id": None}, "'task_id' is missing"),
    "no asserts": ("mbpp", MBPP | {"test_list": []}, "'test_list' is empty"),
    "asserts that are no list": ("mbpp", MBPP | {"test_list": "assert 1"}, "a list of texts"),
    "a plus row for mbpp": ("mbpp", MBPP_PLUS, "'text' is missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows(case, tmp_path):
    name, row, message = BAD[case]
    with pytest.raises(errors.UserError) as refused:
        load(name, [row], tmp_path)
    assert "rows.jsonl:1: not a row of" in str(refused.value) and message in str(refused.value)


def test_real_humaneval(shared):
    problems = benchmarks.load("humaneval", str(shared / "data"))
    assert len(problems) == 164 and benchmarks.count_warning("humaneval", problems) == ""
    assert all(problem.program.setup.endswith("\n") for problem in problems)
    assert len({problem.answer for problem in problems}) == 164


# ---- made problems


def run(row, body):
    """How many of a row's asserts hold; the program is ours."""
    space = {}
    exec(row["prompt"] + body + row["test"], space)
    try:
        space["check"](space["f"])
    except AssertionError:
        return False
    return True


def test_made_problems_are_solved_by_their_solutions():
    rows = list(programs.Excerpt("test", n=100).rows())
    assert len(rows) == 100 == len({row["prompt"] for row in rows})
    assert all(run(row, row["canonical_solution"]) for row in rows)
    assert not any(run(row, "    pass\n") for row in rows)
    assert {row["prompt"].split('"""')[1].split()[0] == "Compute" for row in rows} == {True, False}
    assert all(row["test"].count("assert") == 5 for row in rows)
    # By hand, the first of each family.
    first = rows[0]
    assert first["prompt"] == 'def f(x):\n    """Compute x-4+3-8 from left to right."""\n'
    assert (
        first["canonical_solution"] == "    y = x - 4\n    y = y + 3\n    y = y - 8\n    return y\n"
    )


def test_wrong_steps_make_wrong_programs():
    noisy = list(programs.Excerpt("train", n=150, noise=0.15).rows())
    right = [run(row, row["canonical_solution"]) for row in noisy]
    # Of 1 to 4 steps, 2.5 in the mean, each is wrong in 15 %: 0.85 ** 2.5 = 0.67 of the programs.
    assert 0.53 < sum(right) / 150 < 0.83
    clean = list(programs.Excerpt("train", n=20).rows())
    assert all(run(row, row["canonical_solution"]) for row in clean)


def test_splits_share_no_problem():
    asked = {}
    for split in ("train", "validation", "test"):
        for row in programs.Excerpt(split, n=60).rows():
            # What is computed: the lines of the solution, whoever the people are.
            words = row["prompt"].split('"""')[1]
            asked.setdefault(words, set()).add(split)
    assert all(len(splits) == 1 for splits in asked.values())


@pytest.mark.parametrize(
    "path, message",
    [
        ("programs(split=tset)", "should be one of test"),
        ("programs(n=0)", "n should be at least 1"),
        ("programs(noise=2)", "noise from 0 to 1"),
        ("programs(n=many)", "should be int"),
        ("programs(level=3)", "no parameter 'level'"),
    ],
)
def test_a_wrong_excerpt_is_refused(path, message):
    with pytest.raises(errors.UserError, match=message):
        programs.parse(path)


def test_lab_code_is_made():
    problems = benchmarks.load("lab_code", "/no/such/folder")
    assert len(problems) == 100 and problems[3].id == "lab_code/3"
    assert programs.parse("rows.jsonl") is None and benchmarks.find("lab_code").is_made
