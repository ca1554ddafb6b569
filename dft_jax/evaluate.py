"""Grades completions made by any engine and scores them.

python -m dft_jax.evaluate --grade=predictions.jsonl --benchmark_data=FOLDER --out=scores

Each line of predictions.jsonl is one completion:

    {"benchmark": "aime24", "id": "60", "sample": 0, "completion": "… \\boxed{204}"}

and may have "reference" (the right answer; else that of the benchmark), "truncated" (true where the length limit cut
it) and "tokens" (its length). An id is what `evals/benchmarks.py` says: a field of the benchmark's rows, or the number
of the row, from 0.
"""

import collections
import dataclasses
import hashlib
import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from dft_jax import cli, errors, writer
from dft_jax.data.sources import BadRow, read_rows
from dft_jax.evals import benchmarks, grading, scores

_GRADE = flags.DEFINE_string("grade", None, "File of completions to grade (.jsonl).")
_DATA = flags.DEFINE_string("benchmark_data", "", "The benchmark's file, or a folder of them; by default the hub.")
_MODE = flags.DEFINE_enum("mode", "strict", grading.MODES, "The grader's rules; paper: those of the paper.")
_LAST_NUMBER = flags.DEFINE_bool("last_number", False, "Take the last number of a completion without an answer.")
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes that grade.", lower_bound=1)
# dft_jax.export has the flag too, and one process may import both.
_OUT = flags.DEFINE_string("out", None, "Folder to write; by default the one of the file.", allow_override=True)

