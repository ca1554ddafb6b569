"""What a study found so far, from done-files alone: tables with intervals, a CSV, and a picture."""

import collections
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from dft_jax.analysis import figures
from dft_jax.analysis.figures import COLOURS
from dft_jax.evals import scores
from dft_jax.runtime import errors, files, labels
from dft_jax.study import measures as measures_lib, spec as spec_lib
from dft_jax.study.measures import Measures
from dft_jax.study.records import Records
from dft_jax.study.spec import Arm, Phase, Spec

REPORT_NAME = "report.md"
RESULTS_NAME = "results.csv"
PICTURE_NAME = "curves.png"

# Name of a measure -> heading of its column and title of its panel.
COLUMNS = {
    "nll": "nll",
    "best_nll": "nll at its best T",
    "best_temperature": "best T",
    "nll_at_base_entropy": "nll at base's entropy",
    "mean_p": "mean p",
    "entropy": "entropy",
    "share_below": "p < .01",
    "share_above": "p > .9",
    "answer_accuracy": "answer right",
    "clipped": "clipped",
}
# Shown in percent with one digit; the others with three.
_PERCENT = ("share_below", "share_above", "answer_accuracy", "clipped")


_EXPLANATION = (
    "Means over the seeds at hand; in brackets 95 % intervals over seeds (Student's t), absent"
    " where there is one seed: then nothing says how seeds vary. Shares in percent, nll and entropy"
    " in nats per token, T a temperature that logits are divided by."
)
# Panels beside each other in the picture.
_ACROSS = 5

Values = dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class Row:
    """One arm (None: the base) at one step on one text; a value is None where it does not exist."""

    arm: Arm | None
    text: str
    step: int
    values: Values


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the seeds of a mean have in common."""

    objective: str
    rate: float
    changes: str = ""  # other overrides

    @property
    def label(self) -> str:
        """What it is called besides its rate."""
        return f"{self.objective} {self.changes}".strip()


def _setting_of(arm: Arm) -> Setting:
    return Setting(arm.objective, arm.learning_rate, arm.changes)


def rows_of(records: Records) -> list[Row]:
    """All that was measured so far, the base first."""
    base = records.read(Phase(None, "heldout", 0))
    base_entropies = {}
    if base:
        for name, values in base.results.items():
            base_entropies[name] = measures_lib.from_json(values).entropy
    rows = []
    for phase in spec_lib.phases(records.spec):
        if phase.kind != "heldout":
            continue
        done = records.read(phase)
        if done is None:
            continue
        clipped = None
        if phase.arm:
            clipped = _clipped_share(records, phase)
        for name, values in done.results.items():
            found = measures_lib.from_json(values)
            shown = _values(found, base_entropies.get(name), clipped)
            rows.append(Row(phase.arm, name, phase.step, shown))
    return rows


def _values(found: Measures, base_entropy: float | None, clipped: float | None) -> Values:
    """The measures of a row, in the order of the CSV's columns."""
    best = measures_lib.best(found)
    best_nll = None
    best_temperature = None
    if best:
        best_nll = best.nll
        best_temperature = best.temperature
    nll_at_base_entropy = None
    if base_entropy is not None:
        # As sharp as the base: what is left of a difference is not sharpening.
        equal = measures_lib.at_entropy(found, base_entropy)
        if equal:
            nll_at_base_entropy = equal.nll
    return {
        "nll": found.nll,
        "best_nll": best_nll,
        "best_temperature": best_temperature,
        "nll_at_base_entropy": nll_at_base_entropy,
        "mean_p": found.mean_p,
        "entropy": found.entropy,
        "share_below": found.share_below,
        "share_above": found.share_above,
        "answer_accuracy": found.answer_accuracy,
        "token_accuracy": found.token_accuracy,
        "clipped": clipped,
    }


def _clipped_share(records: Records, at: Phase) -> float | None:
    """Share of the steps so far whose gradient was clipped; None where steps are missing."""
    steps = []
    for phase in spec_lib.phases_of(records.spec, at.arm):
        if phase.kind == "train" and phase.step <= at.step:
            done = records.read(phase)
            if done is None:
                return None
            steps += done.results["steps"]
    return sum(step["is_clipped"] for step in steps) / len(steps)


