r"""Edits of right answers that change their value, and respellings that do not: what a grader has
to tell apart.

    python -m tests.evals.graders.gold_edits FOLDER

grades them all against the right answers of the benchmarks in the folder, and prints those that are
judged otherwise. Every edit is made from the text alone, by a rule that changes the value of any
answer it applies to.
"""

import collections
import json
import pathlib
import random
import re
import string
import sys
from collections.abc import Iterator

_FRACTION = re.compile(r"\\[dt]?frac\s*\{(-?\d+)\}\s*\{(-?\d+)\}")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_PAIR = re.compile(r"([(\[])([^()\[\],]+),([^()\[\],]+)([)\]])")
_OPERATORS = re.compile(
    r"\\(?:frac|sqrt|binom|[lr]floor|left|right|omega|gamma|theta|lambda|zeta)(?![A-Za-z])"
)
_GROUPED = re.compile(r"(?:\\\$)?\d{1,3}(?:,\s*(?:\\!)?\s*\d{3})+")
_DELIMITER = re.compile(r"(?<!\\)\$")  # of mathematics; \$ is a dollar
_BARE = re.compile(r"\\[A-Za-z]+")
_SWAPS = [
    ("\\sin", "\\cos"),
    ("\\cos", "\\sin"),
    ("\\lfloor", "\\lceil"),
    ("\\ln", "\\sin"),
    ("<", ">"),
    (">", "<"),
    ("\\ge ", "\\le "),
    ("\\geqslant", "<"),
    ("\\le ", "\\ge "),
    ("\\cup", "\\cap"),
    ("\\pi", "\\pi^2"),
    ("\\sqrt{", "{"),
    ("\\sqrt{", "\\sqrt[3]{"),
    ("\\binom{2n}", "\\binom{3n}"),
    ("\\infty", "100"),
]
_UNIT_SWAPS = [
    ("cents", "dollars"),
    ("inches", "feet"),
    ("cm", "mm"),
    ("degrees", "radians"),
    ("^\\circ", "\\text{ cm}"),
    ("^{\\circ}", "\\text{ radians}"),
    ("^2", "^3"),
]
NUMBER_WORDS = [
    "\\text{ million}",
    "\\text{ thousand}",
    "\\text{ dozen}",
    "\\text{ squared}",
    "\\text{ half}",
    "\\mathrm{ billion}",
    " hundred",
    " thousand",
    " million dollars",
    " dozens",
    " or more",
    " factorial",
    "\\text{ hundred people}",
]
_LETTERS = "xmstkhgdlc"


def folded(gold: str) -> str:
    return gold.strip().removesuffix(".").strip().removeprefix("$").removesuffix("$").strip()


def is_scalar(gold: str) -> bool:
    """One expression: no list, pair, equation, unit or word."""
    text = _OPERATORS.sub("", gold)
    return not re.search(
        r"[,;=<>:_$%]|\\(?:text|mbox|cup|in\b|begin|pm|le|ge|circ|angle|\{|infty)|[A-Za-z]{5}", text
    )


def is_number(gold: str) -> bool:
    return _NUMBER.fullmatch(gold) is not None


def letters(gold: str) -> list[int]:
    """Places of letters that are variables: in no command, no word, and not e."""
    text = _BARE.sub(lambda match: "." * len(match[0]), gold)
    return [
        match.start() for match in re.finditer(r"(?<![A-Za-z])[A-DF-Za-df-z](?![A-Za-z])", text)
    ]


def parts(gold: str) -> list[str]:
    """The elements of a list without brackets around it, of which each may be in brackets or
    dollars.
    """
    found, depth, begin = [], 0, 0
    for place, character in enumerate(gold):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            found.append(gold[begin:place].strip())
            begin = place + 1
    return [*found, gold[begin:].strip()]


