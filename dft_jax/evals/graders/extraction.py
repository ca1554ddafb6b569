r"""Finds the answer in a completion, by what marks it: a box, "final answer is", "####", "Answer:".

Everything here is linear in the text and only looks at it: a completion may be megabytes long, and
hostile.
"""

import dataclasses
import re
from collections.abc import Sequence

# An answer stands at the end; a box opened before this is longer than any answer anyway.
TAIL_CHARS = 200_000
# No reference of the seven benchmarks has 400; what is longer is a runaway, not an answer.
ANSWER_CHARS = 2_000
# Brackets inside brackets: the parser recurses once per level.
NESTING = 40
# A box that is opened this near the end of a truncated completion was cut inside its answer.
CUT_CHARS = 200
# Between two boxes of one answer there is at most " and $x = ".
_JOIN_CHARS = 40

# What may mark an answer, in the order in which they are looked for; "is" only on request, since
# texts that reason write "the answer is" of every step.
MARKERS = ("box", "final", "hashes", "colon", "is")
DEFAULT_MARKERS = ("box", "final", "hashes", "colon")

# Boxes and braces, and what is escaped, so that \{ is no brace.
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
# TeX allows \boxed 5.
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)[ \t]+([^\s{}$\\]+)")
# Between two boxes of one answer: \boxed{3} and $x = \boxed{5}$.
_JOINS = re.compile(
    r"[\s$.]*(?:,|;|,?\s*\b(?:and|or)\b|,?\s*\\text\s*\{\s*(?:and|or)\s*\})"
    r"[\s$]*(?:[A-Za-z]\w?\s*=\s*)?[\s$]*"
)
_FINAL = re.compile(r"final answer is", re.IGNORECASE)
_IS = re.compile(r"\banswer is\b", re.IGNORECASE)
_COLON = re.compile(
    r"^[ \t>#*_]{0,9}(?:the[ \t]+)?(?:final[ \t]+)?answer[ \t]{0,3}\*{0,2}[ \t]{0,3}:",
    re.IGNORECASE | re.MULTILINE,
)
_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_AFTER_HASHES = re.compile(
    r"^[\s*_]*(?:(?:the[ \t]+)?(?:final[ \t]+)?answer(?:[ \t]+is|[ \t]*\*{0,2}[ \t]*:)[\s:*]*)?",
    re.IGNORECASE,
)
# Headings after "####": 2) Second step, 1. First, 3 Third.
_HEADING = re.compile(r"\d+(?:\)|\.(?=\s+\S)|\s+[A-Z][a-z])")
# The - of 3-5 and of 2024-01-05 is no sign.
_NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
# Written in the one way there is, so that equal numbers are equal texts.
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,14}")
# What stands after "####" in an answer; "#### Step 3" is a heading.
_STARTS_AN_ANSWER = re.compile(r"(?:[A-Za-z]\s*=\s*)?[-+−]?\s*\\?[$€£]?\s*[-+−]?[\d.(\[\\{]")
_SPECIAL_TOKEN = re.compile(r"(?:</?s>|<\|\w{1,40}\|>|<(?:eos|bos|pad|end_of_turn)>)")
# The explanation that follows an answer: 5, which is the number of …
_ASIDE = re.compile(
    r"(?:,\s*|\s+)(?:which|since|because)\s.*$|\s\((?:which|since|because|as|i\.e\.)\s.*$",
    re.DOTALL,
)
_ENCLOSED = ((r"\(", r"\)"), (r"\[", r"\]"), ("$$", "$$"), ("$", "$"))


def extract(
    completion: str,
    *,
    last_number: bool = False,
    markers: Sequence[str] = DEFAULT_MARKERS,
    truncated: bool = False,
) -> str | None:
    r"""The text of the final answer, or None where the completion gives none.

    Args:
      completion: what the model wrote.
      last_number: take the last number in the text when nothing marks an answer. The paper's grader
        does; it makes answers of texts that were cut before theirs, so it is off by default.
      markers: those of MARKERS that count; the first of that order that the text has decides.
      truncated: whether the completion was cut at its limit of tokens. A box that is opened near
        the end and never closed then was to be the answer: None, never an earlier box. Else the
        last whole box counts.
    """
    text = completion[-TAIL_CHARS:]
    # A box decides, even where what is in it is refused.
    if "box" in markers and _has_box(text):
        return _accept(_boxed(text, truncated))
    answer = None
    for marker, find in _FIND_AFTER.items():
        if answer is None and marker in markers:
            answer = find(text)
    if answer is None and last_number:
        answer = find_last_number(text)
    return _accept(answer)


