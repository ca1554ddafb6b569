"""Study g: accuracy against temperature and entropy, and pass@k up to 64, five seeds."""

import dataclasses

from experiments.lab import selection
from experiments.lab.trials import Trial

OBJECTIVES = ("sft", "dft")
DEMONSTRATIONS = ("noise0",)
SEEDS = range(5)
PROBES = ("temperatures", "extremes", "pass64")


def candidates():
    return selection.candidates(
        [Trial(objective=o, data=data) for data in DEMONSTRATIONS for o in OBJECTIVES]
    )


def measurements(chosen):
    trials = [
        dataclasses.replace(chosen(Trial(objective=o, data=data)), seed=seed)
        for data in DEMONSTRATIONS
        for seed in SEEDS
        for o in OBJECTIVES
    ]
    return [
        (trial, probe) for trial in [Trial(objective="none", steps=0), *trials] for probe in PROBES
    ]
