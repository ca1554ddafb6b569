"""Training: `run` reads from top to bottom; training/step.py has the function that it repeats."""

import contextlib
from collections.abc import Callable

from dft_jax import sharding
from dft_jax.runtime import errors, interrupts
from dft_jax.training.evaluators import Evaluator
from dft_jax.training.folder import RunFolder
from dft_jax.training.job import Job
from dft_jax.training.reporter import Reporter
from dft_jax.types import Frozen, TrainState


def run(job: Job, folder: RunFolder) -> TrainState:
    """Trains `job` to its last step in `folder`, resuming from its newest complete checkpoint.

    Raises:
      UserError: a save that failed, or too many steps in a row that are not finite.
      Stopped: a signal asked for it (runtime/interrupts.py); the state is saved.
    """
    # The state first: where a checkpoint cannot be read, nothing else is worth making.
    state = folder.state_of(job)
    frozen = job.frozen()
    evaluators = job.all_evaluators(frozen)
    for evaluator in evaluators:
        evaluator.begin(job.steps, folder.start, folder.origin(job))
    with contextlib.closing(folder.reporter(job)) as report:
        try:
            # From here on there is something to save: a signal is answered by saving it.
            interrupts.check()
            # Every shape before the first step; compiling later would look like a slow step.
            train_step = _compile(job, folder, frozen, evaluators)
            _evaluate(job, evaluators, folder, folder.start, frozen, state, report)
            # Minutes between checkpoints count from the first step, not from the compilation.
            folder.checkpoints.start_clock()
            for step, packed in report.timed(job.batches.starting_at(folder.start)):
                batch = sharding.device_batch(packed.batch, job.model.mesh, packed.n_rows)
                is_long = interrupts.steps_are_long()
                # The sums of this step are reported while the next one runs on the devices.
                with report.step(step):
                    state, sums = train_step(frozen, state, batch)
                    report.add(step, sums, packed)
                if is_long:
                    # A signal that comes meanwhile is answered before the next step.
                    report.wait()
                is_due = folder.checkpoints.is_due(job.minutes_between_saves)
                is_time = interrupts.check(save_is_due=is_due, at_once=is_long)
                if is_time or job.is_checkpoint_step(step):
                    folder.save(state, report)
                # After saving, which matters most.
                _evaluate(job, evaluators, folder, step, frozen, state, report)
        except errors.Stopped:
            folder.save(state, report)
            folder.checkpoints.wait()  # before anything else is closed, which may fail
            raise
    return state


def _compile(
    job: Job, folder: RunFolder, frozen: Frozen, evaluators: tuple[Evaluator, ...]
) -> Callable:
    """The step for every shape of batch, and what is evaluated: nothing compiles afterwards."""
    if folder.start == job.steps:
        return _no_step
    for evaluator in evaluators:
        evaluator.compile_programs()
    return job.compile_step(frozen)


def _no_step(*_):
    raise AssertionError("the run was at its last step")


def _evaluate(
    job: Job,
    evaluators: tuple[Evaluator, ...],
    folder: RunFolder,
    step: int,
    frozen: Frozen,
    state: TrainState,
    report: Reporter,
) -> None:
    """What is due at this step; a resumed run makes up for what its predecessor missed."""
    for evaluator in evaluators:
        if evaluator.due(step) and not report.log.has(step, evaluator.prefix):
            if evaluator.is_long:
                folder.save(state, report)
            weights = job.model.join(state.params, frozen.base)
            values = report.evaluate(step, evaluator, weights)
            folder.keep_if_best(step, values, state, report)
