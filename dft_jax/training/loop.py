"""Training: `run` reads top to bottom; `make_train_step` is the pure function it repeats."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from dft_jax import sharding
from dft_jax.models.model import Model, matmul_precision
from dft_jax.runtime import distributed, errors, folders, interrupts
from dft_jax.training import identity as run_directory, metrics_log
from dft_jax.training.job import needs_reference, prepare, tell_account
from dft_jax.training.reporter import Reporter
from dft_jax.training.state import abstract_state, init_params, init_state
from dft_jax.training.step import (
    compile_ahead,
    make_evaluate,
    make_hyperparameters,
    make_train_step,
)
from dft_jax.types import TrainState


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run in memory: what export and analysis start from."""

    workdir: Path
    config: ConfigDict
    source: Path  # the checkpoint it began from
    model: Model
    state: TrainState
    identity: dict[str, Any]  # what its checkpoints say of it: run_id, base, fingerprint, changes


def run(config: ConfigDict, workdir: str | Path) -> Run:
    """Fine-tunes as `config` says, in `workdir`; resumes when a checkpoint of the same run is
    there.

    Raises:
      UserError: anything wrong with config, checkpoint, data or workdir, before compilation; a save
      that failed.
      Stopped: a signal asked for it (see interrupts.py); the state is saved.
    """
    workdir = folders.local_folder(str(workdir))
    job = prepare(config, workdir)
    config, steps, model, optimizer = job.config, job.steps, job.model, job.optimizer
    with (
        folders.locked(workdir),
        matmul_precision(config.model.compute_dtype),
        contextlib.ExitStack() as stack,
    ):
        opened = run_directory.open_workdir(workdir, config, job.fingerprint, job.source, job.train)
        checkpoints, restart, identity = opened
        stack.enter_context(checkpoints)
        abstract = abstract_state(model, optimizer)
        with distributed.together("room"):  # process 0 writes and looks
            run_directory.describe_run(workdir, config, model, job.account, identity)
            if restart != steps:
                checkpoints.require_room(abstract)
        tell_account(job)
        is_new, start = restart is None, restart or 0
        state = (
            init_state(config, job.source, model, optimizer)
            if is_new
            else checkpoints.restore(restart, abstract)
        )
        reference = (
            init_params(config, job.source, model) if needs_reference(job.objective) else None
        )
        # devices meet for the first time, as soon as an array is on all of them
        distributed.meet("state")
        given = make_hyperparameters(config, steps, model.mesh)
        train_step = make_train_step(model, job.objective, optimizer, given, config, reference)
        evaluate = make_evaluate(model, job.objective, job.heldout, config, reference)
        job.benchmarks.begin(steps, start, job.train.report["sha256"], identity)
        log = metrics_log.Writer(
            workdir, config, resume_from=restart, run_id=identity.get("run_id")
        )
        reporter = stack.enter_context(
            contextlib.closing(Reporter(config, model, log, job.train, steps, start))
        )

        def save() -> None:
            reporter.sync()  # a step that must not be saved stops the run here
            checkpoints.save(int(jax.device_get(state.step)), state, identity)

        def evaluate_if_due(step: int) -> None:
            """After the save, which matters most; a run that is taken up again does what is still
            missing there.
            """
            is_due = step in (0, steps) or (config.eval.every and step % config.eval.every == 0)
            if is_due and not log.has(step, "heldout/"):
                reporter.evaluate(step, lambda: evaluate(state.params))
            if step in job.benchmarks.steps and not log.has(step, "eval/"):
                save()  # it may take hours
                reporter.evaluate(step, lambda: job.benchmarks.run(step, state.params))

        try:
            interrupts.check()
            if start < steps:
                train_step = compile_ahead(train_step, abstract, model.mesh, job.packed.packer)
            evaluate_if_due(start)
            checkpoints.start_clock()
            for step, packed_step in zip(
                range(start + 1, steps + 1),
                reporter.waited(job.packed.iterate(start)),
                strict=False,
            ):
                batch = sharding.device_batch(packed_step.batch, model.mesh, packed_step.n_rows)
                is_long = interrupts.steps_are_long()
                with reporter.watched(step):
                    state, sums = train_step(state, batch)
                    reporter.add(step, sums, packed_step)
                if is_long:
                    # a signal that comes meanwhile is answered before the next step
                    reporter.wait()
                is_due = checkpoints.is_due(config.checkpoint.every_minutes)
                is_time = interrupts.check(save_is_due=is_due, at_once=is_long)
                if is_time or step == steps or step % config.checkpoint.every == 0:
                    save()
                evaluate_if_due(step)
        except errors.Stopped:
            save()
            checkpoints.wait()  # before anything else is closed, which may fail
            raise
    return Run(workdir, config, job.source, model, state, identity)
