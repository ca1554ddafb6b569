r"""MathVerse (arXiv 2403.14624): 788 problems, each in five versions that say less and show more.

Rows of AI4Math/MathVerse, subset and split `testmini`: sample_index, problem_index,
problem_version, question, image, answer, question_type (multi-choice or free-form), metadata
(subject and subfield among others), query_wo and query_cot, and in later revisions
question_for_eval. 436 of the 788 problems have options. They stand in the question, behind a line
"Choices:" (three times "Choice:"), as "A:40°" or "A.40". Of the version Vision Only the question is
empty: image and query_cot say all, and the options are in question_for_eval, if the row has it.

Answers of rows are not all in one form. Of those with options some are (C), or the option's text,
and two problems ask for two letters. Of those without, a fourth are named (Area $=9 \pi
\mathrm{cm}^{2}$) or have a unit as bare letters (4.4 m); both would be taken for variables.

The authors' evaluation (ZrrSkywalker/MathVerse) has a model extract every answer and another one
compare it. So has VLMEvalKit, which reports by version and subfield; lmms-eval asks with query_wo.
"""

import re
from typing import Any

from dft_jax.data.sources.rows import BadRow
from dft_jax.evals.tasks import fields, pictured
from dft_jax.evals.tasks.pictured import PicturedTask
from dft_jax.evals.tasks.task import Option, Problem

VERSIONS = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only")
TYPES = ("multi-choice", "free-form")
_CHOICES = re.compile(r"\n\s*Choices?\s*:\s*\n")
_OPTION = re.compile(r"(?:^|\n)\s*([A-H])\s*[:.]")
# Area $=9 \pi$, slope =-4: what a value is called.
_NAMED = re.compile(r"^[A-Za-z][A-Za-z. ]{2,}(\$?)\s*=\s*")
# 315^\circ T: a bearing from true north. In one answer ° was saved in another encoding, and read
# as the character 掳.
_TRUE = re.compile(r"(°|\\circ\s*\}?)\s*T$")


class MathVerse(PicturedTask):
    """The rows of MathVerse as problems."""

    def _problem(self, row: dict[str, Any], number: int) -> Problem:
        version = pictured.one_of(row, "problem_version", VERSIONS)
        question = pictured.text_or_empty(row, "question")
        asked = fields.text_of(fields.value_of(row, "query_cot"), "query_cot")
        options: tuple[Option, ...] = ()
        instruction = pictured.OF_VALUE
        if pictured.one_of(row, "question_type", TYPES) == TYPES[0]:
            options = options_in(question, str(row.get("question_for_eval") or ""))
            instruction = pictured.OF_OPTIONS
        answer = self.answer(row)
        if options:
            answer = pictured.right_letters(answer, options)
        return Problem(
            id=self._id(row, number),
            question=question,
            answer=answer,
            images=(pictured.image_of(row, ("image",)),),
            options=options,
            asked=f"{asked.rstrip()}\n{instruction}",
            groups=(("problem_version", version), ("subject", _subject(row))),
            cluster=str(fields.value_of(row, "problem_index")),
        )


def options_in(question: str, whole_question: str = "") -> tuple[Option, ...]:
    """The options that stand at the end of a question, or else of the question for the judge.

    Raises:
      BadRow: there are options, but not A, B, C, … in this order.
    """
    for text in (question, whole_question):
        parts = _CHOICES.split(text)
        if len(parts) < 2:
            continue
        # The text before the first letter, then letters and texts in turn.
        _, *found = _OPTION.split(parts[-1])
        letters, texts = "".join(found[::2]), found[1::2]
        if letters != pictured.LETTERS[: len(letters)]:
            raise BadRow(f"the question has the options {letters!r}, not A, B, C, …; fix the row")
        return pictured.options_of(texts)
    if question:
        raise BadRow("the question has no line 'Choices:' with options behind it; fix the row")
    return pictured.UNSEEN


def _subject(row: dict[str, Any]) -> str:
    metadata = fields.value_of(row, "metadata")
    if not isinstance(metadata, dict):
        found = type(metadata).__name__
        raise BadRow(f"field 'metadata' should be an object, not {found}; fix the row")
    return fields.text_of(fields.value_of(metadata, "subject"), "subject")


def answer_of(row: dict[str, Any]) -> str:
    """The answer of a row: its value, without the name of the value."""
    text = fields.text_of(fields.value_of(row, "answer"), "answer").strip()
    if row.get("question_type") == TYPES[0]:
        return text
    text = _NAMED.sub(r"\1", text.replace("掳", "°"), count=1)
    if re.fullmatch(r"\$[^$]*\$", text):
        text = text[1:-1]
    return pictured.with_unit_marked(_TRUE.sub(r"\1 \\mathrm{T}", text))


TASKS = (
    MathVerse(
        "mathverse",
        source="AI4Math/MathVerse",
        count=3940,
        answer=answer_of,
        id_field="sample_index",
        split="testmini",
        subset="testmini",
        caution=(
            "has one model extract every answer and another one compare it; without models almost"
            " nothing counts there"
        ),
    ),
)
