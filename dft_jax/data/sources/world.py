"""The laboratory's world: word problems over small numbers, generated, with worked solutions that
may go wrong.

Three families, each with levels k:

    chain       k people, each with a count that follows from an earlier one's; "How many apples does Eve have?"
    expression  k operations, read from left to right
    operator    k uses of an operation that no other family has: a @ c = (2a + c) mod 30

and `fact`, one sum, product or difference by itself. All values are 1 to 30. `data.train` (or
`data.heldout`, or a benchmark) names a part of the world instead of a file:

    world(split=train, family=chain, levels=2-4, n=2500, noise=0.15)

A problem is what it computes: its numbers and relations, whoever the people are. The splits
`pretrain`, `train`, `validation` and `test` share no problem, for each goes to one of them by a
hash.
"""

import dataclasses
import hashlib
import inspect
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

from dft_jax.runtime import errors

NAMES = ("Ann", "Ben", "Cid", "Dan", "Eve", "Fay", "Gus", "Hal", "Ida", "Jan")
THINGS = ("apples", "books", "coins", "pens", "shells", "stamps")
LARGEST = 30
# of 16
SPLITS = {
    "test": range(0, 3),
    "validation": range(3, 5),
    "train": range(5, 8),
    "pretrain": range(8, 16),
}
OPENERS = ("", "", "Let us see. ", "We go step by step. ", "First look at what is given. ")
CONNECTORS = ("", "", "Then ", "So ", "Next ")


@dataclasses.dataclass(frozen=True)
class Step:
    """One line of the solution: `who` (empty in expressions) has the value of `left symbol right`.

    Operands are numbers, or indices of earlier steps as (index,), so that a wrong value is carried
    on.
    """

    who: str
    left: int | tuple[int]
    symbol: str
    right: int | tuple[int]


@dataclasses.dataclass(frozen=True)
class Problem:
    """`key` says what is computed; `steps` how. The first value is given."""

    key: str
    question: str
    first: int
    steps: tuple[Step, ...]
    names: tuple[str, ...]  # of the first value and each step; empty strings where nobody has them
    thing: str


def apply(left: int, symbol: str, right: int) -> int:
    """The value of one operation."""
    return {
        "+": left + right,
        "-": left - right,
        "*": left * right,
        "@": (2 * left + right) % LARGEST,
    }[symbol]


# ---- families
# -------------------------------------------------------------------------------------------------------


def chain(level: int, rng: random.Random) -> Problem:
    """`level` people; three in four relate to the one before, the others to any earlier person or
    to two together.
    """
    names = rng.sample(NAMES, level)
    thing = rng.choice(THINGS)
    values = [rng.randint(1, LARGEST)]
    sentences, steps, keys = [f"{names[0]} has {values[0]} {thing}."], [], [str(values[0])]
    for i in range(1, level):
        of = i - 1 if rng.random() < 0.75 else rng.randrange(i)
        sentence, step, value = _relation(names, thing, values, i, of, rng)
        sentences.append(sentence)
        steps.append(step)
        values.append(value)
        keys.append(f"{step.left}{step.symbol}{step.right}")
    question = " ".join([*sentences, f"How many {thing} does {names[-1]} have?"])
    return Problem(
        f"chain {' '.join(keys)}", question, values[0], tuple(steps), tuple(names), thing
    )


def _relation(names, thing, values, i, of, rng) -> tuple[str, Step, int]:
    """A sentence about person `i`, drawn until the value is in the world."""
    who, other, base = names[i], names[of], values[of]
    while True:
        kind, number = rng.choice(("more", "fewer", "times", "together")), rng.randint(2, 10)
        if kind == "together" and i >= 2:
            second = rng.choice([j for j in range(i) if j != of])
            value = base + values[second]
            sentence = f"{who} has as many {thing} as {other} and {names[second]} together."
            step = Step(who, (of,), "+", (second,))
        elif kind == "times" and number <= 5:
            value = base * number
            sentence, step = (
                f"{who} has {number} times as many {thing} as {other}.",
                Step(who, (of,), "*", number),
            )
        else:
            symbol = "+" if kind == "more" else "-"
            kind = "more" if symbol == "+" else "fewer"
            value = apply(base, symbol, number)
            sentence, step = (
                f"{who} has {number} {kind} {thing} than {other}.",
                Step(who, (of,), symbol, number),
            )
        if 1 <= value <= LARGEST:
            return sentence, step, value


