r"""Finds the answer in a completion: the last \boxed{}, then "final answer is", then "####", then (optional) a number.

Everything here is linear in the text and only looks at it: a completion may be megabytes long, and hostile.
"""

import re

TAIL_CHARS = 200_000  # an answer stands at the end; a box opened before this is longer than any answer anyway
ANSWER_CHARS = 2_000  # no reference of the seven benchmarks has 400; what is longer is a runaway, not an answer
NESTING = 40  # brackets inside brackets; the parser recurses once per level

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)[ \t]+([^\s{}$\\]+)")  # TeX allows \boxed 5
_FINAL = re.compile(r"final answer is", re.IGNORECASE)
_HASHES = re.compile(r"#### *([^\n]+)")
_NUMBER = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,14}")  # written in the one way there is
_STARTS_AN_ANSWER = re.compile(r"[-+−]?\s*\\?[$€£]?\s*[-+−]?[\d.(\[\\{]")  # "#### Step 3" is a heading
_ENCLOSED = ((r"\(", r"\)"), (r"\[", r"\]"), ("$$", "$$"), ("$", "$"))


def extract(completion: str, *, last_number: bool = False) -> str | None:
    r"""The text of the final answer, or None where the completion gives none.

    A box that is opened and never closed after the last whole one means that the completion was cut inside its answer:
    None, never an earlier box.

    Args:
      completion: what the model wrote.
      last_number: take the last number in the text when nothing marks an answer. The paper's grader does; it makes
        answers of texts that were cut before theirs, so it is off by default.
    """
    text = completion[-TAIL_CHARS:]
    if _BOX.search(text):
        return _accept(last_boxed(text))
    bare = _BARE_BOX.findall(text)
    if bare:
        return _accept(bare[-1])
    answer = _after_final(text) or _after_hashes(text)
    if answer is None and last_number:
        answer = find_last_number(text)
    return _accept(answer)


def last_boxed(text: str) -> str | None:
    r"""What stands in the last outermost box, with boxes inside it unwrapped; None if the last box is never closed."""
    boxes: list[tuple[int, int, int]] = []  # (start of the command, start of its content, end of its content)
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
    last_open = max((box[0] for box in opened if box is not None), default=-1)
    if not boxes or last_open > boxes[-1][0]:
        return None
    content = text[boxes[-1][1] : boxes[-1][2]]
    return _unbox(content) if len(content) <= 4 * ANSWER_CHARS else None  # unwrapping is quadratic in the nesting


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
    last = None
    for match in _FINAL.finditer(text):
        last = match
    if last is None:
        return None
    rest = text[last.end() : last.end() + 2 * ANSWER_CHARS].lstrip(" \t\n:*")
    for opening, closing in _ENCLOSED:
        end = rest.find(closing, len(opening))
        if rest.startswith(opening) and end > 0:
            inside = rest[len(opening) : end]
            after = rest[end + len(closing) :].split("\n", 1)[0].split(". ", 1)[0].strip(" .*")
            # "$5$ and $6$" is one answer of two parts; "$5$ because ..." is not
            return rest.split("\n", 1)[0] if re.match(r"(?:,|and\b|or\b)\s*[$\\]", after) else inside
    return re.split(r"\.?\s+I hope", rest.split("\n", 1)[0])[0].strip("* ")


def _after_hashes(text: str) -> str | None:
    lines = [line for line in _HASHES.findall(text) if _STARTS_AN_ANSWER.match(line)]
    return lines[-1] if lines else None


def find_last_number(text: str) -> str | None:
    """The last number written in digits, without its thousands separators."""
    numbers = _NUMBER.findall(text)
    return numbers[-1].replace(",", "") if numbers else None


def are_whole_numbers(texts: tuple[str, ...]) -> bool:
    """Whether each is a whole number and nothing else; then two are equal where their texts are."""
    return all(_WHOLE_NUMBER.fullmatch(text) for text in texts)


def _accept(answer: str | None) -> str | None:
    answer = tidy(answer or "")
    return answer if answer and len(answer) <= ANSWER_CHARS and _nesting(answer) <= NESTING else None


def tidy(answer: str) -> str:
    r"""Strips spaces, a closing full stop, and one pair of math delimiters around the whole ($..$, \(..\), \[..\])."""
    answer = answer.strip()
    if answer.endswith(".") and not answer.endswith("\\right."):
        answer = answer[:-1].rstrip()
    for opening, closing in _ENCLOSED:
        inside = answer[len(opening) : -len(closing)]
        if answer.startswith(opening) and answer.endswith(closing) and inside and closing not in inside:
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
