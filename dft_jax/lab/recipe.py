"""Fine-tuning and evaluation of the laboratory's base, what is drawn of it, and what follows."""

import json
from pathlib import Path
from typing import Any

from dft_jax import assets, config as config_lib
from dft_jax.analysis import comparison, figures
from dft_jax.evals.settings import Settings
from dft_jax.runtime import files
from dft_jax.runtime.options import Config

BENCHMARKS = ("lab", "lab_hard", "lab_expression")
OBJECTIVES = ("sft", "dft")


def lab_config(objective: str) -> Config:
    """Fine-tuning of the laboratory's base on 2,500 demonstrations of chains of 2 to 4, in four
    styles, all right.
    """
    config = config_lib.get_default()
    config.objective = objective
    config.model.path = str(assets.LAB)
    config.model.compute_dtype = "float32"
    config.model.attention_block = 128
    config.data.train = "world(split=train, family=chain, levels=2-4, n=2500)"
    config.data.heldout = "world(split=validation, family=chain, levels=2-4, n=256)"
    config.data.rows = "gsm8k"
    config.data.template = "plain"
    config.data.max_length = 192
    config.optimizer.learning_rate = 3e-4
    config.train.global_batch = 32
    config.train.steps = 60
    config.eval.every = 20
    config.checkpoint.every = 60
    config.checkpoint.keep = 1
    config.log.tensorboard = False
    return config


def settings(**changes: Any) -> Settings:
    """The evaluation of the laboratory's models."""
    values = dict(
        benchmarks=BENCHMARKS,
        prompt="plain",
        context=256,
        temperature=(0.3, 1.0),
        max_problems=32,
        slots=128,
    )
    return Settings(**values | changes)


def curves(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of metrics.jsonl of each run."""
    return {
        o: [json.loads(line) for line in (out / o / "metrics.jsonl").read_text().splitlines()]
        for o in OBJECTIVES
    }


def plot_curves(rows_of: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """Held-out nll, mean p and entropy against the step."""
    plt = figures.pyplot()
    panels = [
        ("heldout/nll", "nll, nats"),
        ("heldout/mean_p", "mean p"),
        ("heldout/entropy", "entropy, nats"),
    ]
    figure, axes = plt.subplots(1, len(panels), figsize=(10, 3), layout="constrained")
    for axis, (name, label) in zip(axes, panels, strict=True):
        for number, (objective, rows) in enumerate(rows_of.items(), start=1):
            points = [(row["step"], row[name]) for row in rows if name in row]
            axis.plot(
                *zip(*points, strict=True),
                marker="o",
                ms=3,
                color=comparison.COLOURS[number],
                label=objective,
            )
        axis.set(xlabel="step", ylabel=f"held-out {label}")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def conclusion(rows: list[dict[str, Any]]) -> str:
    """Two sentences made of the numbers on the problems that are like the demonstrations."""

    def value(run: str, temperature: float, name: str = "avg_at_k") -> float:
        found = [
            r
            for r in rows
            if (r["benchmark"], r["temperature"], r["run"]) == ("lab", temperature, run)
        ]
        return 100 * found[0][name]

    gain = value("dft", 1.0) - value("sft", 1.0)
    greedy, cold = value("dft", 0.0) - value("sft", 0.0), value("dft", 0.3) - value("sft", 0.3)
    passes = value("dft", 1.0, "pass_at_k") - value("sft", 1.0, "pass_at_k")
    sharper = value("base", 0.3)
    first = (
        f"At temperature 1, DFT is {gain:+.1f} points from SFT on problems like the demonstrations; at 0.3 it is"
        f" {cold:+.1f}, greedily {greedy:+.1f}, and in pass@16 {passes:+.1f}."
    )
    base = f"The untouched base at temperature 0.3 ({sharper:.1f} %)"
    theirs = f"DFT at temperature 1 ({value('dft', 1.0):.1f} %)"
    if sharper >= value("dft", 1.0):
        second = f"{base} is not below {theirs}: what a lower temperature gives as well is sharpening, not learning."
    else:
        second = f"{base} is below {theirs}: a lower temperature alone does not give all of it."
    return f"{first}\n{second}"


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """The three pictures and the CSV."""
    rows_of = curves(out)
    histograms = {
        o: [r["heldout/p_histogram"] for r in own if "heldout/p_histogram" in r]
        for o, own in rows_of.items()
    }
    shares = {"base": histograms[OBJECTIVES[0]][0]} | {o: own[-1] for o, own in histograms.items()}
    plot_curves(rows_of, out / "curves.png")
    figures.plot_histogram(shares, out / "histogram.png")
    comparison.plot(rows, out / "comparison.png")
    files.write_csv(rows, out / "comparison.csv")
