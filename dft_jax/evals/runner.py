"""An evaluation from beginning to end: samples in a journal, verdicts, scores; it resumes where it
was killed.

A folder holds one evaluation:

    evaluation.json    what its samples depend on; another model or seed needs another folder
    journal.jsonl      completions in the order they were finished, while sampling continues
    predictions.jsonl  every prompt, completion, extracted answer and verdict, in order
    scores.json        everything else
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dft_jax.evals import grading, journal
from dft_jax.evals.journal import JOURNAL_NAME, PREDICTIONS_NAME
from dft_jax.evals.planning import Key, Plan
from dft_jax.evals.records import Prediction
from dft_jax.evals.saved import ANOTHER_FOLDER, read_scores
from dft_jax.models.model import Model
from dft_jax.runtime import distributed, errors, files, interrupts, processes
from dft_jax.types import Weights

EVALUATION_NAME = "evaluation.json"
SCORES_NAME = "scores.json"

_SCORE_AGAIN = "remove it; the same command then scores the completions anew"

# A key of evaluation.json and scores.json: the version of each benchmark. Older files have none.
VERSIONS = "benchmark_versions"
# Of both files as well: the texts that end completions, of the benchmarks that have some.
STOP_TEXTS = "stop_texts"
# And the fewest and the most pixels of an image, of the benchmarks that show some.
PIXELS = "image_pixels"
_OF_BENCHMARKS = (VERSIONS, STOP_TEXTS, PIXELS)

# What is said of a model for a reader, beside what tells it from others.
_WORDS = ("name", "evaluated", "origin")


@dataclasses.dataclass
class Sampling:
    """What one call of `evaluate` sampled; an earlier call may have sampled the rest. Compilation
    is in `seconds`.
    """

    completions: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def speed(self) -> dict[str, float | int | None]:
        """As in scores.json."""
        tokens_per_s = None
        if self.tokens:
            tokens_per_s = round(self.tokens / self.seconds, 1)
        return {
            "sampled_completions": self.completions,
            "sampled_tokens": self.tokens,
            "sampling_s": round(self.seconds, 3),
            "tokens_per_s": tokens_per_s,
        }


def evaluate(
    plan: Plan, model: Model, load: Callable[[], Weights], out: Path, model_id: dict[str, Any]
) -> dict[str, Any]:
    """Samples what `out` does not hold yet, grades everything, and writes predictions.jsonl and
    scores.json.

    All processes call this; process 0 reads and writes. Whoever calls keeps other jobs out of `out`
    meanwhile (runtime/folders.py): what they sampled would be erased at the end of this one.

    Args:
      load: gives the weights; called when there is something to sample.
      model_id: which model this is, in plain values, of which all but `name`, `evaluated` and
        `origin` are compared when an evaluation resumes.

    Returns:
      The content of scores.json (of the other processes: nothing).

    Raises:
      UserError: `out` holds another evaluation, or cannot be written.
    """
    is_writer = processes.is_first()
    done: dict[Key, dict[str, Any]] = {}
    with distributed.together("evaluation"):  # process 0 reads and checks
        if is_writer:
            check(plan, model, out, model_id)
            done = journal.completions(plan, out)
    are_missing = None
    if is_writer:
        are_missing = [key not in done for key in plan.requests]
    are_missing = distributed.decided("missing", are_missing, lambda lists: lists[0])
    missing = {}
    for (key, request), is_missing in zip(plan.requests.items(), are_missing, strict=True):
        if is_missing:
            missing[request] = key
    weights = None
    if missing:
        # Before the folder is said to be of this model: of a run that trains on, the checkpoint may
        # be gone by now.
        weights = load()
    if is_writer and missing:
        _begin(plan, out, _identity(plan, model, model_id))
    summary, sampling = {}, Sampling()
    remedy = "what is sampled is kept: make room, then run the same command again"
    with errors.user_errors(f"{out}: cannot be written", remedy):
        if missing:
            _sample(plan, weights, missing, done, out, sampling)
        if is_writer:
            summary = _finish(plan, out, done, model_id, sampling)
    # A process that left would end the job some minutes later.
    distributed.meet("graded")
    return summary


def _sample(
    plan: Plan,
    weights: Weights,
    missing: dict[Any, Key],
    done: dict[Key, dict[str, Any]],
    out: Path,
    sampling: Sampling,
) -> None:
    """Samples what is missing, and adds it to `done` and to the journal, each as it is finished."""
    began = time.perf_counter()
    file = out / JOURNAL_NAME
    if not processes.is_first():
        file = Path(os.devnull)
    with open(file, "a", encoding="utf-8") as lines:
        watch = journal.watch(plan, missing)
        for completion in plan.sampler.sample(weights, missing, watch=watch):
            interrupts.check()
            key = missing[completion.request]
            done[key] = journal.row_of(plan, key, completion)
            lines.write(json.dumps(done[key]) + "\n")
            lines.flush()
            sampling.completions += 1
            sampling.tokens += len(completion.ids)
    sampling.seconds = time.perf_counter() - began


def check(plan: Plan, model: Model, out: Path, model_id: dict[str, Any]) -> None:
    """UserError where `out` holds another evaluation than this one."""
    file = out / EVALUATION_NAME
    if file.exists():
        found = files.read_json(file, ANOTHER_FOLDER)
        lines = _changes(plan, file, found, _identity(plan, model, model_id))
        if lines:
            remedy = "give another folder, remove this one, or undo"
            what = f"{out} holds another evaluation; {remedy}"
            raise errors.UserError([what, *lines])
        return
    for name in (JOURNAL_NAME, PREDICTIONS_NAME, SCORES_NAME):
        if (out / name).exists():
            what = f"{out} holds a {name} that no {EVALUATION_NAME} explains"
            raise errors.UserError(f"{what}; give another folder")


def _changes(plan: Plan, file: Path, found: dict[str, Any], identity: dict[str, Any]) -> list[str]:
    """How an evaluation.json differs from the evaluation that is asked for, a line for each."""
    versions, stop_texts, pixels = (_recorded(file, found, name) for name in _OF_BENCHMARKS)
    of_all = {name: value for name, value in found.items() if name not in _OF_BENCHMARKS}
    lines = list(errors.differences(of_all, identity).values())
    for name, version in plan.versions().items():
        # One that is not recorded, or not asked for now, is compared with nothing.
        if name not in versions:
            continue
        if versions[name] != version:
            lines.append(f"version of the benchmark {name}: {versions[name]} -> {version}")
        # Of an older folder none: its completions went on behind them, which verdicts do not see,
        # but lengths do.
        before, now = stop_texts.get(name, []), list(plan.stop_texts.get(name, ()))
        if before != now:
            lines.append(f"texts that end a completion of {name}: {before} -> {now}")
    for name, limits in plan.pixels().items():
        if pixels.get(name, limits) != limits:
            lines.append(f"pixels of an image of {name}: {pixels[name]} -> {limits}")
    return lines


def _identity(plan: Plan, model: Model, model_id: dict[str, Any]) -> dict[str, Any]:
    """What a sample depends on besides its problem, number and temperature: those can be added to a
    folder.
    """
    identity = {name: value for name, value in model_id.items() if name not in _WORDS}
    for name in ("prompt", "seed", "top_k", "top_p", "max_new_tokens"):
        identity[name] = getattr(plan.settings, name)
    for name in ("instruction", "answer_prefix"):
        if getattr(plan.settings, name):  # older evaluations have no word of it
            identity[name] = getattr(plan.settings, name)
    identity["context"] = plan.sampler.max_length
    identity["stop_ids"] = list(plan.sampler.stop_ids)
    if plan.date:
        identity["date"] = plan.date
    identity["compute_dtype"] = str(model.module.compute_dtype)
    return identity


def recorded_date(out: Path) -> str:
    """The date that the prompts of the evaluation in `out` were given; empty for none."""
    file = out / EVALUATION_NAME
    if not file.exists():
        return ""
    date = files.read_json(file, ANOTHER_FOLDER).get("date", "")
    if not isinstance(date, str):
        return ""
    return date


def _recorded(file: Path, evaluation: dict[str, Any], name: str) -> dict[str, Any]:
    """What an evaluation.json has of each benchmark under this name."""
    values = evaluation.get(name, {})
    if not isinstance(values, dict):
        raise errors.UserError(f"{file}: {name} should be an object; {ANOTHER_FOLDER}")
    return values


def _begin(plan: Plan, out: Path, identity: dict[str, Any]) -> None:
    """Says what the folder is of; the plan's benchmarks are added to those that it has."""
    file = out / EVALUATION_NAME
    with errors.user_errors(f"{out}: cannot be written", "give another folder"):
        out.mkdir(parents=True, exist_ok=True)
        found = identity
        if file.exists():
            found = files.read_json(file, ANOTHER_FOLDER)
        content = found | {VERSIONS: _recorded(file, found, VERSIONS) | plan.versions()}
        if plan.stop_texts:
            content[STOP_TEXTS] = _recorded(file, found, STOP_TEXTS) | _lists(plan.stop_texts)
        if plan.images:
            content[PIXELS] = _recorded(file, found, PIXELS) | plan.pixels()
        if not file.exists() or content != found:
            files.write_json(file, content)


