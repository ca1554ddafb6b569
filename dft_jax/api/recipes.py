"""Configs of the public API: recipes with changes."""

from pathlib import Path
from typing import Any

from dft_jax import config as config_lib
from dft_jax.runtime import errors
from dft_jax.runtime.options import Config


def recipe(file: str | Path, /, *arguments: str, **settings: Any) -> Config:
    """The config of a recipe file, with changes.

    Args:
      file: a Python file with `get_config`, such as configs/gsm8k.py.
      arguments: of `get_config`, as text: "objective=dft".
      settings: an argument of the recipe (objective="dft") or a key of the config
        (**{"train.steps": 200}); what is a key of the config, and no argument, is set afterwards.

    Raises:
      UserError: no such file, an argument or key that it does not have, or a value of another
      type.

    >>> config = recipe("configs/gsm8k.py", objective="dft", **{"train.steps": 200})
    """
    known = config_lib.all_options()
    given, changes = list(arguments), {}
    for name, value in settings.items():
        if "." in name:
            changes[name] = value
        else:
            given.append(f"{name}={value}")
    path = str(file)
    if given:
        path = f"{path}:{','.join(given)}"
    config = config_lib.from_file(path, "recipe")
    problems = []
    for name, value in changes.items():
        if name not in known:
            problems.append(config_lib.unknown_key(name))
        elif mistake := known[name].mistake(f"config.{name}", value):
            problems.append(mistake)
    errors.raise_if_any(problems)
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config
