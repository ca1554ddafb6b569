"""The ways to carry out a step: its mesh, what is recomputed, and how its rows are shared out."""

import dataclasses
from collections.abc import Iterator

from dft_jax import sharding
from dft_jax.sharding import Sizes, SomeSizes


@dataclasses.dataclass(frozen=True)
class StepLayout:
    """A way to carry out the same step: `rows` are those of one device in one micro-batch."""

    mesh: SomeSizes
    remat: str
    rows: int
    accumulation: int

    @property
    def devices(self) -> dict[str, int]:
        """How many there are along each axis of the mesh."""
        return Sizes(*self.mesh)._asdict()

    def flags(self) -> str:
        """As on a command line; of `sequence` and `expert` where these cut something."""
        along = []
        for axis, size in self.devices.items():
            if axis not in ("sequence", "expert") or size > 1:
                along.append(f"--config.mesh.{axis}={size}")
        along.append(f"--config.model.remat={self.remat}")
        return " ".join([*along, f"--config.train.accumulation={self.accumulation}"])


def layouts(mesh: SomeSizes, remat: str, step_rows: int, examples: int) -> Iterator[StepLayout]:
    """1, 2, 4, … rows per device and micro-batch, until one micro-batch holds the whole step.

    Training refuses micro-batches that have room for more rows than a step has `examples`
    (training/options.py), so these are left out: 12 examples on 8 devices are no 2 × 8 rows.
    """
    shards = sharding.batch_shards(sharding.abstract_mesh(mesh))
    rows = 1
    while True:
        accumulation = -(-step_rows // (rows * shards))
        if accumulation * shards <= examples:
            yield StepLayout(mesh, remat, rows, accumulation)
        if accumulation == 1:
            return
        rows *= 2


def part(size: int, ways: int) -> int:
    """The size of a part; as in sharding.spec, what does not divide evenly stays whole."""
    if size % ways:
        return size
    return size // ways
