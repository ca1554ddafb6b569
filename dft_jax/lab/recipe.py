"""Fine-tuning and evaluation of the laboratory's base, what is drawn of it, and what follows."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from dft_jax import assets, config as config_lib
from dft_jax.analysis import comparison_report, figures
from dft_jax.evals.settings import Settings
from dft_jax.runtime import files
from dft_jax.runtime.options import Config

BENCHMARKS = ("lab", "lab_hard", "lab_expression")
OBJECTIVES = ("sft", "dft")

Row = dict[str, Any]


def lab_config(objective: str) -> Config:
    """Fine-tuning of the laboratory's base, on 2,500 demonstrations that are all right.

    They are chains of 2 to 4 steps in four styles. Some minutes on two cores.
    """
    config = config_lib.get_default()
    config.objective = objective
    config.model.path = str(assets.LAB)
    config.model.compute_dtype = "float32"
    config.model.attention_block = 128
    # No file: the data source makes problems, of which the splits share none.
    config.data.train = "world(split=train, family=chain, levels=2-4, n=2500)"
    config.data.heldout = "world(split=validation, family=chain, levels=2-4, n=256)"
    config.data.rows = "gsm8k"
    config.data.template = "plain"
    config.data.max_length = 192
    config.optimizer.learning_rate = 3e-4
    # As when the laboratory's studies were made.
    config.optimizer.warmup_from = "zero"
    config.train.global_batch = 32
    config.train.steps = 60
    config.eval.every = 20
    config.checkpoint.every = 60
    config.checkpoint.keep = 1
    config.log.tensorboard = False
    return config


def settings(**changes: Any) -> Settings:
    """The evaluation of the laboratory's models; `changes` are other values of its fields."""
    made = Settings(
        benchmarks=BENCHMARKS,
        prompt="plain",
        context=256,
        temperature=(0.3, 1.0),
        max_problems=32,
        slots=128,
    )
    return dataclasses.replace(made, **changes)


def curves(out: Path) -> dict[str, list[Row]]:
    """Rows of metrics.jsonl of each objective's run."""
    rows_of = {}
    for objective in OBJECTIVES:
        lines = (out / objective / "metrics.jsonl").read_text().splitlines()
        rows_of[objective] = [json.loads(line) for line in lines]
    return rows_of


def plot_curves(rows_of: dict[str, list[Row]], file: Path) -> None:
    """Held-out nll, mean p and entropy against the step."""
    plt = figures.pyplot()
    panels = {
        "heldout/nll": "nll, nats",
        "heldout/mean_p": "mean p",
        "heldout/entropy": "entropy, nats",
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(10, 3), layout="constrained")
    for axis, (name, label) in zip(axes, panels.items(), strict=True):
        # From 1, because the first colour is the base's.
        for number, (objective, rows) in enumerate(rows_of.items(), start=1):
            steps = []
            values = []
            for row in rows:
                # Steps between two measurements have no held-out metric.
                if name in row:
                    steps.append(row["step"])
                    values.append(row[name])
            axis.plot(
                steps,
                values,
                marker="o",
                ms=3,
                color=figures.COLOURS[number],
                label=objective,
            )
        axis.set(xlabel="step", ylabel=f"held-out {label}")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def conclusion(rows: list[Row]) -> str:
    """Two sentences made of the numbers on the problems that are like the demonstrations.

    Args:
      rows: of a comparison of base, sft and dft.
    """

    def percent(run: str, temperature: float, score: str = "avg_at_k") -> float:
        for row in rows:
            place = (row["benchmark"], row["temperature"], row["run"])
            if place == ("lab", temperature, run):
                return 100 * row[score]
        raise ValueError(f"there is no row of {run} at temperature {temperature}")

    gain = percent("dft", 1.0) - percent("sft", 1.0)
    gain_cold = percent("dft", 0.3) - percent("sft", 0.3)
    gain_greedy = percent("dft", 0.0) - percent("sft", 0.0)
    gain_pass = percent("dft", 1.0, "pass_at_k") - percent("sft", 1.0, "pass_at_k")
    first = (
        f"At temperature 1, DFT is {gain:+.1f} points from SFT on problems like the demonstrations;"
        f" at 0.3 it is {gain_cold:+.1f}, greedily {gain_greedy:+.1f},"
        f" and in pass@16 {gain_pass:+.1f}."
    )

    # DFT sharpens: whether it does more, a colder base tells.
    base_cold = percent("base", 0.3)
    dft = percent("dft", 1.0)
    base_text = f"The untouched base at temperature 0.3 ({base_cold:.1f} %)"
    dft_text = f"DFT at temperature 1 ({dft:.1f} %)"
    if base_cold >= dft:
        second = (
            f"{base_text} is not below {dft_text}: what a lower temperature gives as well is"
            " sharpening, not learning."
        )
    else:
        second = (
            f"{base_text} is below {dft_text}: a lower temperature alone does not give all of it."
        )
    return f"{first}\n{second}"


def draw(rows: list[Row], out: Path) -> None:
    """The three pictures and the CSV, into the folder of the runs.

    Args:
      rows: of a comparison of base, sft and dft.
    """
    rows_of = curves(out)
    shares = {}
    for objective, metrics in rows_of.items():
        histograms = []
        for row in metrics:
            if "heldout/p_histogram" in row:
                histograms.append(row["heldout/p_histogram"])
        # Before its first step every run is the base.
        shares.setdefault("base", histograms[0])
        shares[objective] = histograms[-1]
    plot_curves(rows_of, out / "curves.png")
    figures.plot_histogram(shares, out / "histogram.png")
    comparison_report.plot(rows, out / "comparison.png")
    files.write_csv(rows, out / "comparison.csv")
