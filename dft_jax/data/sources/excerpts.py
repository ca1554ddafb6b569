"""Rows that are made and not read: a call in the place of a path, as `world(split=train, n=100)`.

What an excerpt is, its module says (world.py, programs.py): a dataclass of defaults with `rows()`
and `problems()`.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from dft_jax.data.sources.rows import Row
from dft_jax.runtime import calls, errors


def parse(path: str, name: str, default: Any) -> Any:
    """`default` with the values that `name(split=test, n=100)` gives; None for a path of another
    kind.

    Raises:
      UserError: unknown names, or values of another type or out of range.
    """
    if not path.lstrip().startswith(f"{name}(") or not path.rstrip().endswith(")"):
        return None
    call = calls.parse(path)
    if call is None:
        return None
    defaults = dataclasses.asdict(default)
    call.require_known(path, defaults)
    values = {}
    for key, text in call.arguments.items():
        kind = type(defaults[key])
        try:
            values[key] = kind(text)
        except ValueError as error:
            raise errors.UserError(
                f"{path}: {key}={text!r} should be {kind.__name__}, such as {defaults[key]}"
            ) from error
    excerpt = dataclasses.replace(default, **values)
    errors.raise_if_any([f"{path}: {problem}" for problem in excerpt.problems()])
    return excerpt


def numbered_rows(name: str, excerpt: Any) -> Iterator[Row]:
    """The rows of an excerpt as those of a file."""
    for number, value in enumerate(excerpt.rows()):
        yield Row(f"{name}[{number}]", value)
