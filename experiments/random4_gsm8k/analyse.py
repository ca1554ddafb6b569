"""Reads the six runs of this study; writes curves.csv, results.csv and curves.png beside itself
(needs matplotlib).

python experiments/random4_gsm8k/analyse.py OUTPUT_FOLDER
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np

from dft_jax.analysis import figures

plt = figures.pyplot()

HERE = Path(__file__).parent
LAYOUTS = {"1device": "one device", "8devices": "8 devices, 2×2×2", "4micro": "4 micro-batches"}
COLUMNS = (
    "train/loss",
    "train/nll",
    "train/mean_p",
    "optimizer/gradient_norm",
    "data/packing_efficiency",
)


def curve(run: Path) -> np.ndarray:
    """[steps, columns] of the training rows; a run that is not finished is an error, not a gap
    filled in.
    """
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 101)), f"{run} is not whole"
    return np.array([[row[name] for name in COLUMNS] for row in rows])


def heldout_nll(run: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["heldout/nll"] for row in rows if "heldout/nll" in row}


def main() -> None:
    out = Path(sys.argv[1])
    wall_s = dict(line.split() for line in (out / "wall_s.txt").read_text().splitlines())
    curves = {
        (o, layout): curve(out / f"{o}_{layout}") for o in ("sft", "dft") for layout in LAYOUTS
    }
    with open(HERE / "curves.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["objective", "layout", "step", *COLUMNS])
        for (objective, layout), values in curves.items():
            for step, row in enumerate(values, start=1):
                writer.writerow([objective, layout, step, *(f"{value:.9g}" for value in row)])
    with open(HERE / "results.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            "objective,layout,nll step 1,nll step 100,held-out nll 0,held-out nll 100,mean"
            " p step 100,"
            "largest relative loss difference,largest relative nll difference,wall s".split(",")
        )
        for (objective, layout), values in curves.items():
            apart = np.abs(values / curves[objective, "1device"] - 1).max(axis=0)
            heldout = heldout_nll(out / f"{objective}_{layout}")
            numbers = [values[0, 1], values[-1, 1], heldout[0], heldout[100], values[-1, 2]]
            row = [f"{number:.4g}" for number in numbers] + [f"{apart[0]:.1e}", f"{apart[1]:.1e}"]
            writer.writerow([objective, layout, *row, wall_s[f"{objective}_{layout}"]])
    draw(curves)


def draw(curves: dict) -> None:
    """nll of both objectives on the left, loss differences between layouts on the right."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    steps = np.arange(1, 101)
    for objective, colour in (("sft", "tab:blue"), ("dft", "tab:orange")):
        for layout, style in zip(LAYOUTS, ("-", "--", ":"), strict=True):
            values = curves[objective, layout]
            left.plot(
                steps, values[:, 1], style, color=colour, label=f"{objective}, {LAYOUTS[layout]}"
            )
            if layout != "1device":
                apart = np.abs(values[:, 0] / curves[objective, "1device"][:, 0] - 1)
                right.semilogy(steps, np.maximum(apart, 1e-9), style, color=colour)
    left.set(
        xlabel="step",
        ylabel="train nll, nats a token",
        title="nll: three layouts lie on one another",
    )
    left.legend(fontsize=7)
    right.axhline(1e-4, color="grey", linewidth=0.8)
    right.set(
        xlabel="step",
        ylabel="relative difference of the loss",
        title="from the run on one device (grey: 1e-4)",
    )
    figure.savefig(HERE / "curves.png", dpi=120)


if __name__ == "__main__":
    main()