def extract_after(
    completion: str, marker: re.Pattern[str], *, truncated: bool = False
) -> str | None:
    """The text in the last box; in a text without a box what stands behind the last `marker`.

    Args:
      completion, truncated: as for `extract`.
      marker: matches what comes before an answer, in time linear in the text.
    """
    text = completion[-TAIL_CHARS:]
    if _has_box(text):
        return _accept(_boxed(text, truncated))
    return _accept(_after_last(marker, text))


def _has_box(text: str) -> bool:
    return _BOX.search(text) is not None or _BARE_BOX.search(text) is not None


def _boxed(text: str, truncated: bool) -> str | None:
    """What the last box of a text that has one holds."""
    if _BOX.search(text):
        return last_boxed(text, truncated=truncated)
    return _BARE_BOX.findall(text)[-1]


def last_boxed(text: str, *, truncated: bool = False) -> str | None:
    r"""What stands in the last outermost box that is not empty; None if there is none.

    Boxes inside it are unwrapped. Boxes before it that only "and", "or" or a comma parts from it
    make a list with it: \boxed{3} and \boxed{5} is 3, 5. A truncated text that ends in an open box
    has None.
    """
    boxes, open_begins = _boxes(text)
    if truncated and open_begins:
        last_open = open_begins[-1]
        is_last = not boxes or last_open > boxes[-1].begin
        if is_last and last_open >= len(text) - CUT_CHARS:
            return None
    while boxes and not text[boxes[-1].content_begin : boxes[-1].end].strip():
        boxes.pop()
    if not boxes:
        return None
    contents = [_content(text, boxes[-1])]
    for earlier, later in zip(boxes[-2::-1], boxes[:0:-1], strict=True):
        between = text[earlier.end + 1 : min(later.begin, earlier.end + _JOIN_CHARS)]
        is_far = later.begin - earlier.end > _JOIN_CHARS
        content = _content(text, earlier)
        if is_far or not _JOINS.fullmatch(between) or not content:
            break
        contents.append(content)
    known = [content for content in contents if content is not None]
    if len(known) < len(contents):
        return None
    different = list(dict.fromkeys(reversed(known)))
    return ", ".join(different)


@dataclasses.dataclass(frozen=True)
class _Box:
    """Places in a text: where the command begins, where its content does, and where that ends."""

    begin: int
    content_begin: int
    end: int


def _boxes(text: str) -> tuple[list[_Box], list[int]]:
    """The outermost boxes in their order, and where those begin that are never closed."""
    boxes: list[_Box] = []
    opened: list[re.Match] = []  # boxes and plain braces
    for match in _BRACES.finditer(text):
        token = match[0]
        if token == "{" or _BOX.fullmatch(token):
            opened.append(match)
        elif token == "}" and opened:
            opening = opened.pop()
            if opening[0] == "{":
                continue
            # Boxes inside this one are no boxes of their own.
            while boxes and boxes[-1].begin > opening.start():
                boxes.pop()
            boxes.append(_Box(opening.start(), opening.end(), match.start()))
    return boxes, [opening.start() for opening in opened if opening[0] != "{"]


def _content(text: str, box: _Box) -> str | None:
    # Unwrapping is quadratic in the nesting.
    if box.end - box.content_begin > 4 * ANSWER_CHARS:
        return None
    return _unbox(text[box.content_begin : box.end])


def _unbox(content: str) -> str:
    """Removes the command of boxes inside a box; their braces stay, which changes no meaning."""
    return _strip_braces(_BOX.sub("{", content))


