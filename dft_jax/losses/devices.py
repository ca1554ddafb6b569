"""The fused loss over devices: each has its own rows and its own slice of the vocabulary."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec as P
from jaxtyping import Array, DTypeLike, Float, Int

from dft_jax import sharding
from dft_jax.losses import chunks, statistics
from dft_jax.losses.statistics import Logits, Logsumexps, Stats

# Of an array [B, L]: each device has some of the rows, whole.
ROWS = P(sharding.BATCH_AXES, None)


@dataclasses.dataclass(frozen=True)
class LossSpec:
    """Static settings of the fused loss; hashable, as `custom_vjp` asks of what is no array."""

    chunk_tokens: int
    top_tokens: int  # how many `top_entropy` is of; 0 leaves it out
    mesh: Mesh


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Projection:
    """Hidden states [B, L, D] or [N, D] and the head [V, D] that makes logits of them.

    Also the gradients of the two, or how each is cut.
    """

    hidden: Any
    head: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
    """All arrays that go in; or their gradients, or how each is cut."""

    model: Projection
    reference: Projection | None  # None where the objective compares with no other model
    targets_BL: Any
    mask_BL: Any


@dataclasses.dataclass(frozen=True)
class DeviceShare:
    """What one device works on, inside `shard_map`: its rows and its slice of the vocabulary."""

    model: Projection  # [N, D] and [V, D], both in the dtype of the hidden states
    reference: Projection | None
    chunks: chunks.Chunks
    vocab_axes: tuple[str, ...]  # the axes of the mesh that cut the vocabulary
    top_tokens: int
    dtype: DTypeLike  # of everything that is computed: float32, or float64 where inputs are
    shape: tuple[int, ...]  # B and L of this device

    def logits(self, index_C: Int[Array, " C"]) -> Logits:
        """Logits at the positions of a chunk; 0 beyond the last one."""
        is_target_CV = self.chunks.is_target(index_C)
        model_CV = self._logits_of(self.model, index_C)
        if self.reference is None:
            return Logits(is_target_CV, model_CV)
        return Logits(is_target_CV, model_CV, self._logits_of(self.reference, index_C))

    def _logits_of(self, model: Projection, index_C: jax.Array) -> Float[Array, "C V"]:
        # Whole D on every device: a shard of the vocabulary needs all of a hidden state.
        hidden_CD = chunks.take(model.hidden, index_C)
        return jnp.einsum("CD,VD->CV", hidden_CD, model.head, preferred_element_type=self.dtype)

    def stats_of(self, logits: Logits) -> tuple[Stats, Logsumexps]:
        """The statistics of a chunk, [C] each."""
        return statistics.chunk_stats(logits, self.top_tokens, self.vocab_axes)

    def no_stats(self) -> Stats:
        """Zeros [N], which stay where nothing is trained."""
        zeros_N = jnp.zeros(self.chunks.n_positions, self.dtype)
        stats = Stats(zeros_N, zeros_N, jnp.zeros(self.chunks.n_positions, bool))
        if self.top_tokens:
            stats = dataclasses.replace(stats, top_entropy=zeros_N)
        if self.reference is not None:
            stats = dataclasses.replace(stats, reference_logp=zeros_N, kl=zeros_N)
        return stats

    def as_rows(self, stats_N: Stats) -> Stats:
        """From [N] back to [B, L]."""
        return jax.tree.map(lambda value_N: value_N.reshape(self.shape), stats_N)


@dataclasses.dataclass(frozen=True)
class GradientSums:
    """Adds up the gradients of hidden states and head on one device, chunk after chunk."""

    model: Projection  # [N, D] and [V, D], both in the dtype of the hidden states
    inputs: Projection  # as they came, for shapes and dtypes of the results
    vocab_axes: tuple[str, ...]
    dtype: DTypeLike

    def zeros(self) -> Projection:
        """What is added to, float32 whatever the model is: bfloat16 loses small terms of a sum."""
        d_hidden_ND = jnp.zeros(self.model.hidden.shape, self.dtype)
        return Projection(d_hidden_ND, jnp.zeros(self.model.head.shape, self.dtype))

    def add(
        self, sums: Projection, index_C: Int[Array, " C"], d_logits_CV: Float[Array, "C V"]
    ) -> Projection:
        """The sums with what the chunk at these positions gives to them."""
        # The products run in the dtype of the model, and accumulate in that of the sums.
        d_logits_CV = d_logits_CV.astype(self.model.hidden.dtype)
        d_hidden_CD = jnp.einsum(
            "CV,VD->CD", d_logits_CV, self.model.head, preferred_element_type=self.dtype
        )
        hidden_CD = chunks.take(self.model.hidden, index_C)
        d_head_VD = sums.head + jnp.einsum(
            "CV,CD->VD", d_logits_CV, hidden_CD, preferred_element_type=self.dtype
        )
        return Projection(chunks.put(sums.hidden, index_C, d_hidden_CD), d_head_VD)

    def over_devices(self, sums: Projection) -> Projection:
        """The gradients over all devices, in shape and dtype of what they are gradients of."""
        # Every slice of the vocabulary has pulled at the same hidden states.
        d_hidden_BLD = lax.psum(sums.hidden, self.vocab_axes).reshape(self.inputs.hidden.shape)
        d_hidden_BLD = d_hidden_BLD.astype(self.inputs.hidden.dtype)
        # A device has seen its own rows only. Once, after all chunks: it moves V·D numbers.
        d_head_VD = lax.psum(sums.head, sharding.BATCH_AXES).astype(self.inputs.head.dtype)
        return Projection(d_hidden_BLD, d_head_VD)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the arrays are cut, in partition specs; `vocab_axes` are the axes that cut the head."""

    inputs: Inputs
    vocab_axes: tuple[str, ...]


