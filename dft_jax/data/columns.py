"""The columns of a row: what is in them, whether it says anything, and which were asked for."""

from typing import Any

from dft_jax.data.sources.rows import BadRow, require_text

# Keys of a message that may say how, or whether, it is trained, with the value under which they say
# nothing. Nothing is also what null, "", [] and {} say under any key.
_SAYS_NOTHING = {
    "weight": 1,
    "loss_weight": 1,
    "loss": True,
    "train": True,
    "trainable": True,
    "end_turn": True,
    "prefix": False,
    "recipient": "all",
}


class Columns(dict):
    """A row that notes which of its columns a row format asks for."""

    def __init__(self, row: dict[str, Any]):
        super().__init__(row)
        self.asked_for: set[str] = set()

    def __getitem__(self, column: str) -> Any:
        self.asked_for.add(column)
        return super().__getitem__(column)

    def get(self, column: str, default: Any = None) -> Any:
        self.asked_for.add(column)
        return super().get(column, default)

    def filled(self) -> list[str]:
        """The columns that say something."""
        return [column for column, value in self.items() if not says_nothing(column, value)]


def says_nothing(key: str, value: Any) -> bool:
    """Whether `value` under `key` is what an absent key is."""
    if value is None:
        return True
    # A table of text may hold "[]" for a list without elements.
    if isinstance(value, (str, list, dict)) and value in ("", "[]", [], {}):
        return True
    return key in _SAYS_NOTHING and value == _SAYS_NOTHING[key]


def text_in(row: dict, field: str, empty_is_fine: bool = False) -> str:
    """The text in a field; BadRow where it is none."""
    text = value_in(row, field)
    if not isinstance(text, str):
        remedy = "put it in quotes"
        if isinstance(text, list):
            remedy = "set data.rows for conversations"
        raise BadRow(f"field {field!r} should be text, not {type(text).__name__}; {remedy}")
    require_text(text, f"field {field!r}")
    if not text.strip() and not empty_is_fine:
        raise BadRow(f"field {field!r} is empty; remove the row or set data.bad_rows='drop'")
    return text


def require(row: dict, field: str) -> None:
    """BadRow where a field is missing."""
    if field not in row:
        has = ", ".join(repr(name) for name in sorted(row)) or "no fields"
        raise BadRow(
            f"field {field!r} is missing (the row has {has}); set data.rows or the field names"
        )


def value_in(row: dict, field: str) -> Any:
    """What is in a field; BadRow where it is missing or null."""
    require(row, field)
    if row[field] is None:
        raise BadRow(f"field {field!r} is null; remove the row or set data.bad_rows='drop'")
    return row[field]
