"""The config of a run: the sections of all rooms put together, overridden, checked and written.

What a key means, its default and its legal values stand with the room that owns its section.
"""

import json
import os
import re
from typing import Any

from ml_collections import ConfigDict

from dft_jax import sharding
from dft_jax.checkpoints import manager
from dft_jax.data import options as data_options
from dft_jax.evals import settings as eval_settings
from dft_jax.losses import objectives
from dft_jax.models import options as model_options
from dft_jax.models.hf import export
from dft_jax.runtime import errors, options
from dft_jax.runtime.options import Config, Option, flatten
from dft_jax.runtime.python_files import call_file
from dft_jax.training import optimizer, options as training_options

_SECTIONS: dict[str, Option | options.Section] = {
    "objective": objectives.OPTION,
    "model": model_options.SECTION,
    "lora": model_options.LORA,
    "data": data_options.SECTION,
    "optimizer": optimizer.SECTION,
    "train": training_options.TRAIN,
    "mesh": sharding.SECTION,
    "eval": training_options.EVAL | eval_settings.SECTION,
    "checkpoint": manager.SECTION,
    "resume": training_options.RESUME,
    "export": export.SECTION,
    "profile": training_options.PROFILE,
    "log": training_options.LOG,
}


def get_default() -> Config:
    """Every key there is, with the paper's recipe as values; locked.

    `config.json` of a run has just these keys.
    """
    values = {}
    for name, section in _SECTIONS.items():
        is_key = isinstance(section, Option)
        values[name] = section.default if is_key else options.defaults(section)
    return ConfigDict(values).lock()


def from_file(given: str, setting: str) -> Config:
    """What `get_config` of a recipe `FILE` or `FILE:argument` returns, locked.

    Args:
      setting: what the user calls the file, for messages.

    Raises:
      UserError: no such file, no get_config in it, an exception from it (named with its line), or
      something else than a config.
    """
    made = call_file(
        given, setting, "get_config", "config", "configs/tiny.py", "fix the config file"
    )
    if not isinstance(made, ConfigDict):
        file, kind = given.partition(":")[0], type(made).__name__
        raise errors.UserError(f"{file}: get_config() should return a ConfigDict, not {kind}")
    return made.lock()


def all_options() -> dict[str, Option]:
    """Full name -> option: {'train.seed': Option(0, …), …}"""
    found = {}
    for name, section in _SECTIONS.items():
        if isinstance(section, Option):
            found[name] = section
            continue
        for key, option in section.items():
            found[f"{name}.{key}"] = option
    return found


def describe() -> str:
    """All keys for --help: default, legal values and meaning."""
    lines = ["Keys of the config:"]
    for name, option in all_options().items():
        lines.append(option.describe(f"config.{name}"))
    return "\n".join(lines)


def parse_argument(argument: str, **defaults: str) -> dict[str, str]:
    """The part of --config after the colon: `objective=dft,size=7b`, over `defaults`, which name
    what is legal.
    """
    values = dict(defaults)
    # Not at the commas between an objective's own parameters: `idft(beta=2, most=3)`.
    for part in re.split(r",(?![^(]*\))", argument):
        if not part:
            continue
        name, equals, value = part.partition("=")
        if name not in defaults or not equals:
            legal = ", ".join(f"{key}={default}" for key, default in defaults.items())
            hint = errors.did_you_mean(name, list(defaults))
            raise errors.UserError(f"--config=…:{part}{hint}: expected some of {legal}")
        values[name] = value
    return values


def unknown_key(key: str) -> str:
    """What to say about a key that the default config does not have."""
    known = sorted(all_options())
    inside = [name for name in known if name.startswith(f"{key}.")]
    if inside:
        return f"config.{key} is a section, so it has no value; its keys: {', '.join(inside)}"
    meant = errors.did_you_mean(key, known)
    namesakes = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    if namesakes:
        meant = f" (did you mean {' or '.join(map(repr, namesakes))}?)"
    return f"config.{key}: unknown key{meant}; --help lists them all"


def validate(config: Config) -> list[str]:
    """All that is wrong with a config by itself: a line each, with key, value and remedy."""
    known, found = all_options(), flatten(config)
    problems = []
    for key in found:
        if key not in known:
            problems.append(unknown_key(key))
    for key in known:
        if key not in found:
            start = "start from dft_jax.config.get_default()"
            problems.append(f"config.{key} is missing; {start}")
    # Key -> value, of those that are right by themselves: rooms can rely on their types.
    sound = {}
    for key in sorted(known.keys() & found.keys()):
        mistake = known[key].mistake(f"config.{key}", found[key])
        if mistake:
            problems.append(mistake)
        else:
            sound[key] = found[key]
    return problems + _problems_between(sound)


def _problems_between(sound: dict[str, Any]) -> list[str]:
    """What rooms say of values that are right by themselves: paths, and what goes together."""
    here = os.getcwd()
    problems = data_options.problems(_section(sound, "data"), here)
    problems += model_options.problems(_section(sound, "model"), here)
    problems += model_options.lora_problems(_section(sound, "lora"), here)
    if "optimizer.moment_dtype" in sound and "optimizer.b2" in sound:
        problems += optimizer.problems(sound["optimizer.moment_dtype"], sound["optimizer.b2"])
    is_adapted = bool(sound.get("lora.rank") or sound.get("lora.adapter"))
    problems += export.problems(sound.get("export.what", "auto"), is_adapted)
    if "objective" in sound:
        problems += objectives.problems(sound["objective"])
    problems += training_options.profile_problems(sound.get("profile", ""))
    if {"data.image_features", "train.parts"} <= sound.keys():
        problems += training_options.feature_problems(
            sound["data.image_features"], sound["train.parts"]
        )
    problems += training_options.log_problems(_section(sound, "log"))
    if {"checkpoint.best", "data.heldout", "eval.every"} <= sound.keys():
        problems += manager.best_problems(
            sound["checkpoint.best"], sound["data.heldout"], sound["eval.every"]
        )
    evaluation = _section(sound, "eval")
    if evaluation.get("benchmarks") and evaluation.keys() >= eval_settings.SECTION.keys():
        problems += eval_settings.problems(evaluation, "config.eval.")
    return problems


def _section(flat: dict[str, Any], name: str) -> dict[str, Any]:
    """Values of a section by their own keys."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): flat[key] for key in flat if key.startswith(prefix)}


def validate_on(config: Config, device_count: int) -> list[str]:
    """All that is wrong with a config on this number of devices, before anything is read or
    fetched.
    """
    problems = validate(config)

    def is_sound(*keys: str) -> bool:
        prefixes = tuple(f"config.{key}" for key in keys)
        return not any(problem.startswith(prefixes) for problem in problems)

    # Only a mesh that is right by itself can be held against the devices.
    if is_sound("mesh"):
        problems += sharding.problems(sharding.Sizes(**config.mesh), device_count)
    if is_sound("mesh", "train.global_batch", "train.accumulation"):
        train = config.train
        problems += training_options.batch_problems(
            train.global_batch, train.accumulation, config.mesh, device_count
        )
    if is_sound("mesh", "data"):
        problems += training_options.row_problems(config.data, config.mesh, device_count)
    return problems


def to_json(config: Config) -> str:
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"
