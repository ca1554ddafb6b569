"""Study f: the family of objectives on demonstrations of which 15 % of the steps are wrong, three
seeds.
"""

import dataclasses

from experiments.lab import selection
from experiments.lab.trials import LEARNING_RATES, Trial

OBJECTIVES = (
    *("sft", "power(alpha=0.25)", "power(alpha=0.5)", "dft", "power(alpha=2)", "power(alpha=4)"),
    *("threshold(tau=0.2)", "floored_dft(floor=0.1)", "mixed(alpha=0.75)"),
    *("asft", "iw_sft", "eaft", "talr"),
)
SEEDS = range(3)


def candidates():
    return selection.candidates(
        [Trial(objective=o, data="noise15") for o in OBJECTIVES], LEARNING_RATES[:3]
    )


def measurements(chosen):
    return [
        (dataclasses.replace(chosen(Trial(objective=o, data="noise15")), seed=seed), "quick")
        for seed in SEEDS
        for o in OBJECTIVES
    ]
