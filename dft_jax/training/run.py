"""A whole run: a config and a folder in, a finished run out."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax

from dft_jax.lm.language_model import LM
from dft_jax.lm.run import lm_of_run
from dft_jax.models.hf.tokenizer import Tokenizer
from dft_jax.models.model import Model
from dft_jax.runtime import labels
from dft_jax.runtime.options import Config
from dft_jax.training import features, loop
from dft_jax.training.evaluators import MakeEvaluators, no_evaluators
from dft_jax.training.folder import opened
from dft_jax.training.preparation import prepare
from dft_jax.types import TrainState


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: what export and analysis start from."""

    workdir: Path
    config: Config
    source: Path  # the checkpoint it began from
    model: Model
    tokenizer: Tokenizer
    state: TrainState
    identity: dict[str, Any]  # what its checkpoints say of it: run_id, base, fingerprint, changes

    @property
    def step(self) -> int:
        return int(jax.device_get(self.state.step))

    @property
    def lm(self) -> LM:
        """The trained model, as `load` would open it from `workdir`."""
        return lm_of_run(
            self.workdir,
            self.config,
            self.source,
            self.model,
            self.tokenizer,
            step=self.step,
            run=self.identity,
            read=lambda: self.state.params,
        )

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl: `step` and what was measured there."""
        lines = (self.workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def curve(self, name: str = "train/nll") -> tuple[list[int], list[float]]:
        """Steps, and the values of one metric at those that have it."""
        steps, values = [], []
        for row in self.metrics:
            if row.get(name) is not None:
                steps.append(row["step"])
                values.append(row[name])
        return steps, values

    def plot(self, name: str = "train/nll", axis: Any = None) -> Any:
        """Draws one metric against the steps; returns the matplotlib axis.

        Args:
          axis: to draw on, as for a second run beside the first; a new figure without it.
        """
        import matplotlib.pyplot as plt

        if axis is None:
            axis = plt.subplots(figsize=(6, 3.5), layout="constrained")[1]
        axis.plot(*self.curve(name), label=labels.plain(self.workdir.name))
        axis.set(xlabel="step", ylabel=labels.plain(name))
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
        return axis


def fine_tune(
    config: Config, workdir: Path, make_evaluators: MakeEvaluators = no_evaluators
) -> Run:
    """Fine-tunes as `config`, which has been validated, says; resumes where `workdir` holds a
    checkpoint of the same run.

    Raises:
      UserError: anything wrong with checkpoint, data or workdir, before compilation; a save that
      failed.
      Stopped: a signal asked for it (runtime/interrupts.py); the state is saved.
    """
    with opened(prepare(config, workdir, make_evaluators), workdir) as (job, folder):
        # Before the state takes its memory; a signal meanwhile loses nothing that is in a file.
        features.make(job.model, job.source, job.train, job.heldout)
        state = loop.run(job, folder)
    return Run(workdir, job.config, job.source, job.model, job.tokenizer, state, folder.identity)
