r"""The strict grader's rules: when an answer is the reference. This runs in a worker.

In this order: the same text; one leading choice label, as in (C) 27, is taken off; units have to
agree where both sides have one; lists are compared as multisets, pairs and intervals part by part;
a word is only itself; and what is left is parsed, and compared by math-verify with values compared
exactly.
"""

import re

from dft_jax.evals.graders import extraction, latex, spelling, structure, units, values

# The label of a choice before what is chosen.
_LABEL = re.compile(
    # \text{(C) }27
    r"(?:\\(?:text|textbf|mathrm|mathbf|textrm|mbox|bf)\s*\{\s*\(?\s*([A-E])\s*(?:[).:]\s*)+\}|"
    # \textbf{C}\ 27
    r"\\(?:text|textbf|mathrm|mathbf|textrm|mbox)\s*\{\s*([A-E])\s*\}(?=[\s.:)~\\])|"
    # (C) 27, (\textbf{C})\ 27
    r"\(\s*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{\s*([A-E])\s*\}|([A-E]))\s*\)|"
    # C) 27, C. 27
    r"([A-E])\s*[).:])"
    # and the space after it
    r"[\s~:.]*(?:\\[ ,;:]|\\quad|~|\s)*"
)
# The label behind it: 27 \textbf{(C)}; and with it in one command: \text{(C) 27}.
_LABEL_AT_END = re.compile(
    r"(?:\\[ ,;]|~|\s)*\\(?:text|textbf|mathrm|mathbf)\s*\{\s*\(([A-E])\)\s*\}$"
)
_LABEL_INSIDE = re.compile(
    r"\\(?:text|textbf|mathrm|mathbf)\s*\{\s*(\(?[A-E][).:]\s*[^\s{}][^{}]*)\}"
)
# A label and nothing else.
_IS_LABEL = re.compile(r"(?:(?:[Oo]ption|[Cc]hoice)\s+)?\(?\s*([A-Z])\s*[).]?")
# 10:30, 1:2:3, and f(x) = as in a definition.
_TIME = re.compile(r"(\d{1,2}):([0-5]\d)")
_RATIO = re.compile(r"\d+(?:\s*:\s*\d+){2,}")
_DEFINITION = re.compile(r"\s*([A-Za-z])\s*\(\s*([A-Za-z])\s*\)\s*=")
# What makes an = no chain of equal values.
_RELATION = re.compile(r"[<>]|\\(?:le|ge|ne|lt|gt|approx|equiv|subset|supset|subseteq)(?![A-Za-z])")
# P(X = 3), \Pr[A \cap B] and n(A \cup B): the quantity before its value, no product nor function.
_QUANTITY = re.compile(r"(?:[A-Za-z]|\\Pr|\\mathbb\s*\{?[A-Z]\}?)\s*(?=[(\[])")
_EVENT = re.compile(r"[=<>|]|\\(?:le|ge|ne|in|cap|cup|mid|text)(?![A-Za-z])")
# Of lists that are compared part by part: each part may be compared with each.
_MOST_PARTS = 40


def strict_equal(answer: str, reference: str) -> bool:
    """Whether the two are one answer.

    Raises:
      MemoryError: it takes too many digits, or too much memory.
    """
    choice = _choice(reference)
    if choice:
        label = _label_of(answer)
        if label:
            return label == choice
    spelled_answer = spelling.spell(_without_label(answer))
    spelled_reference = spelling.spell(_without_label(reference))
    if not spelled_answer or not spelled_reference:
        return False
    if spelling.key(spelled_answer) == spelling.key(spelled_reference):
        return True
    values_of_both = _measured(answer, reference, spelled_answer, spelled_reference)
    if values_of_both is None:
        return False
    return _same(*values_of_both, depth=0)


# ---- choices


def _choice(text: str) -> str | None:
    r"""The letter where a text is nothing else: \text{(C)}, which is the label of a choice."""
    bare = re.sub(spelling.TEXT, r"\1", extraction.tidy(text)).strip()
    match = _IS_LABEL.fullmatch(bare)
    if match is None:
        return None
    return match[1]


def _label_of(answer: str) -> str | None:
    """The label that an answer gives, with what is chosen or without it; None if it gives none."""
    return _choice(answer) or _apart(answer)[0]


def _without_label(text: str) -> str:
    return _apart(text)[1]


def _apart(text: str) -> tuple[str | None, str]:
    r"""The label and what is chosen of \textbf{(C)}\ 27; None and the text without a label."""
    text = extraction.tidy(text)
    inside = _LABEL_INSIDE.fullmatch(text)
    if inside:
        text = inside[1]
    at_end = _LABEL_AT_END.search(text)
    if at_end and at_end.start() > 0:
        return at_end[1], text[: at_end.start()]
    match = _LABEL.match(text)
    if match is None or match.end() == len(text):
        return None, text
    rest = text[match.end() :]
    # (B)-5 is a difference, (B) -5 the choice of -5.
    is_difference = rest.startswith("-") and match[0].endswith((")", "}"))
    if is_difference or re.match(r"[+^_/*=!,]", rest):
        return None, text
    return next(filter(None, match.groups())), rest


