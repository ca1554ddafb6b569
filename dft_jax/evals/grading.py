"""Verdicts on predictions, and the scores made of them."""

import collections
import functools
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import jax

from dft_jax.evals import scores, scoring
from dft_jax.evals.graders import choices, pool, programs
from dft_jax.evals.records import GradedPrediction, Prediction
from dft_jax.evals.tasks import benchmarks
from dft_jax.evals.tasks.task import CHOICES, PROGRAM, Problem
from dft_jax.runtime import environment, interrupts, progress, system

# Raised when the scores of the same completions change, or are of other rules: what an older
# version scored is then graded anew by the same command. 2: votes by meaning, intervals with
# imagined problems, digests of problems. 3: the grader's rules 2, answer markers. 4: its rules 3.
FORMAT = 4
# By `Task.grader`: the module whose Grader judges completions.
_GRADERS: dict[str, Any] = {"math": pool, CHOICES: choices}
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
      mode: whose rules, of `Task.modes`; this and the others are as in `pool.Grader`.
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
    scored = scoring.score_all(graded, problems)
    warnings += scored.warnings
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
        "results": [result.as_json() for result in scored.scores],
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
        else:
            make_grader = functools.partial(
                _GRADERS[name].Grader,
                workers=workers,
                last_number=last_number,
                answer_markers=answer_markers,
            )
            references: Sequence[Any] = [prediction.reference for prediction in chosen]
            if name == CHOICES:
                references = _choices(chosen, problems)
            judged = _judged(chosen, references, make_grader, mode)
        graded.update(zip(numbers, judged, strict=True))
    return [graded[number] for number in range(len(predictions))]


def _choices(
    predictions: list[Prediction], problems: dict[str, list[Problem]]
) -> list[choices.Reference]:
    """What the answers to problems with options are held against."""
    options_of = {}
    for name, of_benchmark in problems.items():
        for problem in of_benchmark:
            options_of[name, problem.id] = problem.options
    return [
        choices.Reference(
            str(prediction.reference), options_of[prediction.benchmark, prediction.id]
        )
        for prediction in predictions
    ]


def _judged(
    predictions: list[Prediction],
    references: Sequence[Any],
    make_grader: Callable[..., pool.Grader | choices.Grader],
    mode: str,
) -> list[GradedPrediction]:
    """As `_graded`, of predictions for one grader; `make_grader(mode=)` starts it.

    `references` are what it holds each of them against.
    """
    completions, truncated = [], []
    for prediction in predictions:
        completions.append(prediction.row["completion"])
        truncated.append(prediction.row.get("truncated") is True)
    items = list(zip(completions, references, strict=True))
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
    grader: pool.Grader | choices.Grader,
    predictions: list[Prediction],
    graded: list[pool.Graded],
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
