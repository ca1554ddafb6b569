"""A profile of some of a run's steps."""

from pathlib import Path
from typing import Any

import jax

from dft_jax.training.options import parse_steps


class Trace:
    """A profile of some steps (`first,last`, both included; empty for none), for TensorBoard,
    Perfetto or XProf.
    """

    def __init__(self, steps: str, folder: Path):
        self.first, self.last = parse_steps(steps) if steps else (0, 0)
        self.folder, self.is_on = folder, False

    def begin(self, step: int) -> None:
        # a run may be taken up again in the middle
        if self.first <= step <= self.last and not self.is_on:
            jax.profiler.start_trace(str(self.folder))
            self.is_on = True

    def end(self, step: int, result: Any) -> None:
        """`result`: arrays that the step makes."""
        if self.is_on and step == self.last:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        if self.is_on:
            jax.profiler.stop_trace()
        self.is_on = False
