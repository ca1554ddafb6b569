"""Study i: the main comparison once more, where the answers are programs.

Rates are chosen with seed 0, which is none of those that are measured.
"""

import dataclasses

from experiments.lab import selection
from experiments.lab.trials import Trial

OBJECTIVES = ("sft", "dft")
DATA = ("code0", "code15")
SEEDS = range(1, 6)
BASE = "lab_code"


def candidates():
    trials = [Trial(BASE, objective, data) for data in DATA for objective in OBJECTIVES]
    return selection.candidates(trials)


def measurements(chosen):
    tasks = [(Trial(BASE, "none", DATA[0], steps=0), "code")]
    for seed in SEEDS:
        for data in DATA:
            for objective in OBJECTIVES:
                trial = chosen(Trial(BASE, objective, data))
                tasks.append((dataclasses.replace(trial, seed=seed), "code"))
    return tasks
