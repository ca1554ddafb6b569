"""How long phases take here, and whether the next one fits in the time that is left."""

import contextlib
import time
from collections.abc import Iterator, Mapping

import dft_jax
from dft_jax.runtime import errors, interrupts

# Of what was predicted: other work on the machine may begin meanwhile.
_MARGIN = 1.15


class Clock:
    """Speeds by kind of work, and a deadline `minutes` after this process began (0: none).

    The newest speed is the one that counts: a machine may be shared with others.
    """

    def __init__(self, minutes: float = 0.0):
        self.minutes = minutes
        self.deadline = float("inf")
        if minutes:
            # Since the import: reading the model took a part of the minutes too.
            self.deadline = dft_jax.IMPORTED_AT + 60 * minutes
        self.seconds_a_unit: dict[str, float] = {}

    @property
    def left_s(self) -> float:
        """Seconds to the deadline, below 0 after it."""
        return self.deadline - time.monotonic()

    def learn(self, kind: str, seconds: float, work: float) -> None:
        """That `work` units of a kind took so long."""
        if work > 0:
            self.seconds_a_unit[kind] = seconds / work

    @contextlib.contextmanager
    def timed(self, kind: str, work: float = 1) -> Iterator[None]:
        """Learns from what is done inside."""
        begin = time.monotonic()
        yield
        self.learn(kind, time.monotonic() - begin, work)

    def predicted_s(self, work: Mapping[str, float]) -> float:
        """Seconds for so many units of each kind; kinds that were never done count as none."""
        seconds = 0.0
        for kind, units in work.items():
            seconds += units * self.seconds_a_unit.get(kind, 0.0)
        return seconds

    def require(self, what: str, work: Mapping[str, float]) -> None:
        """Before a phase.

        Raises:
          Stopped: it would not be finished in time; or a signal came.
        """
        interrupts.check()
        needed = self.predicted_s(work)
        if _MARGIN * needed > self.left_s:
            left = max(self.left_s, 0) / 60
            takes = f"{what} takes about {needed / 60:.1f} minutes"
            print(f"{takes}, {left:.1f} are left; not begun", flush=True)
            raise errors.Stopped(f"--minutes={self.minutes:g}")

    def check(self) -> None:
        """Within a phase.

        Raises:
          Stopped: the time is over, or a signal came.
        """
        interrupts.check()
        if self.left_s <= 0:
            raise errors.Stopped(f"--minutes={self.minutes:g}")
