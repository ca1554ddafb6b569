"""All that this study takes from dft_jax for a training step, in one place: it follows the
package's interface.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dft_jax import config as config_lib, sharding
from dft_jax.data import packing
from dft_jax.data.templates import Example
from dft_jax.losses import fused, objectives
from dft_jax.models import model as models
from dft_jax.models.hf import load
from dft_jax.models.hf.locate import read_config
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.model import matmul_precision
from dft_jax.training import optimizer as optimizer_lib
from dft_jax.training.adapters import with_adapters
from dft_jax.training.state import abstract_state, init_adapters, init_params, init_state
from dft_jax.training.step import StepOptions, make_hyperparameters, make_train_step
from dft_jax.types import Batch, Frozen, Hyperparameters
from experiments.performance.workload import Examples

LEARNING_RATE = 1e-5


def one_device_mesh():
    axes = sharding.MESH_AXES
    kinds = (jax.sharding.AxisType.Auto,) * len(axes)
    return jax.make_mesh((1,) * len(axes), axes, axis_types=kinds, devices=jax.devices()[:1])


def make_config(compute_dtype: str = "float32", **changes):
    """The default config, with a constant learning rate; `changes` are "section.key"s."""
    config = config_lib.get_default()
    fixed = {"optimizer.learning_rate": LEARNING_RATE, "optimizer.schedule": "constant"}
    fixed |= {"optimizer.warmup_fraction": 0.0, "model.compute_dtype": compute_dtype}
    config.update_from_flattened_dict(fixed | changes)
    return config


def build(config, folder: str | Path):
    """The model of a checkpoint on one device."""
    options = {name: config.model[name] for name in models.OPTIONS}
    model = models.build(read_config(Path(folder)), one_device_mesh(), **options)
    return models.with_attention(with_adapters(config, model), config.model.attention)


def load_params(folder: str | Path, model):
    return load.load_params(Checkpoint(Path(folder)), model)


def make_step(config, model, objective: str):
    """(optimizer, training step)."""
    optimizer = optimizer_lib.make_optimizer(config.optimizer)
    made = objectives.make_objective(objective)
    options = StepOptions.of(config.train, config.optimizer)
    return optimizer, make_train_step(model, made, optimizer, options)


def step_shapes(model, optimizer, batch: Batch) -> tuple:
    """What a training step is compiled for, where nothing is allocated: shapes with layouts."""
    rates = jax.ShapeDtypeStruct((10_000,), jnp.float32)
    given: Any = Hyperparameters(rates, jax.ShapeDtypeStruct((), jnp.uint32))
    shapes = sharding.abstract_batch(batch.tokens_BL.shape, model.mesh, batch.most_segments)
    return Frozen(given), abstract_state(model, optimizer), shapes


class Trainee:
    """A model in training with one objective. `step(batches)` makes an update from each batch.

    `folder` None: random parameters from the seed (on the device).
    """

    def __init__(self, config, model, objective: str, folder: str | Path | None):
        optimizer, self.train_step = make_step(config, model, objective)
        given = make_hyperparameters(config.optimizer, config.train.seed, 10_000, model.mesh)
        config.model.init = "checkpoint" if folder else "random"
        self.model, self.sums = model, None
        self.precision = functools.partial(matmul_precision, config.model.compute_dtype)
        with self.precision():
            source = Path(folder or "")  # not read where parameters are random
            params = init_params(config.model.init, config.train.seed, source, model)
            self.frozen, trained = Frozen(given), params
            if model.lora is not None:
                self.frozen = Frozen(given, base=params)
                trained = init_adapters(config.lora, config.train.seed, model)
            self.state = init_state(trained, model, optimizer)

    def step(self, batches: list[Batch]) -> None:
        """`batches` are numpy arrays [A, B, L], as the loader makes them."""
        with self.precision():
            for batch in batches:
                on_device = sharding.device_batch(batch, self.model.mesh, batch.tokens_BL.shape[1])
                self.state, self.sums = self.train_step(self.frozen, self.state, on_device)

    def finish(self) -> None:
        jax.block_until_ready((self.state, self.sums))

    def facts(self) -> dict[str, float]:
        """Of the last step: what the gate compares."""
        sums = jax.device_get(self.sums)
        n = float(sums["tokens"])
        loss, mean_p = float(sums["loss"]) / n, float(sums["p"]) / n
        return {
            "loss": loss,
            "gradient_norm": float(sums["gradient_norm"]),
            "mean_p": mean_p,
            "trained_tokens": n,
        }


def as_examples(examples: Examples) -> list[Example]:
    columns = zip(examples.ids_NL, examples.trained_NL(), examples.lengths_N, strict=True)
    return [Example(ids[:length], trained[:length], 0) for ids, trained, length in columns]


def lay_out(
    examples: Examples, layout: str, row_length: int, rows: int | None = None
) -> list[Batch]:
    """A step's batches, each [A, B, L]; B is `rows` where it is given, with empty rows at the end,
    else A is 1.

    `packed`: best-fit into rows. `padded`: an example a row, all of `row_length`. `dynamic`: eight
    examples at a time, in rows as long as the longest of them.
    """
    items = as_examples(examples)
    if layout == "packed":
        groups = [
            (
                items,
                packing.best_fit([packing.slots(item) for item in items], row_length),
                row_length,
            )
        ]
    elif layout == "padded":
        groups = [(items, [[n] for n in range(len(items))], row_length)]
    elif layout == "dynamic":
        eights = [items[i : i + 8] for i in range(0, len(items), 8)]
        groups = [
            (some, [[n] for n in range(len(some))], max(map(packing.slots, some)))
            for some in eights
        ]
    else:
        raise ValueError(f"layout {layout!r}: packed, padded or dynamic")
    return [_micro_batches(packing.fill_rows(*group), rows) for group in groups]


def _micro_batches(batch: Batch, rows: int | None) -> Batch:
    """[N, L] -> [A, rows, L]."""
    N, L = batch.tokens_BL.shape
    rows = rows or N
    return jax.tree.map(
        lambda array: np.pad(array, ((0, -N % rows), (0, 0))).reshape(-1, rows, L), batch
    )


def mean_head_loss(objective: str, mesh, chunk_tokens: int):
    """Returns loss(hidden_BLD, head_VD, batch [B, L]): the mean over trained tokens, by the head
    that training uses.
    """
    how = dict(objective=objectives.make_objective(objective), chunk_tokens=chunk_tokens, mesh=mesh)

    def loss(hidden_BLD, head_VD, batch: Batch):
        where = (batch.targets_BL, batch.mask_BL, batch.segments_BL)
        return fused.loss_and_stats(hidden_BLD, head_VD, *where, **how)[0] / batch.mask_BL.sum()

    return loss