def edits(gold: str, dice: random.Random) -> Iterator[tuple[str, str]]:
    """(kind, edited answer) for a gold answer; none of them is equal to it."""
    gold = folded(gold)
    digits = [match.start() for match in re.finditer(r"\d", gold)]
    for place in dice.sample(digits, min(3, len(digits))):
        other = dice.choice([digit for digit in string.digits[1:] if digit != gold[place]])
        yield "digit", gold[:place] + other + gold[place + 1 :]
    for first, second in zip(digits, digits[1:], strict=False):
        if (
            second == first + 1
            and gold[first] != gold[second]
            and "0" not in gold[first : second + 1]
        ):
            yield "digits swapped", gold[:first] + gold[second] + gold[first] + gold[second + 1 :]
            break
    signs = [match.start() for match in re.finditer(r"(?<=[\w})\] ])[+-](?=[\w\\({ ])", gold)]
    for place in dice.sample(signs, min(2, len(signs))):
        yield "sign inside", gold[:place] + {"+": "-", "-": "+"}[gold[place]] + gold[place + 1 :]
    for old, new in _SWAPS:
        if old in gold:
            yield "function or relation", gold.replace(old, new, 1)
    for match in _FRACTION.finditer(gold):
        if abs(int(match[1])) != abs(int(match[2])) and int(match[1]):
            yield (
                "fraction turned",
                gold[: match.start()] + f"\\frac{{{match[2]}}}{{{match[1]}}}" + gold[match.end() :],
            )
            break
    for place in dice.sample(letters(gold), min(1, len(letters(gold)))):
        free = [letter for letter in "abcpquvwz" if letter not in gold.lower()]
        yield "variable", gold[:place] + dice.choice(free) + gold[place + 1 :]
    yield from _scalar_edits(gold, dice)
    yield from _unit_edits(gold)
    yield from _list_edits(gold, dice)
    if re.fullmatch(r"\\text\{[A-Za-z]{4,}\}", gold):
        word = gold[6:-1]
        yield "word", "".join(sorted(word))
        yield "word", f"\\text{{not {word}}}"
    if re.search(r"\d_\{?\d\}?$", gold):
        yield (
            "base",
            re.sub(r"_\{?\d\}?$", "_{7}" if not gold.rstrip("}").endswith("7") else "_{6}", gold),
        )


def _scalar_edits(gold: str, dice: random.Random) -> Iterator[tuple[str, str]]:
    if not is_scalar(gold) or gold in ("0", "1", "-1") or re.fullmatch(r"[-\\]*[A-Za-z]{2,}", gold):
        return
    yield (
        "minus",
        gold[1:] if gold.startswith("-") and not re.search(r"[+-]", gold[1:]) else f"-({gold})",
    )
    yield "term", f"{gold}+{dice.choice(['1', 'x', '7', '0.01', '10^{-15}'])}"
    yield "factor", f"{dice.choice(['2', '10', 'n', '3'])}({gold})"
    yield "divided", f"\\frac{{{gold}}}{{{dice.choice(['2', 'k', '100'])}}}"
    yield "power", f"({gold})^{{{dice.choice(['2', '3'])}}}"
    yield "far digit", f"{gold}+10^{{-{dice.randint(8, 22)}}}"
    match = re.match(r"-?(\d+)\s*(?=\\|[a-z(])", gold)
    if match and match[1] != "1":
        yield "factor dropped", gold[match.end() :]
    if not re.search(r"[A-Za-z]$", _BARE.sub("", gold)):
        yield "trailing variable", gold + dice.choice(_LETTERS)
        yield "trailing variable", f"{gold} {dice.choice(_LETTERS)}"
    if not re.search(r"[A-Za-z]", _BARE.sub("", gold)):
        for word in dice.sample(NUMBER_WORDS, 2):
            yield "number word", gold + word
    if is_number(gold) and "." in gold:
        yield "point", re.sub(r"(\d)\.(\d)", r"\1\2.", gold) + "5"
        yield "decimal added", gold + dice.choice("123456789")
        yield "decimal cut", re.sub(r"[1-9]0*$", "", gold) or "8"
    scientific = re.fullmatch(r"(-?\d+(?:\.\d+)?)e(-?\d+)", gold)
    if scientific:
        yield "exponent", f"{scientific[1]}e{int(scientific[2]) + 1}"
        yield "exponent", f"{scientific[1]} \\times 10^{{{int(scientific[2]) - 1}}}"
        yield (
            "decimal added",
            f"{scientific[1]}{'' if '.' in scientific[1] else '.'}3e{scientific[2]}",
        )
    if is_number(gold) and len(gold.lstrip("-")) >= 2 and "." not in gold:
        yield "digits apart", gold[:-1] + "\\," + gold[-1]


