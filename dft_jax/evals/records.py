"""Predictions, read from a file and checked before anything is graded; and the scores made of them.

A file of predictions has a row for each completion, made here or by any other engine.
"""

import collections
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dft_jax.data.sources.locate import read_rows
from dft_jax.data.sources.rows import BadRow
from dft_jax.evals import scores
from dft_jax.evals.composites import Scores as CompositeScores
from dft_jax.evals.saved import is_number
from dft_jax.evals.tasks import benchmarks, fields, pictured
from dft_jax.evals.tasks.task import Problem
from dft_jax.runtime import errors

# A count of 400 digits, or an entropy of 1e308, is a mistake, and no mean could be made of it.
LARGEST_COUNT = 10**9
LARGEST_ENTROPY = 100  # nats; ln of the largest vocabulary is below 20


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One completion, and what it is graded against.

    `origin` is the place of its row for messages, `row` the row as read, and `reference` the right
    answer (None: the benchmark has it).
    """

    origin: str
    row: dict[str, Any]
    benchmark: str
    id: str
    sample: int
    temperature: float | None
    reference: str | None


@dataclasses.dataclass(frozen=True)
class GradedPrediction:
    """A prediction, its row with the verdict, and the number of what its answer means.

    Answers to one problem at one temperature mean the same where their numbers are equal; None
    where there is no answer.
    """

    prediction: Prediction
    row: dict[str, Any]
    meaning: int | None

    @property
    def is_correct(self) -> bool:
        """Whether the verdict counts as right; every other one does not."""
        return self.row["verdict"] == "correct"

    @property
    def is_program(self) -> bool:
        """Whether it was run against tests."""
        return benchmarks.find(self.prediction.benchmark).runs_programs


# ---- scores, as scores.json has them: its keys are the names of these members, in this order


@dataclasses.dataclass(frozen=True)
class ProblemCounts:
    """How many problems the benchmark has and how many are scored; ids of the others if known."""

    expected: int
    scored: int
    missing: list[str] | None


@dataclasses.dataclass(frozen=True)
class MeanOfSamples:
    """A mean over problems of what k samples of each give; see `scores.Mean`."""

    k: int
    mean: float
    standard_error: float | None
    interval_95: tuple[float, float] | None

    @classmethod
    def of(cls, k: int, mean: scores.Mean) -> "MeanOfSamples":
        """The mean, with the number of samples that it is of."""
        return cls(k, mean.mean, mean.standard_error, mean.interval_95)


@dataclasses.dataclass(frozen=True)
class GroupScore:
    """avg@k over the problems of a group; see `scores.Mean`."""

    problems: int
    mean: float
    standard_error: float | None
    interval_95: tuple[float, float] | None

    @classmethod
    def of(cls, problems: int, mean: scores.Mean) -> "GroupScore":
        """The mean, with the number of problems that it is of."""
        return cls(problems, mean.mean, mean.standard_error, mean.interval_95)


@dataclasses.dataclass(frozen=True)
class Disagreement:
    """Answers that only one of the two modes accepts: their number, and the first of them."""

    count: int
    first: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Disagreements:
    """Of the paper's rules and the strict ones, on the same answers."""

    only_paper: Disagreement
    only_strict: Disagreement


@dataclasses.dataclass(frozen=True)
class Score:
    """The scores of one benchmark at one temperature (None: not known).

    From the three members that end in `_of_problem` all means can be made again, and compared
    problem by problem.
    """

    benchmark: str
    temperature: float | None
    problems: ProblemCounts
    samples_per_problem: int
    avg_at_k: MeanOfSamples
    pass_at_k: dict[str, float]  # by k
    pass_at_k_interval_95: dict[str, tuple[float, float] | None]
    maj_at_k: MeanOfSamples | None  # None of programs, whose texts do not vote
    correct_share_of_problem: dict[str, float]
    majority_correct_of_problem: dict[str, bool] | None
    sha256_of_problem: dict[str, str]
    sha256_is_of: str
    verdicts: dict[str, int]
    mean_length_characters: float
    mean_length_tokens: float | None
    mean_token_entropy: float | None  # nats
    truncation_rate: float | None
    repetition_rate: float
    paper_against_strict: Disagreements | None = None
    groups: dict[str, dict[str, GroupScore]] | None = None  # by subject and the like, and its value
    composites: CompositeScores | None = None

    def as_json(self) -> dict[str, Any]:
        """As in scores.json, where `paper_against_strict` is there in the paper's mode only, and
        votes, groups and composites only where there are some.
        """
        values = dataclasses.asdict(self)
        for name in ("paper_against_strict", "majority_correct_of_problem", "groups", "composites"):
            if values[name] is None:
                del values[name]
        return values


