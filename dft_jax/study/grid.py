"""Grids of overrides: the arms of a study as a product, and which of them a job of an array does.

An arm has an objective, a rate and a seed, which a program takes as arguments, and perhaps other
overrides of the config, which make other programs. Arms with the same overrides are a variant: a
study of its own, with the same base and in the same folder.
"""

import dataclasses
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dft_jax import config as config_lib
from dft_jax.runtime import errors
from dft_jax.runtime.options import Config
from dft_jax.study.spec import Arm, Spec

_SEED = "train.seed"
_OWN = ("objective", "optimizer.learning_rate", _SEED)  # what every arm has
# Of the rest: how long, on which data and with which model is the study's, because the base is
# measured once, and every arm at the same steps.
_LEGAL = ("objective", "optimizer.", "train.")
_OF_THE_STUDY = ("train.steps", "train.epochs")
_TRUTH = {"true": True, "false": False}
Grid = Mapping[str, Sequence[Any]]


def parse(given: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Key -> values of each `KEY=VALUE,VALUE,…`, as on a command line.

    >>> parse(["optimizer.learning_rate=1e-5,3e-5", "objective=sft,power(alpha=0.5)"])

    Raises:
      UserError: an unknown key or one that is not an arm's, or values that are not legal.
    """
    grid: dict[str, tuple[Any, ...]] = {}
    problems = []
    for text in given:
        key, _, values = text.removeprefix("config.").partition("=")
        problem = _key_problem(key, grid)
        if problem:
            problems.append(f"--grid={text}: {problem}")
            continue
        try:
            # Commas within parentheses are an objective's.
            grid[key] = tuple(_value(key, word) for word in re.split(r",(?![^(]*\))", values))
            if len(set(grid[key])) < len(grid[key]):
                problems.append(f"--grid={text}: a value is there twice; remove one")
        except errors.UserError as error:
            problems.append(f"--grid={text}: {error}")
    errors.raise_if_any(problems)
    return grid


def _key_problem(key: str, before: Mapping[str, Any]) -> str:
    if key not in config_lib.all_options():
        return config_lib.unknown_key(key)
    if key in before:
        return f"{key} is there twice; give all its values at once"
    if not key.startswith(_LEGAL) or key in _OF_THE_STUDY:
        legal = "objective, optimizer.* and train.* but steps and epochs"
        return f"arms of a study differ in {legal}; make a spec for each {key}"
    return ""


def _value(key: str, text: str) -> Any:
    """The text as a value of this key."""
    option = config_lib.all_options()[key]
    kind = type(option.default)
    value: Any = text
    try:
        if kind is bool:
            value = _TRUTH[text.lower()]
        elif kind is not str:
            value = kind(text)
    except (KeyError, ValueError):
        # Left as the word that it is, of which the option says what it should be.
        pass
    mistake = option.mistake(key, value)
    if mistake:
        raise errors.UserError(mistake)
    return value


def arms_of(grid: Grid, config: Config) -> tuple[Arm, ...]:
    """The product of a grid; what it does not name of an arm is the config's.

    Seeds are outermost, so that every prefix is balanced; of the rest the last varies fastest.
    """
    keys = sorted(grid, key=lambda key: key != _SEED)
    default = {
        "objective": config.objective,
        "optimizer.learning_rate": config.optimizer.learning_rate,
        _SEED: config.train.seed,
    }
    arms = []
    for values in itertools.product(*[grid[key] for key in keys]):
        own = default | dict(zip(keys, values, strict=True))
        overrides = tuple((key, own[key]) for key in own if key not in _OWN)
        objective, rate, seed = (own[key] for key in _OWN)
        arms.append(Arm(objective, rate, seed, overrides))
    return tuple(arms)


def variants(spec: Spec) -> list[Spec]:
    """A spec for each combination of overrides, in the order of their first arms.

    Which rows a program is compiled for depends on a variant's seeds, so a variant has all its arms
    whichever of them are going to be done: then an arm comes out the same whoever does it.
    """
    found = []
    for overrides in dict.fromkeys(arm.overrides for arm in spec.arms):
        config = spec.config.copy_and_resolve_references().unlock()
        config.update_from_flattened_dict(dict(overrides))
        arms = tuple(arm for arm in spec.arms if arm.overrides == overrides)
        found.append(dataclasses.replace(spec, config=config.lock(), arms=arms))
    return found


@dataclasses.dataclass(frozen=True)
class Share:
    """The `number`-th of `count` jobs, from 1: it does every `count`-th arm."""

    number: int = 1
    count: int = 1

    def of(self, arms: Sequence[Arm]) -> tuple[Arm, ...]:
        """Its arms. Those of all jobs together are all arms, each once."""
        return tuple(arms[self.number - 1 :: self.count])


def share(arm: str, array: int, environment: Mapping[str, str] = os.environ) -> Share:
    """Which arms this process does: all, without either flag.

    Args:
      arm: --arm, as in 2/8.
      array: --array, the number of jobs, of which the environment says which one this is.

    Raises:
      UserError: both, no such job, or an environment that does not say.
    """
    if arm and array:
        raise errors.UserError("--arm and --array say the same; remove one")
    if arm:
        match = re.fullmatch(r"(\d+)/(\d+)", arm)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise errors.UserError(f"--arm={arm} should be N/M, N from 1 to M, as in 2/8")
        return Share(int(match[1]), int(match[2]))
    if not array:
        return Share()
    index = _index(array, environment)
    if not 0 <= index < array:
        raise errors.UserError(
            f"--array={array}: this is job {index}, from 0; give the number of the array's jobs"
        )
    return Share(index + 1, array)


def _index(array: int, environment: Mapping[str, str]) -> int:
    """Of this job in its array, from 0."""
    if "SLURM_ARRAY_TASK_ID" in environment:
        # An array need not begin at 0.
        first = int(environment.get("SLURM_ARRAY_TASK_MIN", 0))
        step = int(environment.get("SLURM_ARRAY_TASK_STEP", 1))
        return (int(environment["SLURM_ARRAY_TASK_ID"]) - first) // step
    if "JOB_COMPLETION_INDEX" in environment:
        return int(environment["JOB_COMPLETION_INDEX"])
    what = "neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX says which job this is"
    raise errors.UserError(f"--array={array}: {what}; give --arm=N/{array}")
