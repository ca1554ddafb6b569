r"""MATH-Vision (arXiv 2402.14804): 3,040 problems of competitions, 1,532 of them with five options.

Rows of MathLLMs/MathVision, split `test`: id, question, options (a list, empty where there are
none), image (a path), decoded_image (the image), answer (a letter where there are options),
solution, level (1 to 5), subject (16).

A question marks by <image1>, <image2>, … where its images stood, and options may be such a mark.
The row has one image, which shows them all with these names, and no harness divides it: VLMEvalKit
and lmms-eval show it and leave the marks in the text. So it is here: the image comes first, the
marks stay.

Half of the options are letters that the image shows (A of A, B of B). A letter that is an option's
is that option, also where an option's text is another one's letter.

The authors' evaluation (mathllm/MATH-V) takes the letter or the option's text, as here; it gives
model text to Python's evaluator, and equals to two decimals.
"""

from typing import Any

from dft_jax.data.sources.rows import BadRow
from dft_jax.evals.tasks import fields, pictured
from dft_jax.evals.tasks.pictured import PicturedTask
from dft_jax.evals.tasks.task import Option, Problem

_LEVELS = range(1, 6)


class MathVision(PicturedTask):
    """The rows of MATH-Vision as problems."""

    def _problem(self, row: dict[str, Any], number: int) -> Problem:
        question = fields.text_of(fields.value_of(row, "question"), "question").strip()
        texts = _texts(row)
        answer = self.answer(row)
        options: tuple[Option, ...] = ()
        lines = [question]
        if texts:
            options = pictured.options_of(texts)
            answer = pictured.right_letters(answer, options)
            for option, text in zip(options, texts, strict=True):
                lines.append(f"({option.letter}) {text}")
        lines.append(pictured.OF_OPTIONS if texts else pictured.OF_VALUE)
        subject = fields.text_of(fields.value_of(row, "subject"), "subject")
        return Problem(
            id=self._id(row, number),
            question=question,
            answer=answer,
            images=(pictured.image_of(row, ("decoded_image", "image")),),
            options=options,
            asked="\n".join(lines),
            groups=(("subject", subject), ("level", str(_level(row)))),
        )


def _texts(row: dict[str, Any]) -> list[str]:
    value = fields.value_of(row, "options")
    if not isinstance(value, (list, tuple)):
        found = type(value).__name__
        raise BadRow(f"field 'options' should be a list of texts, not {found}; fix the row")
    return [fields.text_of(text, "options") for text in value]


def _level(row: dict[str, Any]) -> int:
    level = fields.value_of(row, "level")
    if isinstance(level, bool) or level not in _LEVELS:
        raise BadRow(f"field 'level' should be a number from 1 to 5, not {level!r}; fix the row")
    return int(level)


def answer_of(row: dict[str, Any]) -> str:
    r"""The answer of a row, its box taken off.

    In one row the beginning of \frac was read as a form feed, and two give a unit in braces.
    """
    text = fields.text_of(fields.value_of(row, "answer"), "answer").strip("\t\n ")
    text = text.replace("\x0c", "\\f").replace("{degrees}", "^\\circ")
    text = text.replace("{squareinches}", "\\text{ square inches}")
    text = text.replace("{inches}", "\\text{ inches}")
    return fields.final_answer(text)


TASKS = (
    MathVision(
        "mathvision",
        source="MathLLMs/MathVision",
        count=3040,
        answer=answer_of,
        id_field="id",
        caution=(
            "reads a box up to its first closing brace, has a model extract what it cannot read,"
            " and gives answers to Python's evaluator"
        ),
    ),
)
