"""The laboratory's programs: functions of one number, made from the problems of its world.

`programs(split=train, n=2500, noise=0.15, styles=4)` names an excerpt, in the place of a file. A
row has what a row of HumanEval has: `task_id`, `prompt` (a function with a docstring and no body),
`entry_point`, `canonical_solution` (the body) and `test`. The body does a step of the problem after
the other:

    def f(x):                                            y = x + 3
        \"\"\"Compute x+3*2 from left to right.\"\"\"          y = y * 2
                                                         return y

What is said in `world` of families, levels, noise, splits and draws holds here too.
"""

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dft_jax.data.sources import excerpts, world

NAME = "programs"
ENTRY_POINT = "f"
# Not `operator`: a body could only name an operation that Python does not have.
FAMILIES = ("chain", "expression", "fact")
_TESTED = 5  # arguments in the tests of a problem
_LARGEST_ARGUMENT = 30
_INDENT = "    "


@dataclasses.dataclass(frozen=True)
class Excerpt(world.Excerpt):
    """`n` problems of a split, with solutions of which each step goes wrong by `noise`.

    The defaults with split=test and n=100 are the benchmark `lab_code`.
    """

    family: str = "chain+expression"
    styles: int = 1

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows as the head of this file says, `n` of them.

        No problem comes twice where the families have enough of them; in `pretrain` they may.
        """
        names = self.families()
        spans = self.spans()
        rng = random.Random(f"{NAME} {self.split} {self.seed}")
        seen: set[str] = set()
        made = 0
        misses = 0
        while made < self.n:
            choice = self._choice(rng)
            problem = world.FAMILIES[names[choice]](rng.randint(*spans[choice]), rng)
            key = _key(problem)
            if world.split_of(key) != self.split:
                continue
            # Short problems are few, and may not keep the others waiting for ever.
            if key in seen and self.split != "pretrain" and misses < 50 * self.n:
                misses += 1
                continue
            seen.add(key)
            yield _row(problem, made, rng, self.noise, self.styles)
            made += 1

    def _choice(self, rng: random.Random) -> int:
        """Which of the families is next."""
        weights = self.weights()
        # Drawn another way, `lab_code` would have other problems.
        if min(weights) == max(weights):
            return rng.randrange(len(weights))
        return rng.choices(range(len(weights)), weights)[0]

    def known_families(self) -> tuple[str, ...]:
        """The names that `family` may have."""
        return FAMILIES


def _key(problem: world.Problem) -> str:
    """What a problem computes, whatever the first number, which is the argument."""
    steps = [f"{step.left}{step.symbol}{step.right}" for step in problem.steps]
    return f"{NAME} {' '.join(steps)}"


def _row(
    problem: world.Problem, number: int, rng: random.Random, noise: float, styles: int
) -> dict[str, Any]:
    # The first value stands once in a question: "Ann has 7 apples." or "Compute 7+3".
    question = problem.question.replace(str(problem.first), "x", 1)
    prompt = f'def {ENTRY_POINT}(x):\n{_INDENT}"""{question}"""\n'
    arguments = rng.sample(range(1, _LARGEST_ARGUMENT + 1), _TESTED)
    asserts = []
    for argument in arguments:
        asserts.append(f"{_INDENT}assert candidate({argument}) == {_value(problem, argument)}")
    return {
        "task_id": f"lab_code/{number}",
        "prompt": prompt,
        "entry_point": ENTRY_POINT,
        "canonical_solution": _body(problem, rng, noise, styles),
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


# ---- bodies


def _body(problem: world.Problem, rng: random.Random, noise: float, styles: int) -> str:
    """The body of the function, in one of the first `styles` styles; every step of it goes wrong
    with probability `noise`.
    """
    steps = []
    for step in problem.steps:
        if rng.random() < noise:
            step = _wrong(step, rng)
        steps.append(step)
    style = STYLES[0]
    # The solutions of `lab_code` are of before there were styles, and draw none.
    if styles > 1:
        style = rng.choice(STYLES[:styles])
    lines = style(dataclasses.replace(problem, steps=tuple(steps)))
    return "".join(f"{_INDENT}{line}\n" for line in lines)


def _wrong(step: world.Step, rng: random.Random) -> world.Step:
    """The step with another operation, or with a number that is off by 1 to 3."""
    if isinstance(step.right, int) and rng.random() < 0.5:
        return dataclasses.replace(step, right=step.right + rng.randint(1, 3))
    others = [symbol for symbol in "+-*" if symbol != step.symbol]
    return dataclasses.replace(step, symbol=rng.choice(others))


def _named(problem: world.Problem) -> list[str]:
    """By name: a line for each person, or `y` again and again."""
    names = ["x"]
    lines = []
    if problem.names[0]:
        names = [problem.names[0].lower()]
        lines.append(f"{names[0]} = x")
    for step in problem.steps:
        name = step.who.lower() or "y"
        lines.append(f"{name} = {_operation(step, names)}")
        names.append(name)
    return [*lines, f"return {names[-1]}"]


def _lettered(problem: world.Problem) -> list[str]:
    """As `_named`, with letters for names: a = x, b = a + 3."""
    letters = "abcdefghij"
    lines = ["a = x"]
    for number, step in enumerate(problem.steps, start=1):
        lines.append(f"{letters[number]} = {_operation(step, letters)}")
    return [*lines, f"return {letters[len(problem.steps)]}"]


def _returned(problem: world.Problem) -> list[str]:
    """As `_named`, but the last value is returned without a name."""
    *lines, last, _ = _named(problem)
    return [*lines, f"return {last.partition(' = ')[2]}"]


def _nested(problem: world.Problem) -> list[str]:
    """One expression, earlier values in brackets: return (x + 3) * 2."""
    texts = ["x"]
    for step in problem.steps:
        inner = []
        for text in texts:
            inner.append(text if text == "x" else f"({text})")
        texts.append(_operation(step, inner))
    return [f"return {texts[-1]}"]


STYLES: tuple[Callable[[world.Problem], list[str]], ...] = (_named, _lettered, _returned, _nested)


def _operation(step: world.Step, names: Sequence[str]) -> str:
    """The operation of a step, its operands by these names of the values before it."""
    left, right = (_text(operand, names) for operand in (step.left, step.right))
    return f"{left} {step.symbol} {right}"


def _text(operand: world.Operand, names: Sequence[str]) -> str:
    if isinstance(operand, tuple):
        return names[operand[0]]
    return str(operand)


# ---- as a place of rows


def parse(path: str) -> Excerpt | None:
    """The excerpt that `programs(split=test, n=100)` names; None for a path of another kind.

    Raises:
      UserError: unknown names, or values of another type or out of range.
    """
    return excerpts.parse(path, NAME, Excerpt())
