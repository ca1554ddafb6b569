"""What the training step of a config takes of one device's memory, by kind of array."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dft_jax.losses import objectives
from dft_jax.models.model import DecoderSpec, Model, with_backend
from dft_jax.planner import devices, liveness, models, shares
from dft_jax.planner.layouts import StepLayout, part
from dft_jax.runtime.options import Config
from dft_jax.training import optimizer as optimizer_lib
from dft_jax.training.state import abstract_state
from dft_jax.training.step import StepOptions, make_update
from dft_jax.types import Batch, Frozen, Hyperparameters

_GIB = 2**30
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
class Cut:
    """Devices along the axes of a mesh that make a device's program differ in its shapes."""

    tensor: int
    sequence: int
    expert: int

    @classmethod
    def of(cls, layout: StepLayout) -> "Cut":
        """Those of a layout."""
        along = layout.devices
        return cls(along["tensor"], along["sequence"], along["expert"])


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
        tensor, cut = layout.devices["tensor"], Cut.of(layout)
        # Gradients are accumulated in a buffer of their own from two micro-batches on, however many
        # there are.
        accumulation = min(layout.accumulation, 2)
        saving = shares.saving(layout, self.device)
        step = _trace(self, cut, saving, layout.rows, accumulation)
        inside = shares.in_loss(self.config, self.architecture, layout)
        # A CPU's products are calls of a library, which adds them to nothing.
        rules = liveness.Rules(inside, adds_inside_products=self.device.platform != "cpu")
        gib = dict.fromkeys(KINDS, 0.0)
        for array in liveness.peak(step, self._arguments(layout), rules):
            gib[array.kind or self._kind(array, tensor)] += array.n_bytes / _GIB
        gathered = shares.gathered_keys(self.config, self.architecture, layout)
        gathered += shares.gathered_tokens(self.config, self.architecture, layout)
        gib["activations"] += gathered / _GIB
        return Account(
            parameters=gib["parameters"],
            moments=gib["moments"],
            gradients=gib["gradients"],
            activations=gib["activations"],
            head=gib["head"],
            other=gib["other"],
            batch=gib["batch"],
        )

    def host_gib(self, layout: StepLayout) -> float:
        """What the step keeps for one device in the memory of its host: every layer's input."""
        return shares.host_bytes(self.config, self.architecture, layout, self.device) / _GIB

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
        if part(self.architecture.vocab_size, tensor) in array.shape:
            return "head"
        if array.is_stacked:
            return "activations"
        return "other"

    def build(
        self,
        mesh: tuple[int, ...],
        architecture: DecoderSpec | None = None,
        remat: str = "none",
    ) -> Model:
        """The model of this architecture, or of another, on devices that need not be there."""
        chosen = architecture or self.architecture
        return models.build(self.config, chosen, self.device, mesh, remat, self.lora)

    def attention(self, ways: int = 1) -> str:
        """The backend of attention, where rows are cut over so many devices."""
        computed = self.config.model.compute_dtype
        asked = self.config.model.attention
        return self.device.attention(asked, self.architecture, computed, ways)

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

    def batch(self, accumulation: int, rows: int, ways: int = 1) -> Batch:
        """The shapes of a step's batch, [A, B, L], of one device, which works on one of so many
        parts of its rows.
        """
        return models.batch_of(self.config, self.architecture, accumulation, rows, ways)


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


@functools.cache
def _device_model(planner: Planner, cut: Cut, remat: str) -> Model:
    """The model as one device sees it, on a mesh of one device, with the attention of one of
    `cut.sequence` parts of a row.

    It has that device's heads and experts, and its slices of the feed-forward layers and the
    vocabulary.
    """
    a = planner.architecture
    experts, tensor = a.experts, cut.tensor
    if experts is not None:
        n_own = experts.count // cut.expert
        experts = dataclasses.replace(
            experts, count=n_own, absent=experts.count - n_own, width=part(experts.width, tensor)
        )
    architecture = dataclasses.replace(
        a,
        experts=experts,
        num_heads=a.num_heads // tensor,
        num_kv_heads=a.num_kv_heads // tensor,
        intermediate_size=part(a.intermediate_size, tensor),
        vocab_size=part(a.vocab_size, tensor),
    )
    model = planner.build((1,), architecture, remat)
    return with_backend(model, planner.attention(cut.sequence))


@functools.lru_cache(maxsize=256)
def _trace(planner: Planner, cut: Cut, remat: str, rows: int, accumulation: int):
    """The training step of one device, as JAX traces it."""
    model, optimizer = _device_model(planner, cut, remat), planner.optimizer()
    objective = objectives.make_objective(planner.config.objective)
    step_options = StepOptions.of(planner.config.train, planner.config.optimizer)
    # Not `make_train_step`: what that asks of a compiler has no place within another trace.
    step = jax.jit(make_update(model, objective, optimizer, step_options))
    state, batch = abstract_state(model, optimizer), planner.batch(accumulation, rows, cut.sequence)
    return jax.make_jaxpr(step)(planner.frozen(model), state, batch)
