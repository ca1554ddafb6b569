"""Completions in a file, made here or by any other engine: a row each, checked before anything is
graded.
"""

import collections
import dataclasses
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dft_jax.data.sources.locate import read_rows
from dft_jax.data.sources.rows import BadRow
from dft_jax.evals import scores
from dft_jax.evals.saved import is_number
from dft_jax.evals.tasks import benchmarks
from dft_jax.runtime import errors

# A count of 400 digits, or an entropy of 1e308, is a mistake, and no mean could be made of it.
LARGEST_COUNT = 10**9
LARGEST_ENTROPY = 100  # nats; ln of the largest vocabulary is below 20


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One completion and where it stands. `row` is the line as read; `reference` the answer it is
    graded against.
    """

    where: str
    row: dict[str, Any]
    benchmark: str
    id: str
    sample: int
    temperature: float | None
    reference: str | None


def read_predictions(file: Path) -> list[Prediction]:
    """The completions of a file, in order.

    Raises:
      UserError: no such file, malformed rows, nothing in it, one sample twice, samples missing of
      some problems.
    """
    if not file.is_file():
        raise errors.UserError(f"{file}: no such file (looked from {Path.cwd()}); correct the path")
    if file.suffix not in (".jsonl", ".json"):
        raise errors.UserError(f"{file}: unknown ending {file.suffix!r}; give a .jsonl file")
    if not os.access(file, os.R_OK):
        raise errors.UserError(f"{file}: no permission to read it; change its mode")
    predictions: list[Prediction] = []
    mistakes: list[str] = []
    place_of: dict[tuple, str] = {}
    for row in read_rows(str(file), ConfigDict(), split=""):
        try:
            prediction = _prediction(row.origin, row.value)
        except BadRow as error:
            mistakes.append(f"{row.origin}: {error}")
            continue
        key = (prediction.benchmark, prediction.temperature, prediction.id, prediction.sample)
        if key in place_of:
            what = f"sample {prediction.sample} of {prediction.benchmark} {prediction.id!r} is on {place_of[key]} too"
            mistakes.append(
                f"{row.origin}: {what}; number the samples of a problem 0, 1, 2 …, or remove one"
            )
        place_of.setdefault(key, row.origin)
        predictions.append(prediction)
    errors.raise_if_any(mistakes)
    if not predictions:
        raise errors.UserError(f"{file.name}: the file has no rows; write one completion per line")
    for (name, _), group in groups(predictions).items():
        samples_of = collections.defaultdict(list)
        for prediction in group:
            samples_of[prediction.id].append(prediction.sample)
        remedy = "add them, or leave the problem out: a missing sample is no wrong answer"
        mistakes += [
            f"{file.name}: {name}: {what}; {remedy}" for what in scores.missing_samples(samples_of)
        ]
    errors.raise_if_any(mistakes)
    return predictions


def _prediction(where: str, row: dict[str, Any]) -> Prediction:
    wrong = []
    for field, (is_right, should_be, is_required) in _FIELDS.items():
        value = row.get(field)
        if value is None and is_required:
            wrong.append(f"field {field!r} is missing; it should be {should_be}")
        elif value is not None and not is_right(value):
            shown = repr(value) if len(repr(value)) <= 40 else type(value).__name__
            wrong.append(f"field {field!r} should be {should_be}, not {shown}; mend the row")
    if wrong:
        raise BadRow(wrong[0])
    try:
        benchmarks.find(row["benchmark"])
    except errors.UserError as error:
        raise BadRow(f"{error}; others are added in dft_jax/evals/tasks/benchmarks.py") from error
    reference = row.get("reference")
    if reference is not None:
        reference = benchmarks.final_answer(reference)
    return Prediction(
        where,
        row,
        row["benchmark"],
        str(row["id"]),
        row["sample"],
        row.get("temperature"),
        reference,
    )


def _is_count(value: Any) -> bool:
    return is_number(value) and isinstance(value, int) and 0 <= value <= LARGEST_COUNT


def _is_id(value: Any) -> bool:
    return _is_text(value) or (is_number(value) and isinstance(value, int) and value >= 0)


def _is_temperature(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 10


def _is_entropy(value: Any) -> bool:
    return is_number(value) and 0 <= value <= LARGEST_ENTROPY


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


# Field -> (test, what it should be, whether it has to be there). An empty completion is an answer
# like others.
_FIELDS = {
    "benchmark": (_is_text, "the name of a benchmark", True),
    "id": (_is_id, "the problem's id, text or a whole number below 2**53", True),
    "sample": (_is_count, f"the number of the sample, from 0 to {LARGEST_COUNT}", True),
    "completion": (lambda value: isinstance(value, str), "the text of the model", True),
    "temperature": (_is_temperature, "a number from 0 (greedy) to 10", False),
    "entropy": (
        _is_entropy,
        f"the mean entropy of its tokens in nats, from 0 to {LARGEST_ENTROPY}",
        False,
    ),
    "reference": (_is_text, "the right answer as text", False),
    "truncated": (lambda value: isinstance(value, bool), "true or false", False),
    "tokens": (_is_count, f"the completion's length in tokens, from 0 to {LARGEST_COUNT}", False),
}


def groups(predictions: list[Prediction]) -> dict[tuple[str, float | None], list[Prediction]]:
    """The predictions that are scored together: those of one benchmark at one temperature, None
    where none is given.
    """
    found = collections.defaultdict(list)
    for prediction in predictions:
        found[prediction.benchmark, prediction.temperature].append(prediction)
    return dict(found)


def load_problems(predictions: list[Prediction], data: str) -> dict[str, list[benchmarks.Problem]]:
    """The problems of each benchmark: of `data` where it is given, else from the hub where a
    reference is wanting.
    """
    names = list(dict.fromkeys(prediction.benchmark for prediction in predictions))
    if data and Path(data).is_file() and len(names) > 1:
        names = ", ".join(names)
        raise errors.UserError(
            f"--benchmark_data={data} is one file for {names}; give the folder of their files"
        )
    without_reference = {
        prediction.benchmark for prediction in predictions if prediction.reference is None
    }
    wanted = [name for name in names if data or name in without_reference]
    return {name: benchmarks.load(name, data) for name in wanted}


def with_references(
    predictions: list[Prediction], problems: dict[str, list[benchmarks.Problem]]
) -> list[Prediction]:
    """Every prediction with a reference: its own, or the benchmark's. UserError for ids the
    benchmark does not have.
    """
    answers = {
        name: {problem.id: problem.answer for problem in list_} for name, list_ in problems.items()
    }
    mistakes, referred = [], []
    for prediction in predictions:
        known = answers.get(prediction.benchmark)
        if known is not None and prediction.id not in known:
            close = (
                errors.did_you_mean(prediction.id, list(known))
                or f" (one is {next(iter(known))!r})"
            )
            what = f"{prediction.benchmark} has no problem {prediction.id!r}{close}"
            mistakes.append(f"{prediction.where}: {what}; write the benchmark's own ids")
            continue
        reference = prediction.reference or known[prediction.id]
        referred.append(dataclasses.replace(prediction, reference=reference))
    errors.raise_if_any(mistakes)
    return referred
