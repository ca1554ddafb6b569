"""Study d: learning rate × batch size, as many examples read in every cell, three seeds."""

from experiments.lab.trials import LEARNING_RATES, Trial

OBJECTIVES = ("sft", "dft")
EXAMPLES = 1920
BATCHES = (16, 32, 64)
SEEDS = range(3)


def candidates():
    return []  # the grid is the result


def measurements(chosen):
    trials = [
        # Those of batch 32 are the trials of the dynamics.
        Trial(
            objective=o,
            learning_rate=rate,
            batch=batch,
            steps=EXAMPLES // batch,
            seed=seed,
            every=10 if batch == 32 else 0,
        )
        for seed in SEEDS
        for batch in BATCHES
        for rate in LEARNING_RATES[1:]
        for o in OBJECTIVES
    ]
    return [(trial, "quick") for trial in trials]
