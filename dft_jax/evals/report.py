"""What people read of an evaluation: warnings, the table of scores, and which weights it is of."""

from collections.abc import Sequence
from typing import Any

from dft_jax.evals.records import GradedPrediction, Score
from dft_jax.evals.tasks import benchmarks
from dft_jax.evals.tasks.task import Problem
from dft_jax.runtime import errors

_HASH_DIGITS = 12  # of a hash, for a reader

# ---- warnings


def warnings_of(
    score: Score, group: list[GradedPrediction], problems: list[Problem] | None
) -> list[str]:
    """What a reader of the table would otherwise take for granted, a line each.

    Args:
      score: of one benchmark at one temperature.
      group: the predictions that it is made of.
      problems: the benchmark's, None where it was not loaded.
    """
    lines = [*_of_problems(score, group, problems), *_of_completions(score, group)]
    if score.paper_against_strict:
        accepted = score.paper_against_strict.only_paper.count
        refused = score.paper_against_strict.only_strict.count
        lines.append(
            f"{score.benchmark}: the paper's rules accept {accepted} answers that the strict rules"
            f" refuse, and refuse {refused} they accept"
        )
    caution = benchmarks.find(score.benchmark).caution
    if caution:
        lines.append(
            f"{score.benchmark}: compare these scores with each other, and put published ones"
            f" beside them only: VLMEvalKit {caution}"
        )
    return lines


def _of_problems(
    score: Score, group: list[GradedPrediction], problems: list[Problem] | None
) -> list[str]:
    """Whether the problems, and what their answers are held against, are the benchmark's."""
    lines = []
    name, scored = score.benchmark, score.problems.scored
    expected = score.problems.expected
    if problems is not None:
        expected = len(problems)
        warning = benchmarks.count_warning(name, problems)
        if warning:
            lines.append(warning)
        answers = {problem.id: problem.answer for problem in problems}
        other = 0
        for one in group:
            other += one.prediction.reference != answers[one.prediction.id]
        if other:
            lines.append(
                f"{name}: {other} rows have another reference than the benchmark,"
                " and were graded by their own"
            )
    if scored < expected:
        lines.append(
            f"{name}: the scores are on {scored} of {expected} problems;"
            " the others have no completion"
        )
    if scored > expected:
        lines.append(
            f"{name}: {scored} problems are scored, the benchmark has {expected}; check the ids"
        )
    return lines


def _of_completions(score: Score, group: list[GradedPrediction]) -> list[str]:
    """Whether the completions are what was asked of the model, and were graded."""
    lines = []
    name, verdicts = score.benchmark, score.verdicts
    is_program = group[0].is_program
    if verdicts["timeout"] or verdicts["error"]:
        whose = "of the grader"
        if is_program:
            whose = "(programs that ended their process)"
        lines.append(
            f"{name}: {verdicts['timeout']} timeouts and {verdicts['error']} errors {whose}"
            " count as not correct"
        )
    cell = f"{name} at {temperature_text(score.temperature)}"
    unanswered = verdicts["no_answer"] / len(group)
    if unanswered > 0.5 and is_program:
        lines.append(
            f"{cell}: {unanswered:.0%} of the completions define no such function, and count as not"
            " correct; read some of them: a base model continues a function (--prompt=plain),"
            " another is asked (--prompt=tokenizer)"
        )
    elif unanswered > 0.5:
        lines.append(
            f"{cell}: {unanswered:.0%} of the completions mark no answer, and count as not correct;"
            " read some of them: they may need a prompt (--prompt) or an instruction that asks for"
            " \\boxed{} or '#### ', or more tokens"
        )
    truncated = score.truncation_rate
    # A base model writes on behind a function; its text counts up to where it does.
    if truncated is not None and truncated > 0.5 and not is_program:
        lines.append(
            f"{cell}: {truncated:.0%} of the completions were cut by the limit of their length;"
            " give more tokens (--max_new_tokens, --context), or check that the model's stop token"
            " is known"
        )
    if score.mean_length_tokens is None and _some_have(group, "tokens"):
        lines.append(_left_out(name, "tokens", "mean_length_tokens"))
    if score.truncation_rate is None and _some_have(group, "truncated"):
        lines.append(_left_out(name, "truncated", "truncation_rate"))
    return lines


def _some_have(group: list[GradedPrediction], field: str) -> bool:
    return any(one.row.get(field) is not None for one in group)


def _left_out(benchmark: str, field: str, score_name: str) -> str:
    return f"{benchmark}: only some rows have {field!r}, so {score_name} is not reported"


# ---- the table

_HEADINGS = (
    "benchmark",
    "T",
    "problems",
    "k",
    "avg@k ± error",
    "95 %",
    "pass@k",
    "95 %",
    "maj@k",
    "95 %",
    "no answer",
    "length",
    "cut",
    "entropy",
)
_OF_GROUPS = ("benchmark", "T", "of", "", "problems", "avg@k ± error", "95 %")
_OF_COMPOSITES = (
    *("benchmark", "T", "rules", "composites", "score ± error", "95 %"),
    *("IK", "IG", "CM", "RM"),
)
# Of composites.Cases, in the order of the columns.
_CASES = (
    "insufficient_knowledge",
    "inadequate_generalization",
    "complete_mastery",
    "rote_memorization",
)


