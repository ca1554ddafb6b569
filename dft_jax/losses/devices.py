"""The fused loss over devices: which rows and which slice of the vocabulary each works on.

Outside of `shard_map` rows lie over `data`, `fsdp` and `expert`, their positions over `sequence`,
and the head [V, D] as the parameter does: V over `tensor`, D over `fsdp`, and over `expert` as over
more of `fsdp`. Inside, a device needs whole rows of the head, and there are two ways to have them.
Of two devices along `fsdp`:

                       outside            each its rows         rows shared along fsdp
    rows               0 1 | 2 3          0 1 | 2 3             0 1 2 3 | 0 1 2 3
    head               ←D/2 | D/2→        whole | whole         ↑V/2 | V/2↓
    goes in                               head gathered         rows gathered, head cut anew
    comes out                             d_head summed whole   d_hidden summed, d_head cut anew

The second moves N·D numbers, N the positions of all rows along `fsdp`, and V·D / fsdp; the first
V·D. So rows are shared where N is less than V. The logits of a chunk are then spread over `fsdp`
too, and its statistics are summed over it.
"""

import dataclasses
import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, DTypeLike, Float, Int, Shaped

from dft_jax import sharding
from dft_jax.losses import chunks, statistics
from dft_jax.losses.statistics import Logits, Logsumexps, Stats
from dft_jax.types import AnyMesh

_SHARING = ("fsdp", "expert")  # the axes of the mesh along which rows can be shared
Rows = TypeVar("Rows")  # arrays that begin with an axis of rows, or a tree of them


@dataclasses.dataclass(frozen=True)
class LossSpec:
    """Static settings of the fused loss; hashable, as `custom_vjp` asks of what is no array."""

    chunk_tokens: int
    extras: statistics.Extras
    mesh: AnyMesh
    head_gradient: bool = True  # False of a frozen head


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
    weights_BL: Any = None  # None where all tokens weigh 1


@dataclasses.dataclass(frozen=True)
class Layout:
    """How arrays are cut outside, in partition specs, and inside, and how they get there and back.

    The methods run inside `shard_map`, and do nothing where each device has its own rows.
    """

    inputs: Inputs
    rows: P  # of an array [B, L]
    vocab_axes: tuple[str, ...]  # the axes of the mesh that cut the vocabulary inside
    row_axes: tuple[str, ...]  # … and the rows, or their positions
    sharing: tuple[str, ...] = ()  # of `vocab_axes` those along which devices share their rows

    @property
    def shares_rows(self) -> bool:
        """Whether devices along `fsdp` and `expert` work on the same rows."""
        return bool(self.sharing)

    def inside(self, inputs: Inputs) -> Inputs:
        """What this device works on, from what lies on it outside."""
        if not self.shares_rows:
            return inputs
        reference = None
        if inputs.reference is not None:
            reference = self._model_inside(inputs.reference)
        of_tokens = self.rows_inside((inputs.targets_BL, inputs.mask_BL, inputs.weights_BL))
        return Inputs(self._model_inside(inputs.model), reference, *of_tokens)

    def _model_inside(self, model: Projection) -> Projection:
        # In the dtype that its products run in before it moves.
        head_VD = model.head.astype(model.hidden.dtype)
        head_VD = lax.all_to_all(head_VD, self.sharing, split_axis=0, concat_axis=1, tiled=True)
        return Projection(self.rows_inside(model.hidden), head_VD)

    def rows_inside(self, arrays_B: Rows) -> Rows:
        """Arrays, such as [B, L], of the rows that this device works on."""
        if not self.shares_rows:
            return arrays_B
        return lax.all_gather(arrays_B, self.sharing, axis=0, tiled=True)

    def rows_outside(self, array_B: Shaped[Array, "B ..."]) -> Shaped[Array, "b ..."]:
        """The other way, of values that are the same on all devices that share rows."""
        if not self.shares_rows:
            return array_B
        n_rows = array_B.shape[0] // lax.axis_size(self.sharing)
        return lax.dynamic_slice_in_dim(array_B, lax.axis_index(self.sharing) * n_rows, n_rows)

    def hidden_outside(self, d_hidden_ND: Float[Array, "N D"]) -> Float[Array, "n D"]:
        """The gradient of this device's own rows, summed over all slices of the vocabulary."""
        if not self.shares_rows:
            return lax.psum(d_hidden_ND, self.vocab_axes)
        d_hidden_ND = lax.psum_scatter(d_hidden_ND, self.sharing, scatter_dimension=0, tiled=True)
        others = tuple(axis for axis in self.vocab_axes if axis not in self.sharing)
        return lax.psum(d_hidden_ND, others)

    def head_outside(self, d_head_VD: Float[Array, "v D"]) -> Float[Array, "V d"]:
        """The gradient of this device's part of the parameter."""
        if not self.shares_rows:
            return d_head_VD
        return lax.all_to_all(d_head_VD, self.sharing, split_axis=1, concat_axis=0, tiled=True)


