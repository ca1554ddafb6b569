"""The benchmarks: where each is, what a row of it asks, and what the right answer is.

A new benchmark is one entry of BENCHMARKS.
"""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dft_jax.data.sources.locate import read_rows
from dft_jax.data.sources.rows import BadRow
from dft_jax.evals.graders import extraction
from dft_jax.runtime import errors, hub


@dataclasses.dataclass(frozen=True)
class Problem:
    """`id` is unique in its benchmark; `answer` is the ground truth, in LaTeX or plain text."""

    id: str
    question: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Where the rows are and how one is read.

    `question` names the fields that may hold the question, the first present one counts. `id` names
    the field of the problem's id; where it is empty, the id is the number of the row, from 0.
    """

    hub: str
    count: int  # problems in the published set
    answer: Callable[[dict], str]
    question: tuple[str, ...] = ("problem", "question")
    id: str = ""
    file: str = ""  # in a local folder; by default <name>.jsonl
    split: str = "test"
    subset: str = ""


def final_answer(text: str) -> str:
    r"""The answer in a reference: what a whole solution marks by '#### ' or a box, and else the
    text itself.

    Graded against "3 + 4 = 7\n#### 7", the answer 7 would be wrong, and so would every other.

    Raises:
      BadRow: it has a mark and no answer there.
    """
    if "####" in text:
        answer = text.rpartition("####")[2].strip()
    elif "\\boxed" in text or "\\fbox" in text:
        answer = extraction.last_boxed(text)
    else:
        return text
    if not answer:
        raise BadRow(
            "the reference marks an answer by '####' or \\boxed{} and has none there; mend or remove the row"
        )
    return answer


def _answer(row: dict) -> str:
    """`answer`; where there is none, the last boxed answer of `solution`. 27.0 becomes "27"."""
    if "answer" not in row and "solution" in row:
        return _boxed_of_solution(row)
    value = _value(row, "answer")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return final_answer(_text(value, "answer"))


def _boxed_of_solution(row: dict) -> str:
    if "solution" not in row and "answer" in row:
        return _answer(row)
    solution = _text(_value(row, "solution"), "solution")
    answer = extraction.last_boxed(solution)
    if not answer:
        raise BadRow("field 'solution' has no answer in \\boxed{}; mend or remove the row")
    return answer


def _first_final_answer(row: dict) -> str:
    value = _value(row, "final_answer")
    if not isinstance(value, list) or not value:
        raise BadRow(
            "field 'final_answer' should be a list with the answer first; mend or remove the row"
        )
    return final_answer(_text(value[0], "final_answer"))


def _after_hashes(row: dict) -> str:
    steps, hashes, answer = _text(_value(row, "answer"), "answer").rpartition("####")
    if not hashes or not answer.strip():
        raise BadRow("field 'answer' has no '#### 42' at its end; mend or remove the row")
    return answer.strip().replace(",", "")


# Fields that other programs show a model beside the question.
_PARTS_OF_A_QUESTION = frozenset("context choices options system messages tools".split())

BENCHMARKS = {
    "math500": Benchmark("HuggingFaceH4/MATH-500", 500, _answer, id="unique_id"),
    "minerva": Benchmark("math-ai/minervamath", 272, _boxed_of_solution),
    "olympiadbench": Benchmark(
        "Hothan/OlympiadBench",
        675,
        _first_final_answer,
        id="id",
        split="train",
        subset="OE_TO_maths_en_COMP",
    ),
    "aime24": Benchmark("math-ai/aime24", 30, _answer, id="id"),
    "aime25": Benchmark("math-ai/aime25", 30, _answer),
    "amc23": Benchmark("math-ai/amc23", 40, _answer, id="id"),
    "gsm8k": Benchmark("openai/gsm8k", 1319, _after_hashes, file="gsm8k_test.jsonl", subset="main"),
    # Of the laboratory: made, not loaded. `lab` is like the demonstrations, the others are not.
    "lab": Benchmark("world(split=test, family=chain, levels=2-4, n=200)", 200, _after_hashes),
    "lab_hard": Benchmark("world(split=test, family=chain, levels=5-6, n=200)", 200, _after_hashes),
    "lab_expression": Benchmark(
        "world(split=test, family=expression, levels=3-5, n=200)", 200, _after_hashes
    ),
    "lab_operator": Benchmark(
        "world(split=test, family=operator, levels=1-2, n=100)", 100, _after_hashes
    ),
    "lab_train": Benchmark(
        "world(split=train, family=chain, levels=2-4, n=2500)", 2500, _after_hashes
    ),
    "lab_validation": Benchmark(
        "world(split=validation, family=chain, levels=2-4, n=200)", 200, _after_hashes
    ),
    "lab_operator_validation": Benchmark(
        "world(split=validation, family=operator, levels=1-2, n=100)", 100, _after_hashes
    ),
}


def load(name: str, path: str = "") -> list[Problem]:
    """The problems of a benchmark in their order, from the hub, or from `path`: its file, or the
    folder of its file.

    A count other than the published one is not refused (a subset is a fair thing to run); see
    `count_warning`.

    Raises:
      UserError: unknown benchmark, nothing readable there, a malformed row, two rows with one id.
    """
    benchmark = find(name)
    is_made = benchmark.hub.startswith("world(")
    if is_made:
        where = benchmark.hub
    else:  # the hub's, whatever folders there are here
        where = str(_local_file(name, benchmark, path)) if path else f"{hub.PREFIX}{benchmark.hub}"
    settings = ConfigDict({"subset": benchmark.subset, "revision": ""})
    problems: list[Problem] = []
    mistakes: list[str] = []
    place_of: dict[str, str] = {}
    for number, row in enumerate(read_rows(where, settings, benchmark.split)):
        try:
            problem = _problem(benchmark, row.value, number)
        except BadRow as error:
            of = "" if isinstance(row.content, str) else f"not a row of {name}: "
            mistakes.append(f"{row.origin}: {of}{error}")
            continue
        if problem.id in place_of:
            first = place_of[problem.id]
            mistakes.append(
                f"{row.origin}: id {problem.id!r} is that of {first} too; remove one of the rows"
            )
        place_of.setdefault(problem.id, row.origin)
        problems.append(problem)
    errors.raise_if_any(mistakes)
    if not problems:
        raise errors.UserError(
            f"benchmark {name}: {where} has no rows; give the file of the benchmark"
        )
    return problems


def find(name: str) -> Benchmark:
    """The entry of BENCHMARKS; UserError with the closest names for an unknown one."""
    if name not in BENCHMARKS:
        close, known = errors.did_you_mean(name, list(BENCHMARKS)), ", ".join(BENCHMARKS)
        raise errors.UserError(f"benchmark {name!r} is unknown{close}; known: {known}")
    return BENCHMARKS[name]


def count_warning(name: str, problems: list[Problem]) -> str:
    """One line where the number of problems is not the published one; else the empty string."""
    expected = find(name).count
    if len(problems) == expected:
        return ""
    return f"{name} has {len(problems)} problems here, {expected} as published: its scores are those of another set"


def _local_file(name: str, benchmark: Benchmark, path: str) -> Path:
    place = Path(path).expanduser()
    if not place.is_dir():
        if not place.is_file():
            raise errors.UserError(
                f"benchmark data {path}: no such file or folder; correct the path"
            )
        return place
    file = place / (benchmark.file or f"{name}.jsonl")
    if not file.is_file():
        raise errors.UserError(
            f"benchmark {name}: {file} does not exist; put the benchmark's rows there"
        )
    return file


def _problem(benchmark: Benchmark, row: dict, number: int) -> Problem:
    question = _question(benchmark, row)
    answer = benchmark.answer(row).strip()
    if not answer:
        raise BadRow("the answer is empty; mend or remove the row")
    if not benchmark.id:
        return Problem(str(number), question, answer)
    value = _value(row, benchmark.id)
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        raise BadRow(
            f"field {benchmark.id!r} should be a number or text, not {value!r}; mend the row"
        )
    return Problem(str(value), question, answer)


def _question(benchmark: Benchmark, row: dict) -> str:
    """The text of a row's question; BadRow where more belongs to it than text, or two fields
    differ.
    """
    present = [field for field in benchmark.question if row.get(field) is not None]
    field = present[0] if present else benchmark.question[0]
    question = _text(_value(row, field), field)
    for other in present[1:]:
        if _text(row[other], other).strip() != question.strip():
            raise BadRow(f"fields {field!r} and {other!r} ask different things; keep the right one")
    for other, value in row.items():
        is_part = other in _PARTS_OF_A_QUESTION or other.startswith("image")
        if is_part and value not in (None, "", [], {}):
            what = f"field {other!r} belongs to the question and would be lost"
            raise BadRow(f"{what}; put it into {field!r}, or remove the row")
    return question


def _value(row: dict, field: str) -> Any:
    if row.get(field) is None:
        has = (
            ", ".join(map(repr, sorted(key for key in row if row[key] is not None))) or "no fields"
        )
        raise BadRow(
            f"field {field!r} is missing (the row has {has}); mend the row, or give the right file"
        )
    return row[field]


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value.strip():
        found = "empty" if isinstance(value, str) else type(value).__name__
        raise BadRow(f"field {field!r} should be text, not {found}; mend or remove the row")
    if re.search("[\ud800-\udfff]", value):
        raise BadRow(
            f"field {field!r} holds half a surrogate pair, which is not text; re-save the row as UTF-8"
        )
    return value
