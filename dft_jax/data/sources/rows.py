"""A row of a dataset, whatever it comes from; what a row means is in data/formats.py."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

_HALF_PAIR = re.compile("[\ud800-\udfff]")


class BadRow(ValueError):
    """A row that cannot be trained on; the text says why and what to do."""


class NothingToTrain(BadRow):
    """A row that is as it should be, and says itself that it has no answer."""


def has_half_pair(text: str) -> bool:
    """Whether half a surrogate pair is in it, which no tokenizer can encode.

    JSON can hold it as an escape, and a command line has it for bytes that are not UTF-8.
    """
    return _HALF_PAIR.search(text) is not None


def require_text(text: str, what: str) -> None:
    """BadRow where `what`, such as a field, holds half a surrogate pair."""
    if has_half_pair(text):
        raise BadRow(
            f"{what} holds half a surrogate pair, which is not text; re-save the row as UTF-8"
        )


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
