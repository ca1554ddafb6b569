"""The laboratory's programs: functions of one number, made from the problems of its world.

`programs(split=test, n=100)` names an excerpt, in the place of a file. A row has what a row of
HumanEval has: `task_id`, `prompt` (a function with a docstring and no body), `entry_point`,
`canonical_solution` (the body) and `test`. The body is a line for each step of the problem:

    def f(x):                                            y = x + 3
        \"\"\"Compute x+3*2 from left to right.\"\"\"          y = y * 2
                                                         return y

The splits share no problem, and what is said in `world` of its draws holds here too.
"""

import dataclasses
import random
from collections.abc import Iterator
from typing import Any

from dft_jax.data.sources import excerpts, world

NAME = "programs"
_TESTED = 5  # arguments in the tests of a problem
_LARGEST_ARGUMENT = 30
_FAMILIES = ("chain", "expression")
_LEVELS = (2, 4)
ENTRY_POINT = "f"


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """`n` problems of a split, with solutions of which each step goes wrong by `noise`."""

    split: str = "train"
    n: int = 1000
    noise: float = 0.0
    seed: int = 0

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows as the head of this file says, `n` of them, no problem twice."""
        rng = random.Random(f"{NAME} {self.split} {self.seed}")
        seen: set[str] = set()
        while len(seen) < self.n:
            family = rng.choice(_FAMILIES)
            problem = world.FAMILIES[family](rng.randint(*_LEVELS), rng)
            key = _key(problem)
            if key in seen or world.split_of(key) != self.split:
                continue
            seen.add(key)
            yield _row(problem, len(seen) - 1, rng, self.noise)

    def problems(self) -> list[str]:
        """What is wrong with the values, one line each."""
        found = []
        if self.split not in world.SPLITS:
            found.append(f"split={self.split!r} should be one of {', '.join(world.SPLITS)}")
        if not 1 <= self.n <= 10_000 or not 0 <= self.noise <= 1:
            found.append("n should be from 1 to 10000, noise from 0 to 1")
        return found


def _key(problem: world.Problem) -> str:
    """What a problem computes, whatever the first number, which is the argument."""
    steps = [f"{step.left}{step.symbol}{step.right}" for step in problem.steps]
    return f"{NAME} {' '.join(steps)}"


def _row(problem: world.Problem, number: int, rng: random.Random, noise: float) -> dict[str, Any]:
    # The first value stands once in a question: "Ann has 7 apples." or "Compute 7+3".
    question = problem.question.replace(str(problem.first), "x", 1)
    prompt = f'def {ENTRY_POINT}(x):\n    """{question}"""\n'
    arguments = rng.sample(range(1, _LARGEST_ARGUMENT + 1), _TESTED)
    asserts = []
    for argument in arguments:
        asserts.append(f"    assert candidate({argument}) == {_value(problem, argument)}")
    return {
        "task_id": f"lab_code/{number}",
        "prompt": prompt,
        "entry_point": ENTRY_POINT,
        "canonical_solution": _body(problem, rng, noise),
        "test": "\n".join(["def check(candidate):", *asserts, ""]),
    }


def _value(problem: world.Problem, argument: int) -> int:
    """The last value where the first one is the argument."""
    values = [argument]
    for step in problem.steps:
        left, right = (_operand(operand, values) for operand in (step.left, step.right))
        values.append(world.apply(left, step.symbol, right))
    return values[-1]


def _operand(operand: world.Operand, values: list[int]) -> int:
    if isinstance(operand, tuple):
        return values[operand[0]]
    return operand


def _body(problem: world.Problem, rng: random.Random, noise: float) -> str:
    """A line for each step, in names of people or in `y`; a wrong one has another operation or
    another number.
    """
    names = ["x"]
    lines = []
    if problem.names[0]:
        names = [problem.names[0].lower()]
        lines.append(f"    {names[0]} = x")
    for step in problem.steps:
        symbol = step.symbol
        left, right = (_text(operand, names) for operand in (step.left, step.right))
        if rng.random() < noise:
            symbol, right = _wrong(symbol, right, rng)
        name = step.who.lower() or "y"
        lines.append(f"    {name} = {left} {symbol} {right}")
        names.append(name)
    return "\n".join([*lines, f"    return {names[-1]}", ""])


def _text(operand: world.Operand, names: list[str]) -> str:
    if isinstance(operand, tuple):
        return names[operand[0]]
    return str(operand)


def _wrong(symbol: str, right: str, rng: random.Random) -> tuple[str, str]:
    """Another operation, or a number that is off by 1 to 3."""
    if right.isdigit() and rng.random() < 0.5:
        return symbol, str(int(right) + rng.randint(1, 3))
    return rng.choice([other for other in "+-*" if other != symbol]), right


# ---- as a place of rows


def parse(path: str) -> Excerpt | None:
    """The excerpt that `programs(split=test, n=100)` names; None for a path of another kind.

    Raises:
      UserError: unknown names, or values of another type or out of range.
    """
    return excerpts.parse(path, NAME, Excerpt())