# ---- over seeds ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over seeds, and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def interval(values: list[float]) -> Interval | None:
    """Mean and 95 % interval over seeds, by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean = float(np.mean(values))
    half = float(stats.sem(values)) * scores.t_quantile(len(values) - 1)
    return Interval(mean, mean - half, mean + half)


def _shown(values: list[float], column: str, sign: str = "") -> str:
    """`1.234 [1.2, 1.3]`; without an interval where there is one seed."""
    if not values:
        return "–"
    scale = 1
    digits = 3
    if column in _PERCENT:
        scale = 100
        digits = 1
    mean = f"{scale * float(np.mean(values)):{sign}.{digits}f}"
    found = interval(values)
    if found is None:
        return mean
    return f"{mean} [{scale * found.low:.{digits}f}, {scale * found.high:.{digits}f}]"


def by_setting(rows: list[Row], text: str, step: int) -> dict[Setting, dict[int, Values]]:
    """The values of each seed, for each objective and rate."""
    found: dict[Setting, dict[int, Values]] = collections.defaultdict(dict)
    for row in rows:
        if row.arm and row.text == text and row.step == step:
            found[_setting_of(row.arm)][row.arm.seed] = row.values
    return found


def values_table(spec: Spec, rows: list[Row], text: str, step: int) -> str:
    """A line for the base, and for each objective and rate: the mean over the seeds at hand."""
    lines = [["objective", "rate", "seeds", *COLUMNS.values()]]
    for row in rows:
        if row.arm is None and row.text == text:
            lines.append([spec_lib.BASE, "", "", *_cells([row.values])])
    seeds_of = by_setting(rows, text, step)
    for setting in _settings(spec):
        seeds = seeds_of.get(setting, {})
        cells = _cells([seeds[seed] for seed in sorted(seeds)])
        lines.append([setting.label, f"{setting.rate:g}", str(len(seeds)), *cells])
    return _markdown(lines)


def _cells(values_of_seeds: list[Values]) -> list[str]:
    """The mean of each column over seeds that have a value."""
    cells = []
    for column in COLUMNS:
        known = []
        for values in values_of_seeds:
            value = values[column]
            if value is not None:
                known.append(value)
        cells.append(_shown(known, column))
    return cells


def differences_table(
    spec: Spec, rows: list[Row], text: str, step: int, reference: str = "sft"
) -> str:
    """Each objective minus `reference` at the same rate, paired by seed; empty without a pair."""
    seeds_of = by_setting(rows, text, step)
    lines = []
    for setting in _settings(spec):
        ours = seeds_of.get(setting, {})
        theirs = seeds_of.get(Setting(reference, setting.rate, setting.changes), {})
        seeds = sorted(ours.keys() & theirs.keys())
        if setting.objective == reference or not seeds:
            continue
        cells = []
        for column in COLUMNS:
            differences = []
            for seed in seeds:
                value = ours[seed][column]
                reference_value = theirs[seed][column]
                if value is not None and reference_value is not None:
                    differences.append(value - reference_value)
            cells.append(_shown(differences, column, sign="+"))
        name = f"{setting.objective} - {reference} {setting.changes}".strip()
        lines.append([name, f"{setting.rate:g}", str(len(seeds)), *cells])
    if not lines:
        return ""
    return _markdown([["difference", "rate", "seeds", *COLUMNS.values()], *lines])


def _settings(spec: Spec) -> list[Setting]:
    """Each objective, rate and other overrides once, in the order of the arms."""
    return list(dict.fromkeys(_setting_of(arm) for arm in spec.arms))


def _markdown(lines: list[list[str]]) -> str:
    head, *body = lines
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ---- the report ----------------------------------------------------------------------------------


def completeness(records: Records) -> str:
    """One sentence: whether every arm is complete, and which are not."""
    spec = records.spec
    missing = [arm for arm in spec.arms if not records.is_complete(arm)]
    if not missing and records.is_complete(None):
        return f"Complete: all {len(spec.arms)} arms."
    done = len(spec.arms) - len(missing)
    names = "; ".join(arm.name for arm in missing)
    counted = f"{done} of {len(spec.arms)} arms are done"
    return f"**Incomplete**: {counted}. Missing, wholly or in part: {names}."


def text_of(records: Records, rows: list[Row]) -> str:
    """The report as Markdown."""
    spec = records.spec
    parts = [f"# {spec.name}: results so far", completeness(records), _EXPLANATION]
    for text in spec.texts:
        steps = [row.step for row in rows if row.arm and row.text == text.name]
        if not steps:
            continue
        # Where arms differ in how far they are, those that are behind show `–`.
        last = max(steps)
        parts.append(f"## {text.name}, after {last} of {spec.steps} steps")
        parts.append(values_table(spec, rows, text.name, last))
        parts.append(differences_table(spec, rows, text.name, last))
    parts.append(f"![measures against steps]({PICTURE_NAME})")
    evaluated = _evaluations(records)
    if evaluated:
        parts += ["## Sampled and graded", evaluated]
    return "\n\n".join(part for part in parts if part) + "\n"


def _evaluations(records: Records) -> str:
    """A line for each arm, benchmark and temperature; empty where none was sampled."""
    lines = []
    for phase in spec_lib.phases(records.spec):
        if phase.kind != "evaluate":
            continue
        done = records.read(phase)
        if done is None:
            continue
        for result in done.results["results"]:
            average = result["avg_at_k"]
            ends = average["interval_95"]
            shown = f"{100 * average['mean']:.1f}"
            if ends:
                shown += f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"
            benchmark = f"{result['benchmark']} T={result['temperature']:g}"
            entropy = f"{result['mean_token_entropy']:.3f}"
            lines.append([phase.arm_name, benchmark, shown, entropy])
    if not lines:
        return ""
    return _markdown([["arm", "benchmark", "right, % [95 % over problems]", "entropy"], *lines])


def write(records: Records, folder: Path) -> str:
    """Writes the report's files into `folder`; returns its text.

    Raises:
      UserError: they cannot be written there.
    """
    rows = rows_of(records)
    text = text_of(records, rows)
    contents: dict[str, str | bytes] = {REPORT_NAME: text}
    if rows:
        picture = io.BytesIO()
        draw(records, rows, picture)
        contents |= {
            RESULTS_NAME: files.csv_text(_csv_rows(rows)),
            PICTURE_NAME: picture.getvalue(),
        }
    with errors.user_errors(f"--out={folder}: the report cannot be written", "make it writable"):
        for name, content in contents.items():
            files.write_atomically(folder / name, content)
    return f"{text}\n{folder}: {', '.join(contents)}"


def _csv_rows(rows: list[Row]) -> list[dict[str, Any]]:
    # A column for each key that arms override, in the base's line too.
    keys = [key for row in rows if row.arm for key, _ in row.arm.overrides]
    table = []
    for row in rows:
        line: dict[str, Any] = {"objective": spec_lib.BASE, "learning_rate": "", "seed": ""}
        line |= dict.fromkeys(keys, "")
        if row.arm:
            line["objective"] = row.arm.objective
            line["learning_rate"] = row.arm.learning_rate
            line["seed"] = row.arm.seed
            line |= dict(row.arm.overrides)
        line["text"] = row.text
        line["step"] = row.step
        for name, value in row.values.items():
            line[name] = value
            if value is not None:
                line[name] = round(value, 6)
        table.append(line)
    return table


# ---- the picture ---------------------------------------------------------------------------------


def draw(records: Records, rows: list[Row], file: Path | io.BytesIO) -> None:
    """A panel for each measure: a thin line for each seed, a thick one for their mean."""
    plt = figures.pyplot()
    panels = _panels(records.spec, rows)
    # A study without a row yet has one empty panel.
    n_lines = max(len(panels), 1)
    n_columns = max((len(line) for line in panels), default=1)
    picture, axes = plt.subplots(
        n_lines,
        n_columns,
        figsize=(3.2 * n_columns, 2.6 * n_lines),
        layout="constrained",
        squeeze=False,
    )
    # Lines are of different lengths: what no panel uses stays invisible.
    for axis in axes.flat:
        axis.set_visible(False)
    for line_of_axes, line in zip(axes, panels, strict=False):
        for axis, panel in zip(line_of_axes, line, strict=False):
            axis.set_visible(True)
            _draw_panel(axis, records.spec, rows, panel)
    handles, names = axes.flat[0].get_legend_handles_labels()
    picture.legend(
        handles,
        names,
        frameon=False,
        fontsize=8,
        loc="outside lower center",
        ncols=max(len(names), 1),
        handlelength=4,
    )
    picture.suptitle(labels.plain(_title(records)), x=0.01, ha="left", fontsize=10)
    picture.savefig(file, dpi=130)
    plt.close(picture)


@dataclasses.dataclass(frozen=True)
class Panel:
    """One measure of one text."""

    text: str
    column: str


def _panels(spec: Spec, rows: list[Row]) -> list[list[Panel]]:
    """The panels that have a value, a list for each line of the picture; a text begins a line."""
    lines = []
    for text in spec.texts:
        panels = []
        for column in COLUMNS:
            # Training is clipped whatever is measured: one text shows it.
            if column == "clipped" and text != spec.texts[0]:
                continue
            if _has_values(rows, text.name, column):
                panels.append(Panel(text.name, column))
        for start in range(0, len(panels), _ACROSS):
            lines.append(panels[start : start + _ACROSS])
    return lines


def _has_values(rows: list[Row], text: str, column: str) -> bool:
    """Whether anything of a text has been measured in this column."""
    values = [row.values[column] for row in rows if row.text == text]
    return values.count(None) < len(values)


def _draw_panel(axis: Any, spec: Spec, rows: list[Row], panel: Panel) -> None:
    """A colour for each objective with its overrides, a style of line for each rate."""
    of_settings = list(dict.fromkeys(setting.label for setting in _settings(spec)))
    rates = sorted({arm.learning_rate for arm in spec.arms})
    styles = ("-", "--", ":", "-.")
    for setting in _settings(spec):
        # The first colour is the base's everywhere.
        colour = COLOURS[1 + of_settings.index(setting.label) % (len(COLOURS) - 1)]
        style = styles[rates.index(setting.rate) % len(styles)]
        _draw_curves(axis, _points(rows, panel, setting), setting, colour, style)
    axis.set_title(labels.plain(f"{panel.text}: {COLUMNS[panel.column]}"), loc="left", fontsize=9)
    axis.set_xlabel("step", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _title(records: Records) -> str:
    arms = records.spec.arms
    done = sum(records.is_complete(arm) for arm in arms)
    if done == len(arms):
        return f"{records.spec.name}: {done} arms"
    return f"{records.spec.name}: INCOMPLETE, {done} of {len(arms)} arms"


def _points(rows: list[Row], panel: Panel, setting: Setting) -> dict[int, dict[int, float]]:
    """Seed -> step -> value; the base is the point at step 0 of every seed."""
    start = None
    points: dict[int, dict[int, float]] = collections.defaultdict(dict)
    for row in rows:
        value = row.values[panel.column]
        if row.text != panel.text or value is None:
            continue
        if row.arm is None:
            start = value
        elif _setting_of(row.arm) == setting:
            points[row.arm.seed][row.step] = value
    if start is not None:
        for value_at in points.values():
            value_at[0] = start
    return points


def _draw_curves(
    axis: Any, points: dict[int, dict[int, float]], setting: Setting, colour: str, style: str
) -> None:
    """The lines of one objective and rate."""
    if not points:
        return
    for value_at in points.values():
        steps = sorted(value_at)
        values = [value_at[step] for step in steps]
        axis.plot(steps, values, color=colour, ls=style, lw=0.7, alpha=0.5)
    # A mean over other seeds at each step would jump where one seed is behind.
    common = sorted(set.intersection(*[set(value_at) for value_at in points.values()]))
    means = []
    for step in common:
        means.append(np.mean([value_at[step] for value_at in points.values()]))
    seeds = "1 seed"
    if len(points) != 1:
        seeds = f"{len(points)} seeds"
    label = labels.plain(f"{setting.label}, {setting.rate:g} ({seeds})")
    axis.plot(common, means, color=colour, ls=style, lw=1.8, marker="o", ms=3, label=label)
