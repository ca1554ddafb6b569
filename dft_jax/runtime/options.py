"""Options of a config: each with its default, its meaning and its legal values, in one place.

A room of the package owns a section, a dict from key to `Option`; config.py puts the sections
together, checks every value by them, and `--help` prints them.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict, FieldReference

from dft_jax.runtime import errors

# A ConfigDict, or a section of one. Which keys it has, and of which type, is known when it is made,
# and checked then; to a type checker every key is something.
Config = Any


@dataclasses.dataclass(frozen=True)
class Legal:
    """Which numbers an option may have: `holds(value)`, and the words for that."""

    holds: Callable[[Any], bool]
    words: str


AT_LEAST_0 = Legal(lambda value: value >= 0, "at least 0")
AT_LEAST_1 = Legal(lambda value: value >= 1, "at least 1")
ABOVE_0 = Legal(lambda value: value > 0, "above 0")
FRACTION = Legal(lambda value: 0 <= value <= 1, "in [0, 1]")
BELOW_1 = Legal(lambda value: 0 <= value < 1, "in [0, 1)")


@dataclasses.dataclass(frozen=True)
class Option:
    """One key. Its type is that of the default; `legal` are names to choose from, or a range.

    A value may also be of a type in `also`: what is right in such a value, its room says.
    """

    default: Any
    help: str
    legal: Legal | tuple[str, ...] | None = None
    also: tuple[type, ...] = ()

    def mistake(self, name: str, value: Any) -> str:
        """What is wrong with a value, in one line with the remedy; empty where nothing is.

        ConfigDict lets True pass for an int, None for anything, and makes tuples of some values
        from a command line.
        """
        if isinstance(value, self.also):
            return ""
        wanted = type(self.default)
        is_right = type(value) is wanted or (wanted is float and type(value) is int)
        if not is_right:
            return f"{name}={value!r} should be {wanted.__name__}, not {type(value).__name__}"
        if wanted is float and not math.isfinite(value):
            return f"{name}={value} should be a finite number"
        if isinstance(self.legal, tuple) and value not in self.legal:
            return unknown(f"{name}={value!r} is unknown", str(value), self.legal)
        if isinstance(self.legal, Legal) and not self.legal.holds(value):
            return f"{name}={value} should be {self.legal.words}"
        return ""

    def describe(self, name: str) -> str:
        """The lines of --help: name, default and legal values, then what it means."""
        legal = ""
        if isinstance(self.legal, tuple):
            legal = f", one of {', '.join(self.legal)}"
        elif isinstance(self.legal, Legal):
            legal = f", {self.legal.words}"
        return f"  --{name}={self.default!r}{legal}\n      {self.help}"


Section = dict[str, Option]


def defaults(section: Section) -> dict[str, Any]:
    """Key -> default, as a config takes it."""
    values = {}
    for key, option in section.items():
        values[key] = option.default
        if option.also:
            # A ConfigDict holds a key to the type of its first value. One of any type takes text or
            # a list, from a command line as well, where a list is written as in Python.
            values[key] = FieldReference(option.default, field_type=object)
    return values


def flatten(config: Config, prefix: str = "") -> dict[str, Any]:
    """{'train.seed': 0, …}"""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, ConfigDict):
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """`what (did you mean 'X'?); known: X, Y`: about a name that is none of the known ones."""
    return f"{what}{errors.did_you_mean(name, known)}; known: {', '.join(known)}"
