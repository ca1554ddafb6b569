"""The benchmark evaluations of a training run, at some of its steps."""

import dataclasses
import hashlib
import sys
from pathlib import Path
from typing import Any

from dft_jax.checkpoints.manifest import has_checkpoint
from dft_jax.evals import planning, prompts, runner
from dft_jax.evals.settings import Settings
from dft_jax.models.model import Model
from dft_jax.runtime import processes
from dft_jax.types import Weights


class BenchmarkEvaluator:
    """Samples and grades benchmarks in `workdir/eval/<step>`; an evaluator of the training loop.

    Args:
      every: steps between evaluations; 0: only at the last.
      date: YYYY-MM-DD, for templates that write one.
      trained: the prompt that the run is trained with.
      source: the folder of its checkpoint, of a run whose model has its tower, since its rows have
        images; else None.

    Raises:
      UserError: unknown benchmark, or prompts that leave no room for an answer.
    """

    prefix = "eval/"
    is_long = True

    def __init__(
        self,
        settings: Settings,
        every: int,
        tokenizer: Any,
        model: Model,
        workdir: Path,
        *,
        date: str,
        trained: str,
        source: Path | None = None,
    ):
        self.model, self.every, self.folder = model, every, workdir / "eval"
        self.origin: dict[str, Any] = {}
        self.steps: list[int] = []
        asked = self._continued(settings)
        self.plan = planning.plan(
            asked,
            tokenizer,
            model,
            "config.eval.",
            date=date,
            trained=trained,
            source=source,
        )
        if processes.is_first():
            choice = self.plan.choice
            print(f"evaluations: prompt {choice.name!r}, {choice.why}", file=sys.stderr)

    def _continued(self, asked: Settings) -> Settings:
        """A resumed run is asked as before, so that its curve is one; a prompt that is named counts
        more.
        """
        if not has_checkpoint(self.folder.parent):
            return asked  # those evaluations are of an earlier run
        done = list(self.folder.glob(f"*/{runner.EVALUATION_NAME}"))
        if asked.prompt != prompts.AUTO or not done:
            return asked
        newest = max(done, key=lambda file: file.stat().st_mtime)
        return dataclasses.replace(asked, prompt=prompts.recorded(newest) or asked.prompt)

    def digest(self) -> str:
        """Of all that is going to be asked, prompts and answers."""
        content = f"{self.plan.digest()} {self.plan.prompts_json()}"
        return hashlib.sha256(content.encode()).hexdigest()

    def begin(self, steps: int, start: int, origin: dict[str, Any]) -> None:
        """Settles the steps to evaluate at.

        `origin` tells the run's samples from those of any other run: one with the same config, of
        other weights under the same path or of another version of the code, would else be given
        their scores.

        Raises:
          UserError: a folder of a step to come holds the evaluation of another run, or with other
          settings.
        """
        self.origin = origin
        self.steps = [steps]
        if self.every:
            self.steps = [*range(self.every, steps, self.every), steps]
        for step in self.steps:
            folder = self.folder / str(step)
            if step > start or not (folder / runner.SCORES_NAME).exists():
                runner.check(self.plan, self.model, folder, {**origin, "step": step})

    def compile_programs(self) -> None:
        """Compiles the sampler, for all of the plan or what a killed evaluation has left of it."""
        self.plan.sampler.compile_programs(
            self.plan.requests.values(), watched=bool(self.plan.stop_texts)
        )

    def due(self, step: int) -> bool:
        return step in self.steps

    def run(self, step: int, weights: Weights) -> dict[str, Any]:
        """Samples and grades with these weights; returns what metrics.jsonl has of it."""
        of = {**self.origin, "step": step}
        summary = runner.evaluate(
            self.plan, self.model, lambda: weights, self.folder / str(step), of
        )
        values = {}
        for result in summary.get("results", []):
            name = f"eval/{result['benchmark']}_T{result['temperature']:g}"
            values[f"{name}_avg_at_{result['samples_per_problem']}"] = result["avg_at_k"]["mean"]
            values[f"{name}_mean_token_entropy"] = result["mean_token_entropy"]
        return values
