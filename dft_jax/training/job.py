"""All that a run needs, read and checked before anything is compiled or allocated."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optax

from dft_jax.data import account, batches, order
from dft_jax.lm import open_config
from dft_jax.losses import objectives
from dft_jax.models.attention import select
from dft_jax.models.model import Model, with_attention
from dft_jax.runtime import distributed, errors
from dft_jax.runtime.options import Config
from dft_jax.training import identity, metrics_log, optimizer as optimizer_lib
from dft_jax.training.evaluators import Evaluator, HeldOutEvaluator, MakeEvaluators, no_evaluators
from dft_jax.training.inputs import length_of, load_data, make_steps
from dft_jax.training.state import abstract_state, init_params, init_state
from dft_jax.training.step import (
    StepOptions,
    compile_ahead,
    make_hyperparameters,
    make_train_step,
)
from dft_jax.types import Frozen, Params, TrainState


@dataclasses.dataclass(frozen=True)
class Job:
    """All that a run needs before anything is compiled or allocated, checked, and the same on all
    processes.
    """

    config: Config  # with the run's date, where its template writes one
    source: Path
    model: Model
    tokenizer: Any
    train: batches.Examples
    heldout: batches.Examples | None
    batches: batches.TrainBatches
    length: order.Length
    optimizer: optax.GradientTransformationExtraArgs
    objective: objectives.Objective
    evaluators: tuple[Evaluator, ...]  # besides data.heldout
    fingerprint: dict[str, Any]

    @property
    def steps(self) -> int:
        return self.length.steps

    @property
    def needs_reference(self) -> bool:
        return objectives.REFERENCE in self.objective.needs

    @property
    def account(self) -> dict[str, Any]:
        """What data_report.json holds."""
        reports = {"train": self.train.report, "length": self.length.report()}
        if self.heldout:
            reports["heldout"] = self.heldout.report
        return reports

    def with_attention(self) -> "Job":
        """With the attention backend that `model.attention` comes to on these devices.

        Choosing it compiles a small program, with collectives on some meshes: all processes have
        to have agreed on the rest before.
        """
        with distributed.together("attention"):
            model = with_attention(self.model, self.config.model.attention)
        distributed.agree("attention", {"attention": model.module.backend})
        return dataclasses.replace(self, model=model)

    def abstract_state(self) -> TrainState:
        return abstract_state(self.model, self.optimizer)

    def initial_state(self) -> TrainState:
        return init_state(self.config, self.source, self.model, self.optimizer)

    def frozen(self) -> Frozen:
        """What steps read and never change: rates, seed, and the model before training."""
        reference = None
        if self.needs_reference:
            reference = init_params(self.config, self.source, self.model)
        # Devices meet for the first time, as soon as an array is on all of them.
        distributed.meet("state")
        given = make_hyperparameters(self.config, self.steps, self.model.mesh)
        return Frozen(given, reference)

    def compile_step(self, frozen: Frozen) -> Callable:
        """step(frozen, state, batch), compiled for every shape that its batches have."""
        options = StepOptions.of(self.config)
        step = make_train_step(self.model, self.objective, self.optimizer, options)
        return compile_ahead(step, frozen, self.abstract_state(), self.batches.packer)

    def all_evaluators(self, reference: Params | None) -> tuple[Evaluator, ...]:
        """data.heldout, where it is given, before the others."""
        if self.heldout is None:
            return self.evaluators
        heldout = HeldOutEvaluator(self.model, self.objective, self.heldout, self.config, reference)
        return (heldout, *self.evaluators)

    def is_checkpoint_step(self, step: int) -> bool:
        return step == self.steps or step % self.config.checkpoint.every == 0


def prepare(config: Config, workdir: Path, make_evaluators: MakeEvaluators = no_evaluators) -> Job:
    """Reads and checks everything; every process by itself, then compared.

    `config` has been validated.

    Raises:
      UserError: anything wrong with config, checkpoint or data, on any process; processes that
      differ.
    """
    config = given = identity.with_first_rounding(config, workdir)
    date = identity.first_date(config, workdir)
    held = identity.held_fingerprint(workdir)
    version = order.version_of(held)
    with distributed.together("preparation"):
        metrics_log.require_boards(config.log)
        identity.refuse_moved(config, workdir)
        source, model, tokenizer = open_config(config)
        attention, compute_dtype = config.model.attention, config.model.compute_dtype
        errors.raise_if_any(select.problems(attention, model.config, model.mesh, compute_dtype))
        config = identity.with_date(config, date, tokenizer)
        evaluators = make_evaluators(config, tokenizer, model, workdir)
        train, heldout = load_data(config, tokenizer, model)
        if held is None:  # a run that began before this was looked at is finished as it is
            most = config.data.max_lost_fraction
            errors.raise_if_any(account.refusals("data.train", train.report, most))
        length = length_of(config, len(train), version)
        objective = objectives.make_objective(config.objective)
        packed = make_steps(config, train, model, version)
        with_reference = objectives.REFERENCE in objective.needs
        fingerprint = identity.fingerprint(
            config, source, model, tokenizer, train, length.steps, with_reference
        )
        fingerprint |= order.as_fingerprint(version)
        # As given: process 0's date must not take the place of another that was asked for.
        facts = identity.run_facts(given, fingerprint, packed.packer.row_counts, heldout)
        facts["benchmarks_sha256"] = "".join(evaluator.digest() for evaluator in evaluators)
    distributed.agree("run", facts)
    return Job(
        config=config,
        source=source,
        model=model,
        tokenizer=tokenizer,
        train=train,
        heldout=heldout,
        batches=packed,
        length=length,
        optimizer=optimizer_lib.make_optimizer(config.optimizer),
        objective=objective,
        evaluators=evaluators,
        fingerprint=fingerprint,
    )


def announce_account(job: Job) -> None:
    """Says what is trained and what is not, before anything compiles."""
    reports = {"data.train": job.train.report}
    if job.heldout:
        reports["data.heldout"] = job.heldout.report
    lines, warnings = [], []
    for name, report in reports.items():
        lines += account.lines(name, report)
        warnings += account.warnings(name, report)
    account.announce([*lines, job.length.line()], warnings + job.length.warnings())