GRADED_NAME, SCORES_NAME = "predictions.graded.jsonl", "scores.json"


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One completion and where it stands. `row` is the line as read; `reference` the answer it is graded against."""

    where: str
    row: dict[str, Any]
    benchmark: str
    id: str
    sample: int
    reference: str | None


def read_predictions(file: Path) -> list[Prediction]:
    """The completions of a file, in order.

    Raises:
      UserError: no such file, malformed rows, nothing in it, one sample twice, samples missing of some problems.
    """
    if not file.is_file():
        raise errors.UserError(f"--grade={file}: no such file (looked from {Path.cwd()}); correct the path")
    if file.suffix not in (".jsonl", ".json"):
        raise errors.UserError(f"--grade={file}: unknown ending {file.suffix!r}; give a .jsonl file")
    if not os.access(file, os.R_OK):
        raise errors.UserError(f"--grade={file}: no permission to read it; change its mode")
    predictions: list[Prediction] = []
    mistakes: list[str] = []
    place_of: dict[tuple, str] = {}
    for row in read_rows(str(file), ConfigDict(), split=""):
        if isinstance(row, tuple):
            mistakes.append(f"{row[0]}: {row[1]}")
            continue
        try:
            prediction = _prediction(row.where, row.value)
        except BadRow as error:
            mistakes.append(f"{row.where}: {error}")
            continue
        key = (prediction.benchmark, prediction.id, prediction.sample)
        if key in place_of:
            what = f"sample {key[2]} of {key[0]} {key[1]!r} is on {place_of[key]} too"
            mistakes.append(f"{row.where}: {what}; number the samples of a problem 0, 1, 2 …, or remove one")
        place_of.setdefault(key, row.where)
        predictions.append(prediction)
    errors.raise_if_any(mistakes)
    if not predictions:
        raise errors.UserError(f"{file.name}: the file has no rows; write one completion per line")
    for name, group in by_benchmark(predictions).items():
        samples_of = collections.defaultdict(list)
        for prediction in group:
            samples_of[prediction.id].append(prediction.sample)
        remedy = "add them, or leave the problem out: a missing sample is no wrong answer"
        mistakes += [f"{file.name}: {name}: {what}; {remedy}" for what in scores.rectangle(samples_of)]
    errors.raise_if_any(mistakes)
    return predictions


def _prediction(where: str, row: dict[str, Any]) -> Prediction:
    wrong = []
    for field, (is_right, should_be, is_required) in _FIELDS.items():
        value = row.get(field)
        if value is None and is_required:
            wrong.append(f"field {field!r} is missing; it should be {should_be}")
        elif value is not None and not is_right(value):
            shown = repr(value) if len(repr(value)) <= 40 else type(value).__name__
            wrong.append(f"field {field!r} should be {should_be}, not {shown}; mend the row")
    if wrong:
        raise BadRow(wrong[0])
    try:
        benchmarks.find(row["benchmark"])
    except errors.UserError as error:
        raise BadRow(f"{error}; others are added in dft_jax/evals/benchmarks.py") from error
    return Prediction(where, row, row["benchmark"], str(row["id"]), row["sample"], row.get("reference"))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


# Field -> (test, what it should be, whether it has to be there). An empty completion is an answer like others.
_FIELDS = {
    "benchmark": (_is_text, "the name of a benchmark", True),
    "id": (lambda value: _is_text(value) or _is_count(value), "the problem's id", True),
    "sample": (_is_count, "the number of the sample, from 0", True),
    "completion": (lambda value: isinstance(value, str), "the text of the model", True),
    "reference": (_is_text, "the right answer as text", False),
    "truncated": (lambda value: isinstance(value, bool), "true or false", False),
    "tokens": (_is_count, "the completion's length in tokens", False),
}


def by_benchmark(predictions: list[Prediction]) -> dict[str, list[Prediction]]:
    groups = collections.defaultdict(list)
    for prediction in predictions:
        groups[prediction.benchmark].append(prediction)
    return dict(groups)


def load_problems(predictions: list[Prediction], data: str) -> dict[str, list[benchmarks.Problem]]:
    """The problems of each benchmark: of `data` where it is given, else from the hub where a reference is wanting."""
    groups = by_benchmark(predictions)
    if data and Path(data).is_file() and len(groups) > 1:
        names = ", ".join(groups)
        raise errors.UserError(f"--benchmark_data={data} is one file for {names}; give the folder of their files")
    wanted = [name for name, group in groups.items() if data or any(p.reference is None for p in group)]
    return {name: benchmarks.load(name, data) for name in wanted}


def refer(predictions: list[Prediction], problems: dict[str, list[benchmarks.Problem]]) -> list[Prediction]:
    """Every prediction with a reference: its own, or the benchmark's. UserError for ids the benchmark does not have."""
    answers = {name: {problem.id: problem.answer for problem in list_} for name, list_ in problems.items()}
    mistakes, referred = [], []
    for prediction in predictions:
        known = answers.get(prediction.benchmark)
        if known is not None and prediction.id not in known:
            close = errors.did_you_mean(prediction.id, list(known)) or f" (one is {next(iter(known))!r})"
            what = f"{prediction.benchmark} has no problem {prediction.id!r}{close}"
            mistakes.append(f"{prediction.where}: {what}; write the benchmark's own ids")
            continue
        reference = prediction.reference or known[prediction.id]
        referred.append(dataclasses.replace(prediction, reference=reference))
    errors.raise_if_any(mistakes)
    return referred


