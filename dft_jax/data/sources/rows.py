"""A row of a dataset, whatever it comes from; what a row means is in data/formats.py."""

import dataclasses
from collections.abc import Iterator
from typing import Any


class BadRow(ValueError):
    """A row that cannot be trained on; the text says why and what to do."""


class NothingToTrain(BadRow):
    """A row that is as it should be, and says itself that it has no answer."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One row and its origin: `train.jsonl:12`, or `numina[12]` for tables without lines."""

    origin: str
    content: dict[str, Any] | str  # text says what is wrong with the row

    @property
    def value(self) -> dict[str, Any]:
        """The columns of the row; BadRow where it is malformed."""
        if isinstance(self.content, str):
            raise BadRow(self.content)
        return self.content


@dataclasses.dataclass(frozen=True)
class Source:
    """Rows in their order, and the hub's commit that they are from.

    The commit is None for files that are no snapshot of the hub.
    """

    rows: Iterator[Row]
    commit: str | None = None
