"""Evaluations of the public API, and how they compare."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dft_jax.analysis import comparison, comparison_report
from dft_jax.api import given
from dft_jax.evals import evaluation, settings as eval_settings
from dft_jax.lm.language_model import LM
from dft_jax.runtime import errors, folders, options, progress


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of one model on benchmarks. Printed, it is their table."""

    results: list[dict[str, Any]]  # as in scores.json, one for each benchmark and temperature
    summary: dict[str, Any]  # the content of scores.json
    folder: Path | None  # with predictions.jsonl; None where none was asked to be kept

    def __str__(self) -> str:
        return evaluation.table(self.summary)

    __repr__ = __str__


def evaluate(
    lm: LM,
    benchmarks: Sequence[str],
    *,
    out: str | Path | None = None,
    temperature: float | Sequence[float] | np.ndarray = 1.0,
    show_progress: bool = True,
    **settings: Any,
) -> Evaluation:
    """Samples and grades a model on benchmarks.

    Args:
      benchmarks: names of evals/tasks.
      out: a folder for predictions and scores, in which an evaluation that was stopped continues;
        without it nothing is kept but what is returned.
      temperature: one, or several; 0 is greedy.
      settings: fields of `evals.settings.Settings`: samples=16, greedy=False, max_problems=50, …

    Raises:
      UserError: an unknown benchmark or setting, or a folder that holds another evaluation.

    >>> scores = evaluate(run.lm, ["math500"], samples=16, temperature=1.0)
    """
    if isinstance(benchmarks, str):
        benchmarks = [benchmarks]
    temperatures = given.plain(temperature)
    if not isinstance(temperatures, tuple):
        temperatures = (temperatures,)
    asked = _settings(benchmarks=tuple(benchmarks), temperature=temperatures, **settings)
    errors.raise_if_any(asked.mistakes("") or asked.idle(""))
    with progress.silent(not show_progress), contextlib.ExitStack() as stack:
        folder = None
        # The runner keeps a journal in any case: it is what resumes.
        if out is None:
            kept = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = kept = folders.local_folder(str(out), "out")
        summary = evaluation.sample(lm, asked, kept).summary
    return Evaluation(summary.get("results", []), summary, folder)


def _settings(**values: Any) -> eval_settings.Settings:
    default_of = {field.name: field.default for field in dataclasses.fields(eval_settings.Settings)}
    read = {}
    for name, value in values.items():
        if name not in default_of:
            raise errors.UserError(options.unknown(f"{name}= is no setting", name, [*default_of]))
        read[name] = given.checked(name, value, options.Option(default_of[name], ""))
    for one in read["temperature"]:
        given.checked("temperature", one, options.Option(1.0, ""))
    return eval_settings.Settings(**read)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Evaluations side by side, with paired differences to the first. Printed, it is the tables."""

    rows: list[dict[str, Any]]  # a row for each benchmark, temperature and model
    warnings: list[str]
    text: str

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__

    def plot(self, file: str | Path) -> None:
        """Draws the bars with their intervals."""
        comparison_report.plot(self.rows, Path(file))


def compare(scores: Mapping[str | float, Evaluation | str | Path]) -> Comparison:
    """Compares evaluations; differences are to the first.

    Args:
      scores: by name: what `evaluate` returned, or the folder of an evaluation or run.

    Raises:
      UserError: no evaluation there, or scores that are not whole.

    >>> print(compare({"base": base_scores, "dft": dft_scores}))
    """
    if not scores:
        raise errors.UserError("compare({}): give evaluations by name")
    read = []
    for name, one in scores.items():
        if isinstance(one, Evaluation):
            read.append(comparison.of_summary(str(name), one.summary))
        else:
            read.append(comparison.of_folder(str(one), str(name)))
    made = comparison.compare(read)
    return Comparison(made.rows, made.warnings, comparison_report.text(made))