def layout_of(inputs: Inputs, mesh: AnyMesh) -> Layout:
    """Shares rows along `fsdp` and `expert` where that moves less and the sizes divide; the
    vocabulary is cut over `tensor` if that divides it, else whole.
    """
    # XLA's CPU compiler keeps sums over one device: a copy of [V, D], where it is the gradient.
    several = [axis for axis, size in mesh.shape.items() if size > 1]
    head = inputs.model.head
    vocab_axes = ()
    if "tensor" in several and head.shape[0] % mesh.shape["tensor"] == 0:
        vocab_axes = ("tensor",)
    head_spec = P(vocab_axes or None, None)
    sharing = ()
    if _can_share_rows(inputs, mesh):
        sharing = tuple(axis for axis in _SHARING if axis in several)
        vocab_axes = (*vocab_axes, *sharing)
        # As the parameter lies, so that nothing moves before the head is in the dtype of the
        # hidden states, and its gradient goes straight to where it is added up.
        head_spec = P("tensor", sharing)
    _, positions = sharding.spec(inputs.mask_BL.shape, ("batch", "length"), mesh)
    rows = P(sharding.BATCH_AXES, positions)
    model = Projection(P(*rows, None), head_spec)
    reference = None if inputs.reference is None else model
    row_axes = [axis for axis in sharding.BATCH_AXES if axis not in vocab_axes]
    # Where positions are not cut, all devices along `sequence` make the same sums.
    if positions is not None:
        row_axes.append(positions)
    row_axes = tuple(axis for axis in row_axes if axis in several)
    weights = None if inputs.weights_BL is None else rows
    cut = Inputs(model, reference, targets_BL=rows, mask_BL=rows, weights_BL=weights)
    return Layout(cut, rows, vocab_axes, row_axes, sharing)


def _can_share_rows(inputs: Inputs, mesh: AnyMesh) -> bool:
    ways = math.prod(mesh.shape[axis] for axis in _SHARING)
    B, L = inputs.mask_BL.shape
    n_positions = B // mesh.shape["data"] * L // mesh.shape["sequence"]
    vocab, width = inputs.model.head.shape
    divides = vocab % (mesh.shape["tensor"] * ways) == 0 and width % ways == 0
    if inputs.reference is not None:
        divides = divides and inputs.reference.head.shape[1] % ways == 0
    return ways > 1 and divides and n_positions < vocab


@dataclasses.dataclass(frozen=True)
class DeviceShare:
    """What one device works on, inside `shard_map`: its rows and its slice of the vocabulary."""

    model: Projection  # [N, D] and [V, D], both in the dtype of the hidden states
    reference: Projection | None
    chunks: chunks.Chunks
    layout: Layout
    spec: LossSpec
    dtype: DTypeLike  # of everything that is computed: float32, or float64 where inputs are
    shape: tuple[int, ...]  # B and L that this device works on
    weights_N: Any = None  # of the tokens in the loss; None where all weigh 1

    def weights(self, index_C: Int[Array, " C"]) -> Float[Array, " C"] | None:
        """What the tokens at these positions weigh; None where all weigh 1."""
        if self.weights_N is None:
            return None
        return chunks.take(self.weights_N, index_C)

    def logits(self, index_C: Int[Array, " C"]) -> Logits:
        """Logits at the positions of a chunk; 0 beyond the last one."""
        targets_C = self.chunks.targets(index_C)
        model_CV = self._logits_of(self.model, index_C)
        if self.reference is None:
            return Logits(targets_C, model_CV)
        return Logits(targets_C, model_CV, self._logits_of(self.reference, index_C))

    def _logits_of(self, model: Projection, index_C: jax.Array) -> Float[Array, "C V"]:
        # Whole D on every device: a shard of the vocabulary needs all of a hidden state.
        hidden_CD = chunks.take(model.hidden, index_C)
        return jnp.einsum("CD,VD->CV", hidden_CD, model.head, preferred_element_type=self.dtype)

    def stats_of(self, logits: Logits) -> tuple[Stats, Logsumexps]:
        """The statistics of a chunk, [C] each."""
        platform = sharding.platform(self.spec.mesh)
        return statistics.chunk_stats(
            logits, self.spec.extras, self.layout.vocab_axes, is_gpu=platform == "gpu"
        )

    def no_stats(self) -> Stats:
        """Zeros [N], which stay where nothing is trained."""
        zeros_N = jnp.zeros(self.chunks.n_positions, self.dtype)
        stats = Stats(zeros_N, zeros_N, jnp.zeros(self.chunks.n_positions, bool))
        extras = self.spec.extras
        if extras.top_tokens:
            stats = dataclasses.replace(stats, top_entropy=zeros_N)
        if extras.concentration:
            stats = dataclasses.replace(stats, concentration=zeros_N)
        if self.reference is not None:
            stats = dataclasses.replace(stats, reference_logp=zeros_N, kl=zeros_N)
            if extras.reference_mass:
                stats = dataclasses.replace(stats, reference_mass=zeros_N)
        return stats

    def as_rows(self, stats_N: Stats) -> Stats:
        """From [N] back to [B, L], of the rows that lie on this device."""
        return jax.tree.map(
            lambda value_N: self.layout.rows_outside(value_N.reshape(self.shape)), stats_N
        )

    def at_positions(self, value_BL: Shaped[Array, "B L"]) -> Shaped[Array, " N"]:
        """The other way: of this device's rows, to the positions that it works on."""
        return self.layout.rows_inside(value_BL).reshape(-1)


