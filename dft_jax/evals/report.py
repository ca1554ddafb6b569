"""Verdicts on predictions, the scores made of them, and the table that people read."""

import collections
import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np

from dft_jax.evals import scores
from dft_jax.evals.graders import pool
from dft_jax.evals.records import Prediction, groups
from dft_jax.evals.tasks import benchmarks
from dft_jax.evals.tasks.benchmarks import Problem
from dft_jax.runtime import environment, errors, interrupts, system

Problems = dict[str, list[Problem]]

# Raised when the scores of the same completions change, or are of other rules: what an older
# version scored is then graded anew by the same command. 2: votes by meaning, intervals with
# imagined problems, digests of problems. 3: the grader's rules 2, answer markers.
FORMAT = 3
_SHOWN_DIGITS = 12  # of a hash, for a reader


@dataclasses.dataclass(frozen=True)
class Scored:
    """A prediction, its row with the verdict, and the number of what its answer means (None: there
    is no answer).

    Answers to one problem at one temperature mean the same where their numbers are equal.
    """

    prediction: Prediction
    row: dict[str, Any]
    meaning: int | None


def grade(
    predictions: list[Prediction], problems: Problems, **settings: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Grades predictions, all of which have a reference, with the `settings` of `grading.Grader`.

    In the paper's mode the strict verdicts are there as well, and the scores count where the two
    disagree.

    Returns:
      The rows with `reference`, `extracted` and `verdict`, in their order; and the content of
      scores.json.
    """
    began = time.perf_counter()
    items = [(prediction.row["completion"], prediction.reference) for prediction in predictions]
    # Of several processes only one grades; the others could not call `check` as often.
    how = {"check": interrupts.check} if jax.process_count() == 1 else {}
    how["truncated"] = [p.row.get("truncated") is True for p in predictions]
    with pool.Grader(**settings) as grader:
        graded = grader.grade(items, **how)
        meanings = _meanings(grader, predictions, graded)
    rows = [
        {**p.row, "reference": p.reference, "extracted": g.extracted, "verdict": g.verdict}
        for p, g in zip(predictions, graded, strict=True)
    ]
    if settings["mode"] == "paper":
        with pool.Grader(**settings | {"mode": "strict"}) as grader:
            for row, strict in zip(rows, grader.grade(items, **how), strict=True):
                row["strict_verdict"] = strict.verdict
    last_number = settings["last_number"] or settings["mode"] == "paper"
    warnings = (
        ["completions that mark no answer are graded by the last number in them"]
        if last_number
        else []
    )
    results = []
    place_of = {id(prediction): place for place, prediction in enumerate(predictions)}
    for (name, temperature), group in groups(predictions).items():
        places = [place_of[id(prediction)] for prediction in group]
        own = [Scored(predictions[place], rows[place], meanings[place]) for place in places]
        # Sorted, so that the scores are the same to the last digit whatever the order of the rows.
        own.sort(key=lambda each: (each.prediction.id, each.prediction.sample))
        result = {
            "benchmark": name,
            "temperature": temperature,
            **score(name, own, problems.get(name)),
        }
        results.append(result)
        warnings += [
            line for line in warnings_of(own, problems.get(name), result) if line not in warnings
        ]
    versions = {
        name: metadata.version(name) for name in ("math-verify", "latex2sympy2-extended", "sympy")
    }
    summary = {
        "format": FORMAT,
        "results": results,
        "warnings": warnings,
        # last_number: whether it was the fallback, asked for or by the paper's rules.
        "grader": {
            "mode": settings["mode"],
            "rules": pool.RULES,
            "last_number": last_number,
            "answer_markers": list(settings["answer_markers"]),
            "versions": versions,
        },
        "intervals": scores.INTERVAL,
        "speed": {
            "grading_s": round(time.perf_counter() - began, 3),
            "peak_host_gib": round(system.peak_gib(), 3),
        },
        "environment": environment.describe(),
    }
    return rows, summary


def _meanings(
    grader: pool.Grader, predictions: list[Prediction], graded: list[pool.Graded]
) -> list[int | None]:
    """What each prediction's answer means, as in `Scored`; one sample of a problem is compared with
    nothing.
    """
    of_problem = collections.defaultdict(list)
    for place, prediction in enumerate(predictions):
        of_problem[prediction.benchmark, prediction.temperature, prediction.id].append(place)
    meanings: list[int | None] = [None] * len(predictions)
    for places in of_problem.values():
        answers = [graded[place].extracted for place in places]
        verdicts = [graded[place].verdict for place in places]
        for place, meaning in zip(places, grader.classes(answers, verdicts), strict=True):
            meanings[place] = meaning
    return meanings


def score(name: str, group: list[Scored], problems: list[Problem] | None) -> dict[str, Any]:
    """The scores of one benchmark at one temperature, from predictions and their graded rows.

    Every verdict but `correct` counts as not correct, and all are counted. Problems nobody answered
    are named as missing where the benchmark was loaded, and no score knows of them.
    """
    of_problem = collections.defaultdict(list)
    for each in group:
        of_problem[each.prediction.id].append(each)
    rows = [each.row for each in group]
    correct_PS = np.array(
        [[e.row["verdict"] == "correct" for e in own] for own in of_problem.values()]
    )
    meanings_PS = [[each.meaning for each in own] for own in of_problem.values()]
    n_samples = correct_PS.shape[1]
    passes = {k: scores.pass_at_k(correct_PS, k) for k in scores.powers_of_two(n_samples)}
    majority_P = scores.majority(meanings_PS, correct_PS)
    counts = collections.Counter(row["verdict"] for row in rows)
    missing = (
        None
        if problems is None
        else [problem.id for problem in problems if problem.id not in of_problem]
    )
    entropy = _mean_of(rows, "entropy")
    result = {
        "problems": {
            "expected": benchmarks.find(name).count,
            "scored": len(of_problem),
            "missing": missing,
        },
        "samples_per_problem": n_samples,
        "avg_at_k": {"k": n_samples, **dataclasses.asdict(scores.average(correct_PS))},
        "pass_at_k": {str(k): float(pass_P.mean()) for k, pass_P in passes.items()},
        "pass_at_k_interval_95": {
            str(k): scores.mean_of_shares(pass_P).interval_95 for k, pass_P in passes.items()
        },
        "maj_at_k": {"k": n_samples, **dataclasses.asdict(scores.mean_of_shares(majority_P))},
        # From these three everything above can be made again, and compared problem by problem.
        "correct_share_of_problem": dict(
            zip(of_problem, correct_PS.mean(axis=1).tolist(), strict=True)
        ),
        "majority_correct_of_problem": dict(zip(of_problem, majority_P.tolist(), strict=True)),
        "sha256_of_problem": _digests(of_problem, problems),
        "sha256_is_of": "reference" if problems is None else "question and reference",
        "verdicts": {verdict: counts[verdict] for verdict in pool.VERDICTS},
        "mean_length_characters": float(np.mean([len(row["completion"]) for row in rows])),
        "mean_length_tokens": _mean_of(rows, "tokens"),
        "mean_token_entropy": None if entropy is None else round(entropy, 4),
        "truncation_rate": _mean_of(rows, "truncated"),
        "repetition_rate": float(
            np.mean([scores.ends_in_a_loop(row["completion"]) for row in rows])
        ),
    }
    if "strict_verdict" in rows[0]:
        result["paper_against_strict"] = _disagreements(group)
    return result


def _digests(of_problem: dict[str, list[Scored]], problems: list[Problem] | None) -> dict[str, str]:
    """16 hexadecimal digits for each problem: of its question, where it is known, and what answers
    were held against.

    Ids may be the numbers of a file's rows, so equal ids do not mean equal problems.
    """
    questions = {problem.id: problem.question for problem in problems or []}
    digests = {}
    for id_, own in of_problem.items():
        content = [questions.get(id_), *sorted({each.prediction.reference for each in own})]
        digests[id_] = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    return digests


def _disagreements(group: list[Scored]) -> dict[str, Any]:
    """How many answers only one of the two modes accepts, and which."""
    only = {"only_paper": [], "only_strict": []}
    for each in group:
        prediction, row = each.prediction, each.row
        verdicts = row["verdict"], row["strict_verdict"]
        if verdicts.count("correct") == 1:
            example = {
                "id": prediction.id,
                "sample": prediction.sample,
                "extracted": row["extracted"],
            }
            only["only_paper" if verdicts[0] == "correct" else "only_strict"].append(example)
    return {
        name: {"count": len(examples), "first": examples[:10]} for name, examples in only.items()
    }


def _mean_of(rows: list[dict[str, Any]], field: str) -> float | None:
    """None unless every row has the field: a mean over some would pass for one over all."""
    values = [row.get(field) for row in rows]
    return None if None in values else float(np.mean(values))


def warnings_of(
    group: list[Scored], problems: list[Problem] | None, result: dict[str, Any]
) -> list[str]:
    """What a reader of the table would otherwise take for granted, a line each."""
    name, only = result["benchmark"], result.get("paper_against_strict")
    lines = [*_of_problems(group, problems, result), *_of_completions(group, result)]
    if only:
        what = f"{only['only_paper']['count']} answers that the strict rules refuse"
        refused = only["only_strict"]["count"]
        lines.append(f"{name}: the paper's rules accept {what}, and refuse {refused} they accept")
    return [line for line in lines if line]


def _of_problems(
    group: list[Scored], problems: list[Problem] | None, result: dict[str, Any]
) -> list[str]:
    """Whether the problems, and what their answers are held against, are the benchmark's."""
    lines, name, scored = [], result["benchmark"], result["problems"]["scored"]
    if problems is not None:
        lines.append(benchmarks.count_warning(name, problems))
        answers = {problem.id: problem.answer for problem in problems}
        predictions = [each.prediction for each in group]
        other = sum(prediction.reference != answers[prediction.id] for prediction in predictions)
        if other:
            what = f"{other} rows have another reference than the benchmark"
            lines.append(f"{name}: {what}, and were graded by their own")
    expected = result["problems"]["expected"] if problems is None else len(problems)
    if scored < expected:
        what = f"the scores are on {scored} of {expected} problems"
        lines.append(f"{name}: {what}; the others have no completion")
    if scored > expected:
        lines.append(
            f"{name}: {scored} problems are scored, the benchmark has {expected}; check the ids"
        )
    return lines


def _of_completions(group: list[Scored], result: dict[str, Any]) -> list[str]:
    """Whether the completions are what was asked of the model, and were graded."""
    lines, name, verdicts = [], result["benchmark"], result["verdicts"]
    if verdicts["timeout"] or verdicts["error"]:
        what = f"{verdicts['timeout']} timeouts and {verdicts['error']} errors of the grader"
        lines.append(f"{name}: {what} count as not correct")
    at = f"{name} at {temperature_text(result['temperature'])}"
    unanswered = verdicts["no_answer"] / len(group)
    if unanswered > 0.5:
        remedy = "a prompt (--prompt) or an instruction that asks for \\boxed{} or '#### '"
        what = f"{unanswered:.0%} of the completions mark no answer, and count as not correct"
        lines.append(f"{at}: {what}; read some of them: they may need {remedy}, or more tokens")
    cut = result["truncation_rate"]
    if cut is not None and cut > 0.5:
        what = f"{cut:.0%} of the completions were cut by the limit of their length"
        remedy = "give more tokens (--max_new_tokens, --context)"
        lines.append(f"{at}: {what}; {remedy}, or check that the model's stop token is known")
    for field, score_name in [("tokens", "mean_length_tokens"), ("truncated", "truncation_rate")]:
        if result[score_name] is None and any(e.row.get(field) is not None for e in group):
            lines.append(f"{name}: only some rows have {field!r}, so {score_name} is not reported")
    return lines


def table(results: list[dict[str, Any]]) -> str:
    """The scores in percent, a line for each benchmark and temperature."""
    heading = "benchmark,T,problems,k,avg@k ± error,95 %,pass@k,95 %,maj@k,95 %,no answer,length,cut,entropy".split(
        ","
    )
    lines = [heading]
    for result in results:
        average, total = result["avg_at_k"], sum(result["verdicts"].values())
        k, error, majority = str(average["k"]), average["standard_error"], result["maj_at_k"]
        tokens, cut, entropy = (
            result[n] for n in ("mean_length_tokens", "truncation_rate", "mean_token_entropy")
        )
        lines.append(
            [
                result["benchmark"],
                temperature_text(result["temperature"]).removeprefix("T="),
                f"{result['problems']['scored']}/{result['problems']['expected']}",
                k,
                f"{average['mean']:.1%}" + ("" if error is None else f" ± {_points(error)}"),
                interval_text(average["interval_95"]),
                f"{result['pass_at_k'][k]:.1%}",
                interval_text(result["pass_at_k_interval_95"][k]),
                f"{majority['mean']:.1%}",
                interval_text(majority["interval_95"]),
                f"{result['verdicts']['no_answer'] / total:.1%}",
                f"{result['mean_length_characters']:.0f} ch"
                if tokens is None
                else f"{tokens:.0f} tok",
                "–" if cut is None else f"{cut:.1%}",
                "–" if entropy is None else f"{entropy:.2f}",
            ]
        )
    return aligned(lines)


def base_of(model: Any) -> dict[str, Any]:
    """The checkpoint that an evaluated model began with, as its scores.json says under `model`;
    else empty.
    """
    origin = model.get("origin") if isinstance(model, dict) else None
    base = origin.get("base") if isinstance(origin, dict) else None
    return base if isinstance(base, dict) else {}


def origin_text(model: Any) -> str:
    """Which weights an evaluation is of, from `model` of its scores.json, for a reader; empty where
    it does not say.

    run 5f0c…, step 390, begun with Qwen/Qwen2.5-Math-1.5B at 4a83ca6e4526, weights 3f2a91c07b1d
    """
    base = base_of(model)
    if not base:
        return ""
    parts = [str(base.get("path"))]
    if base.get("commit"):
        parts[0] += f" at {str(base['commit'])[:_SHOWN_DIGITS]}"
    is_random = base.get("init") == "random"
    if base.get("sha256") or is_random:
        parts.append(
            "random weights" if is_random else f"weights {str(base['sha256'])[:_SHOWN_DIGITS]}"
        )
    run_id = model.get("run_id") or model["origin"].get("run_id")
    if run_id:
        step = model.get("step", model["origin"].get("step"))
        parts = [f"run {run_id}", f"step {step}", f"begun with {parts[0]}", *parts[1:]]
    return errors.printable(", ".join(parts))


def temperature_text(value: float | None) -> str:
    return "–" if value is None else "greedy" if value == 0 else f"T={value:g}"


def interval_text(interval: Sequence[float] | None, sign: str = "") -> str:
    """In percent; `sign` is "+" for differences. Two ends that differ are written with digits that
    do.
    """
    if interval is None:
        return "–"
    for digits in (1, 2, 3, 4, 5):
        low, high = (f"{100 * end:{sign}.{digits}f}" for end in interval)
        if low != high:
            break
    return f"{low} to {high}"


def _points(share: float) -> str:
    """In percent, with one digit, or the first that is not 0."""
    return f"{100 * share:.1f}" if share >= 0.0005 else f"{100 * share:.1g}"


def aligned(lines: list[list[str]]) -> str:
    """Lines of as many cells each, in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
