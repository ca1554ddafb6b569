"""The one progress bar: for whoever watches a terminal or a notebook, of process 0 alone."""

import contextlib
import contextvars
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm.auto import tqdm

from dft_jax.runtime import processes

# Per thread: a thread that works beside the training loop silences its own bars, not the loop's.
_is_silent = contextvars.ContextVar("_is_silent", default=False)


def bar(
    iterable: Iterable[Any] | None = None,
    *,
    desc: str,
    unit: str,
    total: int | None = None,
    leave: bool = True,
    delay: float = 0,
    initial: int = 0,
) -> tqdm:
    """A progress bar over `iterable`, or one to be moved by its `update`.

    It shows nothing on processes other than 0, nor within `silent`.

    Args:
      desc: what is under way, in a word or two.
      unit: what is counted, in the singular.
      total: how many there will be, where `iterable` has no length.
      leave: whether the bar stays when it is done. One that does not is shown only where it can be
        wiped away again: on a terminal or in a notebook, not in a log file.
      delay: seconds before it is first shown, so that quick work shows none.
      initial: how many were done before, as in a resumed run.
    """
    can_wipe = sys.stderr.isatty() or "ipykernel" in sys.modules
    is_hidden = not processes.is_first() or _is_silent.get() or not (leave or can_wipe)
    return tqdm(
        iterable,
        desc=desc,
        unit=unit,
        total=total,
        leave=leave,
        delay=delay,
        initial=initial,
        disable=is_hidden,
    )


def is_silent() -> bool:
    """Whether no bar is wanted here: for work that has a bar of its own."""
    return _is_silent.get()


@contextlib.contextmanager
def silent(is_wanted: bool = True) -> Iterator[None]:
    """Within this context, and on this thread, no bar that is made shows anything.

    Args:
      is_wanted: False leaves everything as it was, for callers that are told whether to be silent.
    """
    token = _is_silent.set(is_wanted or _is_silent.get())
    try:
        yield
    finally:
        _is_silent.reset(token)