@dataclasses.dataclass(frozen=True)
class GradientSums:
    """Adds up the gradients of hidden states and head on one device, chunk after chunk.

    Without `has_head` that of the head is None: neither its product nor its sum [V, D] is made.
    """

    model: Projection  # [N, D] and [V, D], both in the dtype of the hidden states
    inputs: Projection  # as they came, for shapes and dtypes of the results
    layout: Layout
    dtype: DTypeLike
    has_head: bool

    def zeros(self) -> Projection:
        """What is added to, float32 whatever the model is: bfloat16 loses small terms of a sum."""
        d_hidden_ND = jnp.zeros(self.model.hidden.shape, self.dtype)
        if not self.has_head:
            return Projection(d_hidden_ND, None)
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
        d_head_VD = None
        if self.has_head:
            hidden_CD = chunks.take(self.model.hidden, index_C)
            d_head_VD = sums.head + jnp.einsum(
                "CV,CD->VD", d_logits_CV, hidden_CD, preferred_element_type=self.dtype
            )
        return Projection(chunks.put(sums.hidden, index_C, d_hidden_CD), d_head_VD)

    def over_devices(self, sums: Projection) -> Projection:
        """The gradients over all devices, in shape and dtype of what they are gradients of."""
        # Every slice of the vocabulary has pulled at the same hidden states.
        d_hidden_BLD = self.layout.hidden_outside(sums.hidden).reshape(self.inputs.hidden.shape)
        d_hidden_BLD = d_hidden_BLD.astype(self.inputs.hidden.dtype)
        if not self.has_head:
            return Projection(d_hidden_BLD, None)
        # A device has seen its own rows only. Once, after all chunks: it moves V·D numbers.
        d_head_VD = lax.psum(sums.head, self.layout.row_axes).astype(self.inputs.head.dtype)
        return Projection(d_hidden_BLD, self.layout.head_outside(d_head_VD))


def share_of(inside: Inputs, spec: LossSpec, layout: Layout) -> DeviceShare:
    """This device's share, of what `Layout.inside` gives."""
    targets_BL, mask_BL = inside.targets_BL, inside.mask_BL
    local_vocab = inside.model.head.shape[0]
    reference = None if inside.reference is None else _flat(inside.reference)
    weights_N = None if inside.weights_BL is None else inside.weights_BL.reshape(-1)
    return DeviceShare(
        model=_flat(inside.model),
        reference=reference,
        chunks=chunks.cut(targets_BL, mask_BL, spec.chunk_tokens, layout.vocab_axes, local_vocab),
        layout=layout,
        spec=spec,
        dtype=_dtype_of_sums(inside.model),
        shape=mask_BL.shape,
        weights_N=weights_N,
    )


def gradient_sums(inputs: Inputs, inside: Inputs, spec: LossSpec, layout: Layout) -> GradientSums:
    """Sums for the gradients of what `shard_map` has given to this device."""
    dtype = _dtype_of_sums(inside.model)
    return GradientSums(_flat(inside.model), inputs.model, layout, dtype, spec.head_gradient)


def layout_of_gradients(layout: Layout, spec: LossSpec) -> Projection:
    """How the gradients are cut: as the model is; None of a frozen head, which has none."""
    model = layout.inputs.model
    if spec.head_gradient:
        return model
    return Projection(model.hidden, None)


def _dtype_of_sums(model: Projection) -> DTypeLike:
    return jnp.promote_types(jnp.float32, model.hidden.dtype)


def _flat(model: Projection) -> Projection:
    """Positions in one row, and the head in the dtype that its products run in."""
    hidden_ND = model.hidden.reshape(-1, model.hidden.shape[-1])
    return Projection(hidden_ND, model.head.astype(model.hidden.dtype))
