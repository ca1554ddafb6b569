"""A function of packed batches, compiled once for each number of rows that they have."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

from dft_jax.data.batches import Packer
from dft_jax.models.model import Model
from dft_jax.runtime import interrupts, processes, progress
from dft_jax.training import metrics
from dft_jax.training.throughput import flops_per_token
from dft_jax.types import MORE_SEGMENTS, Batch

# Guesses that decide how many shapes a run compiles: a wrong one costs seconds, nothing else.
# What two cores reach in a step of float32, and the share of an accelerator's peak.
_CPU_FLOPS = 1.5e11
_SHARE_OF_PEAK = 0.4
_UNKNOWN_PEAK = 2e14
_COMPILE_S = {"cpu": 10.0}
_COMPILE_ON_ACCELERATORS_S = 60.0


def training_rate(devices: Sequence[Any]) -> float:
    """FLOP/s that a training step reaches on these devices together, about."""
    if devices[0].platform == "cpu":
        # Simulated devices share the cores of their host.
        return _CPU_FLOPS * len({device.process_index for device in devices})
    peak = metrics.peak_flops(devices[0].device_kind) or _UNKNOWN_PEAK
    return _SHARE_OF_PEAK * peak * len(devices)


def compilation_rows(model: Model, row_length: int) -> float:
    """Rows of training that take about as long as compiling the step once more.

    Made of the mesh and the model's size alone, so that it is the same on all hosts and whenever
    a run resumes there.
    """
    devices = model.mesh.devices.ravel().tolist()
    row_s = row_length * flops_per_token(model, row_length) / training_rate(devices)
    return _COMPILE_S.get(devices[0].platform, _COMPILE_ON_ACCELERATORS_S) / row_s


class ProgramsByRows:
    """Compiled programs of one jitted function, by the number of rows of its batch.

    Args:
      jitted: function(*given, batch [A, B, L]).
      given: its arguments before the batch: arrays, or their shapes with layouts.
      packer: of the batches; A, L, the numbers of rows and of their segments are its own.
      backend: of the model's attention (models/attention); of "cudnn" the program also depends on
        the number of segments.
      check: called before each compilation, which may take minutes; it may raise.
    """

    def __init__(
        self,
        jitted: Any,
        given: tuple,
        packer: Packer,
        backend: str,
        check: Callable[[], Any] = interrupts.check,
    ):
        self._jitted, self._given, self._packer, self._check = jitted, given, packer, check
        self._backend = backend
        # By rows, patches of a row's images, and most segments of a row.
        self._programs: dict[tuple[int, int, int | None], Callable] = {}
        self._has_warned = False

    def compile_all(self, name: str = "compile") -> None:
        """Compiles for every number of rows that the packer makes; `name` is shown."""
        shapes = self._packer.shapes
        for count, n_patches in progress.bar(shapes, desc=name, unit="shape", leave=False):
            # `count` is of a whole step, `n_rows` of each of its micro-batches.
            n_rows = count // self._packer.accumulation
            self._of(n_rows, n_patches, self._packer.most_segments)

    def run(self, given: tuple, batch: Batch) -> Any:
        """function(*given, batch); compiled now where the batch's shape was not foreseen."""
        if batch.most_segments == MORE_SEGMENTS:
            if self._backend == "cudnn":
                self._warn()
            else:
                # The program is the same.
                batch = dataclasses.replace(batch, most_segments=self._packer.most_segments)
        n_patches = self._packer.n_patches(batch)
        program = self._of(batch.tokens_BL.shape[1], n_patches, batch.most_segments)
        return program(*given, batch)

    def _of(self, n_rows: int, n_patches: int, most_segments: int | None) -> Callable:
        """The program of a batch [A, n_rows, L], each row with so many patches of images."""
        shape = n_rows, n_patches, most_segments
        if shape not in self._programs:
            self._check()
            batch = self._packer.abstract_batch(n_rows, n_patches, most_segments)
            self._programs[shape] = self._jitted.lower(*self._given, batch).compile()
        return self._programs[shape]

    def _warn(self) -> None:
        """Says once that attention is not computed as was chosen."""
        if not self._has_warned and processes.is_first():
            most = self._packer.most_segments
            print(
                f"attention: blocked in batches with a row of more than {most} segments, which"
                f" {self._backend} is compiled for",
                file=sys.stderr,
            )
        self._has_warned = True
