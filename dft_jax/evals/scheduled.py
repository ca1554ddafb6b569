"""The benchmark evaluations of a training run, at some of its steps."""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from dft_jax import config as config_lib
from dft_jax.evals import prompts, runner
from dft_jax.models.model import Model
from dft_jax.training import identity


class Benchmarks:
    """The benchmark evaluations that a config asks for, in `workdir/eval/<step>`; none where it
    names no benchmark.
    """

    def __init__(self, config: ConfigDict, tokenizer, model: Model, workdir: Path):
        self.config, self.model, self.folder = config, model, workdir / "eval"
        self.steps: list[int] = []
        if config.eval.benchmarks:
            asked = self._continued(config_lib.benchmark_settings(config))
            known = dict(date=config.data.date, trained=config.data.template)
            self.plan = runner.plan(asked, tokenizer, model, "config.eval.", **known)
            if jax.process_index() == 0:
                print(
                    f"evaluations: prompt {self.plan.choice.name!r}, {self.plan.choice.why}",
                    file=sys.stderr,
                )

    def _continued(self, asked: runner.Settings) -> runner.Settings:
        """A resumed run is asked as before, so that its curve is one; a prompt that is named counts
        more.
        """
        if not identity.has_checkpoint(self.folder.parent):
            return asked  # those evaluations are of an earlier run
        done = sorted(
            self.folder.glob(f"*/{runner.EVALUATION_NAME}"), key=lambda file: file.stat().st_mtime
        )
        if asked.prompt != prompts.AUTO or not done:
            return asked
        return dataclasses.replace(asked, prompt=prompts.recorded(done[-1]) or asked.prompt)

    def digest(self) -> str:
        """Of all that is going to be asked, prompts and answers; empty where nothing is."""
        if not self.config.eval.benchmarks:
            return ""
        prompts = json.dumps(sorted([*key, text] for key, text in self.plan.prompts.items()))
        return hashlib.sha256(f"{self.plan.digest()} {prompts}".encode()).hexdigest()

    def begin(self, last: int, start: int, data_sha256: str, run: dict[str, Any]) -> None:
        """Settles the steps to evaluate at. `run` is what the checkpoints say of the run.

        Its id tells its samples from those of any other run; without it another one with the same
        config, of other weights under the same path or of another version of the code, would be
        given their scores.

        Raises:
          UserError: a folder of a step to come holds the evaluation of another run, or with other
          settings.
        """
        self.of = {
            "config_sha256": config_lib.digest(self.config),
            "training_data_sha256": data_sha256,
        }
        if "run_id" in run:  # of an older version's run its evaluations have none either
            self.of |= {
                "run_id": run["run_id"],
                "origin": {"base": run["base"], "data": run.get("data")},
            }
        if self.config.eval.benchmarks:
            every = self.config.eval.benchmarks_every
            self.steps = [*(range(every, last, every) if every else []), last]
        for step in self.steps:
            if step > start or not (self.folder / str(step) / runner.SCORES_NAME).exists():
                runner.check(
                    self.plan, self.model, self.folder / str(step), {**self.of, "step": step}
                )

    def run(self, step: int, params) -> dict[str, float]:
        """Samples and grades with these parameters; returns what metrics.jsonl has of it."""
        of, out = {**self.of, "step": step}, self.folder / str(step)
        summary = runner.evaluate(self.plan, self.model, lambda: params, out, of)
        values = {}
        for result in summary.get("results", []):
            name = f"eval/{result['benchmark']}_T{result['temperature']:g}"
            values[f"{name}_avg_at_{result['samples_per_problem']}"] = result["avg_at_k"]["mean"]
            values[f"{name}_mean_token_entropy"] = result["mean_token_entropy"]
        return values
