"""Study j: SFT and DFT where a number has to be read from a picture, rightly or wrongly shown.

Rates are chosen with seed 5, which is none of those that are measured.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.lab import selection
from experiments.lab.trials import Trial, measure, train

OBJECTIVES = ("sft", "dft")
DATA = ("read0", "read15")
SEEDS = range(5)
CHOOSING_SEED = 5
BASE = "lab_vision"
PROBES = ("vision", "vision_card")
UNTOUCHED = Trial(BASE, "none", DATA[0], steps=0)
# Of trainings of all parts: how far AdamW moves a parameter follows the rate, so it is one for all.
RATE_OF_ALL = 3e-4
# Parameters of the tower, its merger included.
TOWER = "vision"


def candidates():
    trials = [Trial(BASE, objective, data) for data in DATA for objective in OBJECTIVES]
    found = []
    for trial, probe in selection.candidates(trials):
        found.append((dataclasses.replace(trial, seed=CHOOSING_SEED), probe))
    return found


def _of_text(chosen) -> list[Trial]:
    """Trainings of the text part, each at the rate that was chosen for it."""
    trials = []
    for seed in SEEDS:
        for data in DATA:
            for objective in OBJECTIVES:
                trial = chosen(Trial(BASE, objective, data))
                trials.append(dataclasses.replace(trial, seed=seed))
    return trials


def _of_all() -> list[Trial]:
    """Trainings of all parts, at one rate."""
    trials = []
    for seed in SEEDS:
        for data in DATA:
            for objective in OBJECTIVES:
                trial = Trial(BASE, objective, data, RATE_OF_ALL, seed=seed, parts="all")
                trials.append(trial)
    return trials


def measurements(chosen):
    tasks = []
    for trial in [UNTOUCHED, *_of_text(chosen), *_of_all()]:
        tasks += [(trial, probe) for probe in PROBES]
    return tasks


def finish(chosen, root: Path, here: Path):
    """The rows of the probes, and how far each training of all parts moved the tower."""
    rows = []
    for trial, probe in measurements(chosen):
        rows += measure(trial, probe, root)
    base, _ = train(UNTOUCHED, root)
    updates = []
    for trial in _of_all():
        params, _ = train(trial, root)
        row: dict[str, Any] = {"trial": trial.name, **dataclasses.asdict(trial)}
        row["tower"] = distance(params[TOWER], base[TOWER])
        row["text"] = distance(_text_of(params), _text_of(base))
        updates.append(row)
    return {"results.csv": rows, "updates.csv": updates}


def _text_of(params: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in params.items() if name != TOWER}


def distance(ours: Any, theirs: Any) -> float:
    """The Euclidean norm of the difference of two trees of arrays."""

    def square(a, b) -> float:
        return float(np.square(np.asarray(a, float) - np.asarray(b, float)).sum())

    return float(np.sqrt(sum(jax.tree.leaves(jax.tree.map(square, ours, theirs)))))