def score(name: str, group: list[Prediction], graded: list[grading.Graded], problems: list | None) -> dict[str, Any]:
    """The scores of one benchmark, for scores.json.

    Every verdict but `correct` counts as not correct, and all are counted. Problems nobody answered are named as
    missing where the benchmark was loaded, and no score knows of them.
    """
    of_problem = collections.defaultdict(list)
    # Sorted, so that the scores are the same to the last digit whatever the order of the rows.
    for prediction, result in sorted(zip(group, graded, strict=True), key=lambda pair: (pair[0].id, pair[0].sample)):
        of_problem[prediction.id].append(result)
    correct_PS = np.array([[result.verdict == "correct" for result in results] for results in of_problem.values()])
    answers_PS = [[result.extracted for result in results] for results in of_problem.values()]
    n_samples = correct_PS.shape[1]
    average = scores.average(correct_PS)
    counts = collections.Counter(result.verdict for result in graded)
    missing = None if problems is None else [problem.id for problem in problems if problem.id not in of_problem]
    completions = [prediction.row["completion"] for prediction in group]
    return {
        "problems": {"expected": benchmarks.find(name).count, "scored": len(of_problem), "missing": missing},
        "samples_per_problem": n_samples,
        "avg_at_k": {"k": n_samples, **dataclasses.asdict(average)},
        "pass_at_k": {str(k): scores.pass_at_k(correct_PS, k) for k in scores.powers_of_two(n_samples)},
        "maj_at_k": {"k": n_samples, "mean": scores.majority(answers_PS, correct_PS)},
        "verdicts": {verdict: counts[verdict] for verdict in grading.VERDICTS},
        "mean_length_characters": float(np.mean([len(text) for text in completions])),
        "mean_length_tokens": _mean_of(group, "tokens"),
        "truncation_rate": _mean_of(group, "truncated"),
        "repetition_rate": float(np.mean([scores.loops(text) for text in completions])),
    }


def _mean_of(group: list[Prediction], field: str) -> float | None:
    """None unless every row has the field: a mean over some would pass for one over all."""
    values = [prediction.row.get(field) for prediction in group]
    return None if None in values else float(np.mean(values))


def warnings_of(name: str, group: list[Prediction], problems: list | None, result: dict[str, Any]) -> list[str]:
    """What a reader of the table would otherwise take for granted, a line each."""
    lines = []
    scored, verdicts = result["problems"]["scored"], result["verdicts"]
    if problems is not None:
        lines.append(benchmarks.count_warning(name, problems))
        answers = {problem.id: problem.answer for problem in problems}
        other = sum(prediction.reference != answers[prediction.id] for prediction in group)
        if other:
            lines.append(
                f"{name}: {other} rows have another reference than the benchmark, and were graded by their own"
            )
    expected = result["problems"]["expected"] if problems is None else len(problems)
    if scored < expected:
        lines.append(f"{name}: the scores are on {scored} of {expected} problems; the others have no completion")
    if scored > expected:
        lines.append(f"{name}: {scored} problems are scored, the benchmark has {expected}; check the ids")
    if verdicts["timeout"] or verdicts["error"]:
        what = f"{verdicts['timeout']} timeouts and {verdicts['error']} errors of the grader"
        lines.append(f"{name}: {what} count as not correct")
    for field, score_name in [("tokens", "mean_length_tokens"), ("truncated", "truncation_rate")]:
        if result[score_name] is None and any(prediction.row.get(field) is not None for prediction in group):
            lines.append(f"{name}: only some rows have {field!r}, so {score_name} is not reported")
    return [line for line in lines if line]


