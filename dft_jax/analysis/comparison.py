"""Evaluations side by side: rows with paired differences to the first, tables of them, and a bar plot."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dft_jax.analysis import pairing
from dft_jax.evals import report, saved, scores, significance
from dft_jax.evals.runner import SCORES_NAME
from dft_jax.runtime import errors

MEAN = "mean"  # over the benchmarks, as the paper reports it
# What changes the meaning of a score: settings, the grader's rules, and what the runner found out.
_SETTINGS = "prompt instruction top_k top_p seed context max_new_tokens".split()
_GRADER = "mode last_number versions answer_markers rules".split()
_RUN = "stop_ids compute_dtype".split()
# A column of the rows -> its name in the tables.
SCORES = {"avg_at_k": "avg@k", "pass_at_k": "pass@k", "maj_at_k": "maj@k"}
LEVEL = 0.05
COLOURS = ("#7f7f7f", "#1f77b4", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """`results` by (benchmark, temperature); `settings` as far as they are known; `model` as
    scores.json names it.
    """

    name: str
    results: dict[tuple[str, float | None], dict[str, Any]]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    model: Any = None


@dataclasses.dataclass
class Comparison:
    """Rows for tables and CSV, and what a reader should know; `differences`, to the run `first`,
    are in the rows.

    `origins` has a line for each evaluation that says which run, step and base it is of.
    """

    first: str
    rows: list[dict[str, Any]]
    warnings: list[str]
    differences: list["Difference"]
    origins: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Difference:
    """One paired difference: in which row, of which score, and its value for each problem.

    Of a mean over benchmarks the values are those of all their problems, weighted so that their sum
    is the mean.
    """

    row: dict[str, Any]
    score: str
    value_P: np.ndarray


def read(argument: str) -> Evaluation:
    """`name=folder` or `folder`.

    Raises:
      UserError: no evaluation is there (a missing one is no zero), or its scores are not whole.
    """
    name, equals, path = ("", "", argument) if Path(argument).exists() else argument.partition("=")
    folder = Path(path if equals else argument).expanduser()
    file = folder / SCORES_NAME
    if not file.is_file():
        places = (folder / "eval").glob("*")
        steps = [each for each in places if (each / SCORES_NAME).is_file() and each.name.isdigit()]
        if not steps:
            remedy = "give the folder of an evaluation, or a run that has one (python -m dft_jax.evaluate makes them)"
            raise errors.UserError(
                f"{folder}: no {SCORES_NAME} there, nor in eval/<step>/; {remedy}"
            )
        file = max(steps, key=lambda each: int(each.name)) / SCORES_NAME
    content = saved.read_scores(file, "evaluate again")
    return of_summary(name if equals else folder.name, content)


def of_summary(name: str, content: dict[str, Any]) -> Evaluation:
    """An evaluation by the content of its scores.json."""
    results = {
        (result["benchmark"], result["temperature"]): result for result in content["results"]
    }
    settings: dict[str, Any] = {}
    sources = [
        (content.get("settings", {}), _SETTINGS),
        (content.get("grader", {}), _GRADER),
        (content, _RUN),
    ]
    for values, names in sources:
        settings |= {name: values[name] for name in names if name in values}
    return Evaluation(name, results, settings, content.get("model"))


def compare(evaluations: Sequence[Evaluation]) -> Comparison:
    """A row for each benchmark, temperature and evaluation; differences are to the first
    evaluation.

    An evaluation that lacks a benchmark has no row for it, and none for the mean over benchmarks.
    """
    origins = {each.name: report.origin_text(each.model) for each in evaluations}
    known = [f"{name}: {origin}" for name, origin in origins.items() if origin]
    made = Comparison(
        evaluations[0].name, [], _other_settings(evaluations) + _other_bases(evaluations), [], known
    )
    cells = list(dict.fromkeys(cell for each in evaluations for cell in each.results))
    for cell in cells:
        for each in evaluations:
            _add_row(made, evaluations[0], each, cell)
    for temperature in dict.fromkeys(temperature for _, temperature in cells):
        benchmarks = [benchmark for benchmark, t in cells if t == temperature]
        if len(benchmarks) > 1:
            for each in evaluations:
                _add_mean(made, evaluations[0], each, [(name, temperature) for name in benchmarks])
    made.warnings = list(dict.fromkeys(made.warnings))
    _mark(made.differences)
    return made


def _other_settings(evaluations: Sequence[Evaluation]) -> list[str]:
    first, warnings = evaluations[0], []
    for each in evaluations[1:]:
        for name in (*_SETTINGS, *_GRADER, *_RUN):
            if name not in each.settings or name not in first.settings:
                continue
            ours, theirs = each.settings[name], first.settings[name]
            if ours != theirs:
                warnings.append(f"{each.name} has {name}={ours!r}, {first.name} has {theirs!r}")
    return warnings


def _other_bases(evaluations: Sequence[Evaluation]) -> list[str]:
    """Fine-tunings that did not begin with the same weights differ by more than how they were
    trained.
    """
    known = {each.name: report.base_of(each.model).get("sha256") for each in evaluations}
    known = {name: sha256 for name, sha256 in known.items() if sha256}
    first, *others = known or [""]
    what = f"began with other weights than {first}"
    return [
        f"{name} {what}: part of any difference may be theirs"
        for name in others
        if known[name] != known[first]
    ]


def _add_row(made: Comparison, first: Evaluation, each: Evaluation, cell: pairing.Cell) -> None:
    benchmark, temperature = cell
    result = each.results.get(cell)
    if result is None:
        at = report.temperature_text(temperature)
        made.warnings.append(f"{each.name} has no {benchmark} at {at}: a gap")
        return
    row = {"benchmark": benchmark, "temperature": temperature, "run": each.name}
    row |= {"problems": result["problems"]["scored"], "k": result["avg_at_k"]["k"]}
    for score in SCORES:
        value_of = pairing.value_of_problem(result, score)
        if value_of is None:  # an older file has the votes' mean only
            row[score] = result[score]["mean"]
            continue
        row |= _named(score, scores.mean_of_shares(np.array(list(value_of.values()))))
    for name in ("mean_token_entropy", "mean_length_tokens", "truncation_rate"):
        row[name] = result[name]
    made.rows.append(row)
    base = first.results.get(cell)
    if each is first or base is None:
        return
    pairs = pairing.pair(base, result)
    made.warnings += [
        f"{benchmark}, {first.name} and {each.name}: {line}" for line in pairs.warnings
    ]
    k, k_of_first = result["avg_at_k"]["k"], base["avg_at_k"]["k"]
    if k != k_of_first:
        what = f"{k_of_first} and {k} samples of each problem: pass@k and maj@k are not compared"
        made.warnings.append(
            f"{benchmark} at {report.temperature_text(temperature)}, {first.name} and {each.name}: {what}"
        )
    for score in _compared(base, result):
        values = pairing.differences(pairs, base, result, score)
        if values is not None:
            own = scores.mean_of_differences(values.value_P, values.draws)
            _add_difference(made, row, score, own, values.value_P)


def _compared(base: dict[str, Any], result: dict[str, Any]) -> list[str]:
    """Of one sample pass@1 and maj@1 are avg@1 again: counted three times, a difference would
    weaken the others.
    """
    is_one = base["avg_at_k"]["k"] == result["avg_at_k"]["k"] == 1
    return ["avg_at_k"] if is_one else list(SCORES)


def _add_mean(
    made: Comparison, first: Evaluation, each: Evaluation, cells: list[pairing.Cell]
) -> None:
    """The row of means over benchmarks, each with the same weight."""
    results = [each.results.get(cell) for cell in cells]
    if None in results:
        return
    k = max(result["avg_at_k"]["k"] for result in results)
    row: dict[str, Any] = {"benchmark": MEAN, "temperature": cells[0][1], "run": each.name, "k": k}
    for score in SCORES:
        maps = [pairing.value_of_problem(result, score) for result in results]
        if None not in maps:
            values = [np.array(list(value_of.values())) for value_of in maps]
            row |= _named(score, scores.mean_over_benchmarks(values))
    made.rows.append(row)
    bases = [first.results.get(cell) for cell in cells]
    if each is first or None in bases:
        return
    compared = [_compared(base, result) for base, result in zip(bases, results, strict=True)]
    for score in SCORES:
        if not all(score in names for names in compared):
            continue
        found = [
            pairing.differences(pairing.pair(base, result), base, result, score)
            for base, result in zip(bases, results, strict=True)
        ]
        if None in found:
            continue
        own = scores.difference_over_benchmarks(
            [d.value_P for d in found], [d.draws for d in found]
        )
        weighted = [d.value_P / (len(d.value_P) * len(found)) for d in found]
        _add_difference(made, row, score, own, np.concatenate(weighted))


def _add_difference(
    made: Comparison, row, score: str, own: scores.Mean, value_P: np.ndarray
) -> None:
    name = _difference_name(score)
    row |= _named(name, own)
    row[f"{name}_is_zero_everywhere"] = not np.any(value_P)
    made.differences.append(Difference(row, score, value_P))


def _difference_name(score: str) -> str:
    return "difference" if score == "avg_at_k" else f"{score}_difference"


def _named(name: str, mean: scores.Mean) -> dict[str, float | None]:
    low, high = mean.interval_95 or (None, None)
    return {name: mean.mean, f"{name}_low": low, f"{name}_high": high}


def _mark(differences: list[Difference]) -> None:
    """p of each difference, and whether Holm's procedure over all of them rejects that it is
    chance.
    """
    p_values = significance.sign_flip_p_values([each.value_P for each in differences])
    for each, p, is_marked in zip(
        differences, p_values, significance.holm(p_values, LEVEL), strict=True
    ):
        name = _difference_name(each.score)
        each.row[f"{name}_p"] = p
        each.row[f"{name}_holm"] = is_marked


def text(made: Comparison) -> str:
    """All that is printed: a table for avg@k, one for pass@k and maj@k, and how many differences
    they show.
    """
    parts = [table(made.rows)]
    # Of one sample pass@1 and maj@1 are avg@1.
    several = [row for row in made.rows if row["k"] > 1]
    if several:
        parts.append(_votes_table(several))
    n = len(made.differences)
    if n:
        n_marked = sum(
            each.row[f"{_difference_name(each.score)}_holm"] for each in made.differences
        )
        parts.append(
            f"{n} differences to {made.first}; * marks the {n_marked} that are more than chance with all {n} counted"
            f" (Holm at {LEVEL:.0%}, p from sign flips). Were all {n} zero, {LEVEL * n:.2g} of the intervals would"
            " leave 0 out by chance."
        )
    if made.origins:
        parts.append("\n".join(made.origins))
    return "\n\n".join(parts)


def table(rows: list[dict[str, Any]]) -> str:
    """avg@k in percent; differences in points."""
    heading = (
        "benchmark,T,run,problems,avg@k,95 %,difference,95 %,pass@k,maj@k,entropy,length,cut".split(
            ","
        )
    )
    lines = [heading]
    for row in rows:
        entropy, length = row.get("mean_token_entropy"), row.get("mean_length_tokens")
        line = [*_place(row), str(row.get("problems", "")), *_cells(row, "avg_at_k")]
        line += [_percent(row.get("pass_at_k")), _percent(row.get("maj_at_k"))]
        line += [
            "" if entropy is None else f"{entropy:.2f}",
            "" if length is None else f"{length:.0f}",
        ]
        lines.append([*line, _percent(row.get("truncation_rate"))])
    return report.aligned(lines)


def _votes_table(rows: list[dict[str, Any]]) -> str:
    """pass@k and maj@k with their intervals and differences."""
    heading = "benchmark,T,run,k,pass@k,95 %,difference,95 %,maj@k,95 %,difference,95 %".split(",")
    lines = [heading]
    for row in rows:
        cells = [*_cells(row, "pass_at_k"), *_cells(row, "maj_at_k")]
        lines.append([*_place(row), str(row.get("k", "")), *cells])
    return report.aligned(lines)


def _place(row: dict[str, Any]) -> list[str]:
    return [row["benchmark"], report.temperature_text(row["temperature"]), row["run"]]


def _cells(row: dict[str, Any], score: str) -> list[str]:
    """A score, its interval, its difference, and that one's interval."""
    name = _difference_name(score)
    difference, interval = row.get(name), _interval(row, name, "+")
    if row.get(f"{name}_is_zero_everywhere"):
        interval = "equal on every problem"
    mark = "*" if row.get(f"{name}_holm") else ""
    shown = "" if difference is None else f"{100 * difference:+.1f}{mark}"
    return [_percent(row.get(score)), _interval(row, score), shown, interval]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _interval(row: dict[str, Any], name: str, sign: str = "") -> str:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return "" if low is None else report.interval_text((low, high), sign)


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Bars of avg@k with 95 % intervals: a panel for each temperature, a group for each benchmark."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    temperatures = list(dict.fromkeys(row["temperature"] for row in rows))
    names = list(dict.fromkeys(row["run"] for row in rows))
    groups = list(dict.fromkeys(row["benchmark"] for row in rows))
    width = 0.8 / len(names)
    size = (max(5.0, 1.2 + 0.55 * len(groups) * len(names)), 2.9 * len(temperatures) + 0.4)
    figure, axes = plt.subplots(
        len(temperatures), 1, figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, temperature in zip(axes[:, 0], temperatures, strict=True):
        for number, name in enumerate(names):
            own = [row for row in rows if row["temperature"] == temperature and row["run"] == name]
            offset = (number - (len(names) - 1) / 2) * width
            _bars(axis, own, groups, offset, 0.92 * width, COLOURS[number % len(COLOURS)], name)
        ks = sorted({row["k"] for row in rows if row["temperature"] == temperature and "k" in row})
        axis.set_title(
            f"{report.temperature_text(temperature)}, avg@{'/'.join(map(str, ks))}",
            loc="left",
            fontsize=10,
        )
        axis.set_xticks(range(len(groups)), groups)
        axis.set(ylabel="correct, %", xlim=(-0.5, len(groups) - 0.5))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(
        frameon=False,
        ncols=min(4, len(names)),
        fontsize=9,
        loc="lower right",
        bbox_to_anchor=(1, 1),
    )
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _bars(
    axis,
    rows: list[dict[str, Any]],
    groups: list[str],
    offset: float,
    width: float,
    colour: str,
    label: str,
) -> None:
    """One run's bars beside the middle of each benchmark's group; a gap says "not run"."""
    places, heights, below, above = [], [], [], []
    for row in rows:
        height = 100 * row["avg_at_k"]
        low, high = row["avg_at_k_low"], row["avg_at_k_high"]
        places.append(groups.index(row["benchmark"]) + offset)
        heights.append(height)
        below.append(0 if low is None else max(0.0, height - 100 * low))
        above.append(0 if high is None else max(0.0, 100 * high - height))
    axis.bar(
        places,
        heights,
        width,
        yerr=[below, above],
        color=colour,
        label=label,
        capsize=2,
        ecolor="#333333",
    )
    # A bar of height zero would say that all answers were wrong.
    style = {"rotation": 90, "ha": "center", "va": "bottom", "fontsize": 7, "color": "#888888"}
    for benchmark in set(groups) - {row["benchmark"] for row in rows}:
        axis.text(groups.index(benchmark) + offset, 0, "not run", **style)
