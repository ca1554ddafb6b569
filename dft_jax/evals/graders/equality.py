r"""The strict grader's rules: when an answer is the reference. Texts come in; this runs in a
worker.

In this order: the same text; one leading choice label, as in (C) 27, is taken off; units have to
agree where both sides have one; lists are compared as multisets, pairs and intervals part by part;
a word is only itself; and what is left is parsed, and compared by math-verify with values compared
exactly.
"""

import re

from dft_jax.evals.graders import extraction, latex, spelling, structure, units, values

_LABEL = re.compile(
    # \text{(C) }27
    r"(?:\\(?:text|textbf|mathrm|mathbf|textrm|mbox|bf)\s*\{\s*\(?\s*([A-E])\s*(?:[).:]\s*)+\}|"
    # \textbf{C}\ 27
    r"\\(?:text|textbf|mathrm|mathbf|textrm|mbox)\s*\{\s*([A-E])\s*\}(?=[\s.:)~\\])|"
    # (C) 27, (\textbf{C})\ 27
    r"\(\s*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{\s*([A-E])\s*\}|([A-E]))\s*\)|"
    r"([A-E])\s*[).:])"  # C) 27, C. 27
    r"[\s~:.]*(?:\\[ ,;:]|\\quad|~|\s)*"
)
_LABEL_AT_END = re.compile(
    r"(?:\\[ ,;]|~|\s)*\\(?:text|textbf|mathrm|mathbf)\s*\{\s*\(([A-E])\)\s*\}$"
)
_LABEL_INSIDE = re.compile(
    r"\\(?:text|textbf|mathrm|mathbf)\s*\{\s*(\(?[A-E][).:]\s*[^\s{}][^{}]*)\}"
)
_IS_LABEL = re.compile(r"(?:(?:[Oo]ption|[Cc]hoice)\s+)?\(?\s*([A-Z])\s*[).]?")
_TIME = re.compile(r"(\d{1,2}):([0-5]\d)")
_RATIO = re.compile(r"\d+(?:\s*:\s*\d+){2,}")
_DEFINITION = re.compile(r"\s*([A-Za-z])\s*\(\s*([A-Za-z])\s*\)\s*=")
_RELATION = re.compile(r"[<>]|\\(?:le|ge|ne|lt|gt|approx|equiv|subset|supset|subseteq)(?![A-Za-z])")
_EQUALS = re.compile(r"(?<![<>!\\])=")
_MOST_PARTS = 40  # of lists that are compared part by part; each may be compared with each


def strict_equal(answer: str, reference: str) -> bool:
    """Whether the two are one answer.

    Raises:
      MemoryError: it takes too many digits, or too much memory.
    """
    label = _label_alone(answer) if _choice(reference) else None
    if label:
        return label == _choice(reference)
    spelled = [spelling.spell(_apart(text)[1]) for text in (answer, reference)]
    if not all(spelled):
        return False
    if spelling.key(spelled[0]) == spelling.key(spelled[1]):
        return True
    sides = _measured(answer, reference, *spelled)
    return sides is not None and _same(*sides, depth=0)


# ---- choices
# --------------------------------------------------------------------------------------------------------


def _choice(reference: str) -> str | None:
    r"""The letter where the reference is nothing else: \text{(C)}, which is the label of a choice."""
    match = _IS_LABEL.fullmatch(_bare(reference))
    return match[1] if match else None


def _bare(text: str) -> str:
    return re.sub(spelling.TEXT, r"\1", extraction.tidy(text)).strip()


def _label_alone(answer: str) -> str | None:
    """The label that an answer gives, with what is chosen or without it; None where it gives none."""
    match = _IS_LABEL.fullmatch(_bare(answer))
    return match[1] if match else _apart(answer)[0]


def _apart(text: str) -> tuple[str | None, str]:
    r"""The label and what is chosen of \textbf{(C)}\ 27; None and the text where there is no label."""
    text = extraction.tidy(text)
    inside = _LABEL_INSIDE.fullmatch(text)
    text = inside[1] if inside else text
    at_end = _LABEL_AT_END.search(text)
    if at_end and at_end.start() > 0:
        return at_end[1], text[: at_end.start()]
    match = _LABEL.match(text)
    rest = text[match.end() :] if match else ""
    is_difference = rest.startswith("-") and match[0].endswith((")", "}"))  # (B)-5, but not (B) -5
    if not rest or is_difference or re.match(r"[+^_/*=!,]", rest):
        return None, text
    return next(letter for letter in match.groups() if letter), rest


