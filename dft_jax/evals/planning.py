"""What an evaluation is going to sample: prompts, requests and stops, checked in advance."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dft_jax.data.stops import Stops, find_stops
from dft_jax.data.templates import Template
from dft_jax.evals import prompts as prompts_lib
from dft_jax.evals.asking import Key, Name, Pictures, Problems, ask
from dft_jax.evals.graders import programs
from dft_jax.evals.settings import Settings
from dft_jax.evals.tasks import benchmarks
from dft_jax.models.model import Model, with_tower
from dft_jax.runtime import errors
from dft_jax.sampling.answers import answer_sampler
from dft_jax.sampling.sampler import Request, Sampler


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is to be sampled, already validated: no request can fail because of its input."""

    settings: Settings
    problems: Problems
    requests: dict[Key, Request]
    prompts: dict[Name, str]  # texts, in which each image is one token
    images: Pictures
    choice: prompts_lib.Choice  # the prompt, which `settings` names as well
    sampler: Sampler
    stops: Stops
    stop_texts: dict[str, tuple[str, ...]]  # of the benchmarks whose completions texts end
    date: str  # that a dated template was given; empty for the others
    decode: Callable[[Sequence[int]], str]
    unread: list[str]  # warnings of prompts that have characters without a token

    def digest(self) -> str:
        """Hash of problems and reference answers; scores compare only where it matches."""
        content = []
        for name, problems in self.problems.items():
            for problem in problems:
                shown = self.shown(name, problem.id)
                content.append([name, problem.id, problem.question, problem.answer, *shown])
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def shown(self, benchmark: str, problem: str) -> list[str]:
        """SHA-256 of each image of a problem, in order; empty where it shows none."""
        return [picture.sha256 for picture in self.images.get((benchmark, problem), ())]

    def pixels(self) -> dict[str, list[int]]:
        """Of each benchmark with images, the fewest and the most pixels that one is scaled to."""
        found = {}
        for (name, _), pictures in self.images.items():
            geometry = pictures[0].geometry
            found[name] = [geometry.min_pixels, geometry.max_pixels]
        return found

    def prompts_json(self) -> str:
        """The prompts as one text, the same in whatever order they were made: to be hashed."""
        every = []
        for key, text in self.prompts.items():
            sizes = [picture.grid for picture in self.images.get(key, ())]
            every.append([*key, text, *self.shown(*key), *sizes])
        return json.dumps(sorted(every))

    def versions(self) -> dict[str, int]:
        """Of each benchmark; completions of two versions are of different problems or prompts."""
        return {name: benchmarks.find(name).version for name in self.problems}

    def answers(self) -> dict[tuple[str, str], str]:
        """(benchmark, problem) -> reference answer."""
        found = {}
        for name, problems in self.problems.items():
            for problem in problems:
                found[name, problem.id] = problem.answer
        return found


def plan(
    settings: Settings,
    tokenizer: Any,
    model: Model,
    prefix: str = "--",
    date: str = "",
    trained: str = "",
    source: Path | None = None,
) -> Plan:
    """Reads the benchmarks and makes their prompts.

    Where a problem shows images, the plan's sampler is one of the model with its tower.

    Args:
      prefix: stands before the names of settings in messages.
      date: for templates that write one (data/templates.py).
      trained: the prompt that the model was trained with, empty where unknown.
      source: the checkpoint's folder, which says how large images may be; None where whoever calls
        has no weights of the tower.

    Raises:
      UserError: unknown benchmark, style or setting, unreadable data or images, prompts that leave
      no room for an answer, programs that this machine does not confine; problems with images, and
      a model that cannot be shown any.
    """
    _require(settings, model, prefix)
    setting, instruction = f"{prefix}prompt", settings.instruction
    choice = prompts_lib.choose(settings.prompt, trained, tokenizer, instruction, setting=setting)
    settings = dataclasses.replace(settings, prompt=choice.name)
    # `auto` may have chosen what goes with no instruction.
    errors.raise_if_any(settings.mistakes(prefix))
    vision = model.config.vision
    template = Template(choice.name, tokenizer, setting, instruction, date, vision)
    max_length = min(settings.context, model.config.max_length)
    asked = ask(settings, template, model, max_length, source, prefix)
    if asked.images and model.tower is None:
        model = with_tower(model)

    def decode(ids: Sequence[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True)

    stops = find_stops(template)
    stop_texts = _stop_texts(settings)
    sampler = answer_sampler(
        model,
        tokenizer,
        stops,
        max_length=max_length,
        slots=settings.slots,
        seed=settings.seed,
        top_k=settings.top_k,
        top_p=settings.top_p,
        has_stop_texts=bool(stop_texts),
    )
    return Plan(
        settings=settings,
        problems=asked.problems,
        requests=asked.requests,
        prompts=asked.prompts,
        images=asked.images,
        choice=choice,
        sampler=sampler,
        stops=stops,
        stop_texts=stop_texts,
        date=template.date,
        decode=decode,
        unread=_unread(asked.prompts, settings, tokenizer),
    )


def _require(settings: Settings, model: Model, prefix: str) -> None:
    """UserError for what can be refused before anything is read."""
    errors.raise_if_any(settings.mistakes(prefix))
    benchmarks.require_tower(settings.benchmarks, model.config.vision, f"{prefix}benchmarks")
    if settings.programs == programs.RUN:
        # Hours of sampling would be for nothing where nobody may judge them.
        programs.require(settings.benchmarks)


def _unread(prompts: dict[Name, str], settings: Settings, tokenizer: Any) -> list[str]:
    """Warnings of prompts that have characters without a token, of each benchmark."""
    found = []
    for name in settings.benchmarks:
        texts = [text for (benchmark, _), text in prompts.items() if benchmark == name]
        found += prompts_lib.unread(name, texts, tokenizer)
    return found


def _stop_texts(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Of the benchmarks that have some."""
    found = {}
    for name in settings.benchmarks:
        texts = benchmarks.find(name).stop_texts(settings.prompt)
        if texts:
            found[name] = texts
    return found
