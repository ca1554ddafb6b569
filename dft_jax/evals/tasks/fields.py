"""What the fields of a benchmark's row hold, checked: questions, and ground truths of four forms.

A `BadRow` of these says which field is wrong, and what to do about it.
"""

from typing import Any

from dft_jax.data.sources.rows import BadRow, require_text
from dft_jax.evals.graders import extraction

# Fields that other programs show a model beside the question.
_PARTS_OF_A_QUESTION = frozenset("context choices options system messages tools".split())
_EMPTY = (None, "", [], {})


def value_of(row: dict[str, Any], field: str) -> Any:
    """The field's value, which has to be there and not null."""
    if row.get(field) is not None:
        return row[field]
    present = sorted(key for key, value in row.items() if value is not None)
    listed = ", ".join(map(repr, present)) or "no fields"
    raise BadRow(
        f"field {field!r} is missing (the row has {listed}); fix the row, or give the right file"
    )


def text_of(value: Any, field: str) -> str:
    """The value of this field, which has to be text that says something."""
    if not isinstance(value, str):
        found = type(value).__name__
        raise BadRow(f"field {field!r} should be text, not {found}; fix or remove the row")
    if not value.strip():
        raise BadRow(f"field {field!r} should be text, not empty; fix or remove the row")
    require_text(value, f"field {field!r}")
    return value


def question(row: dict[str, Any], names: tuple[str, ...]) -> str:
    """The text of a row's question, from the first of these fields that is there.

    Raises:
      BadRow: no such field, two that ask different things, or more to the question than text.
    """
    present = [name for name in names if row.get(name) is not None]
    field = present[0] if present else names[0]
    text = text_of(value_of(row, field), field)
    for other in present[1:]:
        if text_of(row[other], other).strip() != text.strip():
            raise BadRow(f"fields {field!r} and {other!r} ask different things; keep the right one")
    for other, value in row.items():
        is_part = other in _PARTS_OF_A_QUESTION or other.startswith("image")
        if is_part and value not in _EMPTY:
            raise BadRow(
                f"field {other!r} belongs to the question and would be lost;"
                f" put it into {field!r}, or remove the row"
            )
    return text


# ---- ground truths


def final_answer(text: str) -> str:
    r"""The answer in a reference: what a whole solution marks, and else the text itself.

    Marks are '#### ' and a box. Graded against "3 + 4 = 7\n#### 7", the answer 7 would be wrong,
    and so would every other.

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
            "the reference marks an answer by '####' or \\boxed{} and has none there;"
            " fix or remove the row"
        )
    return answer


def answer_field(row: dict[str, Any]) -> str:
    """`answer`; where there is none, the last boxed answer of `solution`. 27.0 becomes "27"."""
    if "answer" not in row and "solution" in row:
        return boxed_in_solution(row)
    value = value_of(row, "answer")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return final_answer(text_of(value, "answer"))


def boxed_in_solution(row: dict[str, Any]) -> str:
    """The last boxed answer of `solution`; where there is none, `answer`."""
    if "solution" not in row and "answer" in row:
        return answer_field(row)
    solution = text_of(value_of(row, "solution"), "solution")
    answer = extraction.last_boxed(solution)
    if not answer:
        raise BadRow("field 'solution' has no answer in \\boxed{}; fix or remove the row")
    return answer


def first_final_answer(row: dict[str, Any]) -> str:
    """The first entry of the list `final_answer`."""
    value = value_of(row, "final_answer")
    if not isinstance(value, list) or not value:
        raise BadRow(
            "field 'final_answer' should be a list with the answer first; fix or remove the row"
        )
    return final_answer(text_of(value[0], "final_answer"))


def after_hashes(row: dict[str, Any]) -> str:
    """What stands after '####' at the end of `answer`, without thousands separators."""
    text = text_of(value_of(row, "answer"), "answer")
    _, hashes, answer = text.rpartition("####")
    if not hashes or not answer.strip():
        raise BadRow("field 'answer' has no '#### 42' at its end; fix or remove the row")
    return answer.strip().replace(",", "")