def expression(level: int, rng: random.Random) -> Problem:
    """`level` additions, subtractions and products, from left to right."""
    return _left_to_right("expression", ("+", "-", "*"), level, rng)


def operator(level: int, rng: random.Random) -> Problem:
    """`level` uses of @."""
    return _left_to_right("operator", ("@",), level, rng)


def _left_to_right(
    family: str, symbols: tuple[str, ...], level: int, rng: random.Random
) -> Problem:
    first = value = rng.randint(1, LARGEST)
    text, steps = str(first), []
    while len(steps) < level:
        symbol, number = rng.choice(symbols), rng.randint(2, 10)
        if symbol == "@":
            number = rng.randint(1, LARGEST)
        new = apply(value, symbol, number)
        if 1 <= new <= LARGEST and not (symbol == "*" and number > 5):
            steps.append(Step("", (len(steps),), symbol, number))
            value, text = new, f"{text}{symbol}{number}"
    question = f"Compute {text} from left to right."
    return Problem(f"{family} {text}", question, first, tuple(steps), ("",) * (level + 1), "")


def fact(level: int, rng: random.Random) -> Problem:
    """One operation; `level` is 1."""
    problem = expression(1, rng)
    text = problem.key.removeprefix("expression ")
    return dataclasses.replace(problem, key=f"fact {text}", question=f"{text}=?")


FAMILIES: dict[str, Callable[[int, random.Random], Problem]] = {
    each.__name__: each for each in (chain, expression, operator, fact)
}


# ---- solutions
# ------------------------------------------------------------------------------------------------------


def _style_1(who: str, operation: str, value: int, thing: str) -> str:
    return f"{who} has {operation}={value} {thing}." if who else f"{operation}={value}."


def _style_2(who: str, operation: str, value: int, thing: str) -> str:
    return f"{operation}={value}, so {who} has {value}." if who else f"{operation} is {value}."


def _style_3(who: str, operation: str, value: int, thing: str) -> str:
    return f"{who}: {operation}={value}." if who else f"we get {operation}={value}."


def _style_4(who: str, operation: str, value: int, thing: str) -> str:
    return (
        f"since {operation}={value}, {who} has {value} {thing}."
        if who
        else f"now {operation}={value}."
    )


STYLES = (_style_1, _style_2, _style_3, _style_4)


def solve(
    problem: Problem, rng: random.Random, noise: float = 0.0, styles: int = len(STYLES)
) -> tuple[str, int]:
    """A worked solution, one line a step, and its final value; each step goes wrong with
    probability `noise`.

    A wrong step is off by 1 to 3, or has the result of another operation, and what follows builds
    on it.
    """
    style = STYLES[rng.randrange(styles)]
    is_plain = styles == 1  # one style is one voice: no openers, no connectors
    values, lines = [problem.first], []
    if problem.names[0]:
        lines.append(f"{problem.names[0]} has {problem.first} {problem.thing}.")
    for step in problem.steps:
        left, right = (
            values[side[0]] if isinstance(side, tuple) else side for side in (step.left, step.right)
        )
        value = apply(left, step.symbol, right)
        if rng.random() < noise:
            value = rng.choice(_wrong(left, step.symbol, right, value))
        values.append(value)
        connector = "" if is_plain or not lines else rng.choice(CONNECTORS)
        lines.append(
            connector + style(step.who, f"{left}{step.symbol}{right}", value, problem.thing)
        )
    opener = "" if is_plain else rng.choice(OPENERS)
    return f"{opener}{' '.join(lines)}\n#### {values[-1]}", values[-1]


def _wrong(left: int, symbol: str, right: int, value: int) -> list[int]:
    slips = [value + d for d in (-3, -2, -1, 1, 2, 3)]
    others = [other for other in (left + right, left - right) if other != value and symbol != "@"]
    return [wrong for wrong in slips + others if wrong >= 0] or slips


