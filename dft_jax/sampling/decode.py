"""What runs on the devices to make completions: slots, prefilled prompts, and the decode loop.

Pure functions, jitted by the sampler with everything after their `*` fixed.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, UInt32

from dft_jax import sharding
from dft_jax.models import cached
from dft_jax.models.attention.cached import CACHE_SPEC
from dft_jax.models.model import Model
from dft_jax.sampling.categorical import draw
from dft_jax.sampling.filters import Filter
from dft_jax.types import ImageBatch, Leaf, Params

STEPS_AT_ONCE = 64  # tokens of a slot between two looks of the host, by default
# Named, because the default of JAX may change, and samples with it.
_GENERATOR = "threefry2x32"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """What the devices know of B completions in progress.

    The token that is drawn next comes from `hidden_BD`; it is number `made_B` of its completion.
    """

    hidden_BD: Leaf
    cache: Leaf  # cached.Cache
    lengths_B: Leaf  # tokens in the cache
    outputs_BT: Leaf
    made_B: Leaf
    limits_B: Leaf
    active_B: Leaf
    keys_B: Leaf
    temperatures_B: Leaf
    entropies_BT: Leaf  # of the distribution that each token was drawn from, in nats
    # Position - place in the cache of each token that is made: behind images it is below 0. None of
    # a model without a tower.
    deltas_B: Leaf = None

    @property
    def cache_length(self) -> int:
        """Places of the cache (S)."""
        return self.cache[0][0].shape[2]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefilled:
    """P prompts after the forward pass: the hidden state of their last token, and their cache."""

    hidden_PD: Leaf
    cache: Leaf  # cached.Cache

    @property
    def length(self) -> int:
        """Places of the cache, those of the longest prompt's bucket."""
        return self.cache[0][0].shape[2]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Admission:
    """Requests that begin in slots; where `is_new_B` is False the other arrays hold nothing."""

    is_new_B: Leaf
    row_B: Leaf  # of the prefilled prompts
    lengths_B: Leaf  # of the prompts
    made_B: Leaf  # tokens at their ends that are of the completion; the slot has them as outputs
    limits_B: Leaf  # tokens to make at most, those included
    temperatures_B: Leaf
    noise_B4: Leaf  # what the noise of a completion depends on
    deltas_B: Leaf = None  # as in Slots


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Report:
    """What the host has to know after a number of decode steps."""

    active_B: Leaf
    made_B: Leaf
    outputs_BT: Leaf
    entropies_BT: Leaf
    steps: Leaf
    tokens: Leaf  # that belong to completions, of steps · B


def empty(*, n_slots: int, size: int, n_outputs: int, model: Model) -> Slots:
    """Idle slots with a cache of `size` places and outputs of `n_outputs` tokens."""
    spec = model.config
    dtype = model.module.compute_dtype
    zeros_B = jnp.zeros(n_slots, jnp.int32)
    part_BGSK = jnp.zeros((n_slots, spec.num_kv_heads, size, spec.head_dim), dtype)
    slots = Slots(
        hidden_BD=jnp.zeros((n_slots, spec.hidden_size), dtype),
        cache=[(part_BGSK, part_BGSK)] * spec.num_layers,
        lengths_B=zeros_B,
        outputs_BT=jnp.zeros((n_slots, n_outputs), jnp.int32),
        made_B=zeros_B,
        limits_B=zeros_B,
        active_B=zeros_B > 0,
        keys_B=jnp.zeros((n_slots, 2), jnp.uint32),
        temperatures_B=zeros_B.astype(jnp.float32),
        entropies_BT=jnp.zeros((n_slots, n_outputs), jnp.float32),
        deltas_B=None if model.tower is None else zeros_B,
    )
    return _laid_out(slots, model)


def prefill(
    params: Params,
    tokens_PL: Int[Array, "P L"],
    lengths_P: Int[Array, " P"],
    images: ImageBatch | None = None,
    *,
    model: Model,
) -> Prefilled:
    """Runs the prompts, with their images, once for all their samples."""
    hidden_PD, cache = cached.prefill(params, model, tokens_PL, lengths_P, images)
    # Any slot may take any prompt, so every device of the batch axes has all of them.
    hidden_PD = sharding.with_layout(hidden_PD, model.mesh)
    # The heads stay along `tensor`, as in the slots that they are copied to.
    cache = sharding.with_layout(cache, model.mesh, None, "tensor")
    return Prefilled(hidden_PD, cache)


def grow(slots: Slots, *, size: int, model: Model) -> Slots:
    """The same slots with a cache of `size` places."""

    def pad(part_BGSK: Array) -> Array:
        more = size - part_BGSK.shape[2]
        return jnp.pad(part_BGSK, ((0, 0), (0, 0), (0, more), (0, 0)))

    return _laid_out(dataclasses.replace(slots, cache=jax.tree.map(pad, slots.cache)), model)


