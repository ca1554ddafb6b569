"""Study b: accuracy against the step, for three learning rates and two schedules, three seeds."""

from experiments.lab.trials import LEARNING_RATES, Trial

OBJECTIVES = ("sft", "dft")
SCHEDULES = ("cosine", "constant")
SEEDS = range(3)


def candidates():
    return []  # every learning rate is shown


def measurements(chosen):
    trials = [
        Trial(objective=o, learning_rate=rate, schedule=schedule, seed=seed, every=10)
        for seed in SEEDS
        for schedule in SCHEDULES
        for rate in LEARNING_RATES[1:]
        for o in OBJECTIVES
    ]
    return [(Trial(objective="none", steps=0), "test"), *((trial, "curve") for trial in trials)]
