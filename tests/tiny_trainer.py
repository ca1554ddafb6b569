"""A tiny run in pieces, for tests that need more than `train.run` shows."""

import functools

import jax

from dft_jax import assets, config as config_lib, sharding
from dft_jax.data.examples import load_examples
from dft_jax.losses import objectives
from dft_jax.models.hf.locate import load_tokenizer, read_config
from dft_jax.models.model import OPTIONS, build, with_lora
from dft_jax.training import optimizer as optimizer_lib
from dft_jax.training.adapters import lora_for
from dft_jax.training.inputs import make_steps
from dft_jax.training.state import init_adapters, init_params, init_state
from dft_jax.training.step import StepOptions, make_hyperparameters, make_train_step
from dft_jax.types import Frozen


def tiny_config(**overrides):
    """The embedded model and data, 8 examples a step; keys as in `{"train.steps": 3}`."""
    config = config_lib.get_default()
    config.objective = "sft"
    config.model.path = str(assets.TINY)
    config.model.init = "random"
    config.model.compute_dtype = "float32"
    config.data.train = str(assets.TINY / "train.jsonl")
    config.data.rows = "gsm8k"
    config.data.max_length = 160
    config.data.max_rows = 64
    config.optimizer.learning_rate = 1e-2
    config.train.global_batch = 8
    config.train.steps = 6
    config.log.tensorboard = False
    config.update_from_flattened_dict(overrides)
    return config


@functools.cache
def tiny_examples():
    config = tiny_config()
    return load_examples(
        config.data.train, config.data, load_tokenizer(assets.TINY), 264, max_rows=64
    )


class Trainer:
    """State, step function and packed steps of a config on a given mesh."""

    def __init__(self, mesh, loss_fn=None, **overrides):
        self.config = config = tiny_config(**overrides)
        self.mesh = mesh
        options = {name: config.model[name] for name in OPTIONS}
        self.model = build(read_config(assets.TINY), mesh, **options)
        lora = lora_for(config.lora, self.model)
        if lora is not None:
            self.model = with_lora(self.model, lora)
        hyperparameters = make_hyperparameters(
            config.optimizer, config.train.seed, config.train.steps, mesh
        )
        self.optimizer = optimizer_lib.make_optimizer(config.optimizer)
        objective = (
            objectives.Objective(loss_fn)
            if loss_fn
            else objectives.make_objective(config.objective)
        )
        self.base = reference = None
        if lora is not None:
            self.base = self.initial_params()
        elif objective.needs_reference:
            reference = self.initial_params()
        step = make_train_step(
            self.model, objective, self.optimizer, StepOptions.of(config.train, config.optimizer)
        )
        self.step = functools.partial(step, Frozen(hyperparameters, reference, self.base))
        self.state = init_state(self.initial_trained(), self.model, self.optimizer)
        self.packed = make_steps(config, tiny_examples(), self.model)

    def initial_trained(self):
        if self.base is None:
            return self.initial_params()
        return init_adapters(self.config.lora, self.config.train.seed, self.model)

    def initial_params(self):
        init, seed = self.config.model.init, self.config.train.seed
        return init_params(init, seed, assets.TINY, self.model)

    def batch(self, n):
        packed = self.packed[n]
        return sharding.device_batch(packed.batch, self.mesh, packed.n_rows)

    def take(self, n):
        """Applies step n; returns its sums on the host."""
        self.state, sums = self.step(self.state, self.batch(n))
        return jax.device_get(sums)
