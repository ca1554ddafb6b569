"""scores.json, read back and checked key by key: a file that was cut or edited is refused."""

import math
from pathlib import Path
from typing import Any

from dft_jax.runtime import errors
from dft_jax.runtime.files import read_json

# What to do about an evaluation.json that is not whole: its samples may depend on anything.
ANOTHER_FOLDER = "give another folder, or remove this one"

# Key of a result -> the kind of its value. Files of earlier versions lack those of _LATER.
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
# Of a group of problems, and of We-Math's scores; only some benchmarks have them.
_GROUP = {"problems": "count", "mean": "share"}
_CASES = {
    "score": {"mean": "share"},
    "insufficient_knowledge": {"mean": "share"},
    "inadequate_generalization": {"mean": "share"},
    "complete_mastery": {"mean": "share"},
    "rote_memorization": {"mean": "share"},
}
_COMPOSITES = {"scored": "count", "strict": _CASES, "loose": _CASES}
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
    places: dict[tuple[str, float | None], str] = {}
    for number, result in enumerate(results):
        place = f"results[{number}]"
        mistake = _mistake(result, place)
        if mistake:
            raise errors.UserError(f"{file}: {mistake}; {remedy}")
        cell = (result["benchmark"], result["temperature"])
        if cell in places:
            raise errors.UserError(
                f"{file}: {place} has the benchmark and temperature of {places[cell]}; {remedy}"
            )
        places[cell] = place
    for key in ("settings", "grader", "benchmark_versions", "image_pixels", "stop_texts"):
        if not isinstance(content.get(key, {}), dict):
            raise errors.UserError(f"{file}: {key} should be an object; {remedy}")
    if not isinstance(content.get("grader", {}).get("programs", {}), dict):
        raise errors.UserError(f"{file}: grader.programs should be an object; {remedy}")
    return content


def _mistake(result: Any, place: str) -> str:
    """The first thing that is wrong with a result; empty where all is well."""
    if not isinstance(result, dict):
        return f"{place} should be an object"
    present = {key: kind for key, kind in _LATER.items() if key in result}
    mistake = _first_mistake(result, _RESULT, place) or _first_mistake(result, present, place)
    if mistake:
        return mistake
    for name, score in _groups_of(result).items():
        mistake = mistake or _first_mistake({name: score}, {name: _GROUP}, f"{place}.groups")
    if "composites" in result:
        kinds = {"composites": _COMPOSITES}
        mistake = mistake or _first_mistake(result, kinds, place)
    if mistake:
        return mistake
    k = str(result["avg_at_k"]["k"])
    if k not in result["pass_at_k"]:
        return f"{place}.pass_at_k.{k} is missing"
    ids = result["correct_share_of_problem"].keys()
    for key in ("majority_correct_of_problem", "sha256_of_problem"):
        if key in present and result[key].keys() != ids:
            return f"{place}.{key} has other problems than correct_share_of_problem"
    return ""


def _groups_of(result: dict[str, Any]) -> dict[str, Any]:
    """The groups of a result by their names, whatever they hold."""
    found = {}
    groups = result.get("groups", {})
    if not isinstance(groups, dict):
        return {"": groups}
    for kind, scores_by_value in groups.items():
        if not isinstance(scores_by_value, dict):
            found[kind] = scores_by_value
            continue
        for value, score in scores_by_value.items():
            found[f"{kind}.{value}"] = score
    return found


def _first_mistake(values: dict[str, Any], kinds: dict[str, Any], place: str) -> str:
    """As `_mistake`, of some keys; a kind that is a dict is of an object inside."""
    for key, kind in kinds.items():
        place_of_key = f"{place}.{key}"
        if key not in values:
            return f"{place_of_key} is missing"
        value = values[key]
        if key == "maj_at_k" and value is None:
            continue  # of programs
        if isinstance(kind, dict):
            if not isinstance(value, dict):
                return f"{place_of_key} should be an object"
            mistake = _first_mistake(value, kind, place_of_key)
            if mistake:
                return mistake
        elif not _is_of_kind(value, kind):
            shown = repr(value)
            if len(shown) > 40:
                shown = type(value).__name__
            return f"{place_of_key} should be {_SHOULD_BE[kind]}, not {shown}"
    return ""


def _is_of_kind(value: Any, kind: str) -> bool:
    """Whether the value is what `_SHOULD_BE` says of this kind."""
    if kind == "number or null":
        return value is None or is_number(value)
    if kind == "count":
        return is_number(value) and isinstance(value, int) and value >= 1
    if kind == "share":
        return is_number(value) and 0 <= value <= 1
    if kind == "text":
        return isinstance(value, str)
    if kind == "boolean":
        return isinstance(value, bool)
    # What is left are objects, by problem or by k, of values of one kind.
    if not isinstance(value, dict) or not value:
        return False
    kind_of_members = kind.removesuffix("s")
    return all(_is_of_kind(member, kind_of_members) for member in value.values())


def is_number(value: Any) -> bool:
    """An int or float that arithmetic can use: not true, NaN, infinite, nor of 400 digits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    if isinstance(value, int):
        return abs(value) < 2**53
    return math.isfinite(value)
