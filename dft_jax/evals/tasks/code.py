"""Benchmarks of programs: a function is asked for, and tests are run against it.

A base model is shown a function's first lines (or a docstring) and continues them; that is the
template `plain`. Any other template gets the same text in a question.
"""

import ast
import builtins
import dataclasses
from collections.abc import Callable
from typing import Any

from dft_jax.data.sources.rows import BadRow
from dft_jax.evals.jail.extraction import CONTINUATION, DOCSTRING, STOPS
from dft_jax.evals.tasks import fields
from dft_jax.evals.tasks.task import PROGRAM, Problem, Program, Task

# The template under which a model continues a text.
BASE_TEMPLATE = "plain"
_COMPLETE = "Complete this Python function. Answer with the whole function in one ```python block."
_WRITE = (
    "Write the Python function that is described here, with the name and arguments of the test."
    " Answer with the whole function in one ```python block."
)
_PLUS_S = 60.0  # seconds for a program whose tests are some thousands


def _text(row: dict[str, Any], field: str) -> str:
    return fields.text_of(fields.value_of(row, field), field)


def _texts(row: dict[str, Any], field: str) -> list[str]:
    """A list of texts, which may be empty."""
    value = fields.value_of(row, field)
    if not isinstance(value, (list, tuple)) or not all(isinstance(part, str) for part in value):
        raise BadRow(f"field {field!r} should be a list of texts; fix or remove the row")
    return list(value)


def humaneval(row: dict[str, Any]) -> Program:
    """A row of HumanEval: the prompt is valid Python, with helpers that its tests may call."""
    prompt = _text(row, "prompt")
    entry_point = _text(row, "entry_point")
    return Program(prompt, entry_point, prompt, _text(row, "test"))


def mbpp(row: dict[str, Any]) -> Program:
    """A row of MBPP: a text and asserts, the first of which shows name and arguments."""
    tests = _texts(row, "test_list")
    setup = str(row.get("test_setup_code") or "")
    return _of_asserts(row, _text(row, "text"), setup, tests, "\n".join(tests))


def mbpp_plus(row: dict[str, Any]) -> Program:
    """A row of MBPP+: as MBPP, with more tests in one script."""
    setup = "\n".join(_texts(row, "test_imports"))
    return _of_asserts(
        row, _text(row, "prompt"), setup, _texts(row, "test_list"), _text(row, "test")
    )


def _of_asserts(
    row: dict[str, Any], text: str, setup: str, shown: list[str], tests: str
) -> Program:
    if not shown:
        raise BadRow("field 'test_list' is empty; fix or remove the row")
    entry_point = tested_name(shown[0], _text(row, "code"))
    prompt = f'"""\n{text.strip()}\n{shown[0].strip()}\n"""'
    return Program(prompt, entry_point, setup, tests)


def tested_name(test: str, code: str) -> str:
    """The function that an assert calls: the first that the solution defines.

    Where the solution defines none of them it is the first that is not built in.

    Raises:
      BadRow: the test calls nothing, or one of the two is no Python.
    """
    try:
        called = ast.walk(ast.parse(test))
        defined = {getattr(node, "name", "") for node in ast.parse(code).body}
    except (SyntaxError, ValueError) as error:
        raise BadRow(f"its test or its solution is no Python ({error}); fix the row") from error
    names = []
    for node in called:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            names.append(node.func.id)
    for name in names:
        if name in defined:
            return name
    for name in names:
        if not hasattr(builtins, name):
            return name
    raise BadRow("its first test calls no function; fix or remove the row")


@dataclasses.dataclass(frozen=True)
class ProgramTask(Task):
    """A benchmark whose completions are programs."""

    program: Callable[[dict[str, Any]], Program] = humaneval  # of a row
    style: str = CONTINUATION  # of its programs
    instruction: str = _COMPLETE  # of a model that is asked
    grader: str = PROGRAM
    wall_s: float = 10.0
    imports_numpy: bool = False

    def prompt(self, problem: Problem, template: str) -> str:
        """The text to continue, or a question that shows it."""
        if template == BASE_TEMPLATE:
            return problem.question
        return f"{self.instruction}\n```\n{problem.question}\n```"

    def stop_texts(self, template: str) -> tuple[str, ...]:
        """Where extraction cuts what continues a program; an answer it reads whole."""
        if template == BASE_TEMPLATE:
            return STOPS[self.style]
        return ()

    def _problem(self, row: dict[str, Any], number: int) -> Problem:
        program = dataclasses.replace(
            self.program(row),
            style=self.style,
            wall_s=self.wall_s,
            imports_numpy=self.imports_numpy,
        )
        # White space around it would change what a model writes, by tens of points: the template
        # ends it in one newline.
        question = program.prompt.strip()
        return Problem(self._id(row, number), question, program.digest(), program)


def _no_answer(row: dict[str, Any]) -> str:
    raise AssertionError("programs are judged by tests")


TASKS = (
    ProgramTask(
        "humaneval",
        source="openai/openai_humaneval",
        count=164,
        answer=_no_answer,
        id_field="task_id",
    ),
    ProgramTask(
        "humaneval_plus",
        source="evalplus/humanevalplus",
        count=164,
        answer=_no_answer,
        id_field="task_id",
        wall_s=_PLUS_S,
        imports_numpy=True,
    ),
    ProgramTask(
        "mbpp",
        source="google-research-datasets/mbpp",
        count=500,
        answer=_no_answer,
        id_field="task_id",
        subset="full",
        program=mbpp,
        style=DOCSTRING,
        instruction=_WRITE,
    ),
    ProgramTask(
        "mbpp_plus",
        source="evalplus/mbppplus",
        count=378,
        answer=_no_answer,
        id_field="task_id",
        program=mbpp_plus,
        style=DOCSTRING,
        instruction=_WRITE,
        wall_s=_PLUS_S,
        imports_numpy=True,
    ),
    ProgramTask(
        "lab_code",
        source="programs(split=test, n=100)",
        count=100,
        answer=_no_answer,
        id_field="task_id",
    ),
    # What training and the choice of settings may see.
    ProgramTask(
        "lab_code_validation",
        source="programs(split=validation, n=100)",
        count=100,
        answer=_no_answer,
        id_field="task_id",
    ),
)
