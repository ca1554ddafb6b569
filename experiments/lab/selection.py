"""The learning rate of each method: the best of a few on the validation split, with one seed."""

import dataclasses
from collections.abc import Callable
from typing import Any

from experiments.lab.trials import LEARNING_RATES, VALIDATION, Trial


def candidates(
    trials: list[Trial], rates: tuple[float, ...] = LEARNING_RATES
) -> list[tuple[Trial, str]]:
    """Each trial at every one of these rates, to be measured on problems like its data, of the
    validation split.
    """
    found = []
    for trial in trials:
        probe = VALIDATION.get(trial.data, "validation")
        found += [(dataclasses.replace(trial, learning_rate=rate, seed=0), probe) for rate in rates]
    return found


def chooser(rows: list[dict[str, Any]]) -> Callable[[Trial], Trial]:
    """Returns chosen(trial): the trial with the learning rate that did best (avg@8 at temperature
    1).
    """
    best: dict[Any, tuple[float, float]] = {}
    for row in rows:
        key = (row["objective"], row["data"])
        best[key] = max(best.get(key, (-1.0, 0.0)), (row["avg"], row["learning_rate"]))

    def chosen(trial: Trial) -> Trial:
        return dataclasses.replace(trial, learning_rate=best[trial.objective, trial.data][1])

    return chosen
