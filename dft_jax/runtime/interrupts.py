"""SIGTERM and SIGINT: the first asks a run to save and end with exit code 42, a third ends it at
once.

The main thread asks between its steps, with `check`, whether its handler has run. A thread hears
signals as they arrive, also while the main thread waits for a step or a compilation, where handlers
wait: it tells the user what is still to be done and for about how long, or ends the process.
"""

import contextlib
import dataclasses
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

from dft_jax.runtime import errors, processes

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# launchers send one signal to a group and pass it on as well: so soon after the first it is the
# same
ECHO_S = 1.0
# Steps are dispatched one ahead of the one that runs, so a signal waits for two of them. From this
# length on a step is awaited first: the device then idles for the host's 10 ms or so between two
# steps, which is half a percent of this.
LONG_STEP_S = 2.0

_current: "Interrupts | None" = None


@dataclasses.dataclass
class Outlook:
    """What is known of how long a stop will take. The run writes it, the thread that hears signals
    reads it.

    Times are of time.monotonic(), in seconds.
    """

    step_s: float | None = None  # how long the last step took
    step_began: float | None = None  # when the step in flight was dispatched
    save_s: float | None = None  # how long the last save took, up to its manifest
    save_began: float | None = None  # when the save in progress began; None where there is none

    def remaining(self) -> str:
        """What is still to be done before the process can end, and for about how long."""
        now = time.monotonic()
        if self.save_began is not None and self.step_began is None:
            return f"the save is running ({_about(self.save_s, now - self.save_began)})"
        step = "what is under way has to come to where it can be left"
        if self.step_began is not None:
            step = f"the step in flight has to end ({_about(self.step_s, now - self.step_began)})"
        return f"{step}, then the state is saved ({_about(self.save_s, 0.0)})"


def _about(whole_s: float | None, done_s: float) -> str:
    if whole_s is None:
        return "of unknown length: the first one"
    return f"about {max(whole_s - done_s, 0):.3g} s"


outlook = Outlook()


@dataclasses.dataclass(frozen=True)
class Agreed:
    """What all processes know alike. Saving and lengths are as process 0's clock has them."""

    stop: bool = False
    save: bool = False
    steps_are_long: bool = True  # until one has been measured: it may take minutes


def check(*, save_is_due: bool = False, at_once: bool = False) -> bool:
    """To be called, by all processes alike, wherever a run can be left and taken up again; free
    when nothing catches.

    From the first call on there is something to save; before it a signal ends the process at once
    (with 42 as well).

    Args:
      save_is_due: process 0's clock says that it is time to save.
      at_once: wait for the others' answers, instead of reading at the next call what they say at
      this one.

    Returns:
      Whether all processes should save now.

    Raises:
      errors.Stopped: on every process, at the same call, once any of them was signalled.
    """
    if _current is None:
        return save_is_due and jax.process_count() == 1
    agreed = _current.agree(save_is_due, at_once)
    if agreed.stop:
        raise errors.Stopped(_current.handled or "a signal to another process")
    return agreed.save


def are_caught() -> bool:
    """Whether some `Interrupts` is entered."""
    return _current is not None


def steps_are_long() -> bool:
    """Whether a step should be awaited before the next is dispatched; the same on all processes."""
    return _current is not None and _current.agreed.steps_are_long


class Interrupts:
    """While entered, signals are caught; only the main thread can enter it, and only one at a time."""

    def __init__(self):
        self.handled: str | None = None  # the name of a signal, once the main thread knows of it
        self.is_working = False
        self.agreed = Agreed()
        self.pending: jax.Array | None = None

    def __enter__(self) -> "Interrupts":
        global _current, outlook
        outlook = Outlook()
        reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        self.thread = threading.Thread(
            target=self._watch, args=(reader,), name="signals", daemon=True
        )
        self.thread.start()
        self.old_writer = signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
        self.old_handlers = self._arm()
        self.old_stderr, sys.stderr = sys.stderr, _BrokenPipeProof(sys.stderr)
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
            # All is saved and the process is on its way out with 42: nothing should change that
            # code any more.
            signal.signal(number, signal.SIG_IGN if kind is errors.Stopped else handler)
        os.close(self.writer)  # ends the thread
        self.thread.join()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.handled = signal.Signals(number).name

    def _watch(self, reader: int) -> None:
        count, last_at = 0, -ECHO_S
        while byte := os.read(reader, 1):
            number, now = byte[0], time.monotonic()
            if number not in SIGNALS or now - last_at < ECHO_S:
                continue
            count, last_at = count + 1, now
            name = signal.Signals(number).name
            if not self.is_working:
                _say(f"{name}: ended before there was anything to save")
                os._exit(errors.EXIT_RESUMABLE)
            if count == 1:
                _say(f"{name}: {outlook.remaining()}; then it ends")
            elif count == 2:
                _say(
                    f"{name} again: {outlook.remaining()}; a third signal ends at once, and loses what is not saved"
                )
            else:
                os._exit(128 + number)
        os.close(reader)

    def agree(self, save_is_due: bool, at_once: bool) -> Agreed:
        """What all processes know, of this call or (unless `at_once`) at the latest of the one
        before.

        Their answers are added up on the devices and read one call late, like metrics, so nobody
        waits for them.
        """
        if not self.is_working:
            # again: the runtimes of accelerators install handlers of their own when they start
            self._arm()
        self.is_working = True
        is_long = outlook.step_s is None or outlook.step_s >= LONG_STEP_S
        if jax.process_count() == 1:
            self.agreed = Agreed(self.handled is not None, save_is_due, is_long)
            return self.agreed
        before = self._read()
        # that it is due was agreed before it could be done
        is_due = save_is_due and not before.save
        self.pending = _sum_of_all(self.handled is not None, is_due, is_long)
        now = self._read() if at_once else Agreed(steps_are_long=before.steps_are_long)
        self.agreed = Agreed(before.stop or now.stop, before.save or now.save, now.steps_are_long)
        return self.agreed

    def _read(self) -> Agreed:
        """The answers that are on their way; where there are none, what was known."""
        if self.pending is None:
            return Agreed(steps_are_long=self.agreed.steps_are_long)
        counts, self.pending = np.asarray(self.pending), None
        return Agreed(*(bool(count) for count in counts))


def _sum_of_all(stop: bool, save_is_due: bool, steps_are_long: bool) -> jax.Array:
    """A collective over all devices: how many say each of the three. The last two are asked of
    process 0 alone.
    """
    is_first = processes.is_first()
    mine = np.array([stop, is_first and save_is_due, is_first and steps_are_long], np.int32)
    layout, total = _adder()
    return total(
        jax.make_array_from_process_local_data(layout, np.tile(mine, (jax.local_device_count(), 1)))
    )


@functools.cache
def _adder():
    mesh = jax.make_mesh((jax.device_count(),), ("devices",))
    total = functools.partial(jnp.sum, axis=0)
    return NamedSharding(mesh, P("devices")), jax.jit(total, out_shardings=NamedSharding(mesh, P()))


def _say(text: str) -> None:
    with _ignore_broken_pipe():
        os.write(2, f"\n{text}\n".encode())


class _BrokenPipeProof:
    """stderr whose reader may be gone: Ctrl-C ends the `tee` behind a run as well, which must not
    cost the state.
    """

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with _ignore_broken_pipe():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with _ignore_broken_pipe():
            self.stream.flush()


@contextlib.contextmanager
def _ignore_broken_pipe() -> Iterator[None]:
    """Once the reader is dead, all that is still to be said goes nowhere: 1 and 2 have the same."""
    try:
        yield
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)
        os.close(nowhere)