def layout_of(inputs: Inputs, mesh: Mesh) -> Layout:
    """Rows over the batch axes; the vocabulary over `tensor` if that divides it, else whole."""
    is_cut = inputs.model.head.shape[0] % mesh.shape["tensor"] == 0
    vocab_axes = ("tensor",) if is_cut else ()
    model = Projection(P(sharding.BATCH_AXES, None, None), P(vocab_axes or None, None))
    reference = None if inputs.reference is None else model
    return Layout(Inputs(model, reference, targets_BL=ROWS, mask_BL=ROWS), vocab_axes)


def share_of(inputs: Inputs, spec: LossSpec, vocab_axes: tuple[str, ...]) -> DeviceShare:
    """This device's share, of what `shard_map` has given to it."""
    targets_BL, mask_BL = inputs.targets_BL, inputs.mask_BL
    local_vocab = inputs.model.head.shape[0]
    reference = None if inputs.reference is None else _flat(inputs.reference)
    return DeviceShare(
        model=_flat(inputs.model),
        reference=reference,
        chunks=chunks.cut(targets_BL, mask_BL, spec.chunk_tokens, vocab_axes, local_vocab),
        vocab_axes=vocab_axes,
        top_tokens=spec.top_tokens,
        dtype=_dtype_of_sums(inputs.model),
        shape=mask_BL.shape,
    )


def gradient_sums(inputs: Inputs, vocab_axes: tuple[str, ...]) -> GradientSums:
    """Sums for the gradients of what `shard_map` has given to this device."""
    model = inputs.model
    return GradientSums(_flat(model), model, vocab_axes, _dtype_of_sums(model))


def _dtype_of_sums(model: Projection) -> DTypeLike:
    return jnp.promote_types(jnp.float32, model.hidden.dtype)


def _flat(model: Projection) -> Projection:
    """Positions in one row, and the head in the dtype that its products run in."""
    hidden_ND = model.hidden.reshape(-1, model.hidden.shape[-1])
    return Projection(hidden_ND, model.head.astype(model.hidden.dtype))
