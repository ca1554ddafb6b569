"""Verdicts on predictions, and the scores made of them."""

import collections
import functools
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np

from dft_jax.evals import report, scores
from dft_jax.evals.graders import pool, programs
from dft_jax.evals.records import (
    Disagreement,
    Disagreements,
    GradedPrediction,
    MeanOfSamples,
    Prediction,
    ProblemCounts,
    Score,
)
from dft_jax.evals.tasks import benchmarks
from dft_jax.evals.tasks.task import PROGRAM, Problem
from dft_jax.runtime import environment, interrupts, progress, system

# Raised when the scores of the same completions change, or are of other rules: what an older
# version scored is then graded anew by the same command. 2: votes by meaning, intervals with
# imagined problems, digests of problems. 3: the grader's rules 2, answer markers.
FORMAT = 3
_SHOWN_DISAGREEMENTS = 10
_DIGEST_DIGITS = 16
# By `Task.grader`: the module whose Grader judges completions.
_GRADERS: dict[str, Any] = {"math": pool}
_LIBRARIES = ("math-verify", "latex2sympy2-extended", "sympy")  # which decide verdicts


def grade(
    predictions: list[Prediction],
    problems: dict[str, list[Problem]],
    *,
    mode: str,
    last_number: bool,
    answer_markers: Sequence[str],
    workers: int,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Grades predictions, all of which have a reference.

    In the paper's mode the strict verdicts are there as well, and the scores count where the two
    disagree.

    Args:
      predictions: of any number of benchmarks and temperatures.
      problems: of each benchmark that was loaded.
      mode: whose rules, "strict" or "paper"; this and the others are as in `pool.Grader`.
      last_number: whether the last number of a completion without a marked answer counts.
      answer_markers: what marks an answer.
      workers: processes that grade.

    Returns:
      The rows with `reference`, `extracted` and `verdict`, in their order; and the content of
      scores.json.
    """
    began = time.perf_counter()
    graded = _graded(predictions, problems, mode, last_number, answer_markers, workers)
    takes_last_number = last_number or mode == "paper"
    warnings = []
    if takes_last_number:
        warnings.append("completions that mark no answer are graded by the last number in them")
    results = []
    for group in _groups_of(graded):
        name = group[0].prediction.benchmark
        result = score(group, problems.get(name))
        results.append(result.as_json())
        for line in report.warnings_of(result, group, problems.get(name)):
            if line not in warnings:
                warnings.append(line)
    # last_number: whether it was the fallback, asked for or by the paper's rules.
    grader = {
        "mode": mode,
        "rules": pool.RULES,
        "last_number": takes_last_number,
        "answer_markers": list(answer_markers),
        "versions": {name: metadata.version(name) for name in _LIBRARIES},
    }
    if any(one.is_program for one in graded):
        grader["programs"] = programs.description()
    summary = {
        "format": FORMAT,
        "results": results,
        "warnings": warnings,
        "grader": grader,
        "intervals": scores.INTERVAL,
        "speed": {
            "grading_s": round(time.perf_counter() - began, 3),
            "peak_host_gib": round(system.peak_kib() / 2**20, 3),
        },
        "environment": environment.describe(),
    }
    return [one.row for one in graded], summary


def split(
    predictions: list[Prediction], what: str
) -> tuple[list[Prediction], list[dict[str, Any]]]:
    """What is graded, and the rows of what is not: programs, where `what` is SKIP."""
    graded, rows = [], []
    for prediction in predictions:
        if what == programs.SKIP and benchmarks.find(prediction.benchmark).runs_programs:
            made = {"reference": prediction.reference, "extracted": None, "verdict": None}
            rows.append(prediction.row | made)
        else:
            graded.append(prediction)
    return graded, rows


def _graded(
    predictions: list[Prediction],
    problems: dict[str, list[Problem]],
    mode: str,
    last_number: bool,
    answer_markers: Sequence[str],
    workers: int,
) -> list[GradedPrediction]:
    """The predictions with their verdicts, in their order; each benchmark has its own grader."""
    numbers_of_grader = collections.defaultdict(list)
    for number, prediction in enumerate(predictions):
        numbers_of_grader[benchmarks.find(prediction.benchmark).grader].append(number)
    graded: dict[int, GradedPrediction] = {}
    for name, numbers in numbers_of_grader.items():
        chosen = [predictions[number] for number in numbers]
        if name == PROGRAM:
            judged = _judged_programs(chosen, problems, workers)
            graded.update(zip(numbers, judged, strict=True))
            continue
        make_grader = functools.partial(
            _GRADERS[name].Grader,
            workers=workers,
            last_number=last_number,
            answer_markers=answer_markers,
        )
        judged = _judged(chosen, make_grader, mode)
        graded.update(zip(numbers, judged, strict=True))
    return [graded[number] for number in range(len(predictions))]


def _judged(
    predictions: list[Prediction], make_grader: Callable[..., pool.Grader], mode: str
) -> list[GradedPrediction]:
    """As `_graded`, of predictions for one grader; `make_grader(mode=)` starts it."""
    items, truncated = [], []
    for prediction in predictions:
        items.append((prediction.row["completion"], prediction.reference))
        truncated.append(prediction.row.get("truncated") is True)
    shown, check = not progress.is_silent(), _check()
    with make_grader(mode=mode) as grader:
        found = grader.grade(items, check=check, truncated=truncated, progress=shown)
        meanings = _meanings(grader, predictions, found)
    rows = []
    for prediction, verdict in zip(predictions, found, strict=True):
        made = {
            "reference": prediction.reference,
            "extracted": verdict.extracted,
            "verdict": verdict.verdict,
        }
        rows.append(prediction.row | made)
    if mode == "paper":
        with make_grader(mode="strict") as grader:
            strict = grader.grade(items, check=check, truncated=truncated, progress=shown)
        for row, verdict in zip(rows, strict, strict=True):
            row["strict_verdict"] = verdict.verdict
    return [
        GradedPrediction(prediction, row, meaning)
        for prediction, row, meaning in zip(predictions, rows, meanings, strict=True)
    ]


def _check() -> Callable[[], Any]:
    """What ends the grading when the command is interrupted."""
    # Of several processes only one grades; the others could not call `check` as often.
    if jax.process_count() == 1:
        return interrupts.check
    return pool.no_check


def _judged_programs(
    predictions: list[Prediction], problems: dict[str, list[Problem]], workers: int
) -> list[GradedPrediction]:
    """As `_graded`, of programs: each is run against the tests of its problem."""
    programs.require([prediction.benchmark for prediction in predictions])
    program_of = {}
    for name, of_benchmark in problems.items():
        for problem in of_benchmark:
            program_of[name, problem.id] = problem.program
    jobs = []
    for prediction in predictions:
        program = program_of[prediction.benchmark, prediction.id]
        assert program is not None, prediction.benchmark
        jobs.append(programs.job_of(program, prediction.row))
    with programs.Grader(workers) as grader:
        found = grader.grade(jobs, progress=not progress.is_silent(), check=_check())
    graded = []
    for prediction, judged in zip(predictions, found, strict=True):
        made = {
            "reference": prediction.reference,
            "extracted": judged.extracted,
            "verdict": judged.verdict,
            "reason": judged.reason,
        }
        # Texts of programs do not vote.
        graded.append(GradedPrediction(prediction, prediction.row | made, meaning=None))
    return graded


def _meanings(
    grader: pool.Grader, predictions: list[Prediction], graded: list[pool.Graded]
) -> list[int | None]:
    """What each prediction's answer means, as in `GradedPrediction`.

    One sample of a problem is compared with nothing.
    """
    numbers_of_problem = collections.defaultdict(list)
    for number, prediction in enumerate(predictions):
        problem = (prediction.benchmark, prediction.temperature, prediction.id)
        numbers_of_problem[problem].append(number)
    meanings: list[int | None] = [None] * len(predictions)
    for numbers in numbers_of_problem.values():
        answers = [graded[number].extracted for number in numbers]
        verdicts = [graded[number].verdict for number in numbers]
        for number, meaning in zip(numbers, grader.classes(answers, verdicts), strict=True):
            meanings[number] = meaning
    return meanings


def _groups_of(graded: list[GradedPrediction]) -> list[list[GradedPrediction]]:
    """The predictions of each benchmark at each temperature, which are scored together."""
    by_cell = collections.defaultdict(list)
    for one in graded:
        by_cell[one.prediction.benchmark, one.prediction.temperature].append(one)
    # Sorted, so that the scores are the same to the last digit whatever the order of the rows.
    for group in by_cell.values():
        group.sort(key=lambda one: (one.prediction.id, one.prediction.sample))
    return list(by_cell.values())


# ---- scores


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

    pass_at_k, pass_intervals = {}, {}
    for k in scores.powers_of_two(n_samples):
        pass_P = scores.pass_at_k(correct_PS, k)
        pass_at_k[str(k)] = float(pass_P.mean())
        pass_intervals[str(k)] = scores.mean_of_shares(pass_P).interval_95
    maj_at_k, majority_of_problem = None, None
    if not first_is_program:
        majority_P = scores.majority(meanings_PS, correct_PS)
        maj_at_k = MeanOfSamples.of(n_samples, scores.mean_of_shares(majority_P))
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
        avg_at_k=MeanOfSamples.of(n_samples, scores.average(correct_PS)),
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
    )


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
    questions = {problem.id: problem.question for problem in problems or []}
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
