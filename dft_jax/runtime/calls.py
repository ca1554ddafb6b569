"""Settings that are written as a call: `dft`, `power(alpha=0.5)`, `world(split=train, n=100)`."""

import dataclasses
import re
from collections.abc import Iterable

from dft_jax.runtime import errors

_CALL = re.compile(r"\s*(\w+)\s*(?:\((.*)\))?\s*")


@dataclasses.dataclass(frozen=True)
class Call:
    """`name(key=value, …)` taken apart; values are text, without the white space around them."""

    name: str
    arguments: dict[str, str]

    def require_known(self, setting: str, known: Iterable[str]) -> None:
        """Refuses arguments that are not among `known`.

        Args:
          setting: what the user calls the setting, and its value, for the message.

        Raises:
          UserError: an unknown argument; the message lists the known ones.
        """
        names = list(known)
        for key in self.arguments:
            if key not in names:
                hint = errors.did_you_mean(key, names)
                listed = ", ".join(names) or "none"
                raise errors.UserError(
                    f"{setting}: {self.name} has no parameter {key!r}{hint}; known: {listed}"
                )


def parse(text: str) -> Call | None:
    """Takes `name` or `name(key=value, …)` apart; None for text that is neither.

    Values hold no comma. Of a key that is there twice the last value counts.

        parse(" power( alpha = 0.5 )")  ->  Call("power", {"alpha": "0.5"})
    """
    match = _CALL.fullmatch(text)
    if match is None:
        return None
    arguments = {}
    for part in (match[2] or "").split(","):
        if part.strip():
            key, _, value = part.partition("=")
            arguments[key.strip()] = value.strip()
    return Call(match[1], arguments)
