"""Scores of verdicts: of each benchmark at each temperature, of its groups, and what to warn of."""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from dft_jax.evals import composites, report, scores
from dft_jax.evals.graders import pool
from dft_jax.evals.records import (
    Disagreement,
    Disagreements,
    GradedPrediction,
    GroupScore,
    MeanOfSamples,
    ProblemCounts,
    Score,
)
from dft_jax.evals.tasks import benchmarks
from dft_jax.evals.tasks.task import Problem

_SHOWN_DISAGREEMENTS = 10
_DIGEST_DIGITS = 16


@dataclasses.dataclass(frozen=True)
class Scored:
    """The scores of all benchmarks and temperatures, and warnings, each once."""

    scores: list[Score]
    warnings: list[str]


def score_all(graded: list[GradedPrediction], problems: dict[str, list[Problem]]) -> Scored:
    """The scores of graded predictions.

    Args:
      graded: of any number of benchmarks and temperatures.
      problems: of each benchmark that was loaded.
    """
    results: list[Score] = []
    warnings: dict[str, None] = {}  # in order, each once
    for group in _groups_of(graded):
        of_benchmark = problems.get(group[0].prediction.benchmark)
        result = score(group, of_benchmark)
        results.append(result)
        warnings |= dict.fromkeys(report.warnings_of(result, group, of_benchmark))
    return Scored(results, list(warnings))


def _groups_of(graded: list[GradedPrediction]) -> list[list[GradedPrediction]]:
    """The predictions of each benchmark at each temperature, which are scored together."""
    by_cell = collections.defaultdict(list)
    for one in graded:
        by_cell[one.prediction.benchmark, one.prediction.temperature].append(one)
    # Sorted, so that the scores are the same to the last digit whatever the order of the rows.
    for group in by_cell.values():
        group.sort(key=lambda one: (one.prediction.id, one.prediction.sample))
    return list(by_cell.values())


def score(group: list[GradedPrediction], problems: list[Problem] | None) -> Score:
    """The scores of one benchmark at one temperature.

    Every verdict but `correct` counts as not correct, and all are counted. Problems nobody answered
    are named as missing where the benchmark was loaded, and no score knows of them.
    """
    first, first_is_program = group[0].prediction, group[0].is_program
    samples_of = _samples_of(group)
    rows = [one.row for one in group]
    correct, meanings_PS = [], []
    for samples in samples_of.values():
        correct.append([one.is_correct for one in samples])
        meanings_PS.append([one.meaning for one in samples])
    correct_PS = np.array(correct)
    n_samples = correct_PS.shape[1]
    problem_of = {problem.id: problem for problem in problems or []}
    asked_P = [problem_of.get(id_) for id_ in samples_of]

    pass_at_k, pass_intervals = {}, {}
    for k in scores.powers_of_two(n_samples):
        pass_P = scores.pass_at_k(correct_PS, k)
        pass_at_k[str(k)] = float(pass_P.mean())
        pass_intervals[str(k)] = _mean(pass_P, asked_P).interval_95
    maj_at_k, majority_of_problem = None, None
    if not first_is_program:
        majority_P = scores.majority(meanings_PS, correct_PS)
        maj_at_k = MeanOfSamples.of(n_samples, _mean(majority_P, asked_P))
        majority_of_problem = dict(zip(samples_of, majority_P.tolist(), strict=True))
    shares = correct_PS.mean(axis=1).tolist()
    lengths, loops = [], []
    # Every verdict is named, those that did not occur as well.
    verdicts = dict.fromkeys(pool.VERDICTS, 0)
    for row in rows:
        verdicts[row["verdict"]] += 1
        lengths.append(len(row["completion"]))
        loops.append(scores.ends_in_a_loop(row["completion"]))
    entropy = _mean_of(rows, "entropy")
    if entropy is not None:
        entropy = round(entropy, 4)
    hashed = "question and reference"
    if problems is None:
        hashed = "reference"
    return Score(
        benchmark=first.benchmark,
        temperature=first.temperature,
        problems=_problem_counts(first.benchmark, samples_of, problems),
        samples_per_problem=n_samples,
        avg_at_k=MeanOfSamples.of(n_samples, _mean(correct_PS.mean(axis=1), asked_P)),
        pass_at_k=pass_at_k,
        pass_at_k_interval_95=pass_intervals,
        maj_at_k=maj_at_k,
        correct_share_of_problem=dict(zip(samples_of, shares, strict=True)),
        majority_correct_of_problem=majority_of_problem,
        sha256_of_problem=_digests(samples_of, problems),
        sha256_is_of=hashed,
        verdicts=verdicts,
        mean_length_characters=float(np.mean(lengths)),
        mean_length_tokens=_mean_of(rows, "tokens"),
        mean_token_entropy=entropy,
        truncation_rate=_mean_of(rows, "truncated"),
        repetition_rate=float(np.mean(loops)),
        paper_against_strict=_disagreements(group),
        groups=_groups(correct_PS.mean(axis=1), list(samples_of), problems),
        composites=_composites(samples_of, problems),
    )


