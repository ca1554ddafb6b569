"""One file per architecture family; a new one is found by itself, and so is its golden checkpoint.

A family has
  HF_MODEL_TYPE   the `model_type` of its config.json,
  read(reader)    from its config.json to a DecoderSpec, every key accounted for,
  TENSORS         parameter of ours -> tensor of its checkpoints.
"""

import importlib
import pkgutil
from types import ModuleType


def _find() -> dict[str, ModuleType]:
    """model_type -> the module of this folder that reads it."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        found[module.HF_MODEL_TYPE] = module
    return found


FAMILIES = _find()
