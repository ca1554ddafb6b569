"""An evaluation from beginning to end: prompts, samples in a journal, verdicts, scores; it goes on
where it was killed.

A folder holds one evaluation:

    evaluation.json    what its samples depend on; another model or seed needs another folder
    journal.jsonl      completions in the order they were finished, while sampling goes on
    predictions.jsonl  every prompt, completion, extracted answer and verdict, in order
    scores.json        everything else
"""

import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from dft_jax.data.sources.rows import BadRow
from dft_jax.data.stops import Stops, find_stops
from dft_jax.data.templates import Template
from dft_jax.evals import grading, prompts as prompts_lib
from dft_jax.evals.records import Prediction
from dft_jax.evals.saved import ANOTHER_FOLDER, is_number, read_scores
from dft_jax.evals.settings import Settings
from dft_jax.evals.tasks import benchmarks
from dft_jax.models.model import Model
from dft_jax.runtime import distributed, errors, files, interrupts
from dft_jax.runtime.files import read_json
from dft_jax.sampling.sampler import Completion, Request, Sampler
from dft_jax.types import Params

EVALUATION_NAME, JOURNAL_NAME = "evaluation.json", "journal.jsonl"
PREDICTIONS_NAME, SCORES_NAME = "predictions.jsonl", "scores.json"

_SCORE_AGAIN = "remove it; the same command then scores the completions anew"

# What `of` says of a model for a reader, beside what tells it from others.
_WORDS = ("name", "evaluated", "origin")