# ---- units
# ----------------------------------------------------------------------------------------------------------


def _measured(
    answer: str, reference: str, spelled_answer: str, spelled: str
) -> tuple[str, str] | None:
    """The two values without their units; None where the units, or the bases, are two."""
    sides = [units.measure(spelled_answer, shortest=2), units.measure(spelled, shortest=3)]
    if sides[1].unit and not sides[0].unit:
        sides[0] = units.measure(spelled_answer, shortest=1)
    elif sides[0].unit and not sides[1].unit:
        sides[1] = units.measure(spelled, shortest=2)
    if sides[0].base or sides[1].base:
        return _in_bases(*sides)
    found = [
        _with_dollars(text, side.unit)
        for text, side in zip((answer, reference), sides, strict=True)
    ]
    found = [unit or _percent(side.value) for unit, side in zip(found, sides, strict=True)]
    if found[0] and found[1] and found[0] != found[1]:
        return None
    texts = [
        f"{side.factor} \\cdot ({side.value})" if side.factor != 1 else side.value for side in sides
    ]
    return texts[0], texts[1]


def _with_dollars(text: str, unit: tuple) -> tuple:
    r"""The unit with that of a dollar sign: \$18 per hour."""
    if not units.has_dollar_sign(extraction.tidy(text)) or any(
        name == "dollar" for name, _ in unit
    ):
        return unit
    return tuple(sorted([*unit, ("dollar", 1)]))


def _percent(value: str) -> tuple:
    return (("percent", 1),) if value.endswith("\\%") else ()


def _in_bases(answer: units.Measured, reference: units.Measured) -> tuple[str, str] | None:
    """A reference with a base is met by its digits; an answer with a base that the reference has
    not, by its value.
    """
    if answer.base and reference.base:
        return (answer.value, reference.value) if answer.base == reference.base else None
    if reference.base:
        return answer.value, reference.value
    value = units.in_base(answer.value, answer.base)
    return None if value is None else (str(value), reference.value)


# ---- structures
# -----------------------------------------------------------------------------------------------------


def _same(answer: str, reference: str, depth: int) -> bool:
    """Whether two spelled values are equal, part by part where they have parts."""
    if spelling.key(answer) == spelling.key(reference):
        return True
    if depth > extraction.NESTING or spelling.is_word(answer) or spelling.is_word(reference):
        return False
    if _TIME.fullmatch(reference):
        return False  # 10:30 is a time, no ratio
    if _RATIO.fullmatch(answer) or _RATIO.fullmatch(reference):
        return _same_ratio(answer, reference)
    answer = _with_variable_of(answer, reference)
    a, b = structure.read(answer), structure.read(reference)
    if a.left and b.left and a.left.lower() != b.left.lower():
        return False
    kinds = (a.kind, b.kind)
    if kinds in (("list", "brackets"), ("brackets", "list")):
        return _same_as_tuple(a, b, depth)
    if {*kinds} <= {"list", "set"}:
        if _other_left(a, b) or _other_left(b, a):
            return False
        return _same_multiset(a.parts, b.parts, depth)
    if kinds == ("brackets", "brackets"):
        return _same_brackets(a, b, depth)
    if {*kinds} <= {"union", "list"} and _same_multiset(a.parts, b.parts, depth):
        return True  # x < 1 or x > 5 for the union of the two
    if "list" in kinds or {*kinds} == {"set", "brackets"}:
        return False
    return _same_leaf(answer, reference)


def _same_ratio(answer: str, reference: str) -> bool:
    """1:2:3 for 2:4:6; the parser reads it as 1/2/3, which is 1/6."""
    if not (_RATIO.fullmatch(answer) and _RATIO.fullmatch(reference)):
        return False
    a, b = ([int(number) for number in text.split(":")] for text in (answer, reference))
    return (
        len(a) == len(b)
        and all(x * b[0] == y * a[0] for x, y in zip(a, b, strict=True))
        and a[0] * b[0] != 0
    )


