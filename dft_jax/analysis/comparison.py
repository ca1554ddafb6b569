"""Evaluations side by side: rows with paired differences to the first.

Tables and the picture of these rows are in comparison_report.py.
"""

import collections
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dft_jax.analysis import pairing
from dft_jax.evals import report, saved, scores, significance
from dft_jax.evals.runner import PIXELS, SCORES_NAME, STOP_TEXTS, VERSIONS
from dft_jax.runtime import errors, files, hub

# The benchmark of rows that are means over benchmarks, as the paper reports them.
MEAN = "mean"
# What changes the meaning of a score: settings, the grader's rules, and what the runner found out.
_SETTINGS = (
    *("prompt", "instruction", "answer_prefix"),
    *("top_k", "top_p", "seed", "context", "max_new_tokens"),
)
_GRADER = ("mode", "last_number", "versions", "answer_markers", "rules")
# Of how programs are judged; which fences confined them changes no verdict.
_PROGRAMS = ("rules", "memory_mb", "python", "numpy")
_RUN = ("stop_ids", "compute_dtype")
# What a scores.json has of each benchmark, and its name in a warning.
_OF_BENCHMARKS = {
    VERSIONS: "version",
    PIXELS: "fewest and most pixels of an image",
    STOP_TEXTS: "texts that end a completion",
}
# A column of the rows -> its name in the tables.
SCORES = {"avg_at_k": "avg@k", "pass_at_k": "pass@k", "maj_at_k": "maj@k"}
# The share of comparisons in which Holm's procedure may mark a difference that is chance.
LEVEL = 0.05

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation, as its scores.json has it.

    `results` are by benchmark and temperature; `settings` as far as they are known; `model` as
    scores.json names it.
    """

    name: str
    results: dict[pairing.Cell, dict[str, Any]]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    model: Any = None


@dataclasses.dataclass(frozen=True)
class Difference:
    """One paired difference: in which row, of which score, and its value for each problem.

    Of a mean over benchmarks the values are those of all their problems, weighted so that their sum
    is the mean.
    """

    row: Row
    score: str
    value_P: np.ndarray


@dataclasses.dataclass
class Comparison:
    """Rows for tables and CSV, and what a reader should know.

    `differences`, to the run `first`, are in the rows too. `origins` has a line for each evaluation
    that says which run, step and base it is of.
    """

    first: str
    rows: list[Row]
    warnings: list[str]
    differences: list[Difference]
    origins: list[str] = dataclasses.field(default_factory=list)


def read(argument: str) -> Evaluation:
    """`name=folder` or `folder`.

    Raises:
      UserError: no evaluation is there (a missing one is no zero), or its scores are not whole.
    """
    name, equals, path = argument.partition("=")
    # A folder that is there may have = in its name.
    if not equals or os.path.exists(argument):
        return of_folder(argument, files.named(argument).name)
    return of_folder(path, name)


def of_folder(path: str, name: str) -> Evaluation:
    """The evaluation in a folder, or the last one of a run.

    Raises:
      UserError: as `read`.
    """
    hub.refuse_address(path, "evaluation")
    file = _scores_file(files.named(path))
    return of_summary(name, saved.read_scores(file, "evaluate again"))


def _scores_file(folder: Path) -> Path:
    """That of an evaluation's folder, or of the last evaluation of a run."""
    file = folder / SCORES_NAME
    if file.is_file():
        return file
    steps = []
    for place in (folder / "eval").glob("*"):
        if (place / SCORES_NAME).is_file() and place.name.isdigit():
            steps.append(place)
    if not steps:
        remedy = (
            "give the folder of an evaluation, or a run that has one"
            " (python -m dft_jax.evaluate makes them)"
        )
        raise errors.UserError(f"{folder}: no {SCORES_NAME} there, nor in eval/<step>/; {remedy}")
    # By number: as text, 9 would come after 10.
    return max(steps, key=lambda place: int(place.name)) / SCORES_NAME


def of_summary(name: str, content: dict[str, Any]) -> Evaluation:
    """An evaluation by the content of its scores.json."""
    results = {}
    for result in content["results"]:
        results[result["benchmark"], result["temperature"]] = result
    grader = content.get("grader", {})
    settings = {
        **_known(content.get("settings", {}), _SETTINGS),
        **_known(grader, _GRADER),
        **_known(content, _RUN),
    }
    for key, value in _known(grader.get("programs", {}), _PROGRAMS).items():
        settings[f"{key} of programs"] = value
    for key, words in _OF_BENCHMARKS.items():
        for benchmark, value in content.get(key, {}).items():
            settings[f"{words} of {benchmark}"] = value
    return Evaluation(name, results, settings, content.get("model"))


