"""Held-out loss and token statistics of a model, in one pass over examples in file order."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dft_jax import sharding
from dft_jax.data import batches
from dft_jax.data.examples import Examples
from dft_jax.losses import objectives
from dft_jax.models.model import Model
from dft_jax.runtime import interrupts, progress
from dft_jax.runtime.options import Config
from dft_jax.training import metrics
from dft_jax.training.programs import ProgramsByRows, compilation_rows
from dft_jax.training.step import make_loss
from dft_jax.types import Batch, Params, Weights

# Of a source, where a mean need not be of all examples.
_FEW_BATCHES = 4


class HeldOut:
    """Measures weights on examples: `measure(weights)` gives metrics named `heldout/…`.

    Args:
      objective: whose loss is measured, beside nll, p and entropy.
      global_batch: examples at once, over all devices.
      reference: parameters that the objective compares with, None for the others.
    """

    def __init__(
        self,
        model: Model,
        objective: objectives.Objective,
        examples: Examples,
        *,
        global_batch: int,
        row_length: int,
        chunk_tokens: int,
        reference: Params | None = None,
    ):
        self.model, self.reference = model, reference
        self.steps = batches.SequentialBatches(
            examples,
            model.mesh,
            global_batch=global_batch,
            row_length=row_length,
            vision=model.config.vision,
            # A pass is a third of a training step, and there are several.
            compilation_rows=compilation_rows(model, row_length),
        )
        loss = make_loss(model, objective, chunk_tokens)

        def sums_of(reference, weights: Weights, batch: Batch):
            one_batch = jax.tree.map(lambda x_ABL: x_ABL[0], batch)
            return loss(weights, one_batch, 1.0, reference)[1]

        jitted = jax.jit(
            sums_of,
            out_shardings=sharding.named(model.mesh),
            compiler_options=model.compiler_options,
        )
        given = (reference, model.abstract_weights)
        self._programs = ProgramsByRows(jitted, given, self.steps.packer, model.module.backend)

    @classmethod
    def of(
        cls,
        train: Config,
        row_length: int,
        model: Model,
        objective: objectives.Objective,
        examples: Examples,
        reference: Params | None = None,
    ) -> "HeldOut":
        """Batches as the section `train` of a run's config has them."""
        return cls(
            model,
            objective,
            examples,
            global_batch=train.global_batch,
            row_length=row_length,
            chunk_tokens=train.loss_chunk_tokens,
            reference=reference,
        )

    def compile_programs(self) -> None:
        """Compiles for every shape, so that the first measurement takes as long as the others."""
        self._programs.compile_all()

    def mean_p_of(self, weights: Weights, targets: Sequence[int]) -> float | None:
        """The mean probability of those trained targets that are one of these tokens; None where
        there is none.

        The programs are those of `measure`, with less of the mask, over the first batches of each
        source.
        """
        n_of_source: dict[str, int] = {}
        p, n = 0.0, 0.0
        for name, example_ids in zip(self.steps.sources, self.steps.batches, strict=True):
            n_of_source[name] = n_of_source.get(name, 0) + 1
            if n_of_source[name] > _FEW_BATCHES:
                continue
            interrupts.check()
            step = self.steps.packer.pack(example_ids)
            batch = step.batch
            mask_ABL = batch.mask_BL & np.isin(batch.targets_BL, targets)
            # How often they are trained does not matter here.
            weights_ABL = None
            if batch.weights_BL is not None:
                weights_ABL = mask_ABL.astype(np.float32)
            only = dataclasses.replace(batch, mask_BL=mask_ABL, weights_BL=weights_ABL)
            device_batch = sharding.device_batch(only, self.model.mesh, step.n_rows)
            sums = jax.device_get(self._programs.run((self.reference, weights), device_batch))
            p += float(sums["p"])
            n += float(sums["tokens"])
        return p / n if n else None

    def measure(self, weights: Weights) -> dict[str, Any]:
        """Metrics of all examples; losses are per trained token, in nats.

        Of several sources each has its own besides, as `heldout/NAME/nll`.
        """
        total: Any = None
        of_source: dict[str, Any] = {}
        bar = progress.bar(self.steps, desc="held out", unit="batch", leave=False)
        for name, step in zip(self.steps.sources, bar, strict=True):
            interrupts.check()
            batch = sharding.device_batch(step.batch, self.model.mesh, step.n_rows)
            sums = self._programs.run((self.reference, weights), batch)
            # float32 could not count beyond 2**24 tokens
            sums = jax.tree.map(np.float64, jax.device_get(sums))
            total = _added(total, sums)
            of_source[name] = _added(of_source.get(name), sums)
        values = metrics.per_token(total, "heldout")
        for name, sums in of_source.items():
            if name:
                values |= metrics.per_token(sums, f"heldout/{name}")
        return values


def _added(total: Any, sums: Any) -> Any:
    return sums if total is None else jax.tree.map(np.add, total, sums)