def grade(file: Path, out: Path, data: str, **settings: Any) -> dict[str, Any]:
    """Grades the completions in `file`; writes them with verdicts, and their scores, to `out`; returns the scores.

    `data` is a benchmark's file, a folder of them, or empty for the hub; `settings` are those of `grading.Grader`.
    Nothing is written before all is graded, and each file appears at once and whole.

    Raises:
      UserError: anything wrong with the completions, the benchmarks or `out`, before the first is graded.
    """
    predictions = read_predictions(file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    problems = load_problems(predictions, data)
    predictions = refer(predictions, problems)
    _make_writable(out, file)
    with grading.Grader(**settings) as grader:
        graded = grader.grade([(prediction.row["completion"], prediction.reference) for prediction in predictions])
    last_number = settings["last_number"] or settings["mode"] == "paper"
    warnings = ["completions that mark no answer are graded by the last number in them"] if last_number else []
    results = {}
    for name, group in by_benchmark(predictions).items():
        of_group = [result for p, result in zip(predictions, graded, strict=True) if p.benchmark == name]
        results[name] = score(name, group, of_group, problems.get(name))
        warnings += warnings_of(name, group, problems.get(name), results[name])
    summary = {
        "benchmarks": results,
        "warnings": warnings,
        "grader": {
            "mode": settings["mode"],
            "last_number": last_number,  # whether it was the fallback, asked for or by the paper's rules
            "versions": {name: metadata.version(name) for name in ("math-verify", "latex2sympy2-extended", "sympy")},
        },
        "predictions": {"file": file.name, "sha256": digest, "rows": len(predictions)},
        "bootstrap": {"over": "problems", "resamples": scores.RESAMPLES, "seed": 0},
        "environment": writer.environment(),
    }
    rows = [
        json.dumps({**p.row, "reference": p.reference, "extracted": g.extracted, "verdict": g.verdict}) + "\n"
        for p, g in zip(predictions, graded, strict=True)
    ]
    try:
        writer.write_text(out / GRADED_NAME, "".join(rows))
        writer.write_json(out / SCORES_NAME, summary)
    except OSError as error:
        raise errors.UserError(f"--out={out}: {error.strerror}; make room, or give another folder") from error
    return summary


def _make_writable(out: Path, file: Path) -> None:
    """The folder `out`, made if need be; refused before the work where its files could not be written at the end."""
    if (out / GRADED_NAME).exists() and (out / GRADED_NAME).samefile(file):
        raise errors.UserError(f"--out={out}: {file.name} there would be overwritten by itself; give another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.UserError(f"--out={out}: cannot be made ({error.strerror}); give another folder") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise errors.UserError(f"--out={out}: no permission to write there; give another folder")
    for name in (GRADED_NAME, SCORES_NAME):
        if (out / name).is_dir():
            raise errors.UserError(f"--out={out}: {name} there is a folder; give another folder, or remove it")


def table(results: dict[str, dict[str, Any]]) -> str:
    """The scores in percent, a line for each benchmark."""
    heading = ["benchmark", "problems", "k", "avg@k ± error", "95 %", "pass@k", "maj@k", "no answer", "length", "cut"]
    lines = [heading]
    for name, result in results.items():
        average, total = result["avg_at_k"], sum(result["verdicts"].values())
        error, interval = average["standard_error"], average["interval_95"]
        tokens, cut = result["mean_length_tokens"], result["truncation_rate"]
        lines.append(
            [
                name,
                f"{result['problems']['scored']}/{result['problems']['expected']}",
                str(average["k"]),
                f"{average['mean']:.1%}" + ("" if error is None else f" ± {100 * error:.1f}"),
                "–" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}",
                f"{result['pass_at_k'][str(average['k'])]:.1%}",
                f"{result['maj_at_k']['mean']:.1%}",
                f"{result['verdicts']['no_answer'] / total:.1%}",
                f"{result['mean_length_characters']:.0f} ch" if tokens is None else f"{tokens:.0f} tok",
                "–" if cut is None else f"{cut:.1%}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def main() -> None:
    cli.parse(required=[])
    if not _GRADE.value:
        raise errors.UserError(
            "sampling is not in this version yet; make completions with any engine, and give them as"
            " --grade=predictions.jsonl (--help lists the options)"
        )
    jax.config.update("jax_platforms", "cpu")  # a grader needs no accelerator, and should not occupy one
    file = Path(_GRADE.value).expanduser()
    out = Path(_OUT.value).expanduser() if _OUT.value else file.parent
    settings = dict(mode=_MODE.value, last_number=_LAST_NUMBER.value, workers=_WORKERS.value)
    summary = grade(file, out, _DATA.value, **settings)
    for line in summary["warnings"]:
        print(f"warning: {line}", file=sys.stderr)
    print(table(summary["benchmarks"]))
    print(f"graded {summary['predictions']['rows']} completions: {out / SCORES_NAME}, {out / GRADED_NAME}")


if __name__ == "__main__":
    errors.exit_on_user_error(main)()