# ---- units


def _measured(
    answer: str, reference: str, spelled_answer: str, spelled_reference: str
) -> tuple[str, str] | None:
    """The two values without their units; None where the units, or the bases, differ."""
    ours = units.measure(spelled_answer, shortest=2)
    theirs = units.measure(spelled_reference, shortest=3)
    # Where the other side has a unit, shorter letters are taken for one too.
    if theirs.unit and not ours.unit:
        ours = units.measure(spelled_answer, shortest=1)
    elif ours.unit and not theirs.unit:
        theirs = units.measure(spelled_reference, shortest=2)
    if ours.base or theirs.base:
        return _in_bases(ours, theirs)
    our_unit, their_unit = _full_unit(answer, ours), _full_unit(reference, theirs)
    # A unit that only one side gives is no contradiction.
    if our_unit and their_unit and our_unit != their_unit:
        return None
    return _value_text(ours), _value_text(theirs)


def _full_unit(text: str, measured: units.Measured) -> tuple[tuple[str, int], ...]:
    r"""The unit with that of a dollar sign (\$18 per hour), or the percent sign of the value."""
    unit = measured.unit
    has_dollars = any(name == "dollar" for name, _ in unit)
    if units.has_dollar_sign(extraction.tidy(text)) and not has_dollars:
        unit = tuple(sorted([*unit, ("dollar", 1)]))
    if not unit and measured.value.endswith("\\%"):
        return (("percent", 1),)
    return unit


def _value_text(measured: units.Measured) -> str:
    if measured.factor == 1:
        return measured.value
    return f"{measured.factor} \\cdot ({measured.value})"


def _in_bases(answer: units.Measured, reference: units.Measured) -> tuple[str, str] | None:
    """The two values where one has a base.

    A reference with a base is met by its digits; an answer with a base that the reference has not,
    by its value.
    """
    if answer.base and reference.base and answer.base != reference.base:
        return None
    if reference.base:
        return answer.value, reference.value
    value = units.in_base(answer.value, answer.base)
    if value is None:
        return None
    return str(value), reference.value


# ---- structures


def _same(answer: str, reference: str, depth: int) -> bool:
    """Whether two spelled values are equal, part by part where they have parts."""
    if spelling.key(answer) == spelling.key(reference):
        return True
    if depth > extraction.NESTING or spelling.is_word(answer) or spelling.is_word(reference):
        return False
    if "=" not in reference:
        answer = _without_quantity(answer)
    # 10:30 is a time, no ratio.
    if _TIME.fullmatch(reference):
        return False
    if _RATIO.fullmatch(answer) or _RATIO.fullmatch(reference):
        return _same_ratio(answer, reference)
    answer = _with_variable_of(answer, reference)
    a, b = structure.read(answer), structure.read(reference)
    if a.left and b.left and a.left.lower() != b.left.lower():
        return False
    verdict = _same_structure(a, b, depth)
    if verdict is None:
        return _same_leaf(answer, reference)
    return verdict


def _without_quantity(text: str) -> str:
    r"""The value of P(X = 3) = \frac{5}{16}; the text where it is of no event."""
    name, *values = structure.split(text, separators=("=",))
    match = _QUANTITY.match(name)
    if match is None or not values or not name.endswith((")", "]")):
        return text
    if not _EVENT.search(name, match.end()):
        return text
    return " = ".join(values)


def _same_structure(a: structure.Structure, b: structure.Structure, depth: int) -> bool | None:
    """Whether two values are equal part by part; None where their parts do not decide it."""
    kinds = {a.kind, b.kind}
    if kinds == {"list", "brackets"}:
        return _same_as_tuple(a, b, depth)
    if kinds <= {"list", "set"}:
        if _other_left(a, b) or _other_left(b, a):
            return False
        return _same_multiset(a.parts, b.parts, depth)
    if kinds == {"brackets"}:
        return _same_brackets(a, b, depth)
    # x < 1 or x > 5 for the union of the two.
    if kinds <= {"union", "list"} and _same_multiset(a.parts, b.parts, depth):
        return True
    if "list" in kinds or kinds == {"set", "brackets"}:
        return False
    return None


def _same_ratio(answer: str, reference: str) -> bool:
    """1:2:3 for 2:4:6; the parser reads it as 1/2/3, which is 1/6."""
    if not (_RATIO.fullmatch(answer) and _RATIO.fullmatch(reference)):
        return False
    a = [int(number) for number in answer.split(":")]
    b = [int(number) for number in reference.split(":")]
    if len(a) != len(b) or a[0] * b[0] == 0:
        return False
    return all(x * b[0] == y * a[0] for x, y in zip(a, b, strict=True))