# ---- reading predictions


def read_predictions(file: Path) -> list[Prediction]:
    """The completions of a file, in order.

    Raises:
      UserError: no such file, malformed rows, nothing in it, one sample twice, samples missing of
        some problems.
    """
    _require_readable(file)
    predictions: list[Prediction] = []
    mistakes: list[str] = []
    origins: dict[tuple, str] = {}
    for row in read_rows(str(file), ConfigDict(), split=""):
        try:
            prediction = _prediction(row.origin, row.value)
        except BadRow as error:
            mistakes.append(f"{row.origin}: {error}")
            continue
        key = (prediction.benchmark, prediction.temperature, prediction.id, prediction.sample)
        if key in origins:
            mistakes.append(
                f"{row.origin}: sample {prediction.sample} of {prediction.benchmark}"
                f" {prediction.id!r} is on {origins[key]} too;"
                " number the samples of a problem 0, 1, 2 …, or remove one"
            )
        origins.setdefault(key, row.origin)
        predictions.append(prediction)
    errors.raise_if_any(mistakes)
    if not predictions:
        raise errors.UserError(f"{file.name}: the file has no rows; write one completion per line")
    errors.raise_if_any(_missing_samples(file.name, predictions))
    return predictions


def _require_readable(file: Path) -> None:
    if not file.is_file():
        raise errors.UserError(f"{file}: no such file (looked from {Path.cwd()}); correct the path")
    if file.suffix not in (".jsonl", ".json"):
        raise errors.UserError(f"{file}: unknown ending {file.suffix!r}; give a .jsonl file")
    if not os.access(file, os.R_OK):
        raise errors.UserError(f"{file}: no permission to read it; change its mode")


def _missing_samples(name: str, predictions: list[Prediction]) -> list[str]:
    """A line for each problem that has fewer samples than others of its benchmark."""
    remedy = "add them, or leave the problem out: a missing sample is no wrong answer"
    mistakes = []
    for (benchmark, _), group in groups(predictions).items():
        samples_of = collections.defaultdict(list)
        for prediction in group:
            samples_of[prediction.id].append(prediction.sample)
        for what in scores.missing_samples(dict(samples_of)):
            mistakes.append(f"{name}: {benchmark}: {what}; {remedy}")
    return mistakes


@dataclasses.dataclass(frozen=True)
class _Field:
    """What a row may say under a name; `should_be` completes the sentence for a user."""

    is_legal: Callable[[Any], bool]
    should_be: str
    is_required: bool = False


def _is_count(value: Any) -> bool:
    return is_number(value) and isinstance(value, int) and 0 <= value <= LARGEST_COUNT


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_any_text(value: Any) -> bool:
    """An empty completion is an answer like others."""
    return isinstance(value, str)


def _is_id(value: Any) -> bool:
    return _is_text(value) or (is_number(value) and isinstance(value, int) and value >= 0)


