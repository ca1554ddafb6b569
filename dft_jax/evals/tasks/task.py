"""What a benchmark is: where its problems are, what is asked of each, and who judges answers."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dft_jax.data.image_files import ImageFile
from dft_jax.data.sources import locate
from dft_jax.data.sources.rows import BadRow, require_text
from dft_jax.evals.tasks import fields
from dft_jax.runtime import errors, files, hub

# The grader that runs completions against tests, and the one that reads letters of options.
PROGRAM = "program"
CHOICES = "choices"
# Of a benchmark's file in a local folder, the first that is there.
_ENDINGS = (".jsonl", ".parquet", ".json")


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
    style: str = ""  # as wall_s and what follows, the benchmark's
    wall_s: float = 10.0
    imports_numpy: bool = False  # in the tests

    def digest(self) -> str:
        """Of all that decides a verdict."""
        content = "\0".join([self.prompt, self.entry_point, self.setup, self.tests])
        return hashlib.sha256(content.encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Option:
    """One answer of several to choose from; its text is empty where only the image shows it."""

    letter: str
    text: str


@dataclasses.dataclass(frozen=True)
class Problem:
    """`id` is unique in its benchmark; `answer` is the ground truth, in LaTeX or plain text, or the
    digest of the tests of a `program`, or the letter of the right one of the `options`.
    """

    id: str
    question: str
    answer: str
    program: Program | None = None
    images: tuple[ImageFile, ...] = ()  # which a model is shown before the text, in this order
    options: tuple[Option, ...] = ()
    asked: str = ""  # what a user would write, where that is not the question
    # What it is of, by which scores are reported apart: ("subject", "Plane Geometry"), …
    groups: tuple[tuple[str, str], ...] = ()
    # Problems with one name here vary together: they count as one observation for intervals.
    cluster: str = ""


@dataclasses.dataclass(frozen=True)
class Task:
    """One benchmark.

    `version` is to be raised with any change of its problems, its prompts or its verdicts: scores
    of two versions are not comparable.
    """

    name: str
    source: str  # a dataset on the hub, or world(…) and its like: made, not loaded
    count: int  # problems in the published set
    answer: Callable[[dict[str, Any]], str]  # the ground truth of a row; see fields.py
    version: int = 1
    grader: str = "math"  # who judges a completion: a name in evals/grading.py
    question_fields: tuple[str, ...] = ("problem", "question")  # the first that a row has counts
    id_field: str = ""  # by default the id is the number of the row, from 0
    file: str = ""  # in a local folder; by default <name>.jsonl, .parquet or .json
    split: str = "test"
    subset: str = ""
    modes: tuple[str, ...] = ("strict", "paper")  # rules by which completions may be judged
    shows_images: bool = False
    has_composites: bool = False  # problems of several steps, each of which is a problem too
    # What other programs do otherwise, for readers of its scores.
    caution: str = ""

    @property
    def is_made(self) -> bool:
        """Whether problems are made by the laboratory, the same ones each time."""
        return locate.is_made(self.source)

    @property
    def runs_programs(self) -> bool:
        """Whether completions are programs, which are run against tests."""
        return self.grader == PROGRAM

    @property
    def needs_problems(self) -> bool:
        """Whether a verdict takes more than a completion and its reference: tests, or options."""
        return self.grader in (PROGRAM, CHOICES)

    def prompt(self, problem: Problem, template: str) -> str:
        """What a user would write to have the problem solved; `template` makes tokens of it."""
        return problem.asked or problem.question

    def stop_texts(self, template: str) -> tuple[str, ...]:
        """Texts that end a completion under this template, and are not part of it.

        They may only be texts behind which the grader reads nothing: then no verdict depends on
        them.
        """
        return ()

    def load(self, path: str = "") -> list[Problem]:
        """The problems in their order.

        A count other than the published one is not refused: a subset is a fair thing to run.

        Args:
          path: the benchmark's file, or the folder of its file; by default the hub. What is made is
            made whatever the path.

        Raises:
          UserError: nothing readable there, a malformed row, two rows with one id.
        """
        place = self.place(path)
        settings = ConfigDict({"subset": self.subset, "revision": ""})
        folder = None
        if Path(place).is_file():
            folder = Path(place).parent
        problems: list[Problem] = []
        mistakes: list[str] = []
        origins: dict[str, str] = {}
        for number, row in enumerate(locate.read_rows(place, settings, self.split)):
            try:
                problem = _placed(self._problem(row.value, number), folder)
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

    def place(self, path: str) -> str:
        """Where `read_rows` finds the rows; nothing is read.

        Raises:
          UserError: there is no such file or folder, or no file of this benchmark in it.
        """
        if self.is_made:
            return self.source
        if not path:
            # With the prefix it is the hub's, whatever folders there are here.
            return f"{hub.PREFIX}{self.source}"
        hub.refuse_address(path, "benchmark data")
        place = files.named(path)
        if not place.is_dir():
            if not place.is_file():
                raise errors.UserError(
                    f"benchmark data {path}: no such file or folder; correct the path"
                )
            return str(place)
        names = [self.file or f"{self.name}{ending}" for ending in _ENDINGS]
        for name in names:
            if (place / name).is_file():
                return str(place / name)
        raise errors.UserError(
            f"benchmark {self.name}: {place / names[0]} does not exist; put the benchmark's rows"
            " there, or give their file"
        )

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
        # A sample's noise is made of the bytes of this text.
        require_text(str(value), f"field {self.id_field!r}")
        return str(value)


def _placed(problem: Problem, folder: Path | None) -> Problem:
    """The problem, the paths of its images below the folder of its file; None of the hub's rows."""
    images = []
    for image in problem.images:
        if image.content is None:
            if folder is None:
                raise BadRow(f"image {image.name!r} is a path, and the row is of no file")
            image = dataclasses.replace(image, folder=folder)
        images.append(image)
    return dataclasses.replace(problem, images=tuple(images))
