r"""What an answer is made of, read from its spelled text: a list, a set, a pair, a union, what
stands before an =.

math-verify makes sets of lists, so that 1,1,2 is 1,2, and reads (3,1) and [3,1] as pairs but (1,3)
as an interval. Here the brackets are kept as they are written, and the order of what is in them.
"""

import dataclasses
import re

_TOKEN = re.compile(
    r"\\[{}]|\\[A-Za-z]+|\\.|[()\[\]{},;]|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|.", re.DOTALL
)
_TEXT_AND = re.compile(r"\\(?:text|mathrm|mbox|textrm)\s*\{\s*,?\s*(?:and|or)\s*,?\s*\}")
_NAME = r"(?:[A-Za-z]|\\[A-Za-z]+)'?(?:_\s*(?:\{[^{}]*\}|\w))?"
_LEFT = re.compile(
    rf"\s*({_NAME}(?:\s*\(\s*{_NAME}(?:\s*,\s*{_NAME})*\s*\))?|\(\s*{_NAME}(?:\s*,\s*{_NAME})+\s*\))"
    r"\s*(?:=|\\in(?![A-Za-z]))\s*(?=\S)"
)
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
    """A set, a tuple or an interval; what is in brackets that change nothing; None for anything
    else.
    """
    around = _outer_brackets(text)
    inside = text[2:-2] if around == "\\{\\}" else text[1:-1]
    if not around or not inside.strip():
        return None
    parts = split(inside)
    if around == "\\{\\}":
        is_rule = re.search(r"\\mid|\||:", inside) is not None  # {x | x > 0}
        return None if is_rule else Structure("set", _expanded(parts))
    if len(parts) > 1:
        return Structure("brackets", parts, brackets=around)
    return read(inside) if around == "()" else None


def left_of(text: str) -> str:
    r"""What stands before the first = or \in, if that is a variable, a function or a tuple of them."""
    match = _LEFT.match(text)
    return re.sub(r"\s", "", match[1]) if match else ""


def _list(parts: tuple[str, ...]) -> Structure:
    """The list of the parts; what stands before each (x = 1, x = 2) or before the first (x = 1, 2)
    belongs to all.
    """
    matches = [_LEFT.match(part) for part in parts]
    lefts = [left_of(part) for part in parts]
    is_of_all = len(set(lefts)) == 1 or lefts[0] and not any("=" in part for part in parts[1:])
    if not lefts[0] or not is_of_all or lefts[0] in _COMMANDS:
        return Structure("list", _expanded(parts))
    rest = [
        part[match.end() :] if match else part for part, match in zip(parts, matches, strict=True)
    ]
    return Structure("list", _expanded(rest), left=lefts[0])


def _expanded(parts) -> tuple[str, ...]:
    r"""Elements, with \pm 2 as the two that it is."""
    found = []
    for part in parts:
        inside = _plus_or_minus(part)
        found += inside.parts if inside.kind == "list" else [part]
    return tuple(found)


def _plus_or_minus(text: str) -> Structure:
    r"""a \pm b as the list a + b, a - b; several signs go together, so they are left to the parser."""
    signs = re.findall(r"\\(?:pm|mp)(?![A-Za-z])", text)
    if len(signs) != 1 or len(split(text)) > 1:
        return Structure("leaf", (text,))
    before, after = text.split(signs[0])
    plus = "+" if before.strip() and before.strip()[-1] not in "=({" else ""
    match, left = _LEFT.match(text), left_of(text)
    before = before[match.end() :] if match else before
    return Structure("list", (f"{before}{plus}{after}", f"{before}-{after}"), left=left)


def split(text: str, separators: tuple[str, ...] = (",", ";", "and", "or")) -> tuple[str, ...]:
    """The parts of a text between separators that are in no brackets; the text alone where there
    are none.
    """
    parts, begin, depth = [], 0, 0
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
    parts = [part for part in parts if part]  # 1, 2, and 3 has an empty one
    return tuple(parts) or (text,)


def _without_braces(text: str) -> str:
    text = text.strip()
    while (
        text.startswith("{")
        and text.endswith("}")
        and not text.endswith("\\}")
        and _outer(text, "{", "}")
    ):
        text = text[1:-1].strip()
    return text


def _outer(text: str, opening: str, closing: str) -> bool:
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
            is_set = (opening == "\\{") == (closing == "\\}")
            if (
                is_set
                and text.startswith(opening)
                and text.endswith(closing)
                and _outer(text, opening, closing)
            ):
                return opening + closing
    return ""
