"""What a run has measured of its model at some of its steps. Whoever calls the loop hands it in."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dft_jax.data import source_list
from dft_jax.data.stops import find_stops
from dft_jax.data.templates import Template
from dft_jax.models.hf.tokenizer import Tokenizer
from dft_jax.models.model import Model
from dft_jax.runtime import processes
from dft_jax.runtime.options import Config
from dft_jax.training import adapters
from dft_jax.training.heldout import HeldOut
from dft_jax.types import Weights


@runtime_checkable
class Evaluator(Protocol):
    """A measurement of the model at some steps of a run.

    The loop calls `begin` once, `compile_programs` before the first step, and `run` at the steps
    that are `due` and have no metric of this kind yet.
    """

    prefix: str  # of the names of its metrics, as in "heldout/"
    is_long: bool  # it may take hours: the state is saved before

    def digest(self) -> str:
        """Of all that it is going to ask; processes compare it before they begin. May be empty."""
        ...

    def begin(self, steps: int, start: int, origin: dict[str, Any]) -> None:
        """Settles what is due in a run that goes from step `start` to `steps`.

        Args:
          origin: what tells this run's results from those of any other.

        Raises:
          UserError: there are results of another run in its place.
        """
        ...

    def compile_programs(self) -> None:
        """Compiles what `run` needs."""
        ...

    def due(self, step: int) -> bool: ...

    def run(self, step: int, weights: Weights) -> dict[str, Any]:
        """The metrics of these weights, as metrics.jsonl is to have them."""
        ...


@runtime_checkable
class MakeEvaluators(Protocol):
    """Makes evaluators as soon as a run's model is known; may raise a UserError."""

    def __call__(
        self, config: Config, tokenizer: Any, model: Model, workdir: Path
    ) -> tuple[Evaluator, ...]: ...


def no_evaluators(
    config: Config, tokenizer: Any, model: Model, workdir: Path
) -> tuple[Evaluator, ...]:
    """Of a run that measures nothing besides data.heldout."""
    return ()


class HeldOutEvaluator:
    """Loss and token statistics of data.heldout: before, after, and every so many steps."""

    prefix = "heldout/"
    is_long = False

    def __init__(self, heldout: HeldOut, every: int, ends: Sequence[int] = ()):
        """`every` so many steps; 0 for the ends alone.

        `ends` are the tokens that end an answer, where it is to be said whether the model knows
        them before training.
        """
        self._heldout, self._every, self._steps = heldout, every, 0
        self._ends = ends

    @classmethod
    def of(cls, config: Config, tokenizer: Tokenizer, heldout: HeldOut) -> "HeldOutEvaluator":
        """As a run's config has it."""
        ends: list[int] = []
        if heldout.model.lora is not None:
            ends = _ends_of(config.data, tokenizer)
        return cls(heldout, config.eval.every, ends)

    def digest(self) -> str:
        return ""  # the examples' own is compared with the rest of the data

    def begin(self, steps: int, start: int, origin: dict[str, Any]) -> None:
        self._steps = steps

    def compile_programs(self) -> None:
        self._heldout.compile_programs()

    def due(self, step: int) -> bool:
        # Before and after training in any case: what a run changed is seen by the two.
        is_in_turn = self._every > 0 and step % self._every == 0
        return is_in_turn or step in (0, self._steps)

    def run(self, step: int, weights: Weights) -> dict[str, Any]:
        values = self._heldout.measure(weights)
        if step == 0 and self._ends:
            # All processes measure, and the first says it.
            mean_p = self._heldout.mean_p_of(weights, self._ends)
            if processes.is_first():
                print(*adapters.lines_of_ends(mean_p), sep="\n", file=sys.stderr)
        return values


def _ends_of(data: Config, tokenizer: Tokenizer) -> list[int]:
    """The tokens that end an answer under the templates of data.heldout."""
    found: set[int] = set()
    for _, _, own in source_list.each(data.heldout, data):
        template = Template(own.template, tokenizer, date=data.get("date", ""))
        found.update(find_stops(template).ids)
    return sorted(found)
