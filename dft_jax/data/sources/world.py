"""The laboratory's world: generated word problems with worked solutions that may go wrong.

Three families, over small numbers, each with levels k:

    chain       k people, each with a count that follows from an earlier one's;
                "How many apples does Eve have?"
    expression  k operations, read from left to right
    operator    k uses of an operation that no other family has: a @ c = (2a + c) mod 30

and `fact`, one sum, product or difference by itself. All values are 1 to 30. `data.train` (or
`data.heldout`, or a benchmark) names an excerpt of the world instead of a file:

    world(split=train, family=chain, levels=2-4, n=2500, noise=0.15)

A problem is what it computes: its numbers and relations, whoever the people are. The splits
`pretrain`, `train`, `validation` and `test` share no problem, for each goes to one of them by a
hash.

The order of the random draws is part of the data: another order would give other problems under
the same seed, and the numbers of the studies would no longer be those of their data.
"""

import dataclasses
import hashlib
import random
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from dft_jax.data.sources import excerpts

NAME = "world"
NAMES: tuple[str, ...] = ("Ann", "Ben", "Cid", "Dan", "Eve", "Fay", "Gus", "Hal", "Ida", "Jan")
THINGS = ("apples", "books", "coins", "pens", "shells", "stamps")
LARGEST = 30
# Which of 16 hashes go to a split: half of all problems are for pretraining.
SPLITS = {
    "test": range(0, 3),
    "validation": range(3, 5),
    "train": range(5, 8),
    "pretrain": range(8, 16),
}
OPENERS = ("", "", "Let us see. ", "We go step by step. ", "First look at what is given. ")
CONNECTORS = ("", "", "Then ", "So ", "Next ")

_RANGE = re.compile(r"[1-9]-[1-9]")  # of levels
_WEIGHTED = re.compile(r"(\w+)(:\d+(\.\d+)?)?")  # a family, perhaps with a weight

# A number, or as (index,) the value of an earlier step.
Operand = int | tuple[int]


@dataclasses.dataclass(frozen=True)
class Step:
    """One line of the solution: `who` (empty in expressions) has the value of `left symbol right`.

    Operands that are indices of earlier steps carry a wrong value on.
    """

    who: str
    left: Operand
    symbol: str
    right: Operand


@dataclasses.dataclass(frozen=True)
class Problem:
    """`key` says what is computed; `steps` by which operations. The first value is given."""

    key: str
    question: str
    first: int
    steps: tuple[Step, ...]
    # Of the first value and of each step; empty strings where nobody has them.
    names: tuple[str, ...]
    thing: str


# Of which kind a family's problems are, where another module has more to say of them.
Made = TypeVar("Made", bound=Problem)


def apply(left: int, symbol: str, right: int) -> int:
    """The value of one operation."""
    if symbol == "+":
        return left + right
    if symbol == "-":
        return left - right
    if symbol == "*":
        return left * right
    assert symbol == "@", symbol
    return (2 * left + right) % LARGEST


# ---- families


def chain(level: int, rng: random.Random) -> Problem:
    """`level` people, each with a count that follows from an earlier one's, or from two earlier.

    Three in four relate to the person before them, the others to any earlier one.
    """
    names: list[str] = rng.sample(NAMES, level)
    thing = rng.choice(THINGS)
    values = [rng.randint(1, LARGEST)]
    sentences = [f"{names[0]} has {values[0]} {thing}."]
    keys = [str(values[0])]
    steps = []
    for person in range(1, level):
        base = person - 1
        if rng.random() >= 0.75:
            base = rng.randrange(person)
        relation = _relation(names, thing, values, person, base, rng)
        step = relation.step
        sentences.append(relation.sentence)
        steps.append(step)
        values.append(relation.value)
        keys.append(f"{step.left}{step.symbol}{step.right}")
    question = " ".join([*sentences, f"How many {thing} does {names[-1]} have?"])
    key = f"chain {' '.join(keys)}"
    return Problem(key, question, values[0], tuple(steps), tuple(names), thing)


@dataclasses.dataclass(frozen=True)
class _Relation:
    """A person's count, as a sentence, as a step and as a number."""

    sentence: str
    step: Step
    value: int


