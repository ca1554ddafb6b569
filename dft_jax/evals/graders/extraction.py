r"""Finds the answer in a completion: the last \boxed{}, then "final answer is", then "####",
"Answer:", a number.

Everything here is linear in the text and only looks at it: a completion may be megabytes long, and
hostile.
"""

import re
from collections.abc import Sequence

# an answer stands at the end; a box opened before this is longer than any answer anyway
TAIL_CHARS = 200_000
# no reference of the seven benchmarks has 400; what is longer is a runaway, not an answer
ANSWER_CHARS = 2_000
NESTING = 40  # brackets inside brackets; the parser recurses once per level
# a box that is opened this near the end of a truncated completion was cut inside its answer
CUT_CHARS = 200

# What may mark an answer, in the order in which they are looked for; "is" only on request, since
# texts that reason write "the answer is" of every step.
MARKERS = ("box", "final", "hashes", "colon", "is")
DEFAULT_MARKERS = ("box", "final", "hashes", "colon")

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)[ \t]+([^\s{}$\\]+)")  # TeX allows \boxed 5
_JOINS = re.compile(  # between two boxes of one answer: \boxed{3} and $x = \boxed{5}$
    r"[\s$.]*(?:,|;|,?\s*\b(?:and|or)\b|,?\s*\\text\s*\{\s*(?:and|or)\s*\})[\s$]*(?:[A-Za-z]\w?\s*=\s*)?[\s$]*"
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
_HEADING = re.compile(r"\d+(?:\)|\.(?=\s+\S)|\s+[A-Z][a-z])")  # 2) Second step, 1. First, 3 Third
# the - of 3-5 and of 2024-01-05 is no sign
_NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,14}")  # written in the one way there is
_STARTS_AN_ANSWER = re.compile(  # "#### Step 3" is a heading
    r"(?:[A-Za-z]\s*=\s*)?[-+−]?\s*\\?[$€£]?\s*[-+−]?[\d.(\[\\{]"
)
_SPECIAL_TOKEN = re.compile(r"(?:</?s>|<\|\w{1,40}\|>|<(?:eos|bos|pad|end_of_turn)>)")
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
      does; it makes
        answers of texts that were cut before theirs, so it is off by default.
      markers: those of MARKERS that count; the first of that order that the text has decides.
      truncated: whether the completion was cut at its limit of tokens. A box that is opened near
      the end and never
        closed then was to be the answer: None, never an earlier box. Else the last whole box
        counts.
    """
    text = completion[-TAIL_CHARS:]
    if "box" in markers and _BOX.search(text):
        return _accept(last_boxed(text, truncated=truncated))
    bare = _BARE_BOX.findall(text) if "box" in markers else []
    if bare:
        return _accept(bare[-1])
    find = {"final": _after_final, "hashes": _after_hashes, "colon": _after_colon, "is": _after_is}
    answer = None
    for marker in MARKERS:
        if answer is None and marker in markers and marker in find:
            answer = find[marker](text)
    if answer is None and last_number:
        answer = find_last_number(text)
    return _accept(answer)


def last_boxed(text: str, *, truncated: bool = False) -> str | None:
    r"""What stands in the last outermost box that is not empty; None if there is none.

    Boxes inside it are unwrapped. Boxes before it that only "and", "or" or a comma parts from it
    make a list with it: \boxed{3} and \boxed{5} is 3, 5. A truncated text that ends in an open box
    has None.
    """
    boxes, last_open = _boxes(text)
    if (
        truncated
        and last_open > max((box[0] for box in boxes), default=-1)
        and last_open >= len(text) - CUT_CHARS
    ):
        return None
    while boxes and not text[boxes[-1][1] : boxes[-1][2]].strip():
        boxes.pop()
    if not boxes:
        return None
    contents = [_content(text, boxes[-1])]
    for earlier, later in zip(boxes[-2::-1], boxes[:0:-1], strict=True):
        between = text[earlier[2] + 1 : min(later[0], earlier[2] + 40)]
        if (
            later[0] - earlier[2] > 40
            or not _JOINS.fullmatch(between)
            or not _content(text, earlier)
        ):
            break
        contents.append(_content(text, earlier))
    if None in contents:
        return None
    different = list(dict.fromkeys(reversed(contents)))
    return ", ".join(different)


def _boxes(text: str) -> tuple[list[tuple[int, int, int]], int]:
    """(start of the command, start of its content, end of its content) of every outermost box; the
    last open start.
    """
    boxes: list[tuple[int, int, int]] = []
    opened: list[tuple[int, int] | None] = []  # a box's two starts, or None for a plain brace
    for match in _BRACES.finditer(text):
        token = match[0]
        if token == "}":
            box = opened.pop() if opened else None
            if box is not None:
                while boxes and boxes[-1][0] > box[0]:
                    boxes.pop()
                boxes.append((*box, match.start()))
        elif token == "{":
            opened.append(None)
        elif _BOX.fullmatch(token):
            opened.append((match.start(), match.end()))
    return boxes, max((box[0] for box in opened if box is not None), default=-1)


def _content(text: str, box: tuple[int, int, int]) -> str | None:
    if box[2] - box[1] > 4 * ANSWER_CHARS:
        return None  # unwrapping is quadratic in the nesting
    return _unbox(text[box[1] : box[2]])


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
    """The answer that follows the last of the markers, in the same line or as the next formula;
    None without one.
    """
    last = None
    for match in marker.finditer(text):
        last = match
    if last is None:
        return None
    rest = text[last.end() : last.end() + 2 * ANSWER_CHARS].lstrip(" \t\n:*`")
    rest = _SPECIAL_TOKEN.sub("", rest)
    for opening, closing in _ENCLOSED:
        end = _closing(rest, closing, len(opening))
        if rest.startswith(opening) and end > 0:
            inside = rest[len(opening) : end]
            after = rest[end + len(closing) :].split("\n", 1)[0].split(". ", 1)[0].strip(" .*")
            # "$5$ and $6$" is one answer of two parts; "$5$ because ..." is not
            return (
                rest.split("\n", 1)[0] if re.match(r"(?:,|and\b|or\b)\s*[$\\]", after) else inside
            )
    line = re.split(r"\.?\s+I hope", rest.split("\n", 1)[0])[0]
    line = _ASIDE.sub("", line).strip("* `")
    return line.removesuffix(".").rstrip("* `") if line.endswith("`.") else line or None


def _closing(text: str, closing: str, start: int) -> int:
    r"""Where the formula is closed, or -1: the $ of \$42 closes none."""
    end = text.find(closing, start)
    while end > 0 and closing[0] == "$" and text[end - 1] == "\\":
        end = text.find(closing, end + 1)
    return end


def _after_hashes(text: str) -> str | None:
    found = None
    for line in _HASHES.findall(text):
        line = _AFTER_HASHES.sub(
            "", _SPECIAL_TOKEN.sub("", line[: 2 * ANSWER_CHARS]), count=1
        ).strip("* \t\r`")
        if _STARTS_AN_ANSWER.match(line) and not _HEADING.match(line):
            found = _ASIDE.sub("", line)
    return found


def find_last_number(text: str) -> str | None:
    """The last number written in digits, without its thousands separators."""
    numbers = _NUMBER.findall(text)
    return numbers[-1].replace(",", "") if numbers else None


def are_whole_numbers(texts: tuple[str, ...]) -> bool:
    """Whether each is a whole number and nothing else; then two are equal where their texts are."""
    return all(_WHOLE_NUMBER.fullmatch(text) for text in texts)


def _accept(answer: str | None) -> str | None:
    answer = tidy(answer or "")
    return (
        answer if answer and len(answer) <= ANSWER_CHARS and _nesting(answer) <= NESTING else None
    )


def tidy(answer: str) -> str:
    r"""Strips spaces, a closing full stop, and one pair of math delimiters around the whole ($..$,
    \(..\), \[..\]).
    """
    answer = answer.strip()
    if answer.endswith(".") and not answer.endswith(("..", "\\right.")):  # 0.333... stays
        answer = answer[:-1].rstrip()
    for opening, closing in _ENCLOSED:
        inside = answer[len(opening) : -len(closing)]
        if (
            answer.startswith(opening)
            and answer.endswith(closing)
            and inside
            and closing not in inside
        ):
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