Key = tuple[str, float, str, int]  # benchmark, temperature, problem, sample


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is to be sampled, checked against model and tokenizer: nothing of it can fail for
    its input.
    """

    settings: Settings
    problems: dict[str, list[benchmarks.Problem]]
    requests: dict[Key, Request]
    prompts: dict[tuple[str, str], str]  # (benchmark, problem) -> text
    choice: prompts_lib.Choice  # the prompt, which `settings` names as well
    sampler: Sampler
    stops: Stops
    date: str  # that a dated template was given; empty for the others
    decode: Callable[[list[int]], str]
    unread: list[str]  # warnings of prompts that have characters without a token

    def digest(self) -> str:
        """Of the problems and their answers: scores of others are other scores."""
        content = [
            [name, p.id, p.question, p.answer]
            for name, problems in self.problems.items()
            for p in problems
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def plan(
    settings: Settings,
    tokenizer,
    model: Model,
    prefix: str = "--",
    date: str = "",
    trained: str = "",
) -> Plan:
    """Reads the benchmarks and makes their prompts.

    `date` is for templates that write one (data/chat.py); `trained` is the prompt that the model
    was trained with, empty where unknown.

    Raises:
      UserError: unknown benchmark, style or setting, unreadable data, prompts that leave no room
      for an answer.
    """
    errors.raise_if_any(settings.mistakes(prefix))
    name, instruction = f"{prefix}prompt", settings.instruction
    choice = prompts_lib.choose(settings.prompt, trained, tokenizer, instruction, setting=name)
    settings = dataclasses.replace(settings, prompt=choice.name)
    # auto may have chosen what goes with no instruction
    errors.raise_if_any(settings.mistakes(prefix))
    template = Template(
        settings.prompt, tokenizer, setting=name, instruction=instruction, date=date
    )
    max_length = min(settings.context, model.config.max_length)
    problems, requests, prompts, mistakes, unread = {}, {}, {}, [], []
    for name in settings.benchmarks:
        problems[name] = benchmarks.load(name, settings.benchmark_data)[
            : settings.max_problems or None
        ]
        for problem in problems[name]:
            try:
                prompts[name, problem.id] = template.prompt(problem.question)
                ids = tuple(template.prompt_ids(problem.question))
                limit = _limit(ids, max_length, settings, model)
            except BadRow as error:
                mistakes.append(f"{name} {problem.id!r}: {error}")
                continue
            for temperature in settings.temperatures:
                for sample in range(settings.samples if temperature else 1):
                    request = Request(f"{name}/{problem.id}", sample, ids, temperature, limit)
                    requests[name, temperature, problem.id, sample] = request
        own = [text for (benchmark, _), text in prompts.items() if benchmark == name]
        unread += prompts_lib.unread(name, own, tokenizer)
    errors.raise_if_any(mistakes)

    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True)

    options = dict(
        slots=settings.slots, seed=settings.seed, top_k=settings.top_k, top_p=settings.top_p
    )
    stops = find_stops(template)
    # Every id that the tokenizer has, and those that files of the checkpoint say end a text.
    options["vocab_size"] = max({*tokenizer.get_vocab().values(), *stops.ids}) + 1
    sampler = Sampler(model, stop_ids=stops.ids, max_length=max_length, **options)
    return Plan(
        settings, problems, requests, prompts, choice, sampler, stops, template.date, decode, unread
    )


def _limit(ids: tuple[int, ...], max_length: int, settings: Settings, model: Model) -> int:
    """How many tokens the completion of a prompt may have; BadRow where there is no room for one."""
    if not ids:
        raise BadRow("its prompt has no tokens; give a template that writes something")
    if max(ids) >= model.config.vocab_size:
        what = f"token id {max(ids)} of its prompt is beyond the model's {model.config.vocab_size} embeddings"
        raise BadRow(
            f"{what}: the tokenizer is not this model's; copy the model's own tokenizer files"
        )
    room = max_length - len(ids)
    if room < 1:
        what = f"its prompt has {len(ids)} tokens, which leaves no room for an answer within {max_length}"
        remedy = (
            "give a larger context"
            if max_length < model.config.max_length
            else "take a model that reads more"
        )
        raise BadRow(f"{what}; {remedy}, or a benchmark file without the problem")
    return min(room, settings.max_new_tokens or room)


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
        return {
            "sampled_completions": self.completions,
            "sampled_tokens": self.tokens,
            "sampling_s": round(self.seconds, 3),
            "tokens_per_s": round(self.tokens / self.seconds, 1) if self.tokens else None,
        }


def evaluate(
    plan: Plan, model: Model, load: Callable[[], Params], out: Path, of: dict[str, Any]
) -> dict[str, Any]:
    """Samples what `out` does not hold yet, grades everything, and writes predictions.jsonl and
    scores.json.

    `load` gives the parameters, and is called when there is something to sample. `of` says which
    model this is: plain values, of which all but `name`, `evaluated` and `origin` are compared when
    a folder is taken up again. All processes call this; process 0 reads and writes. Whoever calls
    keeps other jobs out of `out` meanwhile (run_directory.locked): what they sampled would be
    erased at the end of this one. Returns the content of scores.json (of the other processes:
    nothing).

    Raises:
      UserError: `out` holds another evaluation, or cannot be written.
    """
    is_writer = jax.process_index() == 0
    done: dict[Key, dict[str, Any]] = {}
    with distributed.together("evaluation"):  # process 0 reads and checks
        if is_writer:
            check(plan, model, out, of)
            done = _done(plan, out)
    is_missing = [key not in done for key in plan.requests]
    is_missing = distributed.decided(
        "missing", is_missing if is_writer else None, lambda lists: lists[0]
    )
    missing = {
        r: key
        for (key, r), is_missing in zip(plan.requests.items(), is_missing, strict=True)
        if is_missing
    }
    summary, sampling = {}, Sampling()
    # Before the folder is said to be of this model: of a run that trains on, the checkpoint may be
    # gone by now.
    params = load() if missing else None
    if is_writer:
        _begin(out, _identity(plan, model, of))
    with errors.user_errors(
        f"{out}: cannot be written",
        "what is sampled is kept: make room, then run the same command again",
    ):
        if missing:
            began = time.perf_counter()
            with open(
                out / JOURNAL_NAME if is_writer else os.devnull, "a", encoding="utf-8"
            ) as journal:
                for completion in plan.sampler.sample(params, missing):
                    interrupts.check()
                    key = missing[completion.request]
                    done[key] = _row(plan, key, completion)
                    journal.write(json.dumps(done[key]) + "\n")
                    journal.flush()
                    sampling.completions += 1
                    sampling.tokens += len(completion.ids)
            sampling.seconds = time.perf_counter() - began
        if is_writer:
            summary = _finish(plan, out, done, of, sampling)
    distributed.meet("graded")  # a process that left would end the job some minutes later
    return summary


def check(plan: Plan, model: Model, out: Path, of: dict[str, Any]) -> None:
    """UserError where `out` holds another evaluation than this one."""
    file = out / EVALUATION_NAME
    if file.exists():
        found = read_json(file, ANOTHER_FOLDER)
        changes = errors.differences(found, _identity(plan, model, of))
        remedy = "give another folder, remove this one, or undo"
        return errors.raise_if_any(
            changes and [f"{out} holds another evaluation; {remedy}", *changes.values()]
        )
    strangers = [
        name for name in (JOURNAL_NAME, PREDICTIONS_NAME, SCORES_NAME) if (out / name).exists()
    ]
    if strangers:
        raise errors.UserError(
            f"{out} holds a {strangers[0]} that no {EVALUATION_NAME} explains; give another folder"
        )


def _identity(plan: Plan, model: Model, of: dict[str, Any]) -> dict[str, Any]:
    """What a sample depends on besides its problem, number and temperature: those can be added to a
    folder.
    """
    names = ("prompt", "seed", "top_k", "top_p", "max_new_tokens")
    settings = {name: getattr(plan.settings, name) for name in names}
    if plan.settings.instruction:  # older evaluations have no word of it
        settings["instruction"] = plan.settings.instruction
    settings |= {"context": plan.sampler.max_length, "stop_ids": list(plan.sampler.stop_ids)}
    if plan.date:
        settings["date"] = plan.date
    dtype = str(model.module.compute_dtype)
    model_is = {name: value for name, value in of.items() if name not in _WORDS}
    return {**model_is, **settings, "compute_dtype": dtype}


def recorded_date(out: Path) -> str:
    """The date that the prompts of the evaluation in `out` were given; empty where there is none."""
    file = out / EVALUATION_NAME
    date = read_json(file, ANOTHER_FOLDER).get("date", "") if file.exists() else ""
    return date if isinstance(date, str) else ""


def _begin(out: Path, identity: dict[str, Any]) -> None:
    with errors.user_errors(f"{out}: cannot be written", "give another folder"):
        out.mkdir(parents=True, exist_ok=True)
        if not (out / EVALUATION_NAME).exists():
            files.write_json(out / EVALUATION_NAME, identity)


def _done(plan: Plan, out: Path) -> dict[Key, dict[str, Any]]:
    """The completions that the folder holds, those of the plan and others."""
    done: dict[Key, dict[str, Any]] = {}
    for name in (PREDICTIONS_NAME, JOURNAL_NAME):
        file = out / name
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        for number, line in enumerate(lines, start=1):
            try:
                row = _checked(json.loads(line))
            except (TypeError, ValueError) as error:
                # the half line of a killed run
                if number == len(lines) and not line.endswith(b"\n"):
                    files.write_text(file, b"".join(lines[:-1]).decode())
                    continue
                remedy = "remove the line, to have it sampled again"
                raise errors.UserError(
                    f"{file}:{number}: not a completion ({error}); {remedy}"
                ) from error
            key = (row["benchmark"], row["temperature"], row["id"], row["sample"])
            prompt = plan.prompts.get((row["benchmark"], row["id"]))
            if prompt not in (None, row["prompt"]):
                problem = f"{row['benchmark']} {row['id']!r}"
                raise errors.UserError(
                    f"{file}:{number}: {problem} has another prompt now; give another folder"
                )
            done[key] = row
    return done


def _checked(row: Any) -> dict[str, Any]:
    for name, kinds in _FIELDS.items():
        value = row.get(name) if isinstance(row, dict) else None
        is_wrong = isinstance(value, bool) and kinds is not bool  # true is an int to Python
        if not isinstance(value, kinds) or is_wrong:
            raise ValueError(f"field {name!r} is missing or of another type")
        if kinds in (int, float) and not is_number(value):
            raise ValueError(f"field {name!r} is not finite, or beyond all lengths")
    for name in ("sample", "tokens", "temperature"):
        if row[name] < 0:
            raise ValueError(f"field {name!r} is below 0")
    return row


_FIELDS = {
    **dict.fromkeys(("benchmark", "id"), str),
    "sample": int,
    "temperature": float,
    **dict.fromkeys(("prompt", "completion"), str),
    "tokens": int,
    "truncated": bool,
    "entropy": float,
}


def _row(plan: Plan, key: Key, completion: Completion) -> dict[str, Any]:
    name, temperature, problem, sample = key
    if not math.isfinite(completion.entropy):
        what = f"{name} {problem!r}: the model's logits are not finite (NaN or infinite)"
        remedy = "its weights are damaged, or too large for --compute_dtype; try float32"
        raise errors.UserError(f"{what}; {remedy}")
    ids = completion.ids if completion.is_cut else completion.ids[:-1]
    entropy = round(completion.entropy, 4)  # beyond that it depends on the arrangement
    text, prompt = plan.decode(list(ids)), plan.prompts[name, problem]
    values = (
        name,
        problem,
        sample,
        temperature,
        prompt,
        text,
        len(completion.ids),
        completion.is_cut,
        entropy,
    )
    return dict(zip(_FIELDS, values, strict=True))


def _finish(
    plan: Plan, out: Path, done: dict[Key, dict[str, Any]], of: dict[str, Any], sampling: Sampling
) -> dict[str, Any]:
    settings, file = dataclasses.asdict(plan.settings), out / SCORES_NAME
    summary = read_json(file, _SCORE_AGAIN) if file.exists() else {}
    asked = {
        "model": of,
        "settings": json.loads(json.dumps(settings)),
        "problems_sha256": plan.digest(),
    }
    asked |= {"stop_ids": list(plan.sampler.stop_ids), "stop_sources": plan.stops.sources}
    asked["compute_dtype"] = str(plan.sampler.model.module.compute_dtype)
    known = asked | {"format": grading.FORMAT}
    is_answered = all(summary.get(name) == value for name, value in known.items())
    if is_answered and not (out / JOURNAL_NAME).exists():
        # Nothing was sampled, and nothing is asked that it does not answer.
        return read_scores(file, _SCORE_AGAIN)
    answers = {(name, p.id): p.answer for name, problems in plan.problems.items() for p in problems}
    predictions = []
    for key in plan.requests:
        row = {name: done[key][name] for name in _FIELDS}
        predictions.append(
            Prediction(str(out), row, key[0], key[2], key[3], key[1], answers[key[0], key[2]])
        )
    names = ("mode", "last_number", "answer_markers", "workers")
    rows, summary = grading.grade(
        predictions, plan.problems, **{name: settings[name] for name in names}
    )
    summary["warnings"] += plan.stops.warnings + plan.unread
    summary["speed"] |= sampling.speed()
    summary["warnings"] += [plan.choice.warning] if plan.choice.warning else []
    # of an earlier, larger plan
    others = [row for key, row in done.items() if key not in plan.requests]
    if others:
        what = (
            f"{out / PREDICTIONS_NAME} has {len(others)} completions more than were asked for now"
        )
        summary["warnings"].append(f"{what}; no score here is of them")
    # it would belong to other predictions, were this killed in between
    (out / SCORES_NAME).unlink(missing_ok=True)
    files.write_text(
        out / PREDICTIONS_NAME, "".join(json.dumps(row) + "\n" for row in rows + others)
    )
    files.write_json(out / SCORES_NAME, summary | asked)
    (out / JOURNAL_NAME).unlink(missing_ok=True)
    return summary | asked