def _relation(
    names: list[str], thing: str, values: list[int], person: int, base: int, rng: random.Random
) -> _Relation:
    """How `person` relates to the person `base`, drawn until the value is in the world."""
    who = names[person]
    other = names[base]
    while True:
        kind = rng.choice(("more", "fewer", "times", "together"))
        number = rng.randint(2, 10)
        if kind == "together" and person >= 2:
            second = rng.choice([earlier for earlier in range(person) if earlier != base])
            value = values[base] + values[second]
            sentence = f"{who} has as many {thing} as {other} and {names[second]} together."
            step = Step(who, (base,), "+", (second,))
        elif kind == "times" and number <= 5:
            value = values[base] * number
            sentence = f"{who} has {number} times as many {thing} as {other}."
            step = Step(who, (base,), "*", number)
        elif kind == "more":
            value = values[base] + number
            sentence = f"{who} has {number} more {thing} than {other}."
            step = Step(who, (base,), "+", number)
        else:
            # Also what was drawn as a product by more than 5, or as a sum of two without a second.
            value = values[base] - number
            sentence = f"{who} has {number} fewer {thing} than {other}."
            step = Step(who, (base,), "-", number)
        if 1 <= value <= LARGEST:
            return _Relation(sentence, step, value)


def expression(level: int, rng: random.Random) -> Problem:
    """`level` additions, subtractions and products, from left to right."""
    return _left_to_right("expression", ("+", "-", "*"), level, rng)


def operator(level: int, rng: random.Random) -> Problem:
    """`level` uses of @."""
    return _left_to_right("operator", ("@",), level, rng)


def _left_to_right(
    family: str, symbols: tuple[str, ...], level: int, rng: random.Random
) -> Problem:
    first = rng.randint(1, LARGEST)
    value = first
    text = str(first)
    steps: list[Step] = []
    while len(steps) < level:
        symbol = rng.choice(symbols)
        number = rng.randint(2, 10)
        if symbol == "@":
            number = rng.randint(1, LARGEST)
        new = apply(value, symbol, number)
        is_hard_product = symbol == "*" and number > 5
        if 1 <= new <= LARGEST and not is_hard_product:
            steps.append(Step("", (len(steps),), symbol, number))
            value = new
            text = f"{text}{symbol}{number}"
    question = f"Compute {text} from left to right."
    nobody = ("",) * (level + 1)
    return Problem(f"{family} {text}", question, first, tuple(steps), nobody, "")


def fact(level: int, rng: random.Random) -> Problem:
    """One operation; `level` is 1."""
    problem = expression(1, rng)
    text = problem.key.removeprefix("expression ")
    return dataclasses.replace(problem, key=f"fact {text}", question=f"{text}=?")


FAMILIES: dict[str, Callable[[int, random.Random], Problem]] = {
    "chain": chain,
    "expression": expression,
    "operator": operator,
    "fact": fact,
}


# ---- solutions


def _style_1(who: str, operation: str, value: int, thing: str) -> str:
    if who:
        return f"{who} has {operation}={value} {thing}."
    return f"{operation}={value}."


def _style_2(who: str, operation: str, value: int, thing: str) -> str:
    if who:
        return f"{operation}={value}, so {who} has {value}."
    return f"{operation} is {value}."


def _style_3(who: str, operation: str, value: int, thing: str) -> str:
    if who:
        return f"{who}: {operation}={value}."
    return f"we get {operation}={value}."


def _style_4(who: str, operation: str, value: int, thing: str) -> str:
    if who:
        return f"since {operation}={value}, {who} has {value} {thing}."
    return f"now {operation}={value}."


STYLES = (_style_1, _style_2, _style_3, _style_4)


def solve(
    problem: Problem, rng: random.Random, noise: float = 0.0, styles: int = len(STYLES)
) -> tuple[str, int]:
    """A worked solution, one line a step, and its final value.

    Each step goes wrong with probability `noise`: it is off by 1 to 3, or has the result of another
    operation, and what follows builds on it.
    """
    style = STYLES[rng.randrange(styles)]
    is_plain = styles == 1  # one style is one voice: no openers, no connectors
    values = [problem.first]
    lines = []
    if problem.names[0]:
        lines.append(f"{problem.names[0]} has {problem.first} {problem.thing}.")
    for step in problem.steps:
        left = _number(step.left, values)
        right = _number(step.right, values)
        value = apply(left, step.symbol, right)
        if rng.random() < noise:
            value = rng.choice(_wrong(left, step.symbol, right, value))
        values.append(value)
        connector = ""
        if lines and not is_plain:
            connector = rng.choice(CONNECTORS)
        line = style(step.who, f"{left}{step.symbol}{right}", value, problem.thing)
        lines.append(connector + line)
    opener = ""
    if not is_plain:
        opener = rng.choice(OPENERS)
    return f"{opener}{' '.join(lines)}\n#### {values[-1]}", values[-1]


def _number(operand: Operand, values: list[int]) -> int:
    """The value of an operand; `values` are those of the steps so far, right or wrong."""
    if isinstance(operand, tuple):
        return values[operand[0]]
    return operand