# ---- parts of the world as rows
# -------------------------------------------------------------------------------------


def split_of(key: str) -> str:
    """The split that a problem belongs to."""
    number = hashlib.sha256(key.encode()).digest()[0] % 16
    return next(name for name, numbers in SPLITS.items() if number in numbers)


def rows(
    split: str = "train",
    family: str = "chain",
    levels: str = "2-4",
    n: int = 1000,
    noise: float = 0.0,
    styles: int = 4,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """`n` rows {"question", "answer", "level"}; no problem twice where the family has enough of
    them.

    `family` may be several with weights, as in `chain:60+expression:15+fact:25`, each with its own
    range of levels in `levels`, as in `1-6+2-4+1-1`.
    """
    families = [part.partition(":") for part in family.split("+")]
    spans = [tuple(int(end) for end in span.split("-")) for span in levels.split("+")]
    spans = spans * len(families) if len(spans) == 1 else spans
    weights = [float(weight or 1) for _, _, weight in families]
    rng = random.Random(f"{split} {seed}")
    seen: set[str] = set()
    made = misses = 0
    while made < n:
        i = rng.choices(range(len(families)), weights)[0]
        level = rng.randint(*spans[i])
        problem = FAMILIES[families[i][0]](level, rng)
        if split_of(problem.key) != split:
            continue
        # Short problems are few; a text that is read again and again may repeat them, a test may
        # not run dry.
        if problem.key in seen and misses < 50 * n:
            misses += 1
            if split != "pretrain" or misses % 2:
                continue
        seen.add(problem.key)
        answer, _ = solve(problem, rng, noise, styles)
        yield {"question": problem.question, "answer": answer, "level": level}
        made += 1


def parse(path: str) -> dict[str, Any] | None:
    """The arguments of `rows` in `world(split=train, n=100)`; None for a path that is none of
    these.

    Raises:
      UserError: unknown names, values that are none.
    """
    match = re.fullmatch(r"\s*world\((.*)\)\s*", path)
    if not match:
        return None
    known = {
        name: parameter.default for name, parameter in inspect.signature(rows).parameters.items()
    }
    arguments: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in match[1].split(","))):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in known:
            hint = errors.did_you_mean(name, list(known))
            raise errors.UserError(
                f"{path}: unknown argument {name!r}{hint}; known: {', '.join(known)}"
            )
        try:
            arguments[name] = type(known[name])(value)
        except ValueError as error:
            wanted = type(known[name]).__name__
            raise errors.UserError(
                f"{path}: {name}={value!r} should be {wanted}, such as {known[name]}"
            ) from error
    _check(path, known | arguments)
    return arguments


def _check(path: str, a: dict[str, Any]) -> None:
    names = [part.partition(":")[0] for part in a["family"].split("+")]
    spans = a["levels"].split("+")
    problems = []
    if a["split"] not in SPLITS:
        problems.append(f"split={a['split']!r} should be one of {', '.join(SPLITS)}")
    if unknown := [name for name in names if name not in FAMILIES]:
        problems.append(f"family={unknown[0]!r} should be one of {', '.join(FAMILIES)}")
    if not all(re.fullmatch(r"[1-9]-[1-9]", span) and span[0] <= span[2] for span in spans):
        problems.append(f"levels={a['levels']!r} should be a range such as 2-4")
    elif len(spans) not in (1, len(names)):
        problems.append(
            f"levels={a['levels']!r} should be one range, or one for each of {len(names)} families"
        )
    if not all(re.fullmatch(r"(\w+)(:\d+(\.\d+)?)?", part) for part in a["family"].split("+")):
        problems.append(f"family={a['family']!r}: a weight is a number, as in chain:60+fact:40")
    if a["n"] < 1 or not 0 <= a["noise"] <= 1 or not 1 <= a["styles"] <= len(STYLES):
        problems.append(
            f"n should be at least 1, noise from 0 to 1, styles from 1 to {len(STYLES)}"
        )
    errors.raise_if_any([f"{path}: {problem}" for problem in problems])
