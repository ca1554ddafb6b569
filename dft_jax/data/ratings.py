"""Which of several rated answers is the demonstration: the rule for rows of UltraFeedback.

A row has up to four completions, each with `annotations`, of four aspects, as in
{"helpfulness": {"Rating": "4", …}}, where a Rating may also be "N/A"; and with a
`fine-grained_score`, a number. The score of a completion is the mean of its Ratings that are
numbers; where none is, its fine-grained_score; where there is neither, it does not take part.

Not `overall_score`: 2,628 of the first release's tens were ones (OpenBMB/UltraFeedback, issue 8).
"""

import math
from typing import Any

from dft_jax.data.sources.rows import BadRow, NothingToTrain

# What the annotator wrote where an aspect does not apply.
_NOT_RATED = "N/A"
_ASPECTS = "annotations"
_SCORE = "fine-grained_score"


def best_of(completions: Any) -> int:
    """The number of the completion with the highest score; of equals the first.

    Raises:
      BadRow: no list of completions, or one without ratings, or with a rating that is no number.
      NothingToTrain: no completion has a score.
    """
    if not isinstance(completions, list):
        found = type(completions).__name__
        raise BadRow(f"field 'completions' should be a list, not {found}; fix it or set data.rows")
    best, highest = -1, -math.inf
    for number, completion in enumerate(completions):
        score = score_of(completion, number)
        if score is not None and score > highest:
            best, highest = number, score
    if best < 0:
        raise NothingToTrain("none of its completions has a score")
    return best


def score_of(completion: Any, number: int) -> float | None:
    """The score of one completion; None where it says that it was not rated.

    Args:
      number: of the completion in its row, for messages.

    Raises:
      BadRow: neither of the two fields is there, or what is in one of them is no rating.
    """
    what = f"completion {number}"
    if not isinstance(completion, dict):
        found = type(completion).__name__
        raise BadRow(f"{what} should be an object with a response and ratings, not {found}")
    if _ASPECTS not in completion and _SCORE not in completion:
        raise BadRow(
            f"{what} has no ratings ({_ASPECTS!r} or {_SCORE!r}), so it cannot be compared with"
            " the others; fix the row or set data.bad_rows='drop'"
        )
    ratings = _ratings(completion.get(_ASPECTS) or {}, what)
    if ratings:
        return sum(ratings) / len(ratings)
    score = completion.get(_SCORE)
    if score is None:
        return None
    return _number(score, f"{what}: {_SCORE}")


def _ratings(annotations: Any, what: str) -> list[float]:
    """The ratings that are numbers."""
    if not isinstance(annotations, dict):
        found = type(annotations).__name__
        raise BadRow(f"{what}: {_ASPECTS!r} should be an object of aspects, not {found}; fix it")
    found = []
    for aspect, annotation in annotations.items():
        # A table has a column for every aspect, null where a row does not have it.
        if annotation is None:
            continue
        if not isinstance(annotation, dict) or "Rating" not in annotation:
            raise BadRow(f"{what}: {aspect!r} has no 'Rating'; fix it or set data.bad_rows='drop'")
        rating = annotation["Rating"]
        if rating is not None and rating != _NOT_RATED:
            found.append(_number(rating, f"{what}: Rating of {aspect!r}"))
    return found


def _number(value: Any, what: str) -> float:
    """A rating as a number, which may be there as text; BadRow for anything else."""
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
        if not math.isfinite(number):
            raise ValueError
    # The last is a number of 400 digits.
    except (TypeError, ValueError, OverflowError):
        shown = repr(value)[:40]
        raise BadRow(f"{what} is {shown}; it should be a number or {_NOT_RATED!r}") from None
    return number