def admit(slots: Slots, prefilled: Prefilled, new: Admission, *, model: Model) -> Slots:
    """Begins the requests of `new` in their slots: prompt in the cache, nothing made.

    Or it resumes completions in the slots that they were in, with a cache that was made anew.
    """
    is_new_B = new.is_new_B

    def select(value: Any, old: Array) -> Array:
        return jnp.where(jnp.expand_dims(is_new_B, tuple(range(1, old.ndim))), value, old)

    def write(old_BGSK: Array, prompts_PGLK: Array) -> Array:
        # Places beyond the prompt keep what they had: nothing sees them before it is overwritten.
        L = prompts_PGLK.shape[2]
        return old_BGSK.at[:, :, :L].set(select(prompts_PGLK[new.row_B], old_BGSK[:, :, :L]))

    admitted = dataclasses.replace(
        slots,
        hidden_BD=select(prefilled.hidden_PD[new.row_B], slots.hidden_BD),
        cache=jax.tree.map(write, slots.cache, prefilled.cache),
        lengths_B=select(new.lengths_B, slots.lengths_B),
        made_B=select(new.made_B, slots.made_B),
        limits_B=select(new.limits_B, slots.limits_B),
        active_B=slots.active_B | is_new_B,
        keys_B=select(jax.vmap(_key)(new.noise_B4), slots.keys_B),
        temperatures_B=select(new.temperatures_B, slots.temperatures_B),
    )
    if slots.deltas_B is not None:
        deltas_B = select(new.deltas_B, slots.deltas_B)
        admitted = dataclasses.replace(admitted, deltas_B=deltas_B)
    return _laid_out(admitted, model)


def _key(noise_4: UInt32[Array, " 4"]) -> Array:
    """The random key of a completion: the seed, with the words that name it folded in."""
    key = jax.random.key(noise_4[0], impl=_GENERATOR)
    for word in noise_4[1:]:
        key = jax.random.fold_in(key, word)
    return jax.random.key_data(key)


def decode(
    params: Params,
    slots: Slots,
    least_active: Int[Array, ""] | int,
    *,
    model: Model,
    stop_ids: Sequence[int],
    vocab_size: int,
    filters: Sequence[Filter],
    steps_at_once: int = STEPS_AT_ONCE,
) -> tuple[Slots, Report]:
    """Makes a token in every active slot, over and over, while at least `least_active` are active.

    It ends after `steps_at_once` tokens as well, and where the cache of a slot is full.

    Args:
      stop_ids: tokens that end a completion.
      vocab_size: ids below this may be drawn, where `filters` keep them.
    """
    size = slots.cache_length
    rows_B = jnp.arange(slots.active_B.size)

    def should_continue(carry: tuple[Slots, Any, Any]) -> Array:
        slots, step, _ = carry
        has_room = jnp.max(jnp.where(slots.active_B, slots.lengths_B, 0)) < size
        return (step < steps_at_once) & (slots.active_B.sum() >= least_active) & has_room

    def make_token(carry: tuple[Slots, Any, Any]) -> tuple[Slots, Any, Any]:
        slots, step, tokens = carry
        was_active_B = slots.active_B
        # Each token has noise of its own, from the completion's key and the token's number.
        keys_B = jax.random.wrap_key_data(slots.keys_B, impl=_GENERATOR)
        keys_B = jax.vmap(jax.random.fold_in)(keys_B, slots.made_B)
        token_B, entropy_B = draw(
            slots.hidden_BD,
            params["head"],
            keys_B,
            slots.temperatures_B,
            vocab_size=vocab_size,
            mesh=model.mesh,
            filters=filters,
        )
        made_B = slots.made_B + was_active_B
        stops_B = jnp.isin(token_B, jnp.array(stop_ids, jnp.int32)) | (made_B >= slots.limits_B)
        active_B = was_active_B & ~stops_B
        # Idle slots compute too; what they write is beyond their end, and never read.
        places_B = jnp.where(active_B, slots.lengths_B, size - 1)
        held = slots.cache, slots.deltas_B
        hidden_BD, cache = cached.decode(params, model, token_B, places_B, *held)
        # A column beyond the last is dropped: idle slots keep their outputs.
        column_B = jnp.where(was_active_B, slots.made_B, slots.outputs_BT.shape[1])
        outputs_BT = slots.outputs_BT.at[rows_B, column_B].set(token_B, mode="drop")
        after = dataclasses.replace(
            slots,
            hidden_BD=hidden_BD,
            cache=cache,
            lengths_B=slots.lengths_B + active_B,
            outputs_BT=outputs_BT,
            made_B=made_B,
            active_B=active_B,
            entropies_BT=slots.entropies_BT.at[rows_B, column_B].set(entropy_B, mode="drop"),
        )
        return _laid_out(after, model), step + 1, tokens + was_active_B.sum()

    slots, steps, tokens = lax.while_loop(should_continue, make_token, (slots, 0, 0))
    report = Report(
        slots.active_B, slots.made_B, slots.outputs_BT, slots.entropies_BT, steps, tokens
    )
    # Replicated: every process reads it, as all fill the same slots with the same requests.
    return slots, sharding.with_layout(report, model.mesh)


def end(slots: Slots, ended_B: Bool[Array, " B"], *, model: Model) -> Slots:
    """The same slots, of which these are idle from now on."""
    return _laid_out(dataclasses.replace(slots, active_B=slots.active_B & ~ended_B), model)


def slot_layouts(model: Model) -> Slots:
    """Rows along the batch axes of the mesh, the heads of the cache along `tensor`.

    Without it XLA might replicate the cache, the largest array there is, on every device.
    """
    rows = sharding.named(model.mesh, sharding.BATCH_AXES)
    part: Any = sharding.named(model.mesh, *CACHE_SPEC)  # where a cache has arrays
    return Slots(
        hidden_BD=rows,
        cache=[(part, part)] * model.config.num_layers,
        lengths_B=rows,
        outputs_BT=rows,
        made_B=rows,
        limits_B=rows,
        active_B=rows,
        keys_B=rows,
        temperatures_B=rows,
        entropies_BT=rows,
        deltas_B=None if model.tower is None else rows,
    )


def _laid_out(slots: Slots, model: Model) -> Slots:
    return lax.with_sharding_constraint(slots, slot_layouts(model))
