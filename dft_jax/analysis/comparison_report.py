"""A comparison of evaluations for a reader: tables, and a picture of bars."""

from pathlib import Path
from typing import Any

from dft_jax.analysis.comparison import LEVEL, Comparison, Row, difference_name
from dft_jax.analysis.figures import COLOURS, pyplot
from dft_jax.evals import report
from dft_jax.runtime import labels

_HEADING = (
    "benchmark",
    "T",
    "run",
    "problems",
    "avg@k",
    "95 %",
    "difference",
    "95 %",
    "pass@k",
    "maj@k",
    "entropy",
    "length",
    "cut",
)
_VOTES_HEADING = (
    "benchmark",
    "T",
    "run",
    "k",
    "pass@k",
    "95 %",
    "difference",
    "95 %",
    "maj@k",
    "95 %",
    "difference",
    "95 %",
)


def text(made: Comparison) -> str:
    """All that is printed: the tables, how many differences they show, and whose they are."""
    parts = [table(made.rows)]
    # Of one sample pass@1 and maj@1 are avg@1.
    several = [row for row in made.rows if row["k"] > 1]
    if several:
        parts.append(_votes_table(several))
    if made.differences:
        parts.append(_marks_text(made))
    if made.origins:
        parts.append("\n".join(made.origins))
    return "\n\n".join(parts)


def _marks_text(made: Comparison) -> str:
    """What a * means, with the number of differences that it counts."""
    n = len(made.differences)
    n_marked = 0
    for difference in made.differences:
        n_marked += difference.row[f"{difference_name(difference.score)}_holm"]
    return (
        f"{n} differences to {made.first}; * marks the {n_marked} that are more than chance"
        f" with all {n} counted (Holm at {LEVEL:.0%}, p from sign flips)."
        f" Were all {n} zero, {LEVEL * n:.2g} of the intervals would leave 0 out by chance."
    )


def table(rows: list[Row]) -> str:
    """avg@k in percent; differences in points."""
    lines: list[list[str]] = [list(_HEADING)]
    for row in rows:
        line = [
            *_place(row),
            str(row.get("problems", "")),
            *_score_cells(row, "avg_at_k"),
            _percent(row.get("pass_at_k")),
            _percent(row.get("maj_at_k")),
            _number(row.get("mean_token_entropy"), digits=2),
            _number(row.get("mean_length_tokens"), digits=0),
            _percent(row.get("truncation_rate")),
        ]
        lines.append(line)
    return report.aligned(lines)


def _votes_table(rows: list[Row]) -> str:
    """pass@k and maj@k with their intervals and differences."""
    lines: list[list[str]] = [list(_VOTES_HEADING)]
    for row in rows:
        line = [
            *_place(row),
            str(row.get("k", "")),
            *_score_cells(row, "pass_at_k"),
            *_score_cells(row, "maj_at_k"),
        ]
        lines.append(line)
    return report.aligned(lines)


def _place(row: Row) -> list[str]:
    return [row["benchmark"], report.temperature_text(row["temperature"]), row["run"]]


def _score_cells(row: Row, score: str) -> list[str]:
    """A score, its interval, its difference, and that one's interval."""
    name = difference_name(score)
    difference = ""
    if row.get(name) is not None:
        difference = f"{100 * row[name]:+.1f}"
        if row.get(f"{name}_holm"):
            difference += "*"
    difference_interval = _interval(row, name, "+")
    if row.get(f"{name}_is_zero_everywhere"):
        difference_interval = "equal on every problem"
    return [_percent(row.get(score)), _interval(row, score), difference, difference_interval]


def _percent(share: float | None) -> str:
    if share is None:
        return ""
    return f"{100 * share:.1f}"


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}f}"


def _interval(row: Row, name: str, sign: str = "") -> str:
    low = row.get(f"{name}_low")
    high = row.get(f"{name}_high")
    if low is None or high is None:
        return ""
    return report.interval_text((low, high), sign)


def plot(rows: list[Row], file: Path) -> None:
    """Bars of avg@k with 95 % intervals: a panel for each temperature, a group a benchmark."""
    plt = pyplot()
    temperatures = _distinct(rows, "temperature")
    names = _distinct(rows, "run")
    groups = _distinct(rows, "benchmark")
    # A group is 0.8 wide, so that 0.2 part it from the next one.
    width = 0.8 / len(names)
    figure, axes = plt.subplots(
        len(temperatures),
        1,
        figsize=(max(5.0, 1.2 + 0.55 * len(groups) * len(names)), 2.9 * len(temperatures) + 0.4),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, temperature in zip(axes[:, 0], temperatures, strict=True):
        rows_of_panel = [row for row in rows if row["temperature"] == temperature]
        for number, name in enumerate(names):
            # The bars of one group stand side by side, around its middle.
            offset = (number - (len(names) - 1) / 2) * width
            rows_of_run = [row for row in rows_of_panel if row["run"] == name]
            colour = COLOURS[number % len(COLOURS)]
            _draw_bars(axis, rows_of_run, groups, offset, 0.92 * width, colour, name)
        # Runs of one panel may have been sampled different numbers of times.
        samples = "/".join(map(str, sorted(_distinct(rows_of_panel, "k"))))
        title = f"{report.temperature_text(temperature)}, avg@{samples}"
        axis.set_title(title, loc="left", fontsize=10)
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


def _distinct(rows: list[Row], column: str) -> list[Any]:
    """The values of a column, each once, in the order of their first use."""
    values: dict[Any, None] = {}
    for row in rows:
        values[row[column]] = None
    return list(values)


def _draw_bars(
    axis: Any,
    rows: list[Row],
    groups: list[str],
    offset: float,
    width: float,
    colour: str,
    label: str,
) -> None:
    """One run's bars beside the middle of each benchmark's group; a gap says "not run"."""
    places = []
    heights = []
    below = []
    above = []
    for row in rows:
        height = 100 * row["avg_at_k"]
        low = row["avg_at_k_low"]
        high = row["avg_at_k_high"]
        places.append(groups.index(row["benchmark"]) + offset)
        heights.append(height)
        # An interval that is cut at 0 or 100 % may end a rounding error inside the bar.
        below.append(0 if low is None else max(0.0, height - 100 * low))
        above.append(0 if high is None else max(0.0, 100 * high - height))
    axis.bar(
        places,
        heights,
        width,
        yerr=[below, above],
        color=colour,
        label=labels.plain(label),
        capsize=2,
        ecolor="#333333",
    )
    # A bar of height zero would say that all answers were wrong.
    for benchmark in set(groups) - {row["benchmark"] for row in rows}:
        axis.text(
            groups.index(benchmark) + offset,
            0,
            "not run",
            rotation=90,
            ha="center",
            va="bottom",
            fontsize=7,
            color="#888888",
        )
