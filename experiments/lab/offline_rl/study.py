"""Study h: SFT (that is RFT) and DFT on the base's own right answers, DPO on its pairs, and GRPO;
three seeds.
"""

import dataclasses

from experiments.lab import selection
from experiments.lab.trials import LEARNING_RATES, Trial

METHODS = {"sft": "rejection", "dft": "rejection", "dpo": "pairs", "grpo": "rollouts"}
SEEDS = range(3)
FIRST = [(Trial(objective="none", steps=0), "offline")]  # four answers to each question


def candidates():
    return selection.candidates(
        [Trial(objective=o, data=data) for o, data in METHODS.items()], LEARNING_RATES[:3]
    )


def measurements(chosen):
    tuned = [
        (dataclasses.replace(chosen(Trial(objective=o, data=data)), seed=seed), "test")
        for seed in SEEDS
        for o, data in METHODS.items()
    ]
    return [(Trial(objective="none", steps=0), "test"), *tuned]
