"""Which problems of two evaluations are the same, and the differences of their scores problem by
problem.
"""

import dataclasses
from typing import Any

import numpy as np

from dft_jax.evals import scores
from dft_jax.evals.tasks import benchmarks

Cell = tuple[str, float | None]  # benchmark and temperature


@dataclasses.dataclass(frozen=True)
class Pairs:
    """`ids`: the same problems in both, (id in the first, id in the second); empty where they must
    not be paired.
    """

    ids: list[tuple[str, str]]
    warnings: list[str]


@dataclasses.dataclass(frozen=True)
class Differences:
    """Of each pair, second less first; `draws` is how many draws of the score each value is a mean
    of.
    """

    value_P: np.ndarray
    draws: float


def pair(base: dict[str, Any], other: dict[str, Any]) -> Pairs:
    """The problems that two results of one benchmark have in common, as far as their digests say.

    Where a benchmark's ids are the numbers of its rows, equal ids mean nothing (another file,
    another order), so its problems are paired by digest. Elsewhere they are paired by id, and none
    at all where one id has two digests: then the two are scores of different benchmarks.
    """
    ours, theirs = other["correct_share_of_problem"], base["correct_share_of_problem"]
    if "sha256_of_problem" not in base or "sha256_of_problem" not in other:
        line = "scores of an older version do not say which problems they are of; paired by id, unchecked"
        return _by_id(theirs, ours, [line])
    if base.get("sha256_is_of") != other.get("sha256_is_of"):
        line = "one knows its questions, the other only its references (give --benchmark_data)"
        return _by_id(theirs, ours, [f"{line}; paired by id, unchecked"])
    first, second = base["sha256_of_problem"], other["sha256_of_problem"]
    knows_questions = base.get("sha256_is_of") == "question and reference"
    if knows_questions and _has_row_numbers(base["benchmark"]):
        return _by_digest(first, second)
    changed = [id_ for id_ in first if id_ in second and first[id_] != second[id_]]
    if changed:
        shown = ", ".join(changed[:3]) + (", …" if len(changed) > 3 else "")
        what = f"{len(changed)} problems of the same id have another question or answer ({shown})"
        return Pairs([], [f"{what}; no difference is made"])
    return _by_id(theirs, ours, [])


def _has_row_numbers(benchmark: str) -> bool:
    known = benchmarks.BENCHMARKS.get(benchmark)
    return known is not None and not known.id_field


def _by_id(first: dict[str, Any], second: dict[str, Any], warnings: list[str]) -> Pairs:
    ids = [(id_, id_) for id_ in first if id_ in second]
    return Pairs(ids, warnings + _apart(len(first), len(second), len(ids)))


def _by_digest(first: dict[str, str], second: dict[str, str]) -> Pairs:
    """One problem asked twice is paired in the order of its rows."""
    waiting: dict[str, list[str]] = {}
    for id_, digest in sorted(second.items(), key=lambda item: _row_number(item[0])):
        waiting.setdefault(digest, []).append(id_)
    ids = []
    for id_, digest in sorted(first.items(), key=lambda item: _row_number(item[0])):
        if waiting.get(digest):
            ids.append((id_, waiting[digest].pop(0)))
    return Pairs(ids, _apart(len(first), len(second), len(ids)))


def _row_number(id_: str) -> tuple[int, str]:
    return (int(id_) if id_.isdecimal() else 0, id_)


def _apart(n_first: int, n_second: int, n_common: int) -> list[str]:
    n_apart = n_first + n_second - 2 * n_common
    if not n_common:
        return ["they have no problem in common; no difference is made"]
    if n_apart:
        return [f"{n_apart} problems are in one only; the difference is over {n_common}"]
    return []


def differences(
    pairs: Pairs, base: dict[str, Any], other: dict[str, Any], score: str
) -> Differences | None:
    """None where there is nothing to pair, or the two are scores of another kind (pass@4 and
    pass@16).
    """
    k = other["avg_at_k"]["k"]
    if not pairs.ids or (score != "avg_at_k" and base["avg_at_k"]["k"] != k):
        return None
    theirs, ours = value_of_problem(base, score), value_of_problem(other, score)
    if theirs is None or ours is None:
        return None
    draws = 1
    if score == "avg_at_k":
        draws = min(k, base["avg_at_k"]["k"])
    value_P = np.array([ours[second] - theirs[first] for first, second in pairs.ids])
    return Differences(value_P, draws)


def value_of_problem(result: dict[str, Any], score: str) -> dict[str, float] | None:
    """avg@k, pass@k or maj@k of each problem, by id; None where an older file does not have it."""
    shares = result["correct_share_of_problem"]
    if score == "avg_at_k":
        return shares
    if score == "maj_at_k":
        votes = result.get("majority_correct_of_problem")
        return None if votes is None else {id_: float(vote) for id_, vote in votes.items()}
    k, n_samples = result["avg_at_k"]["k"], result["samples_per_problem"]
    correct_P = np.rint(np.array(list(shares.values())) * n_samples)
    passes_P = scores.pass_at_k_of_counts(correct_P, n_samples, k)
    return dict(zip(shares, passes_P.tolist(), strict=True))
