"""The laboratory's pictures: questions about cards with numbers (pictures.py), and their answers.

Three families, of which only chains have levels:

    card           "Which number is shown?"
    cards          "What is the sum of the two numbers?"
    picture_chain  a chain of the world, in which the first person's count is on a card only

`cards(split=train, family=picture_chain, n=2500, noise_read=0.15)` names an excerpt, in the place
of a file. A row is {"prompt", "completion", "images": [{"bytes": PNG}], "answer", "numbers"}: the
right answer and the numbers on the cards, whatever the completion says of them.

    Ann has as many pens as the picture shows.    The picture shows 12. Ann has 12 pens. Ben has
    Ben has 3 more pens than Ann. How many pens   12+3=15 pens.
    does Ben have?                                #### 15

What is said in `world` of levels, noise, splits and draws holds here too. A `picture_chain` belongs
to the split of the chain that it is made of. Sums of the same two numbers are one problem. There
are only 30 numbers, and a model has to read each: in `card` splits share no picture.
"""

import dataclasses
import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

from dft_jax.data.sources import excerpts, pictures, world

NAME = "cards"
# Numbers above are those that `rare` is about.
COMMON = 20


@dataclasses.dataclass(frozen=True)
class Problem(world.Problem):
    """A problem of the world, of which `shown` is in a picture."""

    shown: tuple[int, ...]  # the first value, and of a sum its second number
    picture: int  # the seed of its drawing


# ---- families


def card(level: int, rng: random.Random) -> Problem:
    """One number, to be read."""
    number = rng.randint(1, world.LARGEST)
    picture = _seed(rng)
    key = f"card {number} {picture}"
    question = "Which number is shown?"
    return Problem(key, question, number, (), ("",), "", shown=(number,), picture=picture)


def cards(level: int, rng: random.Random) -> Problem:
    """The sum of two numbers."""
    left, right = rng.randint(1, world.LARGEST), rng.randint(1, world.LARGEST)
    return Problem(
        key=f"cards {min(left, right)}+{max(left, right)}",
        question="What is the sum of the two numbers?",
        first=left,
        steps=(_sum(right),),
        names=("", ""),
        thing="",
        shown=(left, right),
        picture=_seed(rng),
    )


def picture_chain(level: int, rng: random.Random) -> Problem:
    """A chain of `level` people; the picture has the count of the first."""
    chain = world.chain(level, rng)
    who, thing = chain.names[0], chain.thing
    sentence = f"{who} has {chain.first} {thing}."
    assert chain.question.startswith(sentence), chain.question
    rest = chain.question.removeprefix(sentence)
    return Problem(
        chain.key,
        f"{who} has as many {thing} as the picture shows.{rest}",
        chain.first,
        chain.steps,
        chain.names,
        thing,
        shown=(chain.first,),
        picture=_seed(rng),
    )


FAMILIES: dict[str, Callable[[int, random.Random], Problem]] = {
    "card": card,
    "cards": cards,
    "picture_chain": picture_chain,
}


def _sum(right: int) -> world.Step:
    """The step of `cards`: the first number and this one."""
    return world.Step("", (0,), "+", right)


def _seed(rng: random.Random) -> int:
    return rng.getrandbits(32)


def _with_rare(
    family: Callable[[int, random.Random], Problem], rare: float, level: int, rng: random.Random
) -> Problem:
    """A problem of the family; `rare` of those with a number above COMMON are kept."""
    while True:
        problem = family(level, rng)
        if max(problem.shown) <= COMMON or rng.random() < rare:
            return problem


# ---- solutions


def solve(
    problem: Problem, rng: random.Random, noise: float, noise_read: float, styles: int
) -> str:
    """What the picture shows, and the rest as `world.solve` has it.

    With probability `noise_read` one of the numbers is misread, and what follows builds on it.
    """
    if rng.random() < noise_read:
        problem = misread(problem, rng)
    reading = f"The picture shows {' and '.join(map(str, problem.shown))}."
    if not problem.steps and not problem.thing:
        return f"{reading}\n#### {problem.first}"
    steps, _ = world.solve(problem, rng, noise, styles)
    return f"{reading} {steps}"


def misread(problem: Problem, rng: random.Random) -> Problem:
    """The problem as it would be, were one of its numbers another that looks alike."""
    place = rng.randrange(len(problem.shown))
    shown = list(problem.shown)
    shown[place] = rng.choice(lookalikes(shown[place]))
    first, *others = shown
    steps = problem.steps
    if others:
        steps = (_sum(others[0]),)
    return dataclasses.replace(problem, first=first, steps=steps, shown=tuple(shown))


def lookalikes(number: int) -> list[int]:
    """Numbers of the world that differ from this one in one digit.

    12  ->  10, 11, 13 to 19, 22
    """
    found = []
    for other in range(1, world.LARGEST + 1):
        digits, others = str(number), str(other)
        if len(digits) == len(others):
            differences = [a != b for a, b in zip(digits, others, strict=True)]
            if sum(differences) == 1:
                found.append(other)
    return found


# ---- as rows


@dataclasses.dataclass(frozen=True)
class Excerpt(world.Excerpt):
    """`n` problems of a split, with solutions of which each step goes wrong by `noise`, and one of
    the numbers is misread in a share of `noise_read`.

    `rare` is how often a number above 20 is on a card, relative to others.
    """

    family: str = "picture_chain"
    noise_read: float = 0.0
    rare: float = 1.0

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows as the head of this file says, `n` of them.

        No problem comes twice where the families have enough of them.
        """
        rng = random.Random(f"{NAME} {self.split} {self.seed}")
        makers = {}
        for name, family in FAMILIES.items():
            makers[name] = functools.partial(_with_rare, family, self.rare)
        for problem, level in self.drawn(makers, rng):
            completion = solve(problem, rng, self.noise, self.noise_read, self.styles)
            picture = pictures.draw(problem.shown, random.Random(problem.picture))
            yield {
                "prompt": problem.question,
                "completion": completion,
                "images": [{"bytes": picture}],
                "answer": str(_answer(problem)),
                "numbers": list(problem.shown),
                "level": level,
            }

    def known_families(self) -> tuple[str, ...]:
        """The names that `family` may have."""
        return tuple(FAMILIES)

    def problems(self) -> list[str]:
        """What is wrong with the values, one line each."""
        found = super().problems()
        for name in ("noise_read", "rare"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                found.append(f"{name}={share:g} should be from 0 to 1")
        return found


def _answer(problem: Problem) -> int:
    """The last value, all steps done right."""
    _, value = world.solve(problem, random.Random(0))
    return value


# ---- as a place of rows


def parse(path: str) -> Excerpt | None:
    """The excerpt that `cards(split=test, n=100)` names; None for a path of another kind.

    Raises:
      UserError: unknown names, or values of another type or out of range.
    """
    return excerpts.parse(path, NAME, Excerpt())
