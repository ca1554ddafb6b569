"""What an evaluation is going to sample: prompts, requests and stops, checked in advance."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any

from dft_jax.data.sources.rows import BadRow
from dft_jax.data.stops import Stops, find_stops
from dft_jax.data.templates import Template
from dft_jax.evals import prompts as prompts_lib
from dft_jax.evals.graders import programs
from dft_jax.evals.settings import Settings
from dft_jax.evals.tasks import benchmarks
from dft_jax.evals.tasks.task import Problem
from dft_jax.models.model import Model
from dft_jax.runtime import errors
from dft_jax.sampling.answers import answer_sampler
from dft_jax.sampling.sampler import Request, Sampler

Key = tuple[str, float, str, int]  # benchmark, temperature, problem, sample


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is to be sampled, already validated: no request can fail because of its input."""

    settings: Settings
    problems: dict[str, list[Problem]]  # of each benchmark
    requests: dict[Key, Request]
    prompts: dict[tuple[str, str], str]  # (benchmark, problem) -> text
    choice: prompts_lib.Choice  # the prompt, which `settings` names as well
    sampler: Sampler
    stops: Stops
    date: str  # that a dated template was given; empty for the others
    decode: Callable[[list[int]], str]
    unread: list[str]  # warnings of prompts that have characters without a token

    def digest(self) -> str:
        """Hash of problems and reference answers; scores compare only where it matches."""
        content = []
        for name, problems in self.problems.items():
            for problem in problems:
                content.append([name, problem.id, problem.question, problem.answer])
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def prompts_json(self) -> str:
        """The prompts as one text, the same in whatever order they were made: to be hashed."""
        return json.dumps(sorted([*key, text] for key, text in self.prompts.items()))

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
) -> Plan:
    """Reads the benchmarks and makes their prompts.

    Args:
      prefix: stands before the names of settings in messages.
      date: for templates that write one (data/templates.py).
      trained: the prompt that the model was trained with, empty where unknown.

    Raises:
      UserError: unknown benchmark, style or setting, unreadable data, prompts that leave no room
      for an answer, programs that this machine does not confine.
    """
    errors.raise_if_any(settings.mistakes(prefix))
    if settings.programs == programs.RUN:
        # Hours of sampling would be for nothing where nobody may judge them.
        programs.require(settings.benchmarks)
    setting, instruction = f"{prefix}prompt", settings.instruction
    choice = prompts_lib.choose(settings.prompt, trained, tokenizer, instruction, setting=setting)
    settings = dataclasses.replace(settings, prompt=choice.name)
    # `auto` may have chosen what goes with no instruction.
    errors.raise_if_any(settings.mistakes(prefix))
    template = Template(
        settings.prompt, tokenizer, setting=setting, instruction=instruction, date=date
    )
    max_length = min(settings.context, model.config.max_length)
    asked = _ask(settings, template, model, max_length)
    unread = []
    for name in settings.benchmarks:
        texts = [text for (benchmark, _), text in asked.prompts.items() if benchmark == name]
        unread += prompts_lib.unread(name, texts, tokenizer)

    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True)

    stops = find_stops(template)
    sampler = answer_sampler(
        model,
        tokenizer,
        stops,
        max_length=max_length,
        slots=settings.slots,
        seed=settings.seed,
        top_k=settings.top_k,
        top_p=settings.top_p,
    )
    return Plan(
        settings=settings,
        problems=asked.problems,
        requests=asked.requests,
        prompts=asked.prompts,
        choice=choice,
        sampler=sampler,
        stops=stops,
        date=template.date,
        decode=decode,
        unread=unread,
    )


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What benchmarks come to: fields as in `Plan`."""

    problems: dict[str, list[Problem]]
    requests: dict[Key, Request]
    prompts: dict[tuple[str, str], str]


def _ask(settings: Settings, template: Template, model: Model, max_length: int) -> _Asked:
    """Reads the benchmarks, and puts their problems as prompts.

    Raises:
      UserError: unreadable data, or prompts that leave no room for an answer; all of them at once.
    """
    asked, mistakes = _Asked({}, {}, {}), []
    for name in settings.benchmarks:
        task = benchmarks.find(name)
        problems = task.load(settings.benchmark_data)
        if settings.max_problems:
            problems = problems[: settings.max_problems]
        asked.problems[name] = problems
        for problem in problems:
            try:
                question = task.prompt(problem, settings.prompt)
                text = template.prompt(question) + settings.answer_prefix
                ids = tuple(template.prompt_ids(question, settings.answer_prefix))
                limit = _limit(ids, max_length, settings, model)
            except BadRow as error:
                mistakes.append(f"{name} {problem.id!r}: {error}")
                continue
            asked.prompts[name, problem.id] = text
            for temperature in settings.temperatures:
                # Greedily there is one completion.
                n_samples = settings.samples if temperature else 1
                for sample in range(n_samples):
                    request = Request(f"{name}/{problem.id}", sample, ids, temperature, limit)
                    asked.requests[name, temperature, problem.id, sample] = request
    errors.raise_if_any(mistakes)
    return asked


def _limit(ids: tuple[int, ...], max_length: int, settings: Settings, model: Model) -> int:
    """How many tokens a prompt's completion may have; BadRow where there is no room for one."""
    if not ids:
        raise BadRow("its prompt has no tokens; give a template that writes something")
    vocab_size = model.config.vocab_size
    if max(ids) >= vocab_size:
        what = f"token id {max(ids)} of its prompt is beyond the model's {vocab_size} embeddings"
        remedy = "copy the model's own tokenizer files"
        raise BadRow(f"{what}: the tokenizer is not this model's; {remedy}")
    room = max_length - len(ids)
    if room < 1:
        length = f"its prompt has {len(ids)} tokens"
        remedy = "take a model that reads more"
        if max_length < model.config.max_length:
            remedy = "give a larger context"
        raise BadRow(
            f"{length}, which leaves no room for an answer within {max_length}; {remedy}, or a"
            " benchmark file without the problem"
        )
    return min(room, settings.max_new_tokens or room)
