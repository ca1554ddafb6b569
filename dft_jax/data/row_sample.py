"""A sample of a source's rows, drawn before anything is tokenised: `data.sample_rows` of them.

Drawn are rows that can be trained on, whatever lies between them, so that the sample has as many
as were asked for. Which ones follows from the seed and the rows alone. They stay in the order of
the file: the order of training is drawn later, by `train.seed`.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import grain

from dft_jax.data import formats
from dft_jax.data.sources import locate
from dft_jax.data.sources.rows import BadRow
from dft_jax.runtime import errors, progress
from dft_jax.runtime.options import Config


@dataclasses.dataclass(frozen=True)
class RowSample:
    """Which rows are drawn (numbers from 0), of how many usable ones, and by which seed."""

    numbers: frozenset[int]
    usable: int
    seed: int

    def report(self) -> dict[str, int]:
        """For data_report.json."""
        return {"rows": len(self.numbers), "of_usable_rows": self.usable, "seed": self.seed}


def draw(
    path: str, config: Config, split: str, *, max_rows: int, sample_rows: int, seed: int
) -> RowSample:
    """Reads the source once, and draws `sample_rows` of its usable rows.

    Args:
      path, config, split: as for `open_rows`; what a row means is that of `config.data`.
      max_rows: from how many rows is drawn, from the first on; 0 for all.

    Raises:
      UserError: nothing readable there, or fewer usable rows than are asked for.
    """
    usable = list(_usable(path, config, split, max_rows))
    if sample_rows > len(usable):
        raise errors.UserError(
            f"{path}: data.sample_rows={sample_rows} is more than the {len(usable)} rows there"
            " that can be trained on; lower it, or give 0 for all of them"
        )
    order = grain.MapDataset.range(len(usable)).shuffle(seed=seed)
    numbers = set()
    for place in range(sample_rows):
        drawn = order[place]
        assert drawn is not None, "a shuffled range has no gaps"
        numbers.add(usable[drawn])
    return RowSample(frozenset(numbers), len(usable), seed)


def _usable(path: str, config: Config, split: str, max_rows: int) -> Iterator[int]:
    """The numbers of the rows that can be trained on, as far as can be told before templates."""
    rows = itertools.islice(locate.read_rows(path, config, split), max_rows or None)
    bar = progress.bar(rows, desc=f"draw from {Path(path).name}", unit="row", leave=False)
    for number, row in enumerate(bar):
        try:
            weight = formats.read(row, config).weight
        except BadRow:
            continue
        if weight > 0:
            yield number