def _mean(share_P: np.ndarray, problems_P: Sequence[Problem | None]) -> scores.Mean:
    """The mean of a share for each problem; those of one cluster are one observation."""
    clusters = [problem.cluster for problem in problems_P if problem is not None]
    if len(clusters) == len(share_P) and all(clusters):
        return scores.mean_of_shares(scores.by_cluster(share_P, clusters))
    return scores.mean_of_shares(share_P)


def _groups(
    share_P: np.ndarray, ids: Sequence[str], problems: list[Problem] | None
) -> dict[str, dict[str, GroupScore]] | None:
    """The means over the problems of each group; None without any.

    Groups are in the order of their first problem, those that are numbers in that of numbers.

    Args:
      share_P: the share of right samples of each problem.
      ids: of these problems.
      problems: of the benchmark.
    """
    place_of = {id_: place for place, id_ in enumerate(ids)}
    problem_of = {}
    places_of: dict[str, dict[str, list[int]]] = collections.defaultdict(dict)
    for problem in problems or []:
        if problem.id not in place_of:
            continue
        place = place_of[problem.id]
        problem_of[place] = problem
        for kind, value in problem.groups:
            places_of[kind].setdefault(value, []).append(place)
    found = {}
    for kind, places_by_value in places_of.items():
        found[kind] = {}
        values = list(places_by_value)
        if all(value.isdecimal() for value in values):
            values.sort(key=int)
        for value in values:
            places = places_by_value[value]
            mean = _mean(share_P[places], [problem_of[place] for place in places])
            found[kind][value] = GroupScore.of(len(places), mean)
    return found or None


def _composites(
    samples_of: dict[str, list[GradedPrediction]], problems: list[Problem] | None
) -> composites.Scores | None:
    """We-Math's scores; None of other benchmarks, and where no composite is whole."""
    benchmark = next(iter(samples_of.values()))[0].prediction.benchmark
    if problems is None or not benchmarks.find(benchmark).has_composites:
        return None
    correct_of = {}
    for id_, samples in samples_of.items():
        correct_of[id_] = [one.is_correct for one in samples]
    return composites.score(problems, correct_of)


def _samples_of(group: list[GradedPrediction]) -> dict[str, list[GradedPrediction]]:
    """The samples of each problem, by its id."""
    samples_of = collections.defaultdict(list)
    for one in group:
        samples_of[one.prediction.id].append(one)
    return dict(samples_of)


def _problem_counts(
    benchmark: str,
    samples_of: dict[str, list[GradedPrediction]],
    problems: list[Problem] | None,
) -> ProblemCounts:
    missing = None
    if problems is not None:
        missing = [problem.id for problem in problems if problem.id not in samples_of]
    return ProblemCounts(benchmarks.find(benchmark).count, len(samples_of), missing)


def _digests(
    samples_of: dict[str, list[GradedPrediction]], problems: list[Problem] | None
) -> dict[str, str]:
    """A hash for each problem: of its question, where it is known, and of its references.

    Ids may be the numbers of a file's rows, so equal ids do not mean equal problems.
    """
    questions = {problem.id: problem.asked or problem.question for problem in problems or []}
    digests = {}
    for id_, samples in samples_of.items():
        # Every graded prediction has one.
        references = sorted({str(one.prediction.reference) for one in samples})
        content = json.dumps([questions.get(id_), *references])
        digests[id_] = hashlib.sha256(content.encode()).hexdigest()[:_DIGEST_DIGITS]
    return digests


def _disagreements(group: list[GradedPrediction]) -> Disagreements | None:
    """How many answers only one of the two modes accepts, and which; None in the strict mode."""
    if "strict_verdict" not in group[0].row:
        return None
    only_paper, only_strict = [], []
    for one in group:
        is_strictly_correct = one.row["strict_verdict"] == "correct"
        if one.is_correct == is_strictly_correct:
            continue
        example = {
            "id": one.prediction.id,
            "sample": one.prediction.sample,
            "extracted": one.row["extracted"],
        }
        if one.is_correct:
            only_paper.append(example)
        else:
            only_strict.append(example)
    return Disagreements(
        Disagreement(len(only_paper), only_paper[:_SHOWN_DISAGREEMENTS]),
        Disagreement(len(only_strict), only_strict[:_SHOWN_DISAGREEMENTS]),
    )


def _mean_of(rows: list[dict[str, Any]], field: str) -> float | None:
    """None unless every row has the field: a mean over some would pass for one over all."""
    values = [row[field] for row in rows if row.get(field) is not None]
    if len(values) < len(rows):
        return None
    return float(np.mean(values))
