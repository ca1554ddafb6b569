"""Verdicts on predictions, the scores made of them, and the table that people read."""

import collections
import dataclasses
from importlib import metadata
from typing import Any

import jax
import numpy as np

from dft_jax import interrupts, writer
from dft_jax.evals import benchmarks, grading, scores
from dft_jax.evals.benchmarks import Problem
from dft_jax.evals.predictions import Prediction, groups

Problems = dict[str, list[Problem]]


def grade(
    predictions: list[Prediction], problems: Problems, **settings: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Grades predictions, all of which have a reference, with the `settings` of `grading.Grader`.

    In the paper's mode the strict verdicts are there as well, and the scores count where the two disagree.

    Returns:
      The rows with `reference`, `extracted` and `verdict`, in their order; and the content of scores.json.
    """
    items = [(prediction.row["completion"], prediction.reference) for prediction in predictions]
    # Of several processes only one grades; the others could not call `check` as often.
    how = {"check": interrupts.check} if jax.process_count() == 1 else {}
    with grading.Grader(**settings) as grader:
        graded = grader.grade(items, **how)
    rows = [
        {**p.row, "reference": p.reference, "extracted": g.extracted, "verdict": g.verdict}
        for p, g in zip(predictions, graded, strict=True)
    ]
    if settings["mode"] == "paper":
        with grading.Grader(**settings | {"mode": "strict"}) as grader:
            for row, strict in zip(rows, grader.grade(items, **how), strict=True):
                row["strict_verdict"] = strict.verdict
    last_number = settings["last_number"] or settings["mode"] == "paper"
    warnings = ["completions that mark no answer are graded by the last number in them"] if last_number else []
    results = []
    row_of = dict(zip(map(id, predictions), rows, strict=True))
    for (name, temperature), group in groups(predictions).items():
        own = [(prediction, row_of[id(prediction)]) for prediction in group]
        # Sorted, so that the scores are the same to the last digit whatever the order of the rows.
        own.sort(key=lambda pair: (pair[0].id, pair[0].sample))
        results.append({"benchmark": name, "temperature": temperature, **score(name, own, problems.get(name))})
        warnings += [line for line in warnings_of(own, problems.get(name), results[-1]) if line not in warnings]
    versions = {name: metadata.version(name) for name in ("math-verify", "latex2sympy2-extended", "sympy")}
    summary = {
        "results": results,
        "warnings": warnings,
        # last_number: whether it was the fallback, asked for or by the paper's rules.
        "grader": {"mode": settings["mode"], "last_number": last_number, "versions": versions},
        "bootstrap": {"over": "problems", "resamples": scores.RESAMPLES, "seed": 0},
        "environment": writer.environment(),
    }
    return rows, summary


def score(name: str, group: list[tuple[Prediction, dict[str, Any]]], problems: list[Problem] | None) -> dict[str, Any]:
    """The scores of one benchmark at one temperature, from predictions and their graded rows.

    Every verdict but `correct` counts as not correct, and all are counted. Problems nobody answered are named as
    missing where the benchmark was loaded, and no score knows of them.
    """
    of_problem = collections.defaultdict(list)
    for prediction, row in group:
        of_problem[prediction.id].append(row)
    rows = [row for _, row in group]
    correct_PS = np.array([[row["verdict"] == "correct" for row in own] for own in of_problem.values()])
    answers_PS = [[row["extracted"] for row in own] for own in of_problem.values()]
    n_samples = correct_PS.shape[1]
    average = scores.average(correct_PS)
    counts = collections.Counter(row["verdict"] for row in rows)
    missing = None if problems is None else [problem.id for problem in problems if problem.id not in of_problem]
    entropy = _mean_of(rows, "entropy")
    result = {
        "problems": {"expected": benchmarks.find(name).count, "scored": len(of_problem), "missing": missing},
        "samples_per_problem": n_samples,
        "avg_at_k": {"k": n_samples, **dataclasses.asdict(average)},
        "pass_at_k": {str(k): scores.pass_at_k(correct_PS, k) for k in scores.powers_of_two(n_samples)},
        "maj_at_k": {"k": n_samples, "mean": scores.majority(answers_PS, correct_PS)},
        "correct_share_of_problem": dict(zip(of_problem, correct_PS.mean(axis=1).tolist(), strict=True)),
        "verdicts": {verdict: counts[verdict] for verdict in grading.VERDICTS},
        "mean_length_characters": float(np.mean([len(row["completion"]) for row in rows])),
        "mean_length_tokens": _mean_of(rows, "tokens"),
        "mean_token_entropy": None if entropy is None else round(entropy, 4),
        "truncation_rate": _mean_of(rows, "truncated"),
        "repetition_rate": float(np.mean([scores.loops(row["completion"]) for row in rows])),
    }
    if "strict_verdict" in rows[0]:
        result["paper_against_strict"] = _disagreements(group)
    return result


def _disagreements(group: list[tuple[Prediction, dict[str, Any]]]) -> dict[str, Any]:
    """How many answers only one of the two modes accepts, and which."""
    only = {"only_paper": [], "only_strict": []}
    for prediction, row in group:
        verdicts = row["verdict"], row["strict_verdict"]
        if verdicts.count("correct") == 1:
            example = {"id": prediction.id, "sample": prediction.sample, "extracted": row["extracted"]}
            only["only_paper" if verdicts[0] == "correct" else "only_strict"].append(example)
    return {name: {"count": len(examples), "first": examples[:10]} for name, examples in only.items()}


def _mean_of(rows: list[dict[str, Any]], field: str) -> float | None:
    """None unless every row has the field: a mean over some would pass for one over all."""
    values = [row.get(field) for row in rows]
    return None if None in values else float(np.mean(values))


def warnings_of(group, problems: list[Problem] | None, result: dict[str, Any]) -> list[str]:
    """What a reader of the table would otherwise take for granted, a line each."""
    lines, name = [], result["benchmark"]
    scored, verdicts = result["problems"]["scored"], result["verdicts"]
    if problems is not None:
        lines.append(benchmarks.count_warning(name, problems))
        answers = {problem.id: problem.answer for problem in problems}
        other = sum(prediction.reference != answers[prediction.id] for prediction, _ in group)
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
    if "paper_against_strict" in result:
        only = result["paper_against_strict"]
        what = f"{only['only_paper']['count']} answers that the strict rules refuse"
        lines.append(f"{name}: the paper's rules accept {what}, and refuse {only['only_strict']['count']} they accept")
    for field, score_name in [("tokens", "mean_length_tokens"), ("truncated", "truncation_rate")]:
        if result[score_name] is None and any(row.get(field) is not None for _, row in group):
            lines.append(f"{name}: only some rows have {field!r}, so {score_name} is not reported")
    return [line for line in lines if line]


def table(results: list[dict[str, Any]]) -> str:
    """The scores in percent, a line for each benchmark and temperature."""
    heading = "benchmark,T,problems,k,avg@k ± error,95 %,pass@k,maj@k,no answer,length,cut,entropy".split(",")
    lines = [heading]
    for result in results:
        average, total = result["avg_at_k"], sum(result["verdicts"].values())
        error, interval, temperature = average["standard_error"], average["interval_95"], result["temperature"]
        tokens, cut, entropy = (result[n] for n in ("mean_length_tokens", "truncation_rate", "mean_token_entropy"))
        lines.append(
            [
                result["benchmark"],
                "–" if temperature is None else f"{temperature:g}" if temperature else "greedy",
                f"{result['problems']['scored']}/{result['problems']['expected']}",
                str(average["k"]),
                f"{average['mean']:.1%}" + ("" if error is None else f" ± {100 * error:.1f}"),
                "–" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}",
                f"{result['pass_at_k'][str(average['k'])]:.1%}",
                f"{result['maj_at_k']['mean']:.1%}",
                f"{result['verdicts']['no_answer'] / total:.1%}",
                f"{result['mean_length_characters']:.0f} ch" if tokens is None else f"{tokens:.0f} tok",
                "–" if cut is None else f"{cut:.1%}",
                "–" if entropy is None else f"{entropy:.2f}",
            ]
        )
    return aligned(lines)


def aligned(lines: list[list[str]]) -> str:
    """Lines of as many cells each, in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
