"""What benchmarks with images have in common: where a row's image is, its options, what is asked.

A row comes from the hub, or from a .parquet, .jsonl or .json file in the hub's form. Its image is a
dict of `bytes` and `path`, as the hub has it, or a path below the folder of the file.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from dft_jax.data.image_files import ImageFile
from dft_jax.data.sources.rows import BadRow
from dft_jax.evals.graders import choices
from dft_jax.evals.tasks import fields
from dft_jax.evals.tasks.task import CHOICES, Option, Task

LETTERS = "ABCDEFGH"
# Where only the image shows the options.
UNSEEN = tuple(Option(letter, "") for letter in LETTERS)
_STEPS = "Think step by step, and end with"
OF_OPTIONS = f"{_STEPS} the letter of the right option in \\boxed{{}}."
OF_VALUE = f"{_STEPS} the final answer in \\boxed{{}}."

# Units that stand behind a number without a mark; to the graders a bare letter is a variable.
_BARE_UNIT = re.compile(
    r"(?<=[\d)}])\s*((?:mm|cm|dm|km|m)(?:\s*/\s*(?:h|s|min))?)(\s*(?:\^\s*\{?\s*\d\s*\}?|[²³]))?$"
)


@dataclasses.dataclass(frozen=True)
class PicturedTask(Task):
    """A benchmark whose problems show an image, which a model sees before the text."""

    grader: str = CHOICES
    modes: tuple[str, ...] = ("strict",)
    shows_images: bool = True


def image_of(row: dict[str, Any], names: Sequence[str]) -> ImageFile:
    """The image of a row, in the first of these fields that is there.

    Raises:
      BadRow: there is none.
    """
    present = [name for name in names if row.get(name) not in (None, "")]
    if not present:
        raise BadRow(f"the row has no image in {' or '.join(map(repr, names))}; fix or remove it")
    field = present[0]
    value = row[field]
    path = value
    if isinstance(value, dict):
        content = value.get("bytes")
        path = value.get("path")
        if isinstance(content, bytes) and content:
            name = path if isinstance(path, str) and path else field
            return ImageFile(name, content=content)
    if not isinstance(path, str) or not path.strip():
        found = type(value).__name__
        raise BadRow(
            f"field {field!r} should be a path, or an object of bytes and path, not {found};"
            " fix the row"
        )
    return ImageFile(path)


def text_or_empty(row: dict[str, Any], field: str) -> str:
    """The text of a field that may be empty, but has to be there."""
    if row.get(field) == "":
        return ""
    return fields.text_of(fields.value_of(row, field), field)


def one_of(row: dict[str, Any], field: str, known: Sequence[str]) -> str:
    """The text of a field that says one of a few things."""
    value = fields.text_of(fields.value_of(row, field), field)
    if value not in known:
        raise BadRow(f"field {field!r} should be one of {', '.join(known)}, not {value!r}")
    return value


def options_of(texts: Sequence[str]) -> tuple[Option, ...]:
    """Options by their texts, which are A, B, C, … in this order.

    Raises:
      BadRow: one, or more than there are letters.
    """
    if not 2 <= len(texts) <= len(LETTERS):
        raise BadRow(f"the row has {len(texts)} options, not 2 to {len(LETTERS)}; fix or remove it")
    return tuple(
        Option(letter, with_unit_marked(text.strip()))
        for letter, text in zip(LETTERS, texts, strict=False)
    )


def right_letters(answer: str, options: Sequence[Option]) -> str:
    """The letters of the right options, of what a row has: D, (D), or the text of D.

    Raises:
      BadRow: it names none of the options.
    """
    found = choices.reference_of(answer, options)
    if found is None:
        known = ", ".join(option.letter for option in options)
        remedy = "fix or remove the row"
        if options == UNSEEN:
            remedy = "give the options' texts in 'question_for_eval', as newer revisions do"
        raise BadRow(f"the answer {answer!r} is none of the options {known}; {remedy}")
    return found


def with_unit_marked(text: str) -> str:
    r"""The value with its unit as a unit: 12 \mathrm{km} of 12 km, 4.4 \mathrm{m} of 4.4 m."""
    return _BARE_UNIT.sub(lambda match: f" \\mathrm{{{match[1]}}}{match[2] or ''}", text.strip())
