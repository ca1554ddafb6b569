"""A function of packed batches, compiled once for each number of rows that they have."""

from collections.abc import Callable
from typing import Any

from dft_jax import sharding
from dft_jax.data.batches import Packer
from dft_jax.runtime import interrupts, progress


class ProgramsByRows:
    """Compiled programs of one jitted function, by the number of rows of its batch.

    Args:
      jitted: function(*given, batch [A, B, L]).
      given: its arguments before the batch: arrays, or their shapes with layouts.
      packer: of the batches; A, L and the numbers of rows are its own.
      check: called before each compilation, which may take minutes; it may raise.
    """

    def __init__(
        self,
        jitted: Any,
        given: tuple,
        packer: Packer,
        check: Callable[[], Any] = interrupts.check,
    ):
        self._jitted, self._given, self._packer, self._check = jitted, given, packer, check
        self._programs: dict[int, Callable] = {}

    def compile_all(self, name: str = "compile") -> None:
        """Compiles for every number of rows that the packer makes; `name` is shown."""
        counts = self._packer.row_counts
        for count in progress.bar(counts, desc=name, unit="shape", leave=False):
            # `row_counts` are of a whole step, `n_rows` of each of its micro-batches.
            self.of(count // self._packer.accumulation)

    def of(self, n_rows: int) -> Callable:
        """The program of a batch [A, n_rows, L]; compiled now where it was not foreseen."""
        if n_rows not in self._programs:
            self._check()
            shape = (self._packer.accumulation, n_rows, self._packer.row_length)
            batch = sharding.abstract_batch(shape, self._packer.mesh)
            self._programs[n_rows] = self._jitted.lower(*self._given, batch).compile()
        return self._programs[n_rows]