def _with_variable_of(answer: str, reference: str) -> str:
    """f(n) = n^2 for f(x) = x^2: what a function's variable is called changes nothing, if the name
    is free.
    """
    own, other = _DEFINITION.match(answer), _DEFINITION.match(reference)
    if own is None or other is None or own[1] != other[1] or own[2] == other[2]:
        return answer
    tokens = re.findall(r"\\[A-Za-z]+|.", answer, re.DOTALL)
    if other[2] in tokens:
        return answer
    return "".join(other[2] if token == own[2] else token for token in tokens)


def _same_multiset(a: tuple[str, ...], b: tuple[str, ...], depth: int) -> bool:
    """Whether each part of one is a part of the other, as often as there."""
    if len(a) != len(b) or len(a) > _MOST_PARTS:
        return False
    left = list(b)
    # the same texts first, then the costly ones
    for part in sorted(a, key=lambda part: part not in b):
        like = next((other for other in left if other == part), None)
        like = like or next((other for other in left if _same(part, other, depth + 1)), None)
        if like is None:
            return False
        left.remove(like)
    return True


def _other_left(a: structure.Structure, b: structure.Structure) -> bool:
    """Whether a part of `a` has another variable before its = than all of `b` has: z = 2, a = 3 for
    a = 2, 3.
    """
    lefts = {structure.left_of(part) for part in a.parts} - {""}
    return bool(b.left) and bool(lefts - {b.left})


def _same_brackets(a: structure.Structure, b: structure.Structure, depth: int) -> bool:
    """Pairs, tuples and intervals: in order, with the same brackets, but that [1,2,3] may be
    (1,2,3).
    """
    is_vector = len(b.parts) > 2 and {a.brackets, b.brackets} <= {"()", "[]"}
    if len(a.parts) != len(b.parts) or (a.brackets != b.brackets and not is_vector):
        return False
    return all(_same(*pair, depth + 1) for pair in zip(a.parts, b.parts, strict=True))


def _same_as_tuple(a: structure.Structure, b: structure.Structure, depth: int) -> bool:
    """x = 1, y = 2 for (1,2), by the order of the letters; and 1, 2 in that order."""
    listed, pair = (a, b) if a.kind == "list" else (b, a)
    if pair.brackets != "()" or len(listed.parts) != len(pair.parts) or listed.left:
        return False
    named = [re.fullmatch(r"\s*([A-Za-z])\s*=\s*([^=]+)", part) for part in listed.parts]
    if all(named):
        order = re.findall(r"[A-Za-z]", pair.left) or sorted(match[1] for match in named)
        values_of = {match[1]: match[2] for match in named}
        if sorted(values_of) != sorted(order):
            return False
        parts = [values_of[letter] for letter in order]
    else:
        parts = listed.parts
    return all(_same(*pair, depth + 1) for pair in zip(parts, pair.parts, strict=True))


# ---- what has no parts
# ----------------------------------------------------------------------------------------------


def _same_leaf(answer: str, reference: str) -> bool:
    if not (_is_true_chain(answer) and _is_true_chain(reference)):
        return False
    numbers = values.plain(answer), values.plain(reference)
    if None not in numbers:
        return values.Comparison(answer, reference).same_fractions(*numbers)
    parsed = latex.parse(answer), latex.parse(reference)
    if None in parsed:
        return False
    begin(answer, reference)
    return latex.equal(*parsed)


_current: list[values.Comparison] = []  # the one that is under way, for what math-verify calls


def begin(answer: str, reference: str) -> None:
    """Says which texts math-verify is about to compare."""
    _current[:] = [values.Comparison(answer, reference)]


def prepare() -> None:
    """Makes math-verify in this process compare values by these rules; a worker's own business, it
    lasts.
    """
    latex.prepare(
        same_value=lambda a, b: _current[0].same(a, b),
        same_equations=lambda a, b: _current[0].same_equations(a, b),
    )


def _is_true_chain(text: str) -> bool:
    """Whether the numbers of m + n = 256 + 37 = 293 are equal: in x = 4 = 5 they are not, and it
    says nothing.
    """
    sides = _EQUALS.split(text)
    if len(sides) < 2 or _RELATION.search(text):
        return True
    numbers = [
        side
        for side in sides
        if not re.search(r"[A-Za-z]", re.sub(r"\\(?:frac|sqrt|cdot|times|pi)", "", side))
    ]
    pairs = zip(numbers, numbers[1:], strict=False)
    return all(_same(*pair, depth=extraction.NESTING) for pair in pairs)
