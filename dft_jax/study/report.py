"""What a study found so far: tables with intervals, all numbers as CSV, and a picture; from
done-files alone."""

import collections
import dataclasses
import io
from pathlib import Path

import numpy as np
from scipy import stats

from dft_jax.analysis import figures
from dft_jax.analysis.comparison import COLOURS
from dft_jax.evals import scores
from dft_jax.runtime import files
from dft_jax.runtime.files import write_csv
from dft_jax.study import measures as measures_lib, spec as spec_lib
from dft_jax.study.measures import Measures
from dft_jax.study.records import Records
from dft_jax.study.spec import Arm, Phase, Spec

REPORT_NAME, RESULTS_NAME, PICTURE_NAME = "report.md", "results.csv", "curves.png"

# Column -> heading.
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
_PERCENT = ("share_below", "share_above", "answer_accuracy", "clipped")


@dataclasses.dataclass(frozen=True)
class Row:
    """One arm (None: the base) at one step on one text; a value is None where it does not exist."""

    arm: Arm | None
    text: str
    step: int
    values: dict[str, float | None]


def rows_of(records: Records) -> list[Row]:
    """All that was measured so far, the base first."""
    base_phase = Phase(None, "heldout", 0)
    base = records.read(base_phase)
    entropies = {}
    if base:
        for name, values in base.results.items():
            entropies[name] = measures_lib.from_json(values).entropy
    rows = []
    for phase in spec_lib.phases(records.spec):
        done = records.read(phase) if phase.kind == "heldout" else None
        if done is None:
            continue
        clipped = _clipped_share(records, phase) if phase.arm else None
        for name, values in done.results.items():
            found = measures_lib.from_json(values)
            shown = _values(found, entropies.get(name)) | {"clipped": clipped}
            rows.append(Row(phase.arm, name, phase.step, shown))
    return rows


def _values(found: Measures, base_entropy: float | None) -> dict[str, float | None]:
    best = measures_lib.best(found)
    equal = None if base_entropy is None else measures_lib.at_entropy(found, base_entropy)
    return {
        "nll": found.nll,
        "best_nll": best.nll if best else None,
        "best_temperature": best.temperature if best else None,
        "nll_at_base_entropy": equal.nll if equal else None,
        "mean_p": found.mean_p,
        "entropy": found.entropy,
        "share_below": found.share_below,
        "share_above": found.share_above,
        "answer_accuracy": found.answer_accuracy,
        "token_accuracy": found.token_accuracy,
    }


def _clipped_share(records: Records, at: Phase) -> float | None:
    """Share of the steps up to this one whose gradient was clipped; None where a train phase is
    missing."""
    steps = []
    for phase in spec_lib.phases_of(records.spec, at.arm):
        if phase.kind == "train" and phase.step <= at.step:
            done = records.read(phase)
            if done is None:
                return None
            steps += done.results["steps"]
    return sum(step["is_clipped"] for step in steps) / len(steps)


# ---- over seeds ----------------------------------------------------------------------------------


def interval(values: list[float]) -> tuple[float, float, float] | None:
    """Mean and its 95 % interval over seeds, with the quantile of Student's t; None for fewer than
    two."""
    if len(values) < 2:
        return None
    mean, error = float(np.mean(values)), float(stats.sem(values))
    half = error * scores.t_quantile(len(values) - 1)
    return mean, mean - half, mean + half


def _shown(values: list[float], column: str, sign: bool = False) -> str:
    """`1.234 [1.2, 1.3]`; without an interval where there is one seed."""
    if not values:
        return "–"
    scale, digits = (100, 1) if column in _PERCENT else (1, 3)
    plus = "+" if sign else ""
    mean = f"{scale * float(np.mean(values)):{plus}.{digits}f}"
    found = interval(values)
    if found is None:
        return mean
    return f"{mean} [{scale * found[1]:.{digits}f}, {scale * found[2]:.{digits}f}]"


Key = tuple[str, float]  # objective and rate


def by_setting(
    rows: list[Row], text: str, step: int
) -> dict[Key, dict[int, dict[str, float | None]]]:
    """The values of each seed, for each objective and rate."""
    found: dict[Key, dict[int, dict[str, float | None]]] = collections.defaultdict(dict)
    for row in rows:
        if row.arm and row.text == text and row.step == step:
            found[row.arm.objective, row.arm.learning_rate][row.arm.seed] = row.values
    return found


