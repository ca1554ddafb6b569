"""Draws docs/quickstart.png from the folder of a quick start.

python -m dft_jax.analysis.quickstart --out=runs/quickstart
python docs/draw_quickstart.py runs/quickstart
"""

import argparse
import csv
import json
import pathlib

from dft_jax.analysis.figures import pyplot

COLOURS = {"base": "#8c8c8c", "sft": "#e8743b", "dft": "#3b6fb8"}
LABELS = {"base": "base", "sft": "SFT", "dft": "DFT"}
TEMPERATURES = (("1.0", "temperature 1"), ("0.3", "temperature 0.3"), ("0.0", "greedy"))


def heldout_rows(run: pathlib.Path) -> list[dict]:
    """The lines of metrics.jsonl that were measured on held-out text."""
    rows = []
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "heldout/nll" in row:
            rows.append(row)
    return rows


def draw_curve(axis, folder: pathlib.Path, metric: str, label: str) -> None:
    """One held-out metric of SFT and DFT against the step."""
    for objective in ("sft", "dft"):
        rows = heldout_rows(folder / objective)
        steps = [row["step"] for row in rows]
        values = [row[metric] for row in rows]
        colour = COLOURS[objective]
        axis.plot(steps, values, marker="o", ms=3, color=colour, label=LABELS[objective])
    axis.set(xlabel="step", title=label)


def draw_accuracy(axis, folder: pathlib.Path) -> None:
    """avg@16 (greedy: one sample) on problems like the demonstrations, with 95 % intervals."""
    scores = {}
    with open(folder / "comparison.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["benchmark"] == "lab":
                scores[row["run"], str(float(row["temperature"]))] = row
    width = 0.26
    for place, name in enumerate(("base", "sft", "dft")):
        for group, (temperature, _) in enumerate(TEMPERATURES):
            row = scores[name, temperature]
            value = 100 * float(row["avg_at_k"])
            below = value - 100 * float(row["avg_at_k_low"])
            above = 100 * float(row["avg_at_k_high"]) - value
            x = group + (place - 1) * width
            label = LABELS[name] if group == 0 else None
            axis.bar(x, value, 0.9 * width, color=COLOURS[name], label=label)
            axis.errorbar(x, value, [[below], [above]], color="#333333", lw=1, capsize=2)
    axis.set_xticks(range(len(TEMPERATURES)), [label for _, label in TEMPERATURES])
    axis.set(ylim=(0, 105), title="right answers, %")
    axis.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, -0.32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path, help="folder of a quick start")
    here = pathlib.Path(__file__).with_name("quickstart.png")
    parser.add_argument("--out", type=pathlib.Path, default=here)
    given = parser.parse_args()
    plt = pyplot()
    layout = {"width_ratios": [1, 1, 1.6]}
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained", gridspec_kw=layout)
    draw_curve(axes[0], given.run, "heldout/nll", "held-out nll, nats per token")
    draw_curve(axes[1], given.run, "heldout/mean_p", "held-out mean p")
    draw_accuracy(axes[2], given.run)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(given.out, dpi=130)
    print(given.out)


if __name__ == "__main__":
    main()
