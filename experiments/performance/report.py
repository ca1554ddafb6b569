"""Draws figure.png and writes the tables in README.md, both from the CSV files alone.

python -m experiments.performance.report [--out=FOLDER]
"""

import re
from pathlib import Path

import numpy as np

from dft_jax.analysis import figures
from experiments import common
from experiments.performance import records, targets

HERE = Path(__file__).parent
LORA_WARM = 2  # steps of lora.py that are not timed: the first one compiles
_COLORS = {"aim": "#2a7f62", "floor": "#c9a227", "below": "#b3402a", "no target": "#777777"}


def ordered(file: Path, wanted: list[targets.Target]) -> list[dict[str, str]]:
    """Rows of results in the order of the targets; what has no row yet is a gap."""
    known = {row["id"]: row for row in records.read_rows(file)}
    gap = {"value": "", "low": "", "high": "", "verdict": "not measured", "note": ""}
    return [
        {
            "id": target.id,
            "measure": target.measure,
            **gap,
            **known.get(target.id, {}),
            "unit": target.unit,
        }
        for target in wanted
    ]


def shown(text: str, unit: str) -> str:
    """A number as in the README: three digits, or whole where it is large."""
    if not text:
        return ""
    value = float(text)
    number = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{number} {unit}".strip()


def table(rows: list[dict[str, str]], wanted: list[targets.Target]) -> str:
    """Markdown."""
    lines = [
        "| measure | value (95 % interval) | floor | aim | verdict | absolute: ours, other |",
        "| --- " * 6 + "|",
    ]
    for row, target in zip(rows, wanted, strict=True):
        value = shown(row["value"], row["unit"])
        if row["low"]:
            value += f" ({shown(row['low'], '')} – {shown(row['high'], '')})"
        floor, aim = (shown("" if x is None else str(x), "") for x in (target.floor, target.aim))
        both = [shown(row.get(f"{side}_step_s", ""), "s") for side in ("ours", "peer")]
        lines.append(
            f"| {row['measure']} | {value} | {floor} | {aim} | {row['verdict']} |"
            f" {', '.join(filter(None, both))} |"
        )
    return "\n".join(lines)


def tables(folder: Path) -> dict[str, str]:
    """The README's tables by name; one without any result is left out."""
    made = {}
    for name, wanted in (("cpu", targets.CPU), ("gpu", targets.GPU)):
        if (folder / f"{name}.csv").exists():
            made[name] = table(ordered(folder / f"{name}.csv", wanted), wanted)
    if (folder / "cpu_processors.csv").exists():
        made["processors"] = processors_table(folder / "cpu_processors.csv")
    if (folder / "lora.csv").exists():
        made["lora"] = lora_table(folder)
    return made


def lora_table(folder: Path) -> str:
    """Markdown: a line for each side of lora.py, over the steps of all its rounds."""
    lines, losses = [], {}
    steps = records.read_rows(folder / "lora_steps.csv")
    runs = records.read_rows(folder / "lora.csv")
    for side in dict.fromkeys(run["id"].split()[1] for run in runs):
        mine = [run for run in runs if run["id"].split()[1] == side]
        ids = {run["id"] for run in mine}
        own = [step for step in steps if step["id"] in ids]
        timed = np.array([float(s["wall_s"]) for s in own if int(s["step"]) > LORA_WARM])
        # Equal in all rounds, as far as these go.
        losses[side] = {int(step["step"]): float(step["loss"]) for step in own}
        first = mine[0]
        least, median, most = (f"{x:.2f}" for x in np.quantile(timed, [0, 0.5, 1]))
        peaks = [float(run["training_peak_gib"]) for run in mine]
        other = losses.get(side.replace("trl", "ours"), {})
        line = {
            "side": {"ours": "dft_jax", "trl": "TRL"}[first["side"]],
            "trained": {"lora": "adapters of rank 8", "full": "all"}[first["trained"]],
            "weights, products": f"{first['weights']}, {first['products']}",
            "steps": ", ".join(run["steps"] for run in mine),
            "s a step (least – most)": f"{median} ({least} – {most})",
            "s, all steps": ", ".join(shown(run["all_steps_s"], "") for run in mine),
            "peak GiB": ", ".join(f"{peak:.2f}" for peak in peaks),
            "loss of step 1": f"{losses[side][1]:.8f}",
            "largest difference": "",
        }
        if first["side"] == "trl" and other:
            shared = losses[side].keys() & other.keys()
            apart = max(abs(losses[side][n] / other[n] - 1) for n in shared)
            line["largest difference"] = f"{apart:.0e}"
        lines.append(line)
    return common.markdown_table(lines)


