"""The one progress bar: in terminals and notebooks, on process 0, and silent when asked."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
from tqdm.auto import tqdm

_is_silent = False


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """No bars within this context."""
    global _is_silent
    before, _is_silent = _is_silent, True
    try:
        yield
    finally:
        _is_silent = before


def bar(
    iterable: Iterable[Any] | None = None,
    *,
    desc: str,
    unit: str,
    total: int | None = None,
    initial: int = 0,
    leave: bool = True,
    delay: float = 0,
) -> tqdm:
    """A bar over an iterable, or one that is moved by hand (`update`, `set_postfix`, `close`).

    Args:
      leave: whether it stays once it is full.
      delay: seconds before it is first shown.
    """
    return tqdm(
        iterable,
        desc=desc,
        unit=unit,
        total=total,
        initial=initial,
        leave=leave,
        delay=delay,
        disable=_is_silent or jax.process_index() > 0,
    )
