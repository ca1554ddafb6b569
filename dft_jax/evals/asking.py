"""The problems of benchmarks put as prompts: texts, tokens and pictures, each checked."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from dft_jax.data.image_files import Picture, look_at_all
from dft_jax.data.images import Geometry
from dft_jax.data.sources.rows import BadRow
from dft_jax.data.templates import Template
from dft_jax.evals.settings import Settings
from dft_jax.evals.tasks import benchmarks
from dft_jax.evals.tasks.task import Problem
from dft_jax.models.model import Model
from dft_jax.runtime import errors
from dft_jax.sampling import image_prompts
from dft_jax.sampling.prompts import Request

Key = tuple[str, float, str, int]  # benchmark, temperature, problem, sample
Name = tuple[str, str]  # benchmark, problem
Problems = dict[str, list[Problem]]  # of each benchmark
Pictures = dict[Name, tuple[Picture, ...]]  # of the problems that show some


@dataclasses.dataclass(frozen=True)
class Asked:
    """What benchmarks come to: problems, requests, and prompts and images by problem."""

    problems: dict[str, list[Problem]]
    requests: dict[Key, Request]
    prompts: dict[Name, str]
    images: dict[Name, tuple[Picture, ...]]


def ask(
    settings: Settings,
    template: Template,
    model: Model,
    max_length: int,
    source: Path | None,
    prefix: str,
) -> Asked:
    """Reads the benchmarks, and puts their problems as prompts.

    Raises:
      UserError: unreadable data, or prompts that leave no room for an answer; all of them at once.
    """
    asked, mistakes = Asked({}, {}, {}, {}), []
    for name in settings.benchmarks:
        task = benchmarks.find(name)
        problems = task.load(settings.benchmark_data)
        if settings.max_problems:
            problems = problems[: settings.max_problems]
        asked.problems[name] = problems
        geometry = None
        if any(problem.images for problem in problems):
            geometry = _geometry(name, settings, model, source, prefix)
        for problem, looked_at in zip(problems, _pictures(problems, geometry), strict=True):
            try:
                pictures = image_prompts.readable(looked_at)
                question, n_images = task.prompt(problem, settings.prompt), len(pictures)
                text = template.prompt(question, n_images) + settings.answer_prefix
                short = template.prompt_ids(question, settings.answer_prefix, n_images)
                ids = image_prompts.expanded(short, pictures, model.config.vision)
                limit = _limit(ids, max_length, settings, model, shows_images=bool(pictures))
            except BadRow as error:
                mistakes.append(f"{name} {problem.id!r}: {error}")
                continue
            asked.prompts[name, problem.id] = text
            if pictures:
                asked.images[name, problem.id] = pictures
            for temperature in settings.temperatures:
                # Greedily there is one completion.
                n_samples = settings.samples if temperature else 1
                for sample in range(n_samples):
                    request = Request(
                        f"{name}/{problem.id}", sample, ids, temperature, limit, pictures
                    )
                    asked.requests[name, temperature, problem.id, sample] = request
    errors.raise_if_any(mistakes)
    return asked


def _geometry(
    benchmark: str, settings: Settings, model: Model, source: Path | None, prefix: str
) -> Geometry:
    """How images are scaled for the model.

    Raises:
      UserError: it cannot be shown any, or not here.
    """
    setting = f"{prefix}benchmarks: {benchmark} shows images"
    if model.config.vision is None:
        raise errors.UserError(
            f"{setting}, and the model is one for text alone; evaluate a model with images"
        )
    if source is None:
        raise errors.UserError(
            f"{setting}, and the tower is not read here; evaluate the model with"
            " python -m dft_jax.evaluate"
        )
    limits = settings.image_min_pixels, settings.image_max_pixels
    return image_prompts.geometry_of(source, model.config.vision, *limits)


def _pictures(
    problems: Sequence[Problem], geometry: Geometry | None
) -> list[list[Picture | BadRow]]:
    """The images of each problem, looked at, or what is wrong with them."""
    if geometry is None:
        return [[] for _ in problems]
    shown = [image for problem in problems for image in problem.images]
    looked_at = iter(look_at_all(shown, geometry))
    return [[next(looked_at) for _ in problem.images] for problem in problems]


def _limit(
    ids: tuple[int, ...], max_length: int, settings: Settings, model: Model, *, shows_images: bool
) -> int:
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
        if shows_images:
            remedy += ", a smaller image_max_pixels"
        raise BadRow(
            f"{length}, which leaves no room for an answer within {max_length}; {remedy}, or a"
            " benchmark file without the problem"
        )
    return min(room, settings.max_new_tokens or room)
