"""dft_jax: Dynamic Fine-Tuning (DFT) against Supervised Fine-Tuning (SFT), in JAX and Flax.

    import dft_jax as dft

gives the functions of dft_jax/api/, which is read when the first of them is used: `load`,
`recipe`, `sample`, `finetune`, `evaluate`, `score`, `compare`, `export`, `get_default`.
"""

import importlib
import time
from typing import TYPE_CHECKING, Any

from dft_jax.runtime import system  # noqa: F401 — on Windows it ends here

if TYPE_CHECKING:
    from dft_jax.api import (
        compare,
        evaluate,
        export,
        finetune,
        get_default,
        load,
        recipe,
        sample,
        score,
    )

__version__ = "0.1.0"

IMPORTED_AT = time.monotonic()  # what a command's start-up is measured from

__all__ = [
    "compare",
    "evaluate",
    "export",
    "finetune",
    "get_default",
    "load",
    "recipe",
    "sample",
    "score",
]


def __getattr__(name: str) -> Any:
    """Functions of the API, on first use: a grader's process starts without JAX."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module("dft_jax.api"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
