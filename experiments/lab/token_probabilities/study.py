"""Study c: the probability of each token of the demonstrations before and after, and the tokens
that DFT suppresses.
"""

import csv
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

from experiments.lab import selection
from experiments.lab.trials import BASES, DATA, Trial

OBJECTIVES = ("sft", "dft")
DEMONSTRATIONS = ("noise0", "noise15")
SEEDS = range(3)


def candidates():
    return selection.candidates(
        [Trial(objective=o, data=data) for data in DEMONSTRATIONS for o in OBJECTIVES]
    )


def _trials(chosen, data: str, seed: int) -> dict[str, Trial]:
    return {
        o: dataclasses.replace(chosen(Trial(objective=o, data=data)), seed=seed) for o in OBJECTIVES
    }


def measurements(chosen):
    """Trained, if no other study did that; what is measured on the way is of no use here."""
    trials = [
        trial
        for data in DEMONSTRATIONS
        for seed in SEEDS
        for trial in _trials(chosen, data, seed).values()
    ]
    return [(trial, "validation") for trial in trials]


def finish(chosen, root: Path, here: Path):
    """Reads the demonstrations under base, SFT and DFT with dft_jax.analysis.tokens; a row for each
    model and seed.
    """
    rows, changes = [], []
    for data in DEMONSTRATIONS:
        for seed in SEEDS:
            trials = _trials(chosen, data, seed)
            rates = "_".join(f"{o}_{trial.learning_rate:g}" for o, trial in trials.items())
            # no comma: one would end the name of a model
            out = root / "tokens" / f"{data}_seed_{seed}_{rates}"
            if not (out / "tokens.html").exists():  # the last file it writes
                models = ",".join([f"base={BASES['lab']}", *(f"{o}={out / o}" for o in OBJECTIVES)])
                out.mkdir(parents=True, exist_ok=True)
                for objective, trial in trials.items():
                    link = out / objective
                    link.unlink(missing_ok=True)
                    link.symlink_to(root / trial.name)
                flags = [
                    f"--models={models}",
                    f"--data={DATA[data].replace('n=2500', 'n=800')}",
                    f"--out={out}",
                ]
                command = [
                    sys.executable,
                    "-m",
                    "dft_jax.analysis.tokens",
                    *flags,
                    "--rows=gsm8k",
                    "--prompt=plain",
                ]
                subprocess.run(command, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
            summary = json.loads((out / "summary.json").read_text())
            for name, values in summary["models"].items():
                trial = trials.get(name, Trial(objective="none", steps=0))
                row = {
                    "data": data,
                    "seed": seed,
                    "model": name,
                    "trial": trial.name,
                    "tokens": values["tokens"],
                }
                row |= {k: v for k, v in values.items() if isinstance(v, float)}
                edges = zip(summary["p_bin_edges"][:-1], values["p_histogram"], strict=True)
                row |= {f"from_{edge:g}": share for edge, share in edges}
                rows.append(row)
            with open(out / "changed.csv", encoding="utf-8", newline="") as handle:
                changes += [{"data": data, "seed": seed, **row} for row in csv.DictReader(handle)]
            if seed == 0:
                (here / f"tokens_{data}.html").write_text((out / "tokens.html").read_text())
    return {"results.csv": rows, "changed.csv": changes}