def values_table(spec: Spec, rows: list[Row], text: str, step: int) -> str:
    """A line for the base, and for each objective and rate: the mean over the seeds at hand."""
    lines = [["objective", "rate", "seeds", *COLUMNS.values()]]
    for row in rows:
        if row.arm is None and row.text == text:
            cells = [_shown(_present([row.values[column]]), column) for column in COLUMNS]
            lines.append([spec_lib.BASE, "", "", *cells])
    of_setting = by_setting(rows, text, step)
    for key in _settings(spec):
        seeds = of_setting.get(key, {})
        cells = []
        for column in COLUMNS:
            cells.append(_shown(_present([seeds[seed][column] for seed in sorted(seeds)]), column))
        lines.append([key[0], f"{key[1]:g}", str(len(seeds)), *cells])
    return _markdown(lines)


def differences_table(
    spec: Spec, rows: list[Row], text: str, step: int, reference: str = "sft"
) -> str:
    """Each objective minus `reference` at the same rate, paired by seed; empty where there is no
    pair."""
    of_setting, lines = by_setting(rows, text, step), []
    for objective, rate in _settings(spec):
        ours, theirs = of_setting.get((objective, rate), {}), of_setting.get((reference, rate), {})
        seeds = sorted(ours.keys() & theirs.keys())
        if objective == reference or not seeds:
            continue
        cells = []
        for column in COLUMNS:
            pairs = [(ours[seed][column], theirs[seed][column]) for seed in seeds]
            known = [a - b for a, b in pairs if a is not None and b is not None]
            cells.append(_shown(known, column, sign=True))
        lines.append([f"{objective} - {reference}", f"{rate:g}", str(len(seeds)), *cells])
    if not lines:
        return ""
    return _markdown([["difference", "rate", "seeds", *COLUMNS.values()], *lines])


