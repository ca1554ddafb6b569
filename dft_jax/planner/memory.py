"""What the training step of a config takes of one device's memory, by kind of array."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from dft_jax import sharding
from dft_jax.data import batches
from dft_jax.losses import objectives
from dft_jax.models import model as models
from dft_jax.models.model import DecoderSpec, Model
from dft_jax.planner import liveness
from dft_jax.runtime.options import Config
from dft_jax.training import optimizer as optimizer_lib
from dft_jax.training.state import abstract_state
from dft_jax.training.step import StepOptions, make_train_step
from dft_jax.types import Batch, Frozen, Hyperparameters

KINDS = ("parameters", "moments", "gradients", "activations", "head", "other", "batch")
_GIB = 2**30
_GIVEN = Hyperparameters(
    jax.ShapeDtypeStruct((1024,), jnp.float32), jax.ShapeDtypeStruct((), jnp.uint32)
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A way to carry out the same step: `rows` are those of one device in one micro-batch."""

    mesh: tuple[int, int, int]  # data, fsdp, tensor
    remat: str
    rows: int
    accumulation: int

    def flags(self) -> str:
        """As on a command line."""
        values = dict(zip((f"mesh.{axis}" for axis in sharding.MESH_AXES), self.mesh, strict=True))
        values |= {"model.remat": self.remat, "train.accumulation": self.accumulation}
        return " ".join(f"--config.{key}={value}" for key, value in values.items())


def settings(mesh: tuple[int, int, int], remat: str, step_rows: int) -> Iterator[Setting]:
    """1, 2, 4, … rows per device and micro-batch, until one micro-batch holds the whole step."""
    shards = mesh[0] * mesh[1]
    for rows in (2**power for power in itertools.count()):
        accumulation = -(-step_rows // (rows * shards))
        yield Setting(mesh, remat, rows, accumulation)
        if accumulation == 1:
            return


@dataclasses.dataclass(frozen=True, eq=False)
class Planner:
    """A config and an architecture: `memory(setting)` is the account of its training step."""

    config: Config
    architecture: DecoderSpec

    def memory(self, setting: Setting) -> dict[str, float]:
        """GiB of one device by kind, at the moment of the step when they are most."""
        tensor = setting.mesh[2]
        # Gradients are accumulated in a buffer of their own from two micro-batches on, however many
        # there are.
        step = _trace(self, tensor, setting.remat, setting.rows, min(setting.accumulation, 2))
        model, optimizer = self.build(setting.mesh), self.optimizer()
        state = abstract_state(model, optimizer)
        whole_params = jax.tree.leaves(_device_model(self, tensor, setting.remat).abstract_params)
        shares = {
            whole.shape: _n_bytes(mine) / _n_bytes(whole)
            for mine, whole in zip(jax.tree.leaves(state.params), whole_params, strict=True)
        }
        arguments = [
            *((leaf, "batch", True) for leaf in jax.tree.leaves(_GIVEN)),
            *((leaf, "parameters", True) for leaf in jax.tree.leaves(self.reference(model))),
            *((leaf, "parameters", False) for leaf in jax.tree.leaves((state.step, state.params))),
            *((leaf, "moments", False) for leaf in jax.tree.leaves(state.opt_state)),
            *(
                (leaf, "batch", True)
                for leaf in jax.tree.leaves(self.batch(setting.accumulation, setting.rows))
            ),
        ]
        inputs = [
            liveness.Array(
                _n_bytes(leaf), leaf.shape, leaf.dtype, kind=kind, last=math.inf if is_kept else -1
            )
            for leaf, kind, is_kept in arguments
        ]
        account = dict.fromkeys(KINDS, 0.0)
        for array in liveness.peak(step, inputs, shares):
            account[array.kind or self._kind(array, shares, tensor)] += array.n_bytes / _GIB
        return account

    def _kind(self, array: liveness.Array, shares, tensor: int) -> str:
        """What an array is that the step has made, by its shape; one cast of all layers' weights
        counts as saved.
        """
        like_gradients = array.dtype in (jnp.float32, self.config.model.param_dtype)
        if array.shape in shares and not array.is_whole and like_gradients:
            return "gradients"
        if _cut(self.architecture.vocab_size, tensor) in array.shape:
            return "head"
        return "activations" if array.is_stacked else "other"

    def build(
        self,
        mesh: tuple[int, int, int],
        architecture: DecoderSpec | None = None,
        remat: str = "none",
    ) -> Model:
        """The model of this architecture, or of another, on a mesh of devices that need not be
        there.
        """
        options = {name: self.config.model[name] for name in models.OPTIONS} | {"remat": remat}
        return models.build(
            architecture or self.architecture, sharding.abstract_mesh(mesh), **options
        )

    def optimizer(self):
        return optimizer_lib.make_optimizer(self.config.optimizer)

    def reference(self, model: Model):
        """Parameters that the objective compares with; None where it does not."""
        needs_it = objectives.REFERENCE in objectives.make_objective(self.config.objective).needs
        return model.abstract_params if needs_it else None

    def batch(self, accumulation: int, rows: int) -> Batch:
        integers, booleans = (
            jax.ShapeDtypeStruct((accumulation, rows, batches.row_length(self.config.data)), dtype)
            for dtype in ("int32", "bool")
        )
        return Batch(integers, integers, booleans, integers, integers)


def _n_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    """Of one device."""
    shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
    return math.prod(shape) * leaf.dtype.itemsize


def _cut(size: int, ways: int) -> int:
    """As sharding.spec: what does not divide evenly stays whole."""
    return size // ways if size % ways == 0 else size


@functools.cache
def _device_model(planner: Planner, tensor: int, remat: str) -> Model:
    """A model of the heads, feed-forward and vocabulary that one of `tensor` devices has, alone in
    the world.
    """
    a = planner.architecture
    architecture = dataclasses.replace(
        a,
        num_heads=a.num_heads // tensor,
        num_kv_heads=a.num_kv_heads // tensor,
        intermediate_size=_cut(a.intermediate_size, tensor),
        vocab_size=_cut(a.vocab_size, tensor),
    )
    return planner.build((1, 1, 1), architecture, remat)


@functools.lru_cache(maxsize=256)
def _trace(planner: Planner, tensor: int, remat: str, rows: int, accumulation: int):
    """The training step of one device, as JAX traces it."""
    model, optimizer = _device_model(planner, tensor, remat), planner.optimizer()
    objective = objectives.make_objective(planner.config.objective)
    frozen = Frozen(_GIVEN, planner.reference(model))
    step = make_train_step(model, objective, optimizer, StepOptions.of(planner.config))
    state, batch = abstract_state(model, optimizer), planner.batch(accumulation, rows)
    return jax.make_jaxpr(step)(frozen, state, batch)
