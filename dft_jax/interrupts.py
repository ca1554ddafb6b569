"""SIGTERM and SIGINT: the first asks a run to save and end with exit code 42, a second ends it at once.

The main thread asks between its steps, with `check`, whether its handler has run. A thread hears signals as they
arrive, also while the main thread is inside a compilation, where handlers wait: it tells the user, or ends the process.
"""

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from dft_jax import errors

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO_S = 1.0  # launchers send one signal to a group and pass it on as well: so soon after the first it is the same

_current: "Interrupts | None" = None


def check() -> None:
    """To be called, by all processes alike, wherever a run can be left and taken up again; free when nothing catches.

    From the first call on there is something to save; before it a signal ends the process at once (with 42 as well).

    Raises:
      errors.Stopped: on every process, at the same call, once any of them was signalled.
    """
    if _current is not None and _current.is_asked():
        raise errors.Stopped(_current.handled or "a signal to another process")


class Interrupts:
    """While entered, signals are caught; only the main thread can enter it, and only one at a time."""

    def __init__(self):
        self.handled: str | None = None  # the name of a signal, once the main thread knows of it
        self.is_working = False
        self.pending: jax.Array | None = None

    def __enter__(self) -> "Interrupts":
        global _current
        reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        self.thread = threading.Thread(target=self._watch, args=(reader,), name="signals", daemon=True)
        self.thread.start()
        self.old_writer = signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
        self.old_handlers = self._arm()
        self.old_stderr, sys.stderr = sys.stderr, _Forgiving(sys.stderr)
        _current = self
        return self

    def _arm(self) -> dict[signal.Signals, Any]:
        return {number: signal.signal(number, self._handle) for number in SIGNALS}

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        global _current
        _current = None
        sys.stderr = self.old_stderr
        signal.set_wakeup_fd(self.old_writer)
        for number, handler in self.old_handlers.items():
            # All is saved and the process is on its way out with 42: nothing should change that code any more.
            signal.signal(number, signal.SIG_IGN if kind is errors.Stopped else handler)
        os.close(self.writer)  # ends the thread
        self.thread.join()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.handled = signal.Signals(number).name

    def _watch(self, reader: int) -> None:
        received_at: float | None = None  # the first signal
        while byte := os.read(reader, 1):
            number = byte[0]
            if number not in SIGNALS:
                continue
            name, now = signal.Signals(number).name, time.monotonic()
            if not self.is_working:
                _say(f"{name}: ended before there was anything to save")
                os._exit(errors.EXIT_RESUMABLE)
            if received_at is None:
                received_at = now
                _say(f"{name}: saving within a step, then ending; a second signal ends at once")
            elif now - received_at > ECHO_S:
                os._exit(128 + number)
        os.close(reader)

    def is_asked(self) -> bool:
        """Whether any process was signalled, at the latest one call ago where there are several.

        Their answers are added up on the devices and read one call late, like metrics, so nobody waits for it.
        """
        if not self.is_working:
            self._arm()  # again: the runtimes of accelerators install handlers of their own when they start
        self.is_working = True
        if jax.process_count() == 1:
            return self.handled is not None
        layout, total = _adder()
        mine = np.full(jax.local_device_count(), self.handled is not None, np.int32)
        previous, self.pending = self.pending, total(jax.make_array_from_process_local_data(layout, mine))
        return previous is not None and int(previous) > 0


@functools.cache
def _adder():
    mesh = jax.make_mesh((jax.device_count(),), ("devices",))
    return NamedSharding(mesh, P("devices")), jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, P()))


def _say(text: str) -> None:
    with _unheard():
        os.write(2, f"\n{text}\n".encode())


class _Forgiving:
    """stderr whose reader may be gone: Ctrl-C ends the `tee` behind a run as well, which must not cost the state."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with _unheard():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with _unheard():
            self.stream.flush()


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Once the reader is dead, all that is still to be said goes nowhere: 1 and 2 have the same."""
    try:
        yield
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)
        os.close(nowhere)
