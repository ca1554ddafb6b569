"""Values as notebooks give them: NumPy's numbers as Python's, checked as those of a config are."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dft_jax import sharding
from dft_jax.runtime import errors, options
from dft_jax.runtime.options import Option


def plain(value: Any) -> Any:
    """NumPy's numbers as Python's, and lists as tuples of such; all else as it is."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return tuple(map(plain, value))
    return value


def checked(name: str, value: Any, option: Option) -> Any:
    """The value as Python has it.

    Raises:
      UserError: it is of another type than the option's default, or not legal.
    """
    value = plain(value)
    mistake = option.mistake(name, value)
    if mistake:
        raise errors.UserError(mistake)
    return value


def mesh_sizes(mesh: Mapping[str, Any]) -> dict[str, int]:
    """Sizes by axis; whether they fit the devices is found out later.

    Raises:
      UserError: an axis that there is not, or a size that none can have.
    """
    sizes = {}
    for axis, size in mesh.items():
        if axis not in sharding.SECTION:
            known = list(sharding.SECTION)
            raise errors.UserError(options.unknown(f"mesh: no axis {axis!r}", str(axis), known))
        sizes[axis] = checked(f"mesh: {axis}", size, sharding.SECTION[axis])
    return sizes
