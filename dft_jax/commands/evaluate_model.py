"""A model evaluated as the command's flags ask: sampled on benchmarks, or held-out text read."""

import sys
from pathlib import Path

import jax

from dft_jax.analysis import heldout
from dft_jax.checkpoints.manager import Gone
from dft_jax.commands import model_flags, scores
from dft_jax.evals import evaluation, journal, runner
from dft_jax.evals.settings import Settings
from dft_jax.lm.run import BEST, NEWEST
from dft_jax.runtime import interrupts, processes


def evaluate_newest(
    path: str, asked: Settings, heldout_data: str | None, out: Path, step: str = NEWEST
) -> None:
    """Evaluates a model, and prints what comes out; of a run that trains on, the checkpoint that is
    the newest, or the best, when it is read.

    Args:
      path: of the model: a folder, a hub id, or a run.
      asked: what is sampled, if it names benchmarks.
      heldout_data: the file whose completions are scored, if there is one.
      step: of a run: the number of a step, "newest" or "best".

    Raises:
      UserError: a model or data that cannot be read, or a folder that holds another evaluation.
    """
    try:
        _evaluate(path, asked, heldout_data, out, step)
    except Gone as gone:
        # Several processes may not have met this alike: they end, and say what to do. A step that
        # was asked for by its number has no other in its place.
        if jax.process_count() > 1 or step not in (NEWEST, BEST):
            raise
        what = gone.problems[0].partition(";")[0]
        print(f"note: {what}; the {step} one is taken", file=sys.stderr)
        _evaluate(path, asked, heldout_data, out, step)


def _evaluate(path: str, asked: Settings, heldout_data: str | None, out: Path, step: str) -> None:
    """What is asked of the model as it is now."""
    lm = model_flags.open_model(path, step)
    evaluation.agree(lm, asked)
    is_first = processes.is_first()
    if is_first:
        print(f"evaluating {lm.what}", file=sys.stderr)
    if asked.benchmarks:
        with interrupts.Interrupts():
            outcome = evaluation.sample(lm, asked, out)
        if is_first:
            files = f"{out / runner.SCORES_NAME}, {journal.PREDICTIONS_NAME}"
            scores.show(outcome.summary, f"{outcome.n_completions} completions: {files}")
    if heldout_data:
        heldout.write(lm, heldout_data, model_flags.reading(), out)
