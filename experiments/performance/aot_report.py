"""The tables and the picture of programs compiled ahead of time, from their CSV files alone.

python -m experiments.performance.aot_report     # aot.png, and the tables in README.md
"""

from pathlib import Path

from experiments import common
from experiments.performance import records, report

HERE = Path(__file__).parent
_GROUPS = {
    "gemm": "#2a7f62",
    "attention": "#c9a227",
    "memory": "#7d8ca3",
    "collective": "#b3402a",
}
_SETTING = ("device", "row", "attempt", "mesh", "attention")


def setting(line: dict) -> tuple[str, ...]:
    return tuple(line[name] for name in _SETTING)


def grouped(lines: list[dict]) -> list[list[dict]]:
    """Lines that were compiled, one list for each setting, the commits of each in their order; like
    settings are neighbours.
    """
    groups: dict[tuple[str, ...], list[dict]] = {}
    for line in lines:
        if line["total_gib"]:
            groups.setdefault(setting(line), []).append(line)
    return [groups[key] for key in sorted(groups)]


def name_of(line: dict) -> str:
    """`1.5b 8 none 8, cudnn, h100`."""
    what = (
        line["attempt"] if line["row"].startswith("train") else f"{line['row']} {line['attempt']}"
    )
    where = line["device"] if line["mesh"] == "1x1x1" else f"{line['device']} {line['mesh']}"
    return ", ".join(filter(None, [what.strip(), line["attention"], where]))


def table(lines: list[dict]) -> str:
    """Markdown; of a setting at several commits the first is the earliest."""
    rows = []
    for group in grouped(lines):
        for line in group:
            number = {name: float(line[name]) for name in line if line[name] and name in _NUMBERS}
            rows.append(
                {
                    "program": name_of(line) if line is group[0] else "…",
                    "commit": line["commit"],
                    "GiB (temporary)": f"{number['total_gib']:.1f} ({number['temporary_gib']:.1f})",
                    "attention calls": line["attention_calls"],
                    "GEMMs (recomputed)": f"{line['gemms']} ({line['recomputed_gemms']})",
                    "collectives": line["collectives"] or "–",
                    "TFLOP": f"{number['tflop']:.4g}",
                    "GB moved": f"{number['gb']:.4g}",
                    "predicted ms": f"{number['predicted_ms']:,.4g}",
                    "compile s": line["compile_s"],
                }
            )
    return common.markdown_table(rows)


_NUMBERS = ("total_gib", "temporary_gib", "tflop", "gb", "predicted_ms")


def tables(folder: Path) -> dict[str, str]:
    """By the names of the README's places."""
    made = {}
    for name in ("gpu_aot", "tpu_aot"):
        lines = records.read_rows(folder / f"{name}.csv")
        if lines:
            made[name] = table(lines)
    return made


def draw(folder: Path, file: Path) -> None:
    """The predicted time of every program by what it goes to, over that of its first commit."""
    names = ("gpu_aot", "tpu_aot")
    panels = [(name, grouped(records.read_rows(folder / f"{name}.csv"))) for name in names]
    panels = [(name, groups) for name, groups in panels if groups]
    heights = [sum(map(len, groups)) + len(groups) / 2 for _, groups in panels]
    made, axes = common.figure(
        1, len(panels), size=(10, 0.27 * sum(heights) / len(panels) + 0.6), height_ratios=heights
    )
    for axis, (name, groups) in zip(axes[:, 0], panels, strict=True):
        _panel(axis, groups)
        axis.set_title({"gpu_aot": "Hopper GPUs", "tpu_aot": "TPUs"}[name], loc="left")
    axes[0, 0].legend(loc="lower right", bbox_to_anchor=(1, 1), fontsize=7, ncols=4, frameon=False)
    axes[-1, 0].set_xlabel("time over the first commit's; right: GiB, recomputed products")
    common.save(made, file, dpi=110)


def _panel(axis, groups: list[list[dict]]) -> None:
    place, ticks = 0.0, []
    for group in groups:
        whole = float(group[0]["predicted_ms"])
        for line in group:
            left = 0.0
            for kind, color in _GROUPS.items():
                share = float(line[f"{kind}_ms"]) / whole
                label = kind if place == 0 else None
                axis.barh(place, share, left=left, color=color, height=0.8, label=label)
                left += share
            text = f"{float(line['total_gib']):.1f} GiB, {line['recomputed_gemms']}"
            axis.text(1.01, place, text, transform=axis.get_yaxis_transform(), va="center", size=7)
            ticks.append((place, f"{name_of(line)}  {line['commit']}"))
            place += 1
        place += 0.5
    axis.set_yticks([at for at, _ in ticks], [text for _, text in ticks], fontsize=7)
    axis.set_ylim(place - 0.5, -0.8)
    axis.set_xlim(0, max(1.05, axis.get_xlim()[1]))
    axis.grid(axis="x", alpha=0.3)


def write(folder: Path) -> None:
    """Picture and README of a folder of results."""
    draw(folder, folder / "aot.png")
    readme = folder / "README.md"
    if readme.exists():
        text = readme.read_text(encoding="utf-8")
        readme.write_text(report.with_tables(text, tables(folder)), encoding="utf-8")


if __name__ == "__main__":
    write(HERE)
