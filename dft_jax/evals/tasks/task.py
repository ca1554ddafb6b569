"""What a benchmark is: where its problems are, what is asked of each, and who judges answers."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dft_jax.data.sources.locate import read_rows
from dft_jax.data.sources.rows import BadRow
from dft_jax.evals.tasks import fields
from dft_jax.runtime import errors, hub

# The grader that runs completions against tests.
PROGRAM = "program"


@dataclasses.dataclass(frozen=True)
class Program:
    """What a program is asked for and judged by.

    `prompt` is what a base model completes: a function without its body, or a docstring, which
    `style` (of evals/jail/extraction.py) says. `setup` runs before `tests`, which call
    `entry_point` or define `check(candidate)`.
    """

    prompt: str
    entry_point: str
    setup: str
    tests: str
    style: str
    wall_s: float = 10.0
    imports_numpy: bool = False  # in the tests

    def digest(self) -> str:
        """Of all that decides a verdict."""
        content = "\0".join([self.prompt, self.entry_point, self.setup, self.tests])
        return hashlib.sha256(content.encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Problem:
    """`id` is unique in its benchmark; `answer` is the ground truth, in LaTeX or plain text, or the
    digest of the tests of a `program`.
    """

    id: str
    question: str
    answer: str
    program: Program | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """One benchmark.

    `version` is to be raised with any change of its problems, its prompts or its verdicts: scores
    of two versions are not comparable.
    """

    name: str
    source: str  # a dataset on the hub, or world(...): made, not loaded
    count: int  # problems in the published set
    answer: Callable[[dict[str, Any]], str]  # the ground truth of a row; see fields.py
    version: int = 1
    grader: str = "math"  # who judges a completion: a name in evals/grading.py
    question_fields: tuple[str, ...] = ("problem", "question")  # the first that a row has counts
    id_field: str = ""  # by default the id is the number of the row, from 0
    file: str = ""  # in a local folder; by default <name>.jsonl
    split: str = "test"
    subset: str = ""

    @property
    def is_made(self) -> bool:
        """Whether problems are made by the laboratory, the same ones each time."""
        return self.source.startswith(("world(", "programs("))

    @property
    def runs_programs(self) -> bool:
        """Whether completions are programs, which are run against tests."""
        return self.grader == PROGRAM

    def prompt(self, problem: Problem, template: str) -> str:
        """What a user would write to have the problem solved; `template` makes tokens of it."""
        return problem.question

    def load(self, path: str = "") -> list[Problem]:
        """The problems in their order.

        A count other than the published one is not refused: a subset is a fair thing to run.

        Args:
          path: the benchmark's file, or the folder of its file; by default the hub. What is made is
            made whatever the path.

        Raises:
          UserError: nothing readable there, a malformed row, two rows with one id.
        """
        place = self._place(path)
        settings = ConfigDict({"subset": self.subset, "revision": ""})
        problems: list[Problem] = []
        mistakes: list[str] = []
        origins: dict[str, str] = {}
        for number, row in enumerate(read_rows(place, settings, self.split)):
            try:
                problem = self._problem(row.value, number)
            except BadRow as error:
                is_malformed = isinstance(row.content, str)
                kind = "" if is_malformed else f"not a row of {self.name}: "
                mistakes.append(f"{row.origin}: {kind}{error}")
                continue
            if problem.id in origins:
                mistakes.append(
                    f"{row.origin}: id {problem.id!r} is that of {origins[problem.id]} too;"
                    " remove one of the rows"
                )
            origins.setdefault(problem.id, row.origin)
            problems.append(problem)
        errors.raise_if_any(mistakes)
        if not problems:
            raise errors.UserError(
                f"benchmark {self.name}: {place} has no rows; give the file of the benchmark"
            )
        return problems

    def _place(self, path: str) -> str:
        """Where `read_rows` finds the rows."""
        if self.is_made:
            return self.source
        if not path:
            # With the prefix it is the hub's, whatever folders there are here.
            return f"{hub.PREFIX}{self.source}"
        hub.refuse_address(path, "benchmark data")
        place = Path(path).expanduser()
        if not place.is_dir():
            if not place.is_file():
                raise errors.UserError(
                    f"benchmark data {path}: no such file or folder; correct the path"
                )
            return str(place)
        file = place / (self.file or f"{self.name}.jsonl")
        if not file.is_file():
            raise errors.UserError(
                f"benchmark {self.name}: {file} does not exist; put the benchmark's rows there"
            )
        return str(file)

    def _problem(self, row: dict[str, Any], number: int) -> Problem:
        question = fields.question(row, self.question_fields)
        answer = self.answer(row).strip()
        if not answer:
            raise BadRow("the answer is empty; fix or remove the row")
        return Problem(self._id(row, number), question, answer)

    def _id(self, row: dict[str, Any], number: int) -> str:
        if not self.id_field:
            return str(number)
        value = fields.value_of(row, self.id_field)
        if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
            raise BadRow(
                f"field {self.id_field!r} should be a number or text, not {value!r}; fix the row"
            )
        return str(value)