def _unit_edits(gold: str) -> Iterator[tuple[str, str]]:
    if re.search(r"\\(?:text|mbox|mathrm)|circ", gold) and not re.search(r"[,(]", gold):
        for old, new in _UNIT_SWAPS:
            if old in gold and re.search(r"\d", gold):
                yield "unit", gold.replace(old, new, 1)


def _list_edits(gold: str, dice: random.Random) -> Iterator[tuple[str, str]]:
    plain = _DELIMITER.sub("", gold)
    elements = parts(plain)
    if re.search(r"where|text|\\begin|=", plain):
        return
    if len(elements) > 1 and not _GROUPED.fullmatch(plain):
        yield "element dropped", ", ".join(elements[1:])
        yield "element dropped", ", ".join(elements[:-1])
        yield "element doubled", ", ".join([*elements, elements[0]])
        yield (
            "element added",
            ", ".join([*elements, "41" if elements[0].lstrip("-").isdigit() else "(41,43)"]),
        )
        yield "element changed", ", ".join(["1234567", *elements[1:]])
        yield "only the first", elements[0]
    for match in _PAIR.finditer(plain):
        opening, first, second, closing = match.groups()
        before, after = plain[: match.start()], plain[match.end() :]
        if first.strip() != second.strip() and len(elements) == 1:
            yield "ends swapped", f"{before}{opening}{second},{first}{closing}{after}"
        turned = {"(": "[", "[": "(", ")": "]", "]": ")"}
        if "infty" not in first:
            yield "bracket", f"{before}{turned[opening]}{first},{second}{closing}{after}"
        if "infty" not in second:
            yield "bracket", f"{before}{opening}{first},{second}{turned[closing]}{after}"
        break
    inside = re.fullmatch(r"\(([^()]+(?:,[^()]+)+)\)", plain)
    if inside:
        own = parts(inside[1])
        for order in ([*own[1:], own[0]], own[::-1]):
            if [text.strip() for text in order] != [text.strip() for text in own]:
                yield "order", f"({','.join(order)})"
        yield "part dropped", f"({','.join(own[:-1])})"


