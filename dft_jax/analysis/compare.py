"""Evaluations side by side: a table with paired differences to the first, a CSV, and a bar plot.

python -m dft_jax.analysis.compare base=evals/base sft=evals/sft dft=runs/dft --out=comparison

Each argument is the folder of an evaluation, or a run directory, of which the last evaluation is taken; a name may
stand before it. Of the runs' common problems the differences are paired: the two answer the same problems, with the
same sampling noise, so they say more than the two intervals do.
"""

import csv
import dataclasses
import io
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from dft_jax import cli, errors, writer
from dft_jax.evals import report, scores
from dft_jax.evals.runner import SCORES_NAME
from dft_jax.models.hf import read_json

_OUT = flags.DEFINE_string("out", None, "Folder for comparison.csv and comparison.png.", allow_override=True)

MEAN = "mean"  # over the benchmarks, as the paper reports it
# Settings that change what a score is of.
_MATTER = "prompt top_k top_p seed context max_new_tokens mode last_number".split()
COLOURS = ("#7f7f7f", "#1f77b4", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """`results` by (benchmark, temperature); `settings` as far as they are known."""

    name: str
    results: dict[tuple[str, float | None], dict[str, Any]]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


def read(argument: str) -> Evaluation:
    """`name=folder` or `folder`.

    Raises:
      UserError: no evaluation is there: a missing one is no zero.
    """
    name, equals, path = ("", "", argument) if Path(argument).exists() else argument.partition("=")
    folder = Path(path if equals else argument).expanduser()
    file = folder / SCORES_NAME
    if not file.is_file():
        steps = [each for each in (folder / "eval").glob("*") if (each / SCORES_NAME).is_file() and each.name.isdigit()]
        if not steps:
            remedy = "give the folder of an evaluation, or a run that has one (python -m dft_jax.evaluate makes them)"
            raise errors.UserError(f"{folder}: no {SCORES_NAME} there, nor in eval/<step>/; {remedy}")
        file = max(steps, key=lambda each: int(each.name)) / SCORES_NAME
    content = read_json(file)
    if not isinstance(content.get("results"), list) or not content["results"]:
        raise errors.UserError(f"{file}: no results in it; evaluate again")
    results = {(result["benchmark"], result["temperature"]): result for result in content["results"]}
    settings = content.get("settings", {}) | content.get("grader", {})
    return Evaluation(name if equals else folder.name, results, {k: v for k, v in settings.items() if k in _MATTER})


def compare(evaluations: list[Evaluation]) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each benchmark, temperature and evaluation, and warnings.

    An evaluation that lacks a benchmark has no row for it, and none for the mean over benchmarks.
    """
    cells = list(dict.fromkeys(cell for each in evaluations for cell in each.results))
    rows, first = [], evaluations[0]
    warnings = [
        f"{each.name} has {name}={each.settings[name]!r}, {first.name} has {first.settings[name]!r}"
        for each in evaluations[1:]
        for name in _MATTER
        if name in each.settings and name in first.settings and each.settings[name] != first.settings[name]
    ]
    for benchmark, temperature in cells:
        for each in evaluations:
            result = each.results.get((benchmark, temperature))
            if result is None:
                warnings.append(f"{each.name} has no {benchmark} at {_temperature(temperature)}: a gap")
                continue
            row = {"benchmark": benchmark, "temperature": temperature, "run": each.name, **_own(result)}
            base = first.results.get((benchmark, temperature))
            if each is not first and base is not None:
                differences, warning = _paired(base, result)
                if len(differences):
                    row |= _named("difference", scores.mean_with_error(differences))
                if warning:
                    warnings.append(
                        f"{benchmark} at {_temperature(temperature)}, {first.name} and {each.name}: {warning}"
                    )
            rows.append(row)
    for temperature in dict.fromkeys(temperature for _, temperature in cells):
        rows += _means(evaluations, [benchmark for benchmark, t in cells if t == temperature], temperature)
    return rows, warnings


def _own(result: dict[str, Any]) -> dict[str, Any]:
    average = result["avg_at_k"]
    k = average["k"]
    return {
        "problems": result["problems"]["scored"],
        "k": k,
        **_named("avg_at_k", scores.Mean(average["mean"], average["standard_error"], average["interval_95"])),
        "pass_at_k": result["pass_at_k"][str(k)],
        "maj_at_k": result["maj_at_k"]["mean"],
        "mean_token_entropy": result["mean_token_entropy"],
        "mean_length_tokens": result["mean_length_tokens"],
        "truncation_rate": result["truncation_rate"],
    }


def _named(name: str, mean: scores.Mean) -> dict[str, float | None]:
    low, high = mean.interval_95 or (None, None)
    return {name: mean.mean, f"{name}_low": low, f"{name}_high": high}


def _paired(base: dict[str, Any], other: dict[str, Any]) -> tuple[np.ndarray, str]:
    """The difference of each problem that both answered, and a warning where that is not all of them."""
    ours, theirs = other["correct_share_of_problem"], base["correct_share_of_problem"]
    common = [id_ for id_ in theirs if id_ in ours]
    n_apart = len(ours.keys() ^ theirs.keys())
    warning = f"{n_apart} problems are in one only; the difference is over {len(common)}" if n_apart else ""
    return np.array([ours[id_] - theirs[id_] for id_ in common]), warning


def _means(evaluations, benchmarks: list[str], temperature) -> list[dict[str, Any]]:
    """Means over benchmarks, each with the same weight; problems are drawn within benchmarks."""
    rows = []
    if len(benchmarks) < 2:
        return rows
    first = evaluations[0]
    for each in evaluations:
        results = [each.results.get((benchmark, temperature)) for benchmark in benchmarks]
        if None in results:
            continue
        shares = [np.array(list(result["correct_share_of_problem"].values())) for result in results]
        row = {"benchmark": MEAN, "temperature": temperature, "run": each.name}
        row |= _named("avg_at_k", _stratified(shares))
        bases = [first.results.get((benchmark, temperature)) for benchmark in benchmarks]
        if each is not first and None not in bases:
            pairs = [_paired(base, result)[0] for base, result in zip(bases, results, strict=True)]
            if all(len(differences) for differences in pairs):
                row |= _named("difference", _stratified(pairs))
        rows.append(row)
    return rows


def _stratified(values: list[np.ndarray]) -> scores.Mean:
    means_R = np.mean([scores.bootstrap(value_P, seed=seed) for seed, value_P in enumerate(values)], axis=0)
    return scores.summarized(float(np.mean([value_P.mean() for value_P in values])), means_R)


def table(rows: list[dict[str, Any]]) -> str:
    """In percent; differences in points."""
    heading = "benchmark,T,run,problems,avg@k,95 %,difference,95 %,pass@k,maj@k,entropy,length,cut".split(",")
    lines = [heading]
    for row in rows:
        entropy, length = row.get("mean_token_entropy"), row.get("mean_length_tokens")
        line = [row["benchmark"], _temperature(row["temperature"]), row["run"], str(row.get("problems", ""))]
        line += [_percent(row["avg_at_k"]), _interval(row, "avg_at_k")]
        line += ["" if "difference" not in row else f"{100 * row['difference']:+.1f}", _interval(row, "difference")]
        line += [_percent(row.get("pass_at_k")), _percent(row.get("maj_at_k"))]
        line += ["" if entropy is None else f"{entropy:.2f}", "" if length is None else f"{length:.0f}"]
        lines.append([*line, _percent(row.get("truncation_rate"))])
    return report.aligned(lines)


def _temperature(value: float | None) -> str:
    return "–" if value is None else "greedy" if value == 0 else f"T={value:g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _interval(row: dict[str, Any], name: str) -> str:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    sign = "+" if name == "difference" else ""
    return "" if low is None else f"{100 * low:{sign}.1f} to {100 * high:{sign}.1f}"


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
    figure, axes = plt.subplots(len(temperatures), 1, figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, temperature in zip(axes[:, 0], temperatures, strict=True):
        for number, name in enumerate(names):
            own = [row for row in rows if row["temperature"] == temperature and row["run"] == name]
            x = [groups.index(row["benchmark"]) + (number - (len(names) - 1) / 2) * width for row in own]
            y = [100 * row["avg_at_k"] for row in own]
            ends = [(row["avg_at_k_low"], row["avg_at_k_high"]) for row in own]
            below = [0 if low is None else max(0.0, v - 100 * low) for v, (low, _) in zip(y, ends, strict=True)]
            above = [0 if high is None else max(0.0, 100 * high - v) for v, (_, high) in zip(y, ends, strict=True)]
            for benchmark in set(groups) - {row["benchmark"] for row in own}:  # a gap, not a bar of height zero
                place = groups.index(benchmark) + (number - (len(names) - 1) / 2) * width
                axis.text(place, 0, "not run", rotation=90, ha="center", va="bottom", fontsize=7, color="#888888")
            colour = COLOURS[number % len(COLOURS)]
            axis.bar(x, y, width * 0.92, yerr=[below, above], color=colour, label=name, capsize=2, ecolor="#333333")
        ks = sorted({row["k"] for row in rows if row["temperature"] == temperature and "k" in row})
        axis.set_title(f"{_temperature(temperature)}, avg@{'/'.join(map(str, ks))}", loc="left", fontsize=10)
        axis.set_xticks(range(len(groups)), groups)
        axis.set(ylabel="correct, %", xlim=(-0.5, len(groups) - 0.5))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False, ncols=min(4, len(names)), fontsize=9, loc="lower right", bbox_to_anchor=(1, 1))
    figure.savefig(file, dpi=150)
    plt.close(figure)


def write_csv(rows: list[dict[str, Any]], file: Path, columns: Iterable[str] = ()) -> None:
    """A line for each row; columns are in the order given, or else in that of the rows."""
    sheet = io.StringIO()
    table = csv.DictWriter(sheet, list(columns or dict.fromkeys(k for row in rows for k in row)), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    writer.write_text(file, sheet.getvalue())


def main() -> None:
    arguments = cli.parse(required=[], positional="RUN … (folders of evaluations, or name=folder)")
    evaluations = [read(argument) for argument in arguments]
    names = [each.name for each in evaluations]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise errors.UserError(f"two runs are called {twice[0]!r}; name them: name=folder")
    rows, warnings = compare(evaluations)
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)
    print(table(rows))
    if _OUT.value:
        out = Path(_OUT.value).expanduser()
        with errors.told(f"--out={out}: cannot be made", "give another folder"):
            out.mkdir(parents=True, exist_ok=True)
        write_csv(rows, out / "comparison.csv")
        plot(rows, out / "comparison.png")
        print(f"{out}/comparison.csv, {out}/comparison.png")


if __name__ == "__main__":
    errors.exit_on_user_error(main)()
