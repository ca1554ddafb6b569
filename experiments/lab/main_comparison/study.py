"""Study a: base × objective × demonstrations, five seeds."""

import dataclasses

from experiments.lab import selection
from experiments.lab.trials import Trial

BASES = ("lab", "lab_clean")
DATA = ("noise0", "noise5", "noise15", "noise30", "one_style", "operator")
OBJECTIVES = ("sft", "dft")
SEEDS = range(5)


def trial_of(objective: str, data: str) -> Trial:
    """What is new takes longer: after 60 steps neither objective knows the operator."""
    return Trial(objective=objective, data=data, steps=240 if data == "operator" else 60)


def probe_of(data: str) -> str:
    return "operator" if data == "operator" else "test"


def candidates():
    """Learning rates are chosen on the first base, and used on both."""
    return selection.candidates([trial_of(o, data) for data in DATA for o in OBJECTIVES])


def measurements(chosen):
    untouched = [
        (Trial(base, "none", steps=0), probe) for base in BASES for probe in ("test", "operator")
    ]
    tuned = [
        (dataclasses.replace(chosen(trial_of(o, data)), base=base, seed=seed), probe_of(data))
        for base in BASES
        for seed in SEEDS
        for data in DATA
        for o in OBJECTIVES
    ]
    return untouched + tuned