def processors_table(file: Path) -> str:
    """Markdown: a column for each processor and version that a ratio was measured on."""
    lines = records.read_rows(file)
    columns = list(dict.fromkeys((line["processor"], line["commit"]) for line in lines))
    cells = {(line["id"], line["processor"], line["commit"]): line for line in lines}
    rows = []
    for target in targets.BY_PROCESSOR:
        row = {"measure": target.measure}
        for processor, commit in columns:
            line = cells.get((target.id, processor, commit))
            text = shown(line["value"], "") if line else ""
            if line and line["low"]:
                text += f" ({shown(line['low'], '')} – {shown(line['high'], '')})"
            row[f"{processor}, {commit}"] = text
        rows.append(row)
    return common.markdown_table(rows)


def with_tables(text: str, made: dict[str, str]) -> str:
    """The README's text with its tables renewed, each between its two comments."""
    for name, content in made.items():
        pattern = rf"(<!-- {name} table -->\n).*?(<!-- end -->)"
        text = re.sub(
            pattern,
            lambda match, content=content: f"{match[1]}\n{content}\n\n{match[2]}",
            text,
            flags=re.S,
        )
    return text


def draw(folder: Path, file: Path) -> bool:
    """One picture: each value as a multiple of its floor (right of 1 is better), with its interval
    and its aim.
    """
    pyplot = figures.pyplot()
    panels = []
    for name, wanted in (("cpu", targets.CPU), ("gpu", targets.GPU)):
        if (folder / f"{name}.csv").exists():
            panels.append((name, wanted, ordered(folder / f"{name}.csv", wanted)))
    if not panels:
        return False
    heights = [len(wanted) for _, wanted, _ in panels]
    figure, axes = pyplot.subplots(
        len(panels),
        1,
        figsize=(10, 0.32 * sum(heights) + 1.2 * len(panels)),
        height_ratios=heights,
        squeeze=False,
    )
    for axis, (name, wanted, rows) in zip(axes[:, 0], panels, strict=True):
        _panel(axis, wanted, rows)
        axis.set_title({"cpu": "CPU, two threads", "gpu": "One Hopper GPU"}[name], loc="left")
    axes[-1, 0].set_xlabel(
        "multiple of the floor (the inverse where less is better): right is better"
    )
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return True


def _panel(axis, wanted: list[targets.Target], rows: list[dict[str, str]]) -> None:
    axis.set_xscale("log", base=2)
    axis.axvline(1, color="black", linewidth=1)
    for place, (target, row) in enumerate(zip(wanted, rows, strict=True)):
        # those without a target are drawn as they are; the count of zero has its own line
        floor = target.floor or 1.0

        def scaled(value, target=target, floor=floor):
            if target.floor == 0:
                return 1.0 if float(value) == 0 else 0.5
            return float(value) / floor if target.better == "higher" else floor / float(value)

        if target.aim is not None:
            axis.plot(
                [scaled(target.aim)],
                [place],
                marker="|",
                color="black",
                markersize=12,
                linestyle="none",
            )
        text = shown(row["value"], row["unit"]) or "not measured"
        if row["value"]:
            color = _COLORS[row["verdict"]]
            if row["low"]:
                axis.plot(
                    [scaled(row["low"]), scaled(row["high"])],
                    [place, place],
                    color=color,
                    linewidth=2,
                )
            axis.plot([scaled(row["value"])], [place], marker="o", color=color, linestyle="none")
        axis.text(1.01, place, text, transform=axis.get_yaxis_transform(), va="center", fontsize=8)
    axis.set_yticks(range(len(rows)), [row["measure"] for row in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axis.grid(axis="x", alpha=0.3)


def write(folder: Path) -> None:
    """Picture and README of a folder of results, where it has them."""
    draw(folder, folder / "figure.png")
    readme = folder / "README.md"
    if readme.exists():
        readme.write_text(
            with_tables(readme.read_text(encoding="utf-8"), tables(folder)), encoding="utf-8"
        )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--out", type=Path, default=HERE)
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
