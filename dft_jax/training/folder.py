"""The folder of a run, opened: its checkpoints, where it stands, and what is said of it."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from dft_jax.checkpoints.manager import Best, Checkpoints
from dft_jax.models.model import matmul_precision
from dft_jax.runtime import distributed, folders, processes
from dft_jax.training import admission, announcement, identity
from dft_jax.training.job import Job
from dft_jax.training.metrics_log import Writer
from dft_jax.training.reporter import Reporter
from dft_jax.types import TrainState


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A folder that nobody else writes to while it is open."""

    path: Path
    checkpoints: Checkpoints
    step: int | None  # of the newest complete checkpoint; None for a run that begins
    identity: dict[str, Any]  # what its checkpoints say: run_id, base, data, fingerprint, changes
    best: Best  # of the steps so far, by checkpoint.best
    publish: Callable[[], None]  # of a run in a bucket: copies there what has changed

    @property
    def start(self) -> int:
        """Steps that are done."""
        return self.step or 0

    def state_of(self, job: Job) -> TrainState:
        """The state to go on with: that of the newest complete checkpoint, or the first."""
        if self.step is None:
            return job.initial_state()
        return self.checkpoints.restore(self.step, job.abstract_state())

    def origin(self, job: Job) -> dict[str, Any]:
        """What tells evaluations of this run from those of any other."""
        return identity.origin_of(self.identity, job.config, job.train)

    def reporter(self, job: Job) -> Reporter:
        run_id = self.identity.get("run_id")
        log = Writer(
            self.path,
            job.config.log,
            resume_from=self.step,
            run_id=run_id,
            about=job.config.to_dict(),
        )
        return Reporter(job.config, job.model, log, job.train.mean_length, job.steps, self.start)

    def save(self, state: TrainState, report: Reporter) -> None:
        """Saves, after the rows of all steps before. A run of skipped steps ends here, unsaved."""
        report.sync()
        self.publish()
        self.checkpoints.save(int(jax.device_get(state.step)), state, self.identity)

    def keep_if_best(
        self, step: int, values: dict[str, Any], state: TrainState, report: Reporter
    ) -> None:
        """Saves where what was measured of the state is better than at any step before."""
        if self.best.improves(step, values):
            # The new one is complete before the old one goes.
            self.save(state, report)
            self.checkpoints.keep_best()


@contextlib.contextmanager
def opened(job: Job, path: Path) -> Iterator[tuple[Job, RunFolder]]:
    """Locks the folder, compares what is in it with the job, and describes the run there.

    Returns:
      The folder, and the job with its attention backend chosen. That compiles a little, so a
      folder that is refused is refused before.

    Raises:
      UserError: somebody is at work there, it holds another run, or there is no room.
    """
    config = job.config
    with contextlib.ExitStack() as stack:
        # Before anything is read: another job may be writing.
        publish = stack.enter_context(folders.locked(path))
        stack.enter_context(matmul_precision(config.model.compute_dtype))
        checkpoints, step, run = admission.open_workdir(
            path, config, job.fingerprint, job.source, job.train
        )
        # Closed last, after all that may still ask for a save.
        stack.enter_context(checkpoints)
        job = job.with_attention()
        with distributed.together("room"):  # process 0 writes and looks
            attention, account = job.model.module.backend, job.account
            if step is not None:
                account = admission.with_other_heldout(path, config, account)
            admission.describe_run(path, config, attention, account, run)
            if step != job.steps:
                checkpoints.require_room(job.abstract_state())
        # What is trained and what is not is said before the minutes of compilation.
        announcement.announce(job.train, job.heldout, job.length, job.drawn)
        announcement.announce_model(config, job.model, job.source)
        if step is not None and processes.is_first():
            print(
                f"resuming {folders.shown(path)} from step {step} of {job.steps}", file=sys.stderr
            )
        best = checkpoints.best()
        yield job, RunFolder(path, checkpoints, step, run, best, publish)
        if best.summary() and processes.is_first():
            print(f"{best.summary()}; export and evaluate take --step=best", file=sys.stderr)
        for line in checkpoints.damaged_notes():
            print(line, file=sys.stderr)
