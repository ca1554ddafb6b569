"""scores.json, read back: checked key by key, so that a file that was cut or edited is refused by
name.
"""

import math
from pathlib import Path
from typing import Any

from dft_jax.runtime import errors
from dft_jax.runtime.files import read_json

# What to do about an evaluation.json that is not whole: its samples may depend on anything.
ANOTHER_FOLDER = "give another folder, or remove this one"

# Key of a result -> what it should be. Those of _LATER are missing in files of earlier versions.
_RESULT = {
    "benchmark": "text",
    "temperature": "number or null",
    "problems": {"scored": "count"},
    "samples_per_problem": "count",
    "avg_at_k": {"k": "count", "mean": "share"},
    "pass_at_k": "shares",
    "maj_at_k": {"k": "count", "mean": "share"},
    "correct_share_of_problem": "shares",
    "mean_token_entropy": "number or null",
    "mean_length_tokens": "number or null",
    "truncation_rate": "number or null",
}
_LATER = {
    "majority_correct_of_problem": "booleans",
    "sha256_of_problem": "texts",
    "sha256_is_of": "text",
}
_SHOULD_BE = {
    "text": "text",
    "count": "a whole number of at least 1",
    "share": "a number from 0 to 1",
    "number or null": "a finite number or null",
    "shares": "an object of numbers from 0 to 1, not empty",
    "booleans": "an object of true and false, not empty",
    "texts": "an object of texts, not empty",
}


def read_scores(file: Path, remedy: str) -> dict[str, Any]:
    """The content of a scores.json, in which everything that a table or comparison needs is there.

    Args:
      remedy: what to do about a file that is not whole.

    Raises:
      UserError: not JSON, no results, or the first key that is missing or of another kind than it
      should be.
    """
    content = read_json(file, remedy)
    results = content.get("results")
    if not isinstance(results, list) or not results:
        raise errors.UserError(f"{file}: no results in it; {remedy}")
    places: dict[tuple[str, float | None], int] = {}
    for number, result in enumerate(results):
        where = f"results[{number}]"
        wrong = _mistake(result, where)
        if wrong:
            raise errors.UserError(f"{file}: {wrong}; {remedy}")
        cell = (result["benchmark"], result["temperature"])
        if cell in places:
            first = f"results[{places[cell]}]"
            what = f"{where} has the benchmark and temperature of {first}"
            raise errors.UserError(f"{file}: {what}; {remedy}")
        places[cell] = number
    for key in ("settings", "grader"):
        if not isinstance(content.get(key, {}), dict):
            raise errors.UserError(f"{file}: {key} should be an object; {remedy}")
    return content


def _mistake(result: Any, where: str) -> str:
    """The first thing that is wrong with a result; empty where all is well."""
    if not isinstance(result, dict):
        return f"{where} should be an object"
    wrong = _first_wrong(result, _RESULT, where)
    present = {key: kind for key, kind in _LATER.items() if key in result}
    wrong = wrong or _first_wrong(result, present, where)
    if wrong:
        return wrong
    k, ids = str(result["avg_at_k"]["k"]), result["correct_share_of_problem"].keys()
    if k not in result["pass_at_k"]:
        return f"{where}.pass_at_k.{k} is missing"
    for key in ("majority_correct_of_problem", "sha256_of_problem"):
        if key in present and result[key].keys() != ids:
            return f"{where}.{key} has other problems than correct_share_of_problem"
    return ""


def _first_wrong(values: dict[str, Any], kinds: dict[str, Any], where: str) -> str:
    for key, kind in kinds.items():
        place = f"{where}.{key}"
        if key not in values:
            return f"{place} is missing"
        if isinstance(kind, dict):
            if not isinstance(values[key], dict):
                return f"{place} should be an object"
            wrong = _first_wrong(values[key], kind, place)
            if wrong:
                return wrong
        elif not _is(values[key], kind):
            shown = repr(values[key])
            shown = shown if len(shown) <= 40 else type(values[key]).__name__
            return f"{place} should be {_SHOULD_BE[kind]}, not {shown}"
    return ""


def _is(value: Any, kind: str) -> bool:
    if kind == "number or null":
        return value is None or is_number(value)
    if kind == "count":
        return is_number(value) and isinstance(value, int) and value >= 1
    if kind == "share":
        return is_number(value) and 0 <= value <= 1
    if kind == "text":
        return isinstance(value, str)
    each = {"shares": "share", "texts": "text"}.get(kind)
    values = list(value.values()) if isinstance(value, dict) else []
    if each is None:  # booleans
        return bool(values) and all(isinstance(one, bool) for one in values)
    return bool(values) and all(_is(one, each) for one in values)


def is_number(value: Any) -> bool:
    """An int or float that arithmetic can use: not true, NaN, infinite, nor of 400 digits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    if isinstance(value, int):
        return abs(value) < 2**53
    return math.isfinite(value)
