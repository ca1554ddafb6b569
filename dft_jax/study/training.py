"""The training of one arm: a state that moves from one measured step to the next."""

from pathlib import Path
from typing import Any

import jax

from dft_jax import sharding
from dft_jax.checkpoints.manager import Checkpoints
from dft_jax.runtime import errors, progress
from dft_jax.study import spec as spec_lib
from dft_jax.study.clock import Clock
from dft_jax.study.laboratory import Laboratory
from dft_jax.study.programs import StepFn
from dft_jax.study.records import Records
from dft_jax.study.spec import Arm
from dft_jax.training import metrics
from dft_jax.types import Params, TrainState

# Key in a step's row -> key of the step's sums, of which the mean is kept.
_MEANS = {"loss": "loss", "nll": "nll", "mean_p": "p", "entropy": "entropy"}


class Training:
    """A context: it begins or resumes on entry, and saves on exit what was trained since.

    `rows` are what is kept of each step since the last measured one.
    """

    checkpoints: Checkpoints
    program: StepFn
    state: TrainState

    def __init__(self, lab: Laboratory, arm: Arm, folder: Path, records: Records, clock: Clock):
        """`folder` is that of the arm's checkpoints."""
        self.lab = lab
        self.arm = arm
        self.folder = folder
        self.records = records
        self.clock = clock
        self.step = 0
        self.rows: list[dict[str, Any]] = []

    def __enter__(self) -> "Training":
        """Begins, or resumes from the newest checkpoint."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoints = Checkpoints(self.folder, keep=1, verify="sizes")
        # Compiled before the first step, so that no step's time has a compilation in it.
        programs = self.lab.programs
        self.program = programs.step_of(self.arm.objective, self.clock.check)
        self.numbers = programs.step_numbers(self.arm.seed)
        step = self.checkpoints.newest(repair=True)
        if step is not None and not self._is_usable(step):
            self.checkpoints.remove(step)
            step = None
        if step is not None:
            self.state = self.checkpoints.restore(step, programs.abstract_state)
            self.step = step
            self.rows = self.checkpoints.run_of(step)["rows"]
            print(f"{self.arm.name}: resuming from step {step}", flush=True)
        else:
            self.state = programs.initial_state()
        self.checkpoints.start_clock()
        return self

    @property
    def params(self) -> Params:
        """All of the model as it is now."""
        return self.lab.programs.whole(self.state.params)

    def _is_usable(self, step: int) -> bool:
        """Whether nothing before `step` is missing.

        A done-file may have been removed to have it made again, and a state cannot go back.
        """
        for phase in spec_lib.phases_of(self.lab.spec, self.arm):
            is_needed = phase.kind == "train" and phase.step <= step
            # The measurement at `step` itself can still be made of the state that was saved there.
            is_needed |= phase.kind == "heldout" and phase.step < step
            if is_needed and not self.records.is_done(phase):
                return False
        return True

    def to(self, last: int) -> None:
        """Trains up to step `last`.

        Raises:
          Stopped: the time is over, or a signal came.
        """
        mesh = self.lab.model.mesh
        packer = self.lab.programs.packer
        hyperparameters = self.lab.programs.hyperparameters(self.arm)
        bar = progress.bar(
            total=last, initial=self.step, desc=self.arm.name, unit="step", leave=False
        )
        with bar:
            while self.step < last:
                self.clock.check()
                packed = packer.pack(self.numbers[self.step])
                batch = sharding.device_batch(packed.batch, mesh, packed.n_rows)
                # The old state is donated: nothing may hold on to it.
                self.state, sums = self.program(hyperparameters, self.state, batch)
                self.step += 1
                self.rows.append(self._row(jax.device_get(sums)))
                bar.update()
                if self.checkpoints.is_due(self.lab.spec.config.checkpoint.every_minutes):
                    self.save()

    def _row(self, sums: dict[str, Any]) -> dict[str, Any]:
        """What is kept of a step, the mean of each sum over its tokens, as metrics.jsonl has it."""
        n = metrics.divisor(sums)
        row: dict[str, Any] = {}
        for name, key in _MEANS.items():
            row[name] = round(float(sums[key]) / n, 6)
        row["step"] = self.step
        row["tokens"] = int(sums["tokens"])
        row["is_finite"] = bool(sums["is_finite"])
        row["learning_rate"] = float(f"{float(sums['learning_rate']):.6g}")
        norm = float(sums["gradient_norm"])
        row["gradient_norm"] = round(norm, 6)
        row["is_clipped"] = norm > self.lab.spec.config.optimizer.clip_norm
        return row

    def save(self) -> None:
        """Writes a checkpoint, and waits until it is whole."""
        with self.clock.timed("save"):
            self.checkpoints.save(self.step, self.state, {"rows": self.rows})
            self.checkpoints.wait()

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        """Saves what was trained since the last checkpoint where the study was stopped."""
        try:
            if kind is errors.Stopped and self.step > 0:
                self.save()
        finally:
            self.checkpoints.close()
