"""All that a run needs, read and checked before anything is compiled or allocated."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optax

from dft_jax.data import batches, order
from dft_jax.data.examples import Examples
from dft_jax.losses import objectives
from dft_jax.models.model import Model, with_attention
from dft_jax.runtime import distributed
from dft_jax.runtime.options import Config
from dft_jax.training.evaluators import Evaluator, HeldOutEvaluator
from dft_jax.training.heldout import HeldOut
from dft_jax.training.state import abstract_state, init_adapters, init_params, init_state
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
    train: Examples
    heldout: Examples | None
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
    def minutes_between_saves(self) -> float:
        return self.config.checkpoint.every_minutes

    @functools.cached_property
    def drawn(self) -> dict[str, Any]:
        """What the whole run draws of each source of a mixture; empty for one source."""
        return self.batches.report()

    @property
    def account(self) -> dict[str, Any]:
        """What data_report.json holds."""
        reports = {"train": self.train.report, "length": self.length.report()}
        if self.drawn:
            reports["drawn"] = self.drawn
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
        if self.model.lora is None:
            trained = self.initial_params(self.model.trainable)
        else:
            trained = init_adapters(self.config.lora, self.config.train.seed, self.model)
        return init_state(trained, self.model, self.optimizer)

    def initial_params(self, only: Params | None) -> Params:
        """Those of the model before training, of these abstract ones."""
        begun = self.config.model.init, self.config.train.seed
        return init_params(*begun, self.source, self.model, only)

    def frozen(self) -> Frozen:
        """What steps read and never change: rates, seed, and the model before training, where it
        is compared with, lies beneath adapters or beside what is trained.
        """
        base = reference = None
        if self.model.abstract_base is not None:
            base = self.initial_params(self.model.abstract_base)
        if self.objective.needs_reference and self.model.lora is None:
            reference = self.initial_params(self.model.trainable)
        # Devices meet for the first time, as soon as an array is on all of them.
        distributed.meet("state")
        settings, seed = self.config.optimizer, self.config.train.seed
        given = make_hyperparameters(settings, seed, self.steps, self.model.mesh)
        return Frozen(given, reference, base)

    def compile_step(self, frozen: Frozen) -> Callable:
        """step(frozen, state, batch), compiled for every shape that its batches have."""
        options = StepOptions.of(self.config.train, self.config.optimizer)
        step = make_train_step(self.model, self.objective, self.optimizer, options)
        backend = self.model.module.backend
        return compile_ahead(step, frozen, self.abstract_state(), self.batches.packer, backend)

    def all_evaluators(self, frozen: Frozen) -> tuple[Evaluator, ...]:
        """data.heldout, where it is given, before the others."""
        if self.heldout is None:
            return self.evaluators
        reference = frozen.reference
        if reference is not None:
            reference = self.model.join(reference, frozen.base)
        measured = HeldOut.of(
            self.config.train,
            batches.row_length(self.config.data),
            self.model,
            self.objective,
            self.heldout,
            reference,
        )
        heldout = HeldOutEvaluator.of(self.config, self.tokenizer, measured)
        return (heldout, *self.evaluators)

    def is_checkpoint_step(self, step: int) -> bool:
        return step == self.steps or step % self.config.checkpoint.every == 0
