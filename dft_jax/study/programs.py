"""What trains the arms of a study: one program for each objective, shared by all rates and seeds.

A learning rate is an argument of the program, and the seed decides which examples a step holds, so
neither makes another program.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dft_jax.data import batches, mixture
from dft_jax.data.examples import Examples
from dft_jax.losses import objectives
from dft_jax.models.model import Model, layouts_of
from dft_jax.study import measures, spec as spec_lib
from dft_jax.study.spec import Arm, Spec
from dft_jax.training import optimizer as optimizer_lib
from dft_jax.training.programs import ProgramsByRows, compilation_rows
from dft_jax.training.state import abstract_state, init_params
from dft_jax.training.step import StepOptions, make_hyperparameters, make_train_step
from dft_jax.types import Batch, Frozen, Hyperparameters, Params, TrainState

StepFn = Callable[[Hyperparameters, TrainState, Batch], tuple[TrainState, dict[str, Any]]]


class Programs:
    """The base's parameters, the batches of every seed, and the compiled steps."""

    def __init__(self, spec: Spec, source: Path, model: Model, examples: Examples, version: int):
        """Reads the base; compiles nothing yet. `version` is that of data/order.py."""
        self.spec = spec
        self.model = model
        self.examples = examples
        self.version = version
        began = spec.config.model.init, spec.config.train.seed
        self.base = init_params(*began, source, model)
        # Of a model with images parts may be trained; the rest is the same in all arms.
        self.trained, self.rest = model.divide(self.base)
        self.packer = self._make_packer()
        self._step_of: dict[str, StepFn] = {}

    def _make_packer(self) -> batches.Packer:
        # Steps of all seeds are padded to the same row counts, so that they share a program.
        ahead = []
        for seed in sorted({arm.seed for arm in self.spec.arms}):
            numbers = self.step_numbers(seed)
            ahead += [numbers[n] for n in range(self.spec.steps)]
        config = self.spec.config
        row_length = batches.row_length(config.data)
        return batches.Packer(
            self.examples,
            self.model.mesh,
            ahead,
            accumulation=config.train.accumulation,
            row_length=row_length,
            vision=self.model.config.vision,
            max_patches=config.data.image_max_patches,
            compilation_rows=compilation_rows(self.model, row_length),
            by_examples=config.train.loss_normalization == "official",
        )

    def step_numbers(self, seed: int) -> Any:
        """`[n]` are the numbers of the examples of step n, from 0."""
        return mixture.stream(
            self.examples,
            mixture.draws_of(self.examples, seed=seed, version=self.version),
            global_batch=self.spec.config.train.global_batch,
            seed=seed,
            version=self.version,
        )

    @functools.cached_property
    def optimizer(self) -> Any:
        """Of all arms: the rate comes with the hyperparameters."""
        return optimizer_lib.make_optimizer(self.spec.config.optimizer)

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes and layouts of a state."""
        return abstract_state(self.model, self.optimizer)

    @functools.cached_property
    def measure(self) -> Callable:
        """What reads a batch of a text, compiled on its first use."""
        return measures.make_measure(self.model)

    def hyperparameters(self, arm: Arm) -> Hyperparameters:
        """The arguments in which arms of one objective differ."""
        config = spec_lib.config_of(self.spec, arm)
        return make_hyperparameters(
            config.optimizer, config.train.seed, self.spec.steps, self.model.mesh
        )

    def initial_state(self) -> TrainState:
        """What is trained of the base as step 0, copied: a step writes over its state."""
        # As the compiled steps expect them: another layout would be refused, or compiled again.
        layouts = layouts_of(self.abstract_state)
        copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=layouts.params)
        params = copy(self.trained)
        opt_state = jax.jit(self.optimizer.init, out_shardings=layouts.opt_state)(params)
        return TrainState(jax.device_put(jnp.int32(0), layouts.step), params, opt_state)

    def whole(self, trained: Params) -> Params:
        """All parameters, with those of a state: what is measured, sampled and kept."""
        return self.model.join(trained, self.rest)

    def step_of(self, objective: str, check: Callable[[], None]) -> StepFn:
        """step(hyperparameters, state, batch) -> (state, sums), compiled for every row count.

        Args:
          check: called before each compilation, which may take minutes; it may raise.
        """
        if objective not in self._step_of:
            self._step_of[objective] = self._compile(objective, check)
        return self._step_of[objective]

    def _compile(self, name: str, check: Callable[[], None]) -> StepFn:
        objective = objectives.make_objective(name)
        # An objective that holds on to the base reads its probabilities in every step.
        reference = None
        if objective.needs_reference:
            reference = self.trained
        # Of any arm: rates and seed are arguments of the program.
        frozen = Frozen(self.hyperparameters(self.spec.arms[0]), reference, self.rest)
        options = StepOptions.of(self.spec.config.train, self.spec.config.optimizer)
        step = make_train_step(self.model, objective, self.optimizer, options)
        given = frozen, self.abstract_state
        compiled = ProgramsByRows(step, given, self.packer, self.model.module.backend, check)
        compiled.compile_all(f"compile {name}")

        def run(hyperparameters: Hyperparameters, state: TrainState, batch: Batch) -> Any:
            frozen = Frozen(hyperparameters, reference, self.rest)
            return compiled.run((frozen, state), batch)

        return run
