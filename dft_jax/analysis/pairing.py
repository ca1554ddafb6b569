"""Which problems of two evaluations are the same, and how their scores differ, one by one."""

import dataclasses
from typing import Any

import numpy as np

from dft_jax.evals import scores
from dft_jax.evals.tasks import benchmarks

# Benchmark and temperature.
Cell = tuple[str, float | None]


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The same problems in both: `ids` are pairs (id in the first, id in the second).

    They are empty where the two must not be paired; then a warning says why.
    """

    ids: list[tuple[str, str]]
    warnings: list[str]


@dataclasses.dataclass(frozen=True)
class Differences:
    """Of each pair, second less first.

    `draws` is how many draws of the score each value is a mean of (`scores.mean_of_differences`).
    """

    value_P: np.ndarray
    draws: float


def pair(base: dict[str, Any], other: dict[str, Any]) -> Pairs:
    """The problems that two results of one benchmark have in common, as far as their digests say.

    Where a benchmark's ids are the numbers of its rows, equal ids mean nothing (another file,
    another order), so its problems are paired by digest. Elsewhere they are paired by id, and none
    at all where one id has two digests: then the two are scores of different benchmarks.
    """
    theirs = base["correct_share_of_problem"]
    ours = other["correct_share_of_problem"]
    if "sha256_of_problem" not in base or "sha256_of_problem" not in other:
        what = "scores of an older version do not say which problems they are of"
        return _by_id(theirs, ours, [f"{what}; paired by id, unchecked"])
    if base.get("sha256_is_of") != other.get("sha256_is_of"):
        what = "one knows its questions, the other only its references (give --benchmark_data)"
        return _by_id(theirs, ours, [f"{what}; paired by id, unchecked"])
    first = base["sha256_of_problem"]
    second = other["sha256_of_problem"]
    # Two problems may have the same reference, so its digest alone cannot pair them.
    knows_questions = base.get("sha256_is_of") == "question and reference"
    if knows_questions and _has_row_numbers(base["benchmark"]):
        return _by_digest(first, second)
    changed = [id_ for id_ in first if id_ in second and first[id_] != second[id_]]
    if changed:
        shown = ", ".join(changed[:3])
        if len(changed) > 3:
            shown += ", …"
        what = f"{len(changed)} problems of the same id have another question or answer ({shown})"
        return Pairs([], [f"{what}; no difference is made"])
    return _by_id(theirs, ours, [])


def _has_row_numbers(benchmark: str) -> bool:
    """Whether a benchmark's ids are the numbers of its rows."""
    known = benchmarks.BENCHMARKS.get(benchmark)
    return known is not None and not known.id_field


def _by_id(first: dict[str, Any], second: dict[str, Any], warnings: list[str]) -> Pairs:
    ids = [(id_, id_) for id_ in first if id_ in second]
    return Pairs(ids, warnings + _apart(len(first), len(second), len(ids)))


def _by_digest(first: dict[str, str], second: dict[str, str]) -> Pairs:
    """One problem asked twice is paired in the order of its rows."""
    waiting: dict[str, list[str]] = {}
    for id_ in sorted(second, key=_row_number):
        waiting.setdefault(second[id_], []).append(id_)
    ids = []
    for id_ in sorted(first, key=_row_number):
        same = waiting.get(first[id_])
        if same:
            ids.append((id_, same.pop(0)))
    return Pairs(ids, _apart(len(first), len(second), len(ids)))


def _row_number(id_: str) -> tuple[int, str]:
    """Sorts as numbers, for as text "10" comes before "9"; what is no number comes first."""
    if id_.isdecimal():
        return int(id_), id_
    return 0, id_


def _apart(n_first: int, n_second: int, n_common: int) -> list[str]:
    """A warning where the two do not have the same problems."""
    n_apart = n_first + n_second - 2 * n_common
    if not n_common:
        return ["they have no problem in common; no difference is made"]
    if n_apart:
        return [f"{n_apart} problems are in one only; the difference is over {n_common}"]
    return []


def differences(
    pairs: Pairs, base: dict[str, Any], other: dict[str, Any], score: str
) -> Differences | None:
    """The differences of one score over pairs of problems.

    None where there is nothing to pair, or the two are scores of another kind (pass@4 and pass@16).
    """
    k = other["avg_at_k"]["k"]
    k_of_base = base["avg_at_k"]["k"]
    if not pairs.ids or (score != "avg_at_k" and k_of_base != k):
        return None
    theirs = value_of_problem(base, score)
    ours = value_of_problem(other, score)
    if theirs is None or ours is None:
        return None
    draws = 1
    if score == "avg_at_k":
        # Of the two means the one of fewer samples is the less certain.
        draws = min(k, k_of_base)
    value_P = np.array([ours[second] - theirs[first] for first, second in pairs.ids])
    return Differences(value_P, draws)


def value_of_problem(result: dict[str, Any], score: str) -> dict[str, float] | None:
    """avg@k, pass@k or maj@k of each problem, by id; None where an older file does not have it."""
    shares = result["correct_share_of_problem"]
    if score == "avg_at_k":
        return shares
    if score == "maj_at_k":
        votes = result.get("majority_correct_of_problem")
        if votes is None:
            return None
        return {id_: float(vote) for id_, vote in votes.items()}
    k = result["avg_at_k"]["k"]
    n_samples = result["samples_per_problem"]
    # Shares are multiples of 1/n: the counts, without the rounding of a division.
    correct_P = np.rint(np.array(list(shares.values())) * n_samples)
    passes_P = scores.pass_at_k_of_counts(correct_P, n_samples, k)
    return dict(zip(shares, passes_P.tolist(), strict=True))