def _known(values: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}


def compare(evaluations: Sequence[Evaluation]) -> Comparison:
    """A row for each benchmark, temperature and evaluation; differences are to the first one.

    An evaluation that lacks a benchmark has no row for it, and none for the mean over benchmarks.
    """
    first = evaluations[0]
    warnings = _other_settings(evaluations) + _other_bases(evaluations)
    made = Comparison(first.name, [], warnings, [], _origins(evaluations))

    # Cells in the order of their first use; those of one temperature are averaged.
    benchmarks_at: dict[float | None, list[pairing.Cell]] = collections.defaultdict(list)
    for cell in _cells(evaluations):
        benchmarks_at[cell[1]].append(cell)
        for evaluation in evaluations:
            _add_row(made, first, evaluation, cell)
    for cells in benchmarks_at.values():
        if len(cells) > 1:
            for evaluation in evaluations:
                _add_mean(made, first, evaluation, cells)

    # Each once: what is said of a benchmark's problems is found again at every temperature.
    made.warnings = list(dict.fromkeys(made.warnings))
    # Only now, because a mark depends on how many differences there are.
    _mark(made.differences)
    return made


def _cells(evaluations: Sequence[Evaluation]) -> list[pairing.Cell]:
    cells: dict[pairing.Cell, None] = {}
    for evaluation in evaluations:
        cells |= dict.fromkeys(evaluation.results)
    return list(cells)


def _origins(evaluations: Sequence[Evaluation]) -> list[str]:
    lines = []
    for evaluation in evaluations:
        origin = report.origin_text(evaluation.model)
        if origin:
            lines.append(f"{evaluation.name}: {origin}")
    return lines


def _other_settings(evaluations: Sequence[Evaluation]) -> list[str]:
    """Warnings of settings that are known of both and differ from those of the first."""
    first, *others = evaluations
    warnings = []
    for other in others:
        for name, theirs in first.settings.items():
            if name not in other.settings:
                continue
            ours = other.settings[name]
            if ours != theirs:
                warnings.append(f"{other.name} has {name}={ours!r}, {first.name} has {theirs!r}")
    return warnings


def _other_bases(evaluations: Sequence[Evaluation]) -> list[str]:
    """Fine-tunings of other weights differ by more than how they were trained."""
    sha256_of = {}
    for evaluation in evaluations:
        sha256 = report.base_of(evaluation.model).get("sha256")
        if sha256:
            sha256_of[evaluation.name] = sha256
    if not sha256_of:
        return []
    first, *others = sha256_of
    what = f"began with other weights than {first}"
    warnings = []
    for name in others:
        if sha256_of[name] != sha256_of[first]:
            warnings.append(f"{name} {what}: part of any difference may be theirs")
    return warnings


def _add_row(
    made: Comparison, first: Evaluation, evaluation: Evaluation, cell: pairing.Cell
) -> None:
    """The row of one benchmark and temperature, or a warning that there is none."""
    benchmark, temperature = cell
    result = evaluation.results.get(cell)
    if result is None:
        temperature_text = report.temperature_text(temperature)
        made.warnings.append(f"{evaluation.name} has no {benchmark} at {temperature_text}: a gap")
        return
    row: Row = {"benchmark": benchmark, "temperature": temperature, "run": evaluation.name}
    row["problems"] = result["problems"]["scored"]
    row["k"] = result["avg_at_k"]["k"]
    for score in SCORES:
        value_of = pairing.value_of_problem(result, score)
        if value_of is None:
            # An older file has the votes' mean only; programs do not vote.
            if result[score] is not None:
                row[score] = result[score]["mean"]
            continue
        row |= _named(score, scores.mean_of_shares(np.array(list(value_of.values()))))
    for name in ("mean_token_entropy", "mean_length_tokens", "truncation_rate"):
        row[name] = result[name]
    made.rows.append(row)
    base = first.results.get(cell)
    if evaluation is not first and base is not None:
        names = f"{first.name} and {evaluation.name}"
        _add_differences(made, row, names, base, result)


def _add_differences(
    made: Comparison, row: Row, names: str, base: dict[str, Any], result: dict[str, Any]
) -> None:
    """The differences of one row's scores, over the problems that the two have in common."""
    benchmark = row["benchmark"]
    pairs = pairing.pair(base, result)
    for line in pairs.warnings:
        made.warnings.append(f"{benchmark}, {names}: {line}")
    k = result["avg_at_k"]["k"]
    k_of_first = base["avg_at_k"]["k"]
    if k != k_of_first:
        place = f"{benchmark} at {report.temperature_text(row['temperature'])}, {names}"
        what = f"{k_of_first} and {k} samples of each problem"
        made.warnings.append(f"{place}: {what}: pass@k and maj@k are not compared")
    for score in _compared(base, result):
        found = pairing.differences(pairs, base, result, score)
        if found is not None:
            mean = scores.mean_of_differences(found.value_P, found.draws)
            _add_difference(made, row, score, mean, found.value_P)