def _with_variable_of(answer: str, reference: str) -> str:
    """The answer f(n) = n^2 as f(x) = x^2, if the reference is of x and the name is free."""
    ours, theirs = _DEFINITION.match(answer), _DEFINITION.match(reference)
    if ours is None or theirs is None or ours[1] != theirs[1] or ours[2] == theirs[2]:
        return answer
    tokens = re.findall(r"\\[A-Za-z]+|.", answer, re.DOTALL)
    if theirs[2] in tokens:
        return answer
    renamed = {ours[2]: theirs[2]}
    return "".join(renamed.get(token, token) for token in tokens)


def _same_multiset(a: tuple[str, ...], b: tuple[str, ...], depth: int) -> bool:
    """Whether each part of one is a part of the other, as often as there."""
    if len(a) != len(b) or len(a) > _MOST_PARTS:
        return False
    unmatched = list(b)
    # The same texts first, then the costly ones.
    for part in sorted(a, key=lambda part: part not in b):
        equal = _find_equal(part, unmatched, depth + 1)
        if equal is None:
            return False
        unmatched.remove(equal)
    return True


def _find_equal(part: str, candidates: list[str], depth: int) -> str | None:
    if part in candidates:
        return part
    for candidate in candidates:
        if _same(part, candidate, depth):
            return candidate
    return None


def _other_left(a: structure.Structure, b: structure.Structure) -> bool:
    """Whether a part of `a` has another variable than all of `b`: z = 2, a = 3 for a = 2, 3."""
    lefts = {structure.left_of(part) for part in a.parts} - {""}
    return bool(b.left) and bool(lefts - {b.left})


def _same_brackets(a: structure.Structure, b: structure.Structure, depth: int) -> bool:
    """Pairs, tuples and intervals: in order, in the same brackets; but [1,2,3] may be (1,2,3)."""
    is_vector = len(b.parts) > 2 and {a.brackets, b.brackets} <= {"()", "[]"}
    if len(a.parts) != len(b.parts) or (a.brackets != b.brackets and not is_vector):
        return False
    return all(_same(*pair, depth + 1) for pair in zip(a.parts, b.parts, strict=True))


def _same_as_tuple(a: structure.Structure, b: structure.Structure, depth: int) -> bool:
    """x = 1, y = 2 for (1,2), by the order of the letters; and 1, 2 in that order."""
    listed, pair = a, b
    if b.kind == "list":
        listed, pair = b, a
    if pair.brackets != "()" or len(listed.parts) != len(pair.parts) or listed.left:
        return False
    named = []
    for part in listed.parts:
        match = re.fullmatch(r"\s*([A-Za-z])\s*=\s*([^=]+)", part)
        if match is not None:
            named.append(match)
    if len(named) == len(listed.parts):
        # By what stands before the tuple, (y, x) = (2, 1), or by the alphabet.
        order = re.findall(r"[A-Za-z]", pair.left) or sorted(match[1] for match in named)
        values_of = {match[1]: match[2] for match in named}
        if sorted(values_of) != sorted(order):
            return False
        parts = [values_of[letter] for letter in order]
    else:
        parts = listed.parts
    return all(_same(*pair, depth + 1) for pair in zip(parts, pair.parts, strict=True))


# ---- what has no parts


def _same_leaf(answer: str, reference: str) -> bool:
    """Whether two values without parts are equal: as plain numbers, or once they are parsed."""
    if not (_is_true_chain(answer) and _is_true_chain(reference)):
        return False
    number, expected = values.plain(answer), values.plain(reference)
    if number is not None and expected is not None:
        return values.Comparison(answer, reference).same_fractions(number, expected)
    parsed = latex.parse(answer), latex.parse(reference)
    if None in parsed:
        return False
    begin(answer, reference)
    return latex.equal(*parsed)


# The comparison that is under way, for what math-verify calls.
_current: list[values.Comparison] = []


def begin(answer: str, reference: str) -> None:
    """Says which texts math-verify is about to compare."""
    _current[:] = [values.Comparison(answer, reference)]


def patch_math_verify() -> None:
    """Makes math-verify compare values by these rules, in this process and until it ends."""
    latex.patch_math_verify(
        same_value=lambda a, b: _current[0].same(a, b),
        same_equations=lambda a, b: _current[0].same_equations(a, b),
    )


def _is_true_chain(text: str) -> bool:
    """Whether the numbers of m + n = 256 + 37 = 293 are equal; x = 4 = 5 says nothing."""
    # The = of P(X = 3) and of \sum_{k=1}^5 is in brackets.
    sides = structure.split(text, separators=("=",))
    if len(sides) < 2 or _RELATION.search(text):
        return True
    numbers = [side for side in sides if _is_constant(side)]
    pairs = zip(numbers, numbers[1:], strict=False)
    return all(_same(*pair, depth=extraction.NESTING) for pair in pairs)


def _is_constant(text: str) -> bool:
    return re.search(r"[A-Za-z]", re.sub(r"\\(?:frac|sqrt|cdot|times|pi)", "", text)) is None
