"""What the training step of a config takes of one device's memory, by kind of array."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dft_jax.data import batches
from dft_jax.losses import objectives
from dft_jax.models.model import DecoderSpec, Model
from dft_jax.planner import devices, liveness, models
from dft_jax.planner.shares import in_loss
from dft_jax.runtime.options import Config
from dft_jax.training import optimizer as optimizer_lib
from dft_jax.training.state import abstract_state
from dft_jax.training.step import StepOptions, make_train_step
from dft_jax.types import Batch, Frozen, Hyperparameters

_GIB = 2**30
# Of a row's examples, tokens: kernels of attention take memory for each example that a row may
# have, which nobody knows without the data. Of mathematics a row of 2048 has about ten.
_LEAST_MEAN_LENGTH = 64
# Learning rates of so many updates, and a seed: their number changes nothing that counts.
_HYPERPARAMETERS = Hyperparameters(
    jax.ShapeDtypeStruct((1024,), jnp.float32), jax.ShapeDtypeStruct((), jnp.uint32)
)


@dataclasses.dataclass(frozen=True)
class Account:
    """GiB of one device, by kind of array, at the moment of the step when they are most."""

    parameters: float
    moments: float
    gradients: float
    activations: float
    head: float
    other: float
    batch: float

    def by_kind(self) -> dict[str, float]:
        """The members by their names, in this order."""
        return dataclasses.asdict(self)

    @property
    def total(self) -> float:
        """All of it, GiB."""
        return sum(self.by_kind().values())


KINDS = tuple(field.name for field in dataclasses.fields(Account))


@dataclasses.dataclass(frozen=True)
class StepLayout:
    """A way to carry out the same step: `rows` are those of one device in one micro-batch."""

    mesh: tuple[int, int, int]  # data, fsdp, tensor
    remat: str
    rows: int
    accumulation: int

    def flags(self) -> str:
        """As on a command line."""
        data, fsdp, tensor = self.mesh
        return (
            f"--config.mesh.data={data} --config.mesh.fsdp={fsdp} --config.mesh.tensor={tensor}"
            f" --config.model.remat={self.remat} --config.train.accumulation={self.accumulation}"
        )


def layouts(mesh: tuple[int, int, int], remat: str, step_rows: int) -> Iterator[StepLayout]:
    """1, 2, 4, … rows per device and micro-batch, until one micro-batch holds the whole step."""
    data, fsdp, _ = mesh
    rows = 1
    while True:
        accumulation = -(-step_rows // (rows * data * fsdp))
        yield StepLayout(mesh, remat, rows, accumulation)
        if accumulation == 1:
            return
        rows *= 2


@dataclasses.dataclass(frozen=True, eq=False)
class Planner:
    """A config and an architecture: `memory(layout)` is the account of its training step.

    The step is the program that `device` would run, with its backend of attention.
    """

    config: Config
    architecture: DecoderSpec
    device: devices.Device = devices.CPU

    def memory(self, layout: StepLayout) -> Account:
        """What the step takes on one device when it takes most."""
        tensor = layout.mesh[2]
        # Gradients are accumulated in a buffer of their own from two micro-batches on, however many
        # there are.
        accumulation = min(layout.accumulation, 2)
        step = _trace(self, tensor, layout.remat, layout.rows, accumulation)
        inside = in_loss(
            self.architecture,
            layout.mesh,
            (layout.rows, batches.row_length(self.config.data)),
            self.config.train.loss_chunk_tokens,
        )
        gib = dict.fromkeys(KINDS, 0.0)
        for array in liveness.peak(step, self._arguments(layout), inside):
            gib[array.kind or self._kind(array, tensor)] += array.n_bytes / _GIB
        return Account(
            parameters=gib["parameters"],
            moments=gib["moments"],
            gradients=gib["gradients"],
            activations=gib["activations"],
            head=gib["head"],
            other=gib["other"],
            batch=gib["batch"],
        )

    def _arguments(self, layout: StepLayout) -> list[liveness.Array]:
        """The arrays that the step is given, in the order of the traced step's inputs.

        The state is donated, so its room can be used again; the rest stays to the end.
        """
        model, optimizer = self.build(layout.mesh), self.optimizer()
        state, frozen = abstract_state(model, optimizer), self.frozen(model)
        batch = self.batch(layout.accumulation, layout.rows)
        return [
            *_arrays(frozen.hyperparameters, "batch"),
            *_arrays((frozen.reference, frozen.base), "parameters"),
            *_arrays((state.step, state.params), "parameters", is_trained=True),
            *_arrays(state.opt_state, "moments", is_trained=True),
            *_arrays(batch, "batch"),
        ]

    def _kind(self, array: liveness.Array, tensor: int) -> str:
        """What an array is that the step has made, by what it lies like, and by its shape.

        The cast of all layers' weights is among the others. Of adapters the base has no gradients.
        """
        # Gradients of a loop's layers, stacked, come in the compute dtype; they are added up in
        # float32.
        has_dtype_of_gradients = array.dtype in (jnp.float32, self.config.model.param_dtype)
        may_be_gradient = array.is_stacked or has_dtype_of_gradients
        is_trained = array.like is not None and array.like.is_trained
        if is_trained and not array.is_whole and may_be_gradient:
            return "gradients"
        if _cut(self.architecture.vocab_size, tensor) in array.shape:
            return "head"
        if array.is_stacked:
            return "activations"
        return "other"

    def build(
        self,
        mesh: tuple[int, int, int],
        architecture: DecoderSpec | None = None,
        remat: str = "none",
    ) -> Model:
        """The model of this architecture, or of another, on devices that need not be there."""
        chosen = architecture or self.architecture
        return models.build(self.config, chosen, self.device, mesh, remat, self.lora)

    @functools.cached_property
    def lora(self) -> models.Lora | None:
        """The adapters that the config asks for."""
        return models.lora_of(self.config, self.architecture)

    def frozen(self, model: Model) -> Frozen:
        """What the step reads and never changes, in shapes."""
        objective = objectives.make_objective(self.config.objective)
        return models.frozen_of(model, _HYPERPARAMETERS, objective.needs_reference)

    def optimizer(self) -> optax.GradientTransformationExtraArgs:
        """As the config says."""
        return optimizer_lib.make_optimizer(self.config.optimizer)

    def batch(self, accumulation: int, rows: int) -> Batch:
        """The shapes of a step's batch, [A, B, L], of one device."""
        shape = (accumulation, rows, batches.row_length(self.config.data))
        integers = jax.ShapeDtypeStruct(shape, "int32")
        booleans = jax.ShapeDtypeStruct(shape, "bool")
        weights = None
        if batches.may_weigh(self.config.data):
            weights = jax.ShapeDtypeStruct(shape, "float32")
        most_segments = max(shape[-1] // _LEAST_MEAN_LENGTH, 1)
        images = models.images_of(self.config, self.architecture, shape)
        return Batch(
            integers, integers, booleans, integers, integers, most_segments, weights, images
        )


def _arrays(tree: Any, kind: str, is_trained: bool = False) -> list[liveness.Array]:
    """The leaves of a tree as arrays in memory; what is trained makes room once it was read."""
    last = math.inf
    if is_trained:
        last = -1.0
    arrays = []
    for leaf in jax.tree.leaves(tree):
        size = _n_bytes(leaf)
        array = liveness.Array(
            size, leaf.shape, leaf.dtype, kind=kind, is_trained=is_trained, last=last
        )
        arrays.append(array)
    return arrays


def _n_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    """Of one device."""
    shape = leaf.shape
    if leaf.sharding:
        shape = leaf.sharding.shard_shape(shape)
    return math.prod(shape) * leaf.dtype.itemsize


def _cut(size: int, ways: int) -> int:
    """The size of a part; as in sharding.spec, what does not divide evenly stays whole."""
    if size % ways:
        return size
    return size // ways


@functools.cache
def _device_model(planner: Planner, tensor: int, remat: str) -> Model:
    """The model as one of `tensor` devices sees it, on a 1×1×1 mesh.

    It has that device's heads, and its slices of the feed-forward layers and the vocabulary.
    """
    a = planner.architecture
    experts = a.experts
    if experts is not None:
        experts = dataclasses.replace(experts, width=_cut(experts.width, tensor))
    architecture = dataclasses.replace(
        a,
        experts=experts,
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
    step = make_train_step(
        model, objective, optimizer, StepOptions.of(planner.config.train, planner.config.optimizer)
    )
    state, batch = abstract_state(model, optimizer), planner.batch(accumulation, rows)
    return jax.make_jaxpr(step)(planner.frozen(model), state, batch)
