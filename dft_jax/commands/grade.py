"""Completions of any engine graded: the part of the command `evaluate` that needs no model."""

from pathlib import Path

import jax

from dft_jax.commands import model_flags, scores
from dft_jax.evals import regrade, runner
from dft_jax.evals.settings import Settings
from dft_jax.runtime import errors

_OF_GRADER = ("mode", "last_number", "answer_markers", "workers")
# Ends what is said of a flag for sampling.
_WHY = " with --grade, which samples nothing and judges all that the file holds"


def grade(file: Path, out: Path, asked: Settings) -> None:
    """Grades the completions of a file, and prints their scores, which are in the folder `out`.

    Raises:
      UserError: a wrong setting of the grader, one that is not the grader's, or completions that
      cannot be read.
    """
    errors.raise_if_any(model_flags.idle(("benchmark_data", *_OF_GRADER), _WHY))
    # A grader needs no accelerator, and should not occupy one.
    jax.config.update("jax_platforms", "cpu")
    of_grader = tuple(f"--{name}=" for name in _OF_GRADER)
    errors.raise_if_any([line for line in asked.mistakes("--") if line.startswith(of_grader)])
    summary = regrade.grade(
        file,
        out,
        asked.benchmark_data,
        mode=asked.mode,
        last_number=asked.last_number,
        answer_markers=asked.answer_markers,
        workers=asked.workers,
    )
    n = summary["predictions"]["rows"]
    scores.show(
        summary,
        f"graded {n} completions: {out / runner.SCORES_NAME}, {out / regrade.GRADED_NAME}",
    )