def table(results: list[dict[str, Any]]) -> str:
    """The scores in percent, a line for each benchmark and temperature.

    Args:
      results: as in scores.json.
    """
    parts = [aligned([list(_HEADINGS), *(_cells(result) for result in results)])]
    groups, cases = [], []
    for result in results:
        groups += _lines_of_groups(result)
        cases += _lines_of_composites(result)
    if groups:
        parts.append(aligned([list(_OF_GROUPS), *groups]))
    if cases:
        parts.append(aligned([list(_OF_COMPOSITES), *cases]))
    return "\n\n".join(parts)


def _lines_of_groups(result: dict[str, Any]) -> list[list[str]]:
    """A line for each group of a benchmark's problems; none where it has no groups."""
    lines = []
    for kind, scores_by_value in (result.get("groups") or {}).items():
        for value, score in scores_by_value.items():
            lines.append(
                [
                    *_place(result),
                    kind.replace("_", " "),
                    value,
                    str(score["problems"]),
                    _mean_text(score),
                    interval_text(score["interval_95"]),
                ]
            )
    return lines


def _lines_of_composites(result: dict[str, Any]) -> list[list[str]]:
    """We-Math's two scores; none of other benchmarks."""
    composites = result.get("composites")
    if not composites:
        return []
    lines = []
    for rules in ("strict", "loose"):
        cases = composites[rules]
        lines.append(
            [
                *_place(result),
                rules,
                str(composites["scored"]),
                _mean_text(cases["score"]),
                interval_text(cases["score"]["interval_95"]),
                *(f"{cases[name]['mean']:.1%}" for name in _CASES),
            ]
        )
    return lines


def _place(result: dict[str, Any]) -> list[str]:
    """The first two cells of a line: benchmark and temperature."""
    return [result["benchmark"], temperature_text(result["temperature"]).removeprefix("T=")]


def _mean_text(mean: dict[str, Any]) -> str:
    """A mean with its standard error, if it has one."""
    if mean["standard_error"] is None:
        return f"{mean['mean']:.1%}"
    return f"{mean['mean']:.1%} ± {_points(mean['standard_error'])}"


def _cells(result: dict[str, Any]) -> list[str]:
    average, majority = result["avg_at_k"], result["maj_at_k"]
    k = str(average["k"])
    counts, verdicts = result["problems"], result["verdicts"]
    length = f"{result['mean_length_characters']:.0f} ch"
    votes, votes_interval = "–", "–"
    if majority is not None:
        votes, votes_interval = f"{majority['mean']:.1%}", interval_text(majority["interval_95"])
    if result["mean_length_tokens"] is not None:
        length = f"{result['mean_length_tokens']:.0f} tok"
    return [
        *_place(result),
        f"{counts['scored']}/{counts['expected']}",
        k,
        _mean_text(average),
        interval_text(average["interval_95"]),
        f"{result['pass_at_k'][k]:.1%}",
        interval_text(result["pass_at_k_interval_95"][k]),
        votes,
        votes_interval,
        f"{verdicts['no_answer'] / sum(verdicts.values()):.1%}",
        length,
        _text(result["truncation_rate"], ".1%"),
        _text(result["mean_token_entropy"], ".2f"),
    ]


def _text(value: float | None, form: str) -> str:
    if value is None:
        return "–"
    return format(value, form)


def temperature_text(value: float | None) -> str:
    """`T=0.7`, `greedy` for 0, `–` where it is not known."""
    if value is None:
        return "–"
    if value == 0:
        return "greedy"
    return f"T={value:g}"


def interval_text(interval: Sequence[float] | None, sign: str = "") -> str:
    """In percent, `1.2 to 3.4`; `–` where there is none.

    Two ends that differ are written with as many digits as they need to look so.

    Args:
      interval: its two ends, as shares.
      sign: "+" for differences.
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
    if share >= 0.0005:
        return f"{100 * share:.1f}"
    return f"{100 * share:.1g}"


def aligned(lines: list[list[str]]) -> str:
    """Lines of as many cells each, in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


# ---- which weights


def base_of(model: Any) -> dict[str, Any]:
    """The checkpoint that an evaluated model began with; empty where it is not said.

    Args:
      model: the entry of this name in scores.json, of whatever type a file has there.
    """
    value = model
    for key in ("origin", "base"):
        if not isinstance(value, dict):
            return {}
        value = value.get(key)
    if not isinstance(value, dict):
        return {}
    return value


def origin_text(model: Any) -> str:
    """Which weights an evaluation is of, for a reader; empty where it is not said.

    run 5f0c…, step 390, begun with Qwen/Qwen2.5-Math-1.5B at 4a83ca6e4526, weights 3f2a91c07b1d

    Args:
      model: as for `base_of`.
    """
    base = base_of(model)
    if not base:
        return ""
    origin = model["origin"]
    checkpoint = str(base.get("path"))
    if base.get("commit"):
        checkpoint += f" at {str(base['commit'])[:_HASH_DIGITS]}"
    weights = []
    if base.get("init") == "random":
        weights = ["random weights"]
    elif base.get("sha256"):
        weights = [f"weights {str(base['sha256'])[:_HASH_DIGITS]}"]
    run_id = model.get("run_id") or origin.get("run_id")
    if not run_id:
        return errors.printable(", ".join([checkpoint, *weights]))
    step = model.get("step", origin.get("step"))
    parts = [f"run {run_id}", f"step {step}", f"begun with {checkpoint}", *weights]
    return errors.printable(", ".join(parts))
