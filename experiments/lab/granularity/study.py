"""Study e: the weight by the token (DFT), by the sentence, and its geometric mean, against SFT;
three seeds.
"""

import dataclasses

from experiments.lab import selection
from experiments.lab.trials import Trial

OBJECTIVES = ("sft", "dft", "sentence", "geometric")
SEEDS = range(3)


def candidates():
    return selection.candidates([Trial(objective=o) for o in OBJECTIVES])


def measurements(chosen):
    return [
        (dataclasses.replace(chosen(Trial(objective=o)), seed=seed), "quick")
        for o in OBJECTIVES
        for seed in SEEDS
    ]
