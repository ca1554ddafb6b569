"""SIGTERM and SIGINT: the first asks a run to save and exit with 42, a third ends it at once.

The main thread asks between its steps, with `check`, whether its handler has run. Python runs
handlers in the main thread only, so not while that waits for a step or a compilation. A second
thread therefore reads the signals as they arrive: it tells the user what is still to be done and
for about how long, or ends the process.
"""

import contextlib
import dataclasses
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from dft_jax.runtime import errors, processes

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A launcher may signal the group and also forward the signal; a repeat within this time is an echo.
ECHO_S = 1.0
# Steps are dispatched one ahead of the one that runs, so a signal waits for two of them. From this
# length on a step is awaited first: the device then idles for the host's 10 ms or so between two
# steps, which is half a percent of this.
LONG_STEP_S = 2.0

_current: "Interrupts | None" = None


@dataclasses.dataclass
class Outlook:
    """What is known of how long a stop will take.

    The run writes it, the thread that reads signals reads it. Times are of time.monotonic(), in
    seconds.
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
        step = "the work in progress has to reach a place where it can stop"
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
    """Stops the run if a signal came; all processes call it wherever a run can be resumed from.

    From the first call on there is something to save; before it a signal ends the process at once
    (with 42 as well). Costs nothing where signals are not caught.

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
    """While entered, signals are caught; one at a time, and entered by the main thread only."""

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
        # The interpreter writes the number of each signal there, whatever the main thread does.
        self.old_writer = signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
        self.old_handlers = self._arm()
        self.old_stderr = sys.stderr
        sys.stderr = _BrokenPipeProof(sys.stderr)
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
            if kind is errors.Stopped:
                handler = signal.SIG_IGN
            signal.signal(number, handler)
        # The thread reads the end of the pipe, and ends.
        os.close(self.writer)
        self.thread.join()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.handled = signal.Signals(number).name

    def _watch(self, reader: int) -> None:
        """The second thread: answers each signal, until the pipe is closed."""
        count = 0
        last_at = -ECHO_S
        while byte := os.read(reader, 1):
            number = byte[0]
            now = time.monotonic()
            if number not in SIGNALS or now - last_at < ECHO_S:
                continue
            count += 1
            last_at = now
            name = signal.Signals(number).name
            if not self.is_working:
                _say(f"{name}: ended before there was anything to save")
                os._exit(errors.EXIT_RESUMABLE)
            if count == 1:
                _say(f"{name}: {outlook.remaining()}; then it ends")
            elif count == 2:
                _say(
                    f"{name} again: {outlook.remaining()};"
                    " a third signal ends at once, and loses what is not saved"
                )
            else:
                os._exit(128 + number)
        os.close(reader)

    def agree(self, save_is_due: bool, at_once: bool) -> Agreed:
        """What all processes know of this call, or (unless `at_once`) of the one before.

        Their answers are added up on the devices and read one call late, like metrics, so nobody
        waits for them.
        """
        if not self.is_working:
            # Again: the runtimes of accelerators install handlers of their own when they start.
            self._arm()
        self.is_working = True
        is_long = outlook.step_s is None or outlook.step_s >= LONG_STEP_S
        if jax.process_count() == 1:
            self.agreed = Agreed(self.handled is not None, save_is_due, is_long)
            return self.agreed
        before = self._read()
        # Where all agreed on a save at the call before, it is due once, not twice: the clock starts
        # anew only when the save begins.
        is_due = save_is_due and not before.save
        # Every process adds its answer at every call, else they would wait for each other.
        self.pending = _sum_of_all(self.handled is not None, is_due, is_long)
        now = Agreed(steps_are_long=before.steps_are_long)
        if at_once:
            now = self._read()
        self.agreed = Agreed(before.stop or now.stop, before.save or now.save, now.steps_are_long)
        return self.agreed

    def _read(self) -> Agreed:
        """The answers that are on their way; where there are none, what was known."""
        if self.pending is None:
            return Agreed(steps_are_long=self.agreed.steps_are_long)
        n_stop, n_save, n_long = np.asarray(self.pending)
        self.pending = None
        return Agreed(bool(n_stop), bool(n_save), bool(n_long))


def _sum_of_all(stop: bool, save_is_due: bool, steps_are_long: bool) -> jax.Array:
    """How many devices say each of the three, the last two those of process 0 alone.

    A collective over all devices: it takes its place between two steps, which are collectives too,
    and costs no meeting of the hosts.
    """
    is_first = processes.is_first()
    answers = np.array([stop, is_first and save_is_due, is_first and steps_are_long], np.int32)
    of_local_devices = np.tile(answers, (jax.local_device_count(), 1))
    layout, total = _adder()
    return total(jax.make_array_from_process_local_data(layout, of_local_devices))


@functools.cache
def _adder() -> tuple[NamedSharding, Callable[[jax.Array], jax.Array]]:
    """The layout of one row a device, and the program that adds the rows up."""
    # In the order of their numbers: jax.make_mesh refuses devices of several nodes or slices.
    mesh = Mesh(np.array(jax.devices()), ("devices",), axis_types=(AxisType.Auto,))
    total = functools.partial(jnp.sum, axis=0)
    # Replicated, so that every process can read the sum.
    on_all = NamedSharding(mesh, P())
    return NamedSharding(mesh, P("devices")), jax.jit(total, out_shardings=on_all)


def _say(text: str) -> None:
    """Writes to stderr itself: Python's has a lock that the main thread may hold."""
    with _ignore_broken_pipe():
        os.write(2, f"\n{text}\n".encode())


class _BrokenPipeProof:
    """stderr that survives a closed reader: Ctrl-C also kills the `tee` behind a run."""

    def __init__(self, stream: Any):
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
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
    """Once the reader is gone, stdout and stderr are sent to nowhere: both have the same reader."""
    try:
        yield
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)
        os.close(nowhere)
