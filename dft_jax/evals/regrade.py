"""Completions of a file, graded anew."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from dft_jax.evals import grading, records, runner, settings
from dft_jax.runtime import errors, files, folders

GRADED_NAME = "predictions.graded.jsonl"


def grade(file: Path, out: Path, data: str, **grader: Any) -> dict[str, Any]:
    """Grades the completions in `file`; writes them with verdicts, and their scores, to `out`;
    returns the scores.

    `data` is a benchmark's file, a folder of them, or empty for the hub; `grader` are the settings
    of `grading.Grader`. Nothing is written before all is graded, and each file appears at once and
    whole.

    Raises:
      UserError: anything wrong with the completions, the benchmarks or `out`, before the first is
      graded.
    """
    predictions = records.read_predictions(file)
    names = list(dict.fromkeys(prediction.benchmark for prediction in predictions))
    errors.raise_if_any(
        settings.rule_mistakes(
            names, grader["mode"], grader["last_number"], grader["answer_markers"], "--"
        )
    )
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    problems = records.load_problems(predictions, data)
    predictions = records.with_references(predictions, problems)
    _make_writable(out, file)
    with folders.locked(out, "--out"):
        rows, summary = grading.grade(predictions, problems, **grader)
        summary["predictions"] = {"file": file.name, "sha256": digest, "rows": len(predictions)}
        with errors.user_errors(
            f"--out={out}: cannot be written", "make room, or give another folder"
        ):
            files.write_text(out / GRADED_NAME, "".join(json.dumps(row) + "\n" for row in rows))
            files.write_json(out / runner.SCORES_NAME, summary)
    return summary


def _make_writable(out: Path, file: Path) -> None:
    """The folder `out`, made if need be; refused before the work where its files could not be
    written at the end.
    """
    if (out / GRADED_NAME).exists() and (out / GRADED_NAME).samefile(file):
        raise errors.UserError(
            f"--out={out}: {file.name} there would be overwritten by itself; give another folder"
        )
    with errors.user_errors(f"--out={out}: cannot be made", "give another folder"):
        out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK | os.X_OK):
        raise errors.UserError(f"--out={out}: no permission to write there; give another folder")
    if (out / runner.EVALUATION_NAME).exists():
        raise errors.UserError(
            f"--out={out}: the scores of an evaluation are there; give another folder"
        )
    for name in (GRADED_NAME, runner.SCORES_NAME):
        if (out / name).is_dir():
            raise errors.UserError(
                f"--out={out}: {name} there is a folder; give another folder, or remove it"
            )