def _strip_braces(text: str) -> str:
    text = text.strip()
    while len(text) >= 2 and text[0] == "{" and matching_brace(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def matching_brace(text: str, start: int) -> int:
    """Where the brace opened at `start` is closed, or -1."""
    depth = 0
    for match in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.start()
    return -1


def _after_final(text: str) -> str | None:
    return _after_last(_FINAL, text)


def _after_is(text: str) -> str | None:
    return _after_last(_IS, text)


def _after_colon(text: str) -> str | None:
    return _after_last(_COLON, text)


def _after_last(marker: re.Pattern, text: str) -> str | None:
    """The answer after the last of the markers, in the same line or as the next formula."""
    end_of_marker = -1
    for match in marker.finditer(text):
        end_of_marker = match.end()
    if end_of_marker < 0:
        return None
    rest = text[end_of_marker : end_of_marker + 2 * ANSWER_CHARS].lstrip(" \t\n:*`")
    rest = _SPECIAL_TOKEN.sub("", rest)
    for opening, closing in _ENCLOSED:
        end = _closing(rest, closing, len(opening))
        if rest.startswith(opening) and end > 0:
            inside = rest[len(opening) : end]
            after = rest[end + len(closing) :].split("\n", 1)[0].split(". ", 1)[0].strip(" .*")
            # "$5$ and $6$" is one answer of two parts; "$5$ because ..." is not.
            if re.match(r"(?:,|and\b|or\b)\s*[$\\]", after):
                return rest.split("\n", 1)[0]
            return inside
    # "I hope it is correct" is how models that were trained on MATH's solutions end.
    line = re.split(r"\.?\s+I hope", rest.split("\n", 1)[0])[0]
    line = _ASIDE.sub("", line).strip("* `")
    if line.endswith("`."):
        return line.removesuffix(".").rstrip("* `")
    return line or None


def _closing(text: str, closing: str, start: int) -> int:
    r"""Where the formula is closed, or -1: the $ of \$42 closes none."""
    end = text.find(closing, start)
    while end > 0 and closing[0] == "$" and text[end - 1] == "\\":
        end = text.find(closing, end + 1)
    return end


def _after_hashes(text: str) -> str | None:
    """The last line after "####" that looks like an answer and not like a heading."""
    found = None
    for line in _HASHES.findall(text):
        line = _SPECIAL_TOKEN.sub("", line[: 2 * ANSWER_CHARS])
        line = _AFTER_HASHES.sub("", line, count=1).strip("* \t\r`")
        if _STARTS_AN_ANSWER.match(line) and not _HEADING.match(line):
            found = _ASIDE.sub("", line)
    return found


# Who looks for an answer after each marker but the box, in the order of MARKERS.
_FIND_AFTER = {
    "final": _after_final,
    "hashes": _after_hashes,
    "colon": _after_colon,
    "is": _after_is,
}


def find_last_number(text: str) -> str | None:
    """The last number written in digits, without its thousands separators."""
    numbers = _NUMBER.findall(text)
    if not numbers:
        return None
    return numbers[-1].replace(",", "")


def are_whole_numbers(texts: tuple[str, ...]) -> bool:
    """Whether each is a whole number and nothing else; then two are equal where their texts are."""
    return all(_WHOLE_NUMBER.fullmatch(text) for text in texts)


def _accept(answer: str | None) -> str | None:
    """The answer, tidied; None for nothing, and for what no answer is and a parser would die of."""
    answer = tidy(answer or "")
    if not answer or len(answer) > ANSWER_CHARS or _nesting(answer) > NESTING:
        return None
    return answer


def tidy(answer: str) -> str:
    r"""Strips spaces, a full stop, and math delimiters around the whole: $..$, \(..\), \[..\]."""
    answer = answer.strip()
    # 0.333... stays, and \right. is a bracket that is not seen.
    if answer.endswith(".") and not answer.endswith(("..", "\\right.")):
        answer = answer[:-1].rstrip()
    for opening, closing in _ENCLOSED:
        inside = answer[len(opening) : -len(closing)]
        is_enclosed = answer.startswith(opening) and answer.endswith(closing)
        if is_enclosed and inside and closing not in inside:
            return inside.strip().removesuffix(".")
    return answer


def _nesting(text: str) -> int:
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    return deepest