def respellings(gold: str, dice: random.Random) -> Iterator[tuple[str, str]]:
    """(kind, the same answer written otherwise)."""
    original, gold = gold, folded(gold)
    yield "itself", original
    if "$" not in gold:
        yield "dollars", f"${gold}$"
    yield "full stop", f"{gold}."
    yield "spaces", f"\\, {gold} \\ "
    if not re.search(r"[=<>]|\\(?:text|in\b)|[A-Za-z]{4}", _BARE.sub("", gold)):
        yield "about", f"\\approx {gold}"
    if "frac{" in gold and "text" not in gold:
        yield "display fraction", gold.replace("\\frac{", "\\dfrac{")
    if "(" in gold and "\\left" not in gold and gold.count("(") == gold.count(")"):
        yield "left and right", gold.replace("(", "\\left(").replace(")", "\\right)")
    signs = {"\\pi": "π", "\\infty": "∞", "\\cup": "∪", "\\theta": "θ", "\\le ": "≤"}
    for command, character in signs.items():
        if command in gold:
            yield "unicode", gold.replace(command, character)
    if re.search(r"\\sqrt\s*\{\d+\}", gold):
        yield "unicode", re.sub(r"\\sqrt\s*\{(\d+)\}", r"√\1", gold)
        yield "plain root", re.sub(r"\\sqrt\s*\{(\d+)\}", r"sqrt(\1)", gold)
    if "^2" in gold.replace("^{2}", "^2") and "\\text" not in gold:
        yield "unicode", gold.replace("^{2}", "²").replace("^2", "²")
    if "-" in gold:
        yield "unicode", gold.replace("-", "−")
    elements = parts(_DELIMITER.sub("", gold))
    if len(elements) > 1 and not re.search(r"where|text|=", gold) and not _GROUPED.fullmatch(gold):
        shuffled = dice.sample(elements, len(elements))
        yield "list in another order", ", ".join(shuffled)
        yield "list with a word", ", ".join(elements[:-1]) + " and " + elements[-1]
        yield "braces", "\\{" + ", ".join(elements) + "\\}"
    fraction = _FRACTION.fullmatch(gold)
    if fraction:
        yield "slash", f"{fraction[1]}/{fraction[2]}"
        yield "larger fraction", f"\\frac{{{3 * int(fraction[1])}}}{{{3 * int(fraction[2])}}}"
    if is_scalar(gold) and not re.fullmatch(r"[-\\]*[A-Za-z]{2,}", gold):
        if not gold.startswith("+"):
            yield "label", f"\\textbf{{({dice.choice('ABCDE')})}}\\ {gold}"
        if "e" not in gold.replace("\\frac", "").replace("\\theta", "") or "^" in gold:
            yield "one less one", f"{gold}+1-1"
            yield "half of double", f"\\frac{{2({gold})}}{{2}}"
    if is_number(gold):
        yield "unit", f"{gold}\\text{{ units}}"
        yield "unit", f"{gold} {dice.choice(['apples', 'people', 'meters', 'cm'])}"
        if "." not in gold:
            yield "point", f"{gold}.0"
            yield "thousands", f"{int(gold):,}"
            yield "assigned", f"x = {gold}"
    interval = re.fullmatch(r"([(\[])([^(),\[\]]+),([^(),\[\]]+)([)\]])", gold)
    if interval and "infty" in gold:
        low, high = interval[2], interval[3]
        less = {"(": "<", "[": "\\le ", ")": "<", "]": "\\le "}
        left = "" if "infty" in low else f"{low}{less[interval[1]]}"
        right = "" if "infty" in high else f"{less[interval[4]]}{high}"
        yield "inequality", f"{left} x {right}"


def golds(folder: pathlib.Path) -> dict[str, list[str]]:
    """The right answers of the benchmarks whose files are in the folder, by name."""
    from dft_jax.evals.tasks import benchmarks

    names = ("math500", "minerva", "olympiadbench", "aime24", "aime25", "amc23", "gsm8k")
    return {
        name: [problem.answer for problem in benchmarks.load(name, str(folder))] for name in names
    }


def cases(answers: dict[str, list[str]], whole_numbers: int = 150) -> tuple[list, list]:
    """(kind, gold, text) of all edits, and of all respellings; of whole numbers only some of each
    benchmark.
    """
    changed, kept = [], []
    for name, of_benchmark in answers.items():
        plain = 0
        for number, gold in enumerate(of_benchmark):
            plain += re.fullmatch(r"\d+", folded(gold)) is not None
            if re.fullmatch(r"\d+", folded(gold)) and plain > whole_numbers:
                continue
            dice = random.Random(f"{name} {number}")
            seen = {gold, folded(gold)}
            for kind, text in edits(gold, dice):
                if text not in seen:
                    changed.append((kind, gold, text))
                    seen.add(text)
            kept += [(kind, gold, text) for kind, text in respellings(gold, dice)]
    return changed, kept


def main() -> None:
    from dft_jax.evals.graders.pool import Grader

    changed, kept = cases(golds(pathlib.Path(sys.argv[1])))
    with Grader(workers=2) as grader:
        for name, of_name, expected in (
            ("edits", changed, "not correct"),
            ("respellings", kept, "correct"),
        ):
            graded = grader.grade(
                [(f"\\boxed{{{text}}}", gold) for _, gold, text in of_name], progress=False
            )
            counts = collections.Counter()
            for (kind, gold, text), one in zip(of_name, graded, strict=True):
                counts[kind, one.verdict] += 1
                if (one.verdict == "correct") != (expected == "correct"):
                    print(json.dumps([name, kind, one.verdict, gold, text], ensure_ascii=False))
            verdicts = collections.Counter(one.verdict for one in graded)
            print(name, len(of_name), dict(verdicts))
            for (kind, verdict), count in sorted(counts.items()):
                print(f"  {kind:24}{verdict:12}{count}")


if __name__ == "__main__":
    main()
