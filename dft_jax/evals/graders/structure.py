r"""What an answer is made of, read from its spelled text: a list, a set, a pair, a union, a name.

math-verify makes sets of lists, so that 1,1,2 is 1,2, and reads (3,1) and [3,1] as pairs but (1,3)
as an interval. Here the brackets are kept as they are written, and the order of what is in them.
"""

import dataclasses
import re

# Brackets, commands, what is escaped, separators and their words; else one character.
_TOKEN = re.compile(
    r"\\[{}]|\\[A-Za-z]+|\\.|[()\[\]{},;]|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|.", re.DOTALL
)
# \text{ and } between two answers.
_TEXT_AND = re.compile(r"\\(?:text|mathrm|mbox|textrm)\s*\{\s*,?\s*(?:and|or)\s*,?\s*\}")
# A variable, with an index or primes.
_NAME = r"(?:[A-Za-z]|\\[A-Za-z]+)'*(?:_\s*(?:\{[^{}]*\}|\w))?"
_NAMES = rf"{_NAME}(?:\s*,\s*{_NAME})"
# What is before = or \in: x, f(x, y) or (x, y).
_LEFT = re.compile(
    rf"\s*({_NAME}(?:\s*\(\s*{_NAMES}*\s*\))?|\(\s*{_NAMES}+\s*\))"
    r"\s*(?:=|\\in(?![A-Za-z]))\s*(?=\S)"
)
# Commands that are values or functions, and no variables.
_COMMANDS = {
    "\\pi",
    "\\infty",
    "\\frac",
    "\\sqrt",
    "\\sin",
    "\\cos",
    "\\tan",
    "\\ln",
    "\\log",
    "\\exp",
    "\\pm",
    "\\mp",
}


@dataclasses.dataclass(frozen=True)
class Structure:
    """`kind` is list, set, brackets, union or leaf; `parts` are the texts of what it is made of.

    `left` is what stands before the first = or \\in (a variable, a function or a tuple of them), ""
    for nothing; `brackets` are the opening and the closing one.
    """

    kind: str
    parts: tuple[str, ...]
    left: str = ""
    brackets: str = ""


def read(text: str) -> Structure:
    """The structure of a spelled answer."""
    text = _without_braces(_TEXT_AND.sub(",", text))
    parts = split(text, separators=(";",))  # x = 1, y = 2; x = 3, y = 4 is two of two
    if len(parts) == 1:
        parts = split(text)
    if len(parts) > 1:
        return _list(parts)
    match = _LEFT.match(text)
    if match and match[1] not in _COMMANDS and not _LEFT.match(text, match.end()):
        inside = read(text[match.end() :])
        if inside.kind != "leaf":
            return dataclasses.replace(inside, left=left_of(text))
    pieces = split(text, separators=("\\cup",))
    if len(pieces) > 1:
        return Structure("union", pieces)
    return _in_brackets(text) or _plus_or_minus(text)


def _in_brackets(text: str) -> Structure | None:
    """A set, a tuple or an interval, or what is in brackets that change nothing."""
    around = _outer_brackets(text)
    if around == "\\{\\}":
        return _set(text[2:-2])
    inside = text[1:-1]
    if not around or not inside.strip():
        return None
    parts = split(inside)
    if len(parts) > 1:
        return Structure("brackets", parts, brackets=around)
    if around == "()":
        return read(inside)
    return None


def _set(inside: str) -> Structure | None:
    """A set that is listed, and no rule such as {x | x > 0}."""
    if not inside.strip() or re.search(r"\\mid|\||:", inside):
        return None
    return Structure("set", _expanded(split(inside)))


def left_of(text: str) -> str:
    r"""What stands before the first = or \in: a variable, a function or a tuple of them."""
    match = _LEFT.match(text)
    if match is None:
        return ""
    return re.sub(r"\s", "", match[1])


def _without_left(text: str) -> str:
    match = _LEFT.match(text)
    if match is None:
        return text
    return text[match.end() :]


def _list(parts: tuple[str, ...]) -> Structure:
    """The list of the parts.

    What stands before each (x = 1, x = 2) or before the first (x = 1, 2) belongs to all.
    """
    lefts = [left_of(part) for part in parts]
    is_before_each = len(set(lefts)) == 1
    is_before_first = not any("=" in part for part in parts[1:])
    if not lefts[0] or lefts[0] in _COMMANDS or not (is_before_each or is_before_first):
        return Structure("list", _expanded(parts))
    rest = tuple(_without_left(part) for part in parts)
    return Structure("list", _expanded(rest), left=lefts[0])


def _expanded(parts: tuple[str, ...]) -> tuple[str, ...]:
    r"""Elements, with \pm 2 as the two that it is."""
    found: list[str] = []
    for part in parts:
        # One part for anything but a sign.
        found.extend(_plus_or_minus(part).parts)
    return tuple(found)


def _plus_or_minus(text: str) -> Structure:
    r"""a \pm b as the list a + b, a - b; several signs go together, and are left to the parser."""
    signs = re.findall(r"\\(?:pm|mp)(?![A-Za-z])", text)
    if len(signs) != 1 or len(split(text)) > 1:
        return Structure("leaf", (text,))
    before, after = text.split(signs[0])
    plus = ""
    if before.strip() and before.strip()[-1] not in "=({":
        plus = "+"
    match = _LEFT.match(text)
    if match is not None:
        before = before[match.end() :]
    return Structure("list", (f"{before}{plus}{after}", f"{before}-{after}"), left=left_of(text))


def split(text: str, separators: tuple[str, ...] = (",", ";", "and", "or")) -> tuple[str, ...]:
    """The parts of a text between separators that are in no brackets; the text, without any."""
    parts = []
    begin = 0
    depth = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in ("(", "[", "{", "\\{"):
            depth += 1
        elif token in (")", "]", "}", "\\}"):
            depth -= 1
        elif depth <= 0 and token in separators:
            parts.append(text[begin : match.start()].strip())
            begin = match.end()
    parts.append(text[begin:].strip())
    # "1, 2, and 3" has an empty part.
    return tuple(filter(None, parts)) or (text,)


def _without_braces(text: str) -> str:
    text = text.strip()
    while text.startswith("{") and text.endswith("}") and not text.endswith("\\}"):
        if not _are_a_pair(text):
            break
        text = text[1:-1].strip()
    return text


def _are_a_pair(text: str) -> bool:
    """Whether the bracket at the beginning is closed by the one at the end."""
    depth = 0
    for match in _TOKEN.finditer(text):
        if match[0] in ("(", "[", "{", "\\{"):
            depth += 1
        elif match[0] in (")", "]", "}", "\\}"):
            depth -= 1
        if depth == 0:
            return match.end() == len(text)
    return False


def _outer_brackets(text: str) -> str:
    """The brackets around the whole text, "" for none; of an interval they differ."""
    for opening in ("\\{", "(", "["):
        for closing in ("\\}", ")", "]"):
            # A set closes as a set; an interval may begin with ( and end with ].
            if (opening == "\\{") != (closing == "\\}"):
                continue
            is_around = text.startswith(opening) and text.endswith(closing)
            if is_around and _are_a_pair(text):
                return opening + closing
    return ""
