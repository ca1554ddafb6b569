"""We-Math (arXiv 2407.01284): 525 problems of two or three steps, and each step as a problem.

Rows of We-Math/We-Math, split `testmini`: ID, key, question, option, answer (a letter), image_path
(the image), knowledge concept, question number, and more. The 1,740 rows are 525 composite problems
and their steps: those of one composite have one ID (2steps_1 to 2steps_360, 3steps_1 to
3steps_165), and key says which a row is (2steps_1, 2steps_2, 2steps_multi; 3steps_1, …). A
problem's id here is both: 2steps_17/1, 2steps_17/2, 2steps_17/multi.

Options stand in one text, "A. 3 cm; B. 5 cm; C. No correct answer", two to seven of them. In nine
rows a point named in an option (point ;O.;) has a semicolon of its own before it.

The four cases and the two scores are in evals/composites.py. The authors' evaluation reads letters
as the mode `vlmevalkit` does (graders/choices.py).
"""

import re
from typing import Any

from dft_jax.data.sources.rows import BadRow
from dft_jax.evals.tasks import fields, pictured
from dft_jax.evals.tasks.pictured import PicturedTask
from dft_jax.evals.tasks.task import Option, Problem

STEPS = "steps"  # the group by which accuracies are reported
ONE_STEP = "one-step"
_COMPOSITE = {"2steps": "two-step", "3steps": "three-step"}
_KEY = re.compile(r"(2steps|3steps)_([1-3]|multi)")
_ID = re.compile(r"(2steps|3steps)_(\d+)")
# A letter of an option; in "point ;C.; D. No" the C is the point's.
_LABEL = re.compile(r"(?:^|;)\s*([A-H])\s*[.．](?!\s*(?:;|$))")


class WeMath(PicturedTask):
    """The rows of We-Math as problems."""

    def _problem(self, row: dict[str, Any], number: int) -> Problem:
        composite = self._id(row, number)
        name = _ID.fullmatch(composite)
        key = fields.text_of(fields.value_of(row, "key"), "key")
        part = _KEY.fullmatch(key)
        if name is None:
            raise BadRow(f"field 'ID' should be as 2steps_17 or 3steps_17, not {composite!r}")
        if part is None or key == "2steps_3":
            raise BadRow(f"field 'key' should be as 2steps_1 or 3steps_multi, not {key!r}")
        if name[1] != part[1]:
            raise BadRow(f"key {key!r} is of another kind than ID {composite!r}; fix the row")
        steps = ONE_STEP
        if part[2] == "multi":
            steps = _COMPOSITE[part[1]]
        question = fields.text_of(fields.value_of(row, "question"), "question").strip()
        text = fields.text_of(fields.value_of(row, "option"), "option").strip()
        options = options_in(text)
        return Problem(
            id=f"{composite}/{part[2]}",
            question=question,
            answer=pictured.right_letters(self.answer(row), options),
            images=(pictured.image_of(row, ("image_path", "image")),),
            options=options,
            asked=f"{question}\n{text}\n{pictured.OF_OPTIONS}",
            groups=((STEPS, steps),),
            cluster=composite,
        )


def options_in(text: str) -> tuple[Option, ...]:
    """The options of a row: those of "A. 3 cm; B. 5 cm; C. No correct answer".

    Letters go up; few rows leave some out.

    Raises:
      BadRow: there are fewer than two.
    """
    begins: list[re.Match[str]] = []
    for match in _LABEL.finditer(text):
        if not begins or match[1] > begins[-1][1]:
            begins.append(match)
    ends = [match.start() for match in begins[1:]] + [len(text)]
    found = []
    for match, end in zip(begins, ends, strict=True):
        value = text[match.end() : end].strip("; \n")
        found.append(Option(match[1], pictured.with_unit_marked(value)))
    if len(found) < 2:
        raise BadRow("field 'option' should be as 'A. 3 cm; B. 5 cm; …'; fix the row")
    return tuple(found)


def answer_of(row: dict[str, Any]) -> str:
    """The letter of the right option."""
    return fields.text_of(fields.value_of(row, "answer"), "answer").strip()


TASKS = (
    WeMath(
        "wemath",
        source="We-Math/We-Math",
        count=1740,
        answer=answer_of,
        id_field="ID",
        split="testmini",
        modes=("strict", "vlmevalkit"),
        has_composites=True,
        caution=(
            "takes the first letter behind the last 'Answer', unless a model judges, so that a"
            " model that writes (B) or \\boxed{B} scores about 0 (mode vlmevalkit does so)"
        ),
    ),
)
