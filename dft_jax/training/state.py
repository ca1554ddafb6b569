"""The state of training: its shapes and layouts before anything is allocated, and how it begins."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dft_jax import sharding
from dft_jax.models import adapters
from dft_jax.models.hf import peft
from dft_jax.models.hf.load import load_params
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.model import Model, layouts_of
from dft_jax.runtime.options import Config
from dft_jax.types import Params, TrainState


def abstract_state(model: Model, optimizer: optax.GradientTransformation) -> TrainState:
    """Shapes, dtypes and shardings of the state; moments lie where their parameters do."""
    replicated = sharding.named(model.mesh)

    def like(leaf, layout):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout)

    opt_state = optax.tree_utils.tree_map_params(
        # In shapes here too: as it is, `init` makes its counters, each a program that is compiled.
        functools.partial(jax.eval_shape, optimizer.init),
        lambda leaf, param: like(leaf, param.sharding),
        jax.eval_shape(optimizer.init, model.trainable),
        model.trainable,
        transform_non_params=lambda leaf: like(leaf, replicated),
    )
    step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
    return TrainState(step, model.trainable, opt_state)


def init_params(
    init: str, seed: int, source: Path, model: Model, only: Params | None = None
) -> Params:
    """The parameters of the checkpoint in `source`, or with `init="random"` random ones.

    `only` is a part of the abstract parameters of a checkpoint, where no others are wanted.
    """
    if init == "random":
        return model.init(jax.random.key(seed))
    return load_params(Checkpoint(source), model, only=only)


def init_adapters(section: Config, seed: int, model: Model) -> Params:
    """The adapters of `model` before training: those of the folder `lora.adapter` of the section
    `lora` of a config, or new ones.
    """
    if section.adapter:
        return peft.load_adapters(peft.read_adapter(Path(section.adapter)), model)
    return adapters.init_adapters(jax.random.key(seed), model)


def init_state(params: Params, model: Model, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; `params` is what is trained, as `model.trainable`."""
    layouts = layouts_of(abstract_state(model, optimizer))
    opt_state = jax.jit(optimizer.init, out_shardings=layouts.opt_state)(params)
    return TrainState(jax.device_put(jnp.int32(0), layouts.step), params, opt_state)