def _is_temperature(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 10


def _is_entropy(value: Any) -> bool:
    return is_number(value) and 0 <= value <= LARGEST_ENTROPY


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


_FIELDS = {
    "benchmark": _Field(_is_text, "the name of a benchmark", is_required=True),
    "id": _Field(_is_id, "the problem's id, text or a whole number below 2**53", is_required=True),
    "sample": _Field(
        _is_count, f"the number of the sample, from 0 to {LARGEST_COUNT}", is_required=True
    ),
    "completion": _Field(_is_any_text, "the text of the model", is_required=True),
    "temperature": _Field(_is_temperature, "a number from 0 (greedy) to 10"),
    "entropy": _Field(
        _is_entropy, f"the mean entropy of its tokens in nats, from 0 to {LARGEST_ENTROPY}"
    ),
    "reference": _Field(_is_text, "the right answer as text"),
    "truncated": _Field(_is_bool, "true or false"),
    "prompt": _Field(_is_any_text, "the text that the model saw"),
    "answer_prefix": _Field(_is_any_text, "the end of the prompt with which the answer begins"),
    "tokens": _Field(_is_count, f"the completion's length in tokens, from 0 to {LARGEST_COUNT}"),
}


def _prediction(origin: str, row: dict[str, Any]) -> Prediction:
    """The row as a prediction; BadRow with the first field that is wrong."""
    for name, field in _FIELDS.items():
        value = row.get(name)
        if value is None:
            if field.is_required:
                raise BadRow(f"field {name!r} is missing; it should be {field.should_be}")
        elif not field.is_legal(value):
            shown = repr(value)
            if len(shown) > 40:
                shown = type(value).__name__
            raise BadRow(f"field {name!r} should be {field.should_be}, not {shown}; fix the row")
    try:
        benchmarks.find(row["benchmark"])
    except errors.UserError as error:
        raise BadRow(f"{error}; others are added in dft_jax/evals/tasks/") from error
    reference = row.get("reference")
    if reference is not None:
        reference = fields.final_answer(reference)
    return Prediction(
        origin=origin,
        row=row,
        benchmark=row["benchmark"],
        id=str(row["id"]),
        sample=row["sample"],
        temperature=row.get("temperature"),
        reference=reference,
    )


def groups(predictions: list[Prediction]) -> dict[tuple[str, float | None], list[Prediction]]:
    """The predictions that are scored together, by benchmark and temperature (None: not known)."""
    found = collections.defaultdict(list)
    for prediction in predictions:
        found[prediction.benchmark, prediction.temperature].append(prediction)
    return dict(found)


# ---- what predictions are graded against


def load_problems(predictions: list[Prediction], data: str) -> dict[str, list[Problem]]:
    """The problems of each benchmark that has to be loaded.

    Args:
      data: the benchmark's file, or the folder of their files. Where it is empty, only benchmarks
        of which a reference is wanting are loaded, from the hub.

    Raises:
      UserError: one file for several benchmarks, or what `Task.load` refuses.
    """
    names = list(dict.fromkeys(prediction.benchmark for prediction in predictions))
    if data and Path(data).is_file() and len(names) > 1:
        raise errors.UserError(
            f"--benchmark_data={data} is one file for {', '.join(names)};"
            " give the folder of their files"
        )
    incomplete = set()
    for prediction in predictions:
        # Tests and options are no field of a row.
        if prediction.reference is None or benchmarks.find(prediction.benchmark).needs_problems:
            incomplete.add(prediction.benchmark)
    return {name: benchmarks.load(name, data) for name in names if data or name in incomplete}


def with_references(
    predictions: list[Prediction], problems: dict[str, list[Problem]]
) -> list[Prediction]:
    """Every prediction with a reference: its own, or the benchmark's.

    Raises:
      UserError: ids that the benchmark, where it was loaded, does not have; or a reference that is
        none of the problem's options.
    """
    problems_of: dict[str, dict[str, Problem]] = {}
    for name, of_benchmark in problems.items():
        problems_of[name] = {problem.id: problem for problem in of_benchmark}
    mistakes: list[str] = []
    completed: list[Prediction] = []
    for prediction in predictions:
        known = problems_of.get(prediction.benchmark)
        if known is None:
            completed.append(prediction)
            continue
        if prediction.id not in known:
            hint = errors.did_you_mean(prediction.id, list(known))
            hint = hint or f" (one is {next(iter(known))!r})"
            mistakes.append(
                f"{prediction.origin}: {prediction.benchmark} has no problem"
                f" {prediction.id!r}{hint}; write the benchmark's own ids"
            )
            continue
        try:
            reference = _reference(prediction, known[prediction.id])
        except BadRow as error:
            mistakes.append(f"{prediction.origin}: {error}")
            continue
        completed.append(dataclasses.replace(prediction, reference=reference))
    errors.raise_if_any(mistakes)
    return completed


def _reference(prediction: Prediction, problem: Problem) -> str:
    """What a prediction is graded against: its own reference, or the problem's.

    Raises:
      BadRow: its own is none of the problem's options.
    """
    # Tests are the benchmark's.
    if prediction.reference is None or problem.program is not None:
        return problem.answer
    if problem.options:
        return pictured.right_letters(prediction.reference, problem.options)
    return prediction.reference