def _finish(
    plan: Plan,
    out: Path,
    done: dict[Key, dict[str, Any]],
    model_id: dict[str, Any],
    sampling: Sampling,
) -> dict[str, Any]:
    """Grades, and writes predictions and scores; returns the scores that are there where nothing
    new is asked.
    """
    settings, file = plan.settings, out / SCORES_NAME
    asked = {
        "model": model_id,
        "settings": json.loads(json.dumps(dataclasses.asdict(settings))),
        "problems_sha256": plan.digest(),
        "stop_ids": list(plan.sampler.stop_ids),
        "stop_sources": plan.stops.sources,
        "compute_dtype": str(plan.sampler.model.module.compute_dtype),
    }
    if plan.stop_texts:
        asked[STOP_TEXTS] = _lists(plan.stop_texts)
    if plan.images:
        asked[PIXELS] = plan.pixels()
    if _answers(file, asked) and not (out / JOURNAL_NAME).exists():
        return read_scores(file, _SCORE_AGAIN)
    answers, predictions = plan.answers(), []
    for key in plan.requests:
        benchmark, temperature, problem, sample = key
        row = journal.as_sampled(done[key])
        if settings.answer_prefix:
            row["answer_prefix"] = settings.answer_prefix
        predictions.append(
            Prediction(
                str(out), row, benchmark, problem, sample, temperature, answers[benchmark, problem]
            )
        )
    predictions, unjudged = grading.split(predictions, settings.programs)
    rows, summary = grading.grade(
        predictions,
        plan.problems,
        mode=settings.mode,
        last_number=settings.last_number,
        answer_markers=settings.answer_markers,
        workers=settings.workers,
    )
    summary["speed"] |= sampling.speed()
    summary["warnings"] += plan.stops.warnings + plan.unread
    if plan.choice.warning:
        summary["warnings"].append(plan.choice.warning)
    if unjudged:
        summary["warnings"].append(
            f"{len(unjudged)} programs were not run (programs={settings.programs}): no score here"
            f" is of them; grade {PREDICTIONS_NAME} where they can be (--grade)"
        )
    # Of an earlier, larger plan.
    others = [row for key, row in done.items() if key not in plan.requests]
    if others:
        more = f"{len(others)} completions more than were asked for now"
        what = f"{out / PREDICTIONS_NAME} has {more}"
        summary["warnings"].append(f"{what}; no score here is of them")
    # The older scores would belong to other predictions, were this killed in between.
    file.unlink(missing_ok=True)
    lines = [json.dumps(row) + "\n" for row in rows + unjudged + others]
    files.write_text(out / PREDICTIONS_NAME, "".join(lines))
    summary |= asked | {VERSIONS: plan.versions()}
    files.write_json(file, summary)
    (out / JOURNAL_NAME).unlink(missing_ok=True)
    return summary


def _lists(texts: dict[str, tuple[str, ...]]) -> dict[str, list[str]]:
    """As JSON has them."""
    return {name: list(values) for name, values in texts.items()}


def _answers(file: Path, asked: dict[str, Any]) -> bool:
    """Whether a scores.json that is there is of all that is asked, by the rules of now."""
    if not file.exists():
        return False
    summary = files.read_json(file, _SCORE_AGAIN)
    known = asked | {"format": grading.FORMAT}
    if not summary.get("results"):  # of programs that were not run
        return False
    return all(summary.get(name) == value for name, value in known.items())