def _compared(base: dict[str, Any], result: dict[str, Any]) -> list[str]:
    """The scores of which a difference is made.

    Of one sample pass@1 and maj@1 are avg@1 again: counted three times, a difference would weaken
    the others.
    """
    if base["avg_at_k"]["k"] == result["avg_at_k"]["k"] == 1:
        return ["avg_at_k"]
    return list(SCORES)


def _add_mean(
    made: Comparison, first: Evaluation, evaluation: Evaluation, cells: list[pairing.Cell]
) -> None:
    """The row of means over benchmarks, each with the same weight; none where one is missing."""
    results = _results_at(evaluation, cells)
    if results is None:
        return
    # The largest, where benchmarks were sampled different numbers of times.
    k = max(result["avg_at_k"]["k"] for result in results)
    row: Row = {"benchmark": MEAN, "temperature": cells[0][1], "run": evaluation.name, "k": k}
    for score in SCORES:
        values = _values_of_benchmarks(results, score)
        if values is not None:
            row |= _named(score, scores.mean_over_benchmarks(values))
    made.rows.append(row)
    bases = _results_at(first, cells)
    if evaluation is not first and bases is not None:
        _add_mean_differences(made, row, bases, results)


def _results_at(evaluation: Evaluation, cells: list[pairing.Cell]) -> list[dict[str, Any]] | None:
    results = []
    for cell in cells:
        if cell not in evaluation.results:
            return None
        results.append(evaluation.results[cell])
    return results


def _values_of_benchmarks(results: list[dict[str, Any]], score: str) -> list[np.ndarray] | None:
    """The value of each problem of each benchmark; None where an older file has none."""
    values = []
    for result in results:
        value_of = pairing.value_of_problem(result, score)
        if value_of is None:
            return None
        values.append(np.array(list(value_of.values())))
    return values


def _add_mean_differences(
    made: Comparison, row: Row, bases: list[dict[str, Any]], results: list[dict[str, Any]]
) -> None:
    """The differences of means, of each score that every benchmark has."""
    for score in SCORES:
        found = _differences_of_benchmarks(bases, results, score)
        if found is None:
            continue
        values = []
        draws = []
        weighted = []
        for difference in found:
            value_P = difference.value_P
            values.append(value_P)
            draws.append(difference.draws)
            # So that the sum over all problems is the mean over benchmarks.
            weighted.append(value_P / (len(value_P) * len(found)))
        mean = scores.difference_over_benchmarks(values, draws)
        _add_difference(made, row, score, mean, np.concatenate(weighted))


def _differences_of_benchmarks(
    bases: list[dict[str, Any]], results: list[dict[str, Any]], score: str
) -> list[pairing.Differences] | None:
    found = []
    for base, result in zip(bases, results, strict=True):
        if score not in _compared(base, result):
            return None
        difference = pairing.differences(pairing.pair(base, result), base, result, score)
        if difference is None:
            return None
        found.append(difference)
    return found


def _add_difference(
    made: Comparison, row: Row, score: str, mean: scores.Mean, value_P: np.ndarray
) -> None:
    name = difference_name(score)
    row |= _named(name, mean)
    row[f"{name}_is_zero_everywhere"] = not np.any(value_P)
    made.differences.append(Difference(row, score, value_P))


def difference_name(score: str) -> str:
    """The column of a score's difference."""
    if score == "avg_at_k":
        return "difference"
    return f"{score}_difference"


def _named(name: str, mean: scores.Mean) -> dict[str, float | None]:
    """The columns of a mean and the ends of its interval, None where there is none."""
    low, high = mean.interval_95 or (None, None)
    return {name: mean.mean, f"{name}_low": low, f"{name}_high": high}


def _mark(differences: list[Difference]) -> None:
    """Writes p of each difference, and whether Holm's procedure over all rejects chance."""
    p_values = significance.sign_flip_p_values([found.value_P for found in differences])
    marks = significance.holm(p_values, LEVEL)
    for difference, p, is_marked in zip(differences, p_values, marks, strict=True):
        name = difference_name(difference.score)
        difference.row[f"{name}_p"] = p
        difference.row[f"{name}_holm"] = is_marked