def _present(values: list[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _settings(spec: Spec) -> list[Key]:
    return list(dict.fromkeys((arm.objective, arm.learning_rate) for arm in spec.arms))


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
    return f"**Incomplete**: {done} of {len(spec.arms)} arms are done. Missing, wholly or in part: {names}."


def text_of(records: Records, rows: list[Row]) -> str:
    """The report as Markdown."""
    spec = records.spec
    parts = [f"# {spec.name}: results so far", completeness(records)]
    parts.append(
        "Means over the seeds at hand; in brackets 95 % intervals over seeds (Student's t), absent where there is one"
        " seed: then nothing says how seeds vary. Shares in percent, nll and entropy in nats per token, T a temperature"
        " that logits are divided by."
    )
    for text in spec.texts:
        steps = sorted({row.step for row in rows if row.arm and row.text == text.name})
        if not steps:
            continue
        last = steps[-1]
        parts.append(f"## {text.name}, after {last} of {spec.steps} steps")
        parts.append(values_table(spec, rows, text.name, last))
        parts.append(differences_table(spec, rows, text.name, last))
    parts.append(f"![measures against steps]({PICTURE_NAME})")
    evaluated = _evaluations(records)
    if evaluated:
        parts += ["## Sampled and graded", evaluated]
    return "\n\n".join(part for part in parts if part) + "\n"


def _evaluations(records: Records) -> str:
    lines = []
    for phase in spec_lib.phases(records.spec):
        done = records.read(phase) if phase.kind == "evaluate" else None
        for result in done.results["results"] if done else ():
            average = result["avg_at_k"]
            ends = average["interval_95"]
            shown = f"{100 * average['mean']:.1f}"
            if ends:
                shown += f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"
            where = f"{result['benchmark']} T={result['temperature']:g}"
            lines.append([phase.arm_name, where, shown, f"{result['mean_token_entropy']:.3f}"])
    if not lines:
        return ""
    return _markdown([["arm", "benchmark", "right, % [95 % over problems]", "entropy"], *lines])


def write(records: Records, folder: Path) -> str:
    """Writes the report's files into `folder`; returns its text."""
    rows = rows_of(records)
    text = text_of(records, rows)
    files.write_text(folder / REPORT_NAME, text)
    table = []
    for row in rows:
        arm = {"objective": spec_lib.BASE, "learning_rate": "", "seed": ""}
        if row.arm:
            arm = dataclasses.asdict(row.arm)
        rounded = {
            name: None if value is None else round(value, 6) for name, value in row.values.items()
        }
        table.append(arm | {"text": row.text, "step": row.step} | rounded)
    if rows:
        write_csv(table, folder / RESULTS_NAME)
        content = io.BytesIO()
        draw(records, rows, content)
        files.write_atomically(folder / PICTURE_NAME, content.getvalue())
    return f"{text}\n{folder}: {REPORT_NAME}, {RESULTS_NAME}, {PICTURE_NAME}"


def draw(records: Records, rows: list[Row], file) -> None:
    """A panel for each measure: against steps, a thin line for each seed, a thick one for their
    mean."""
    plt, spec = figures.pyplot(), records.spec
    panels = _panels(spec, rows)
    down, across = len(panels), max(map(len, panels), default=1)
    size = (3.2 * across, 2.6 * max(down, 1))
    made, axes = plt.subplots(
        max(down, 1), across, figsize=size, layout="constrained", squeeze=False
    )
    for axis in axes.flat:
        axis.set_visible(False)
    for line, of_line in zip(axes, panels, strict=False):
        for axis, (text, column) in zip(line, of_line, strict=False):
            axis.set_visible(True)
            _panel(axis, spec, rows, text, column)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    place = dict(loc="outside lower center", ncols=max(len(labels), 1), handlelength=4)
    made.legend(handles, labels, frameon=False, fontsize=8, **place)
    made.suptitle(_title(records), x=0.01, ha="left", fontsize=10)
    made.savefig(file, dpi=130)
    plt.close(made)


_ACROSS = 5


def _panels(spec: Spec, rows: list[Row]) -> list[list[tuple[str, str]]]:
    """Text and column of each panel, a list for each line of the picture; every text begins a line."""
    lines = []
    for text in spec.texts:
        own = []
        for column in COLUMNS:
            # Training is clipped whatever is measured.
            is_asked = column != "clipped" or text == spec.texts[0]
            if is_asked and any(
                row.values[column] is not None for row in rows if row.text == text.name
            ):
                own.append((text.name, column))
        lines += [own[i : i + _ACROSS] for i in range(0, len(own), _ACROSS)]
    return lines


def _panel(axis, spec: Spec, rows: list[Row], text: str, column: str) -> None:
    """A colour for each objective, a style of line for each rate."""
    objectives = list(dict.fromkeys(arm.objective for arm in spec.arms))
    rates = sorted({arm.learning_rate for arm in spec.arms})
    styles = ("-", "--", ":", "-.")
    for objective, rate in _settings(spec):
        colour = COLOURS[1 + objectives.index(objective) % (len(COLOURS) - 1)]
        style = styles[rates.index(rate) % len(styles)]
        _curves(axis, rows, (text, column), (objective, rate), colour, style)
    axis.set_title(f"{text}: {COLUMNS[column]}", loc="left", fontsize=9)
    axis.set_xlabel("step", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _title(records: Records) -> str:
    arms = records.spec.arms
    done = sum(records.is_complete(arm) for arm in arms)
    if done == len(arms):
        return f"{records.spec.name}: {done} arms"
    return f"{records.spec.name}: INCOMPLETE, {done} of {len(arms)} arms"


def _curves(
    axis, rows: list[Row], what: tuple[str, str], key: Key, colour: str, style: str
) -> None:
    """The lines of one objective and rate; the base is the point at step 0 of every one."""
    text, column = what
    start = [row.values[column] for row in rows if row.arm is None and row.text == text]
    points: dict[int, dict[int, float]] = collections.defaultdict(dict)
    for row in rows:
        is_ours = row.arm and (row.arm.objective, row.arm.learning_rate) == key and row.text == text
        if is_ours and row.values[column] is not None:
            points[row.arm.seed][row.step] = row.values[column]
    if not points:
        return
    for of_seed in points.values():
        if start and start[0] is not None:
            of_seed[0] = start[0]
        steps = sorted(of_seed)
        axis.plot(
            steps, [of_seed[step] for step in steps], color=colour, ls=style, lw=0.7, alpha=0.5
        )
    common = sorted(set.intersection(*[set(of_seed) for of_seed in points.values()]))
    means = [np.mean([of_seed[step] for of_seed in points.values()]) for step in common]
    label = (
        f"{key[0]}, {key[1]:g} ({len(points)} seeds)"
        if len(points) != 1
        else f"{key[0]}, {key[1]:g} (1 seed)"
    )
    axis.plot(common, means, color=colour, ls=style, lw=1.8, marker="o", ms=3, label=label)