def _wrong(left: int, symbol: str, right: int, value: int) -> list[int]:
    """Values that a wrong step may have: slips, and results of other operations."""
    slips = [value + by for by in (-3, -2, -1, 1, 2, 3)]
    others = []
    if symbol != "@":
        others = [other for other in (left + right, left - right) if other != value]
    return [wrong for wrong in slips + others if wrong >= 0] or slips


# ---- excerpts of the world as rows


def split_of(key: str) -> str:
    """The split that a problem belongs to."""
    number = hashlib.sha256(key.encode()).digest()[0] % 16
    for name, numbers in SPLITS.items():
        if number in numbers:
            return name
    raise AssertionError(f"{number} is in no split")


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """`n` problems of a split, with solutions of which each step goes wrong by `noise`.

    `family` may be several with weights, as in `chain:60+expression:15+fact:25`, each with its own
    range of levels in `levels`, as in `1-6+2-4+1-1`.
    """

    split: str = "train"
    family: str = "chain"
    levels: str = "2-4"
    n: int = 1000
    noise: float = 0.0
    styles: int = 4
    seed: int = 0

    def families(self) -> list[str]:
        """The names in `family`."""
        return [part.partition(":")[0] for part in self.family.split("+")]

    def weights(self) -> list[float]:
        """How often each family is drawn, relative to the others."""
        return [float(part.partition(":")[2] or 1) for part in self.family.split("+")]

    def spans(self) -> list[tuple[int, int]]:
        """The lowest and the highest level of each family."""
        spans = []
        for span in self.levels.split("+"):
            lowest, highest = span.split("-")
            spans.append((int(lowest), int(highest)))
        if len(spans) == 1:
            spans = spans * len(self.families())
        return spans

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows {"question", "answer", "level"}, `n` of them.

        No problem comes twice where the family has enough of them.
        """
        rng = random.Random(f"{self.split} {self.seed}")
        for problem, level in self.drawn(FAMILIES, rng):
            answer, _ = solve(problem, rng, self.noise, self.styles)
            yield {"question": problem.question, "answer": answer, "level": level}

    def drawn(
        self, makers: Mapping[str, Callable[[int, random.Random], Made]], rng: random.Random
    ) -> Iterator[tuple[Made, int]]:
        """`n` problems of the split, each with its level.

        Between two of them the caller may draw from `rng` too, as for their solutions.

        Args:
          makers: by the name of a family.
        """
        families = [makers[name] for name in self.families()]
        weights = self.weights()
        spans = self.spans()
        seen: set[str] = set()
        made = 0
        misses = 0
        while made < self.n:
            choice = rng.choices(range(len(families)), weights)[0]
            level = rng.randint(*spans[choice])
            problem = families[choice](level, rng)
            # Thrown away and drawn again: splits are no part of the draws.
            if split_of(problem.key) != self.split:
                continue
            # Short problems are few; a text that is read again and again may repeat them, a test
            # may not run dry.
            if problem.key in seen and misses < 50 * self.n:
                misses += 1
                if self.split != "pretrain" or misses % 2:
                    continue
            seen.add(problem.key)
            yield problem, level
            made += 1

    def known_families(self) -> tuple[str, ...]:
        """The names that `family` may have."""
        return tuple(FAMILIES)

    def problems(self) -> list[str]:
        """What is wrong with the values, one line each."""
        found = []
        names = self.families()
        spans = self.levels.split("+")
        if self.split not in SPLITS:
            found.append(f"split={self.split!r} should be one of {', '.join(SPLITS)}")
        known = self.known_families()
        unknown = [name for name in names if name not in known]
        if unknown:
            found.append(f"family={unknown[0]!r} should be one of {', '.join(known)}")
        if not all(_is_range(span) for span in spans):
            found.append(f"levels={self.levels!r} should be a range such as 2-4")
        elif len(spans) not in (1, len(names)):
            expected = f"one range, or one for each of {len(names)} families"
            found.append(f"levels={self.levels!r} should be {expected}")
        if not all(_WEIGHTED.fullmatch(part) for part in self.family.split("+")):
            found.append(f"family={self.family!r}: a weight is a number, as in chain:60+fact:40")
        if self.n < 1 or not 0 <= self.noise <= 1 or not 1 <= self.styles <= len(STYLES):
            found.append(
                f"n should be at least 1, noise from 0 to 1, styles from 1 to {len(STYLES)}"
            )
        return found


def _is_range(span: str) -> bool:
    """Whether the text is as `2-4`: two levels of one digit, the lower one first."""
    return _RANGE.fullmatch(span) is not None and span[0] <= span[2]


def parse(path: str) -> Excerpt | None:
    """The excerpt that `world(split=train, n=100)` names; None for a path of another kind.

    Raises:
      UserError: unknown names, or values of another type or out of range.
    """
    return excerpts.parse(path, NAME, Excerpt())
