"""A feed-forward of many experts, of which each token goes through a few (arXiv 1701.06538).

A router gives every expert a share of a token; the token goes through those with the largest, and
their outputs are added, each times its share. No expert has a limit, so no token is dropped. There
are two ways, with the same results:

`sorted_by_expert`, on TPUs, multiplies each expert with its own tokens. Pairs of a token and one of
its experts are sorted by expert, so that each expert has a run of them:

    token        0    1    2          experts of each: the two with the largest shares
    experts     2 0  0 1  2 1
    pair        0 1  2 3  4 5
    sorted       1 2  3 5  0 4        experts 0, 1 and 2 have two pairs each
    token        0 1  1 2  0 2

`in_turn`, on CPUs and GPUs, multiplies every expert with all tokens, E / S times as much. On CPUs
XLA (of jaxlib 0.10) has no program for products of runs: it multiplies every expert with all pairs,
S times more again, and holds all pairs once for each expert, which of a row of 4,096 tokens of
Qwen3-30B-A3B is 17 GB (computed). GPUs are said to do the same (jax issues of 2026); none was at
hand to measure.

Devices along the mesh's `expert` have different experts, and different tokens. Of two of them:

    device                0         1
    experts               0 1       2 3
    tokens                a b       c d
    all come to each      a b c d   a b c d        all-gather, with shares and experts of each
    it makes              its own experts' part of every token; first of a and b, then of c and d
    parts are added up    a b       c d            reduce-scatter

So no token is dropped, however many choose the same expert, and arrays have the same sizes
whatever they choose. Tokens could instead travel each to its own experts (all-to-all), whose arrays
have to be as large where all choose experts of one device. What a device receives in a layer's
forward pass, of M devices with N tokens of D bfloat16 each, is 2·2·(M−1)·N·D bytes here, and
2·2·(M−1)/M·N·S·D there: M / S of it. Of Qwen3-30B-A3B (D = 2,048, S = 8), for each 4,096 tokens:

    M     all-gather and back   all-to-all and back   a layer's experts, gathered over fsdp
    4         101 MB                201 MB                 906 MB
    8         235 MB                235 MB               1,057 MB
    16        503 MB                252 MB               1,132 MB

(computed; experts of one token on one device could share a copy, which takes the all-to-all to 91,
157 and 208 MB where experts are drawn evenly.) Up to eight devices, then, this moves no more than
the usual exchange of pairs; beyond, `fsdp` or `data` is the better place for more of them.

Letters besides the legend's: E experts, e of them whose kernels are here, S of a token, N tokens of
a device, P its pairs (N·S), M devices along `expert`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from dft_jax import sharding
from dft_jax.models import layers, routing
from dft_jax.models.lora import Lora
from dft_jax.models.spec import DecoderSpec, ExpertsSpec
from dft_jax.types import AnyArray, AnyMesh

EXPERT = "expert"  # the axis of the mesh along which devices have different experts
# The name in LayerSpec.feed_forward.
NAME = "experts"
# What the policy `dots` saves of the experts, by this name: it knows their products no other way.
PRODUCT = "product_of_experts"


def compiler_options(experts: ExpertsSpec | None, platform: str) -> dict[str, Any]:
    """What programs with these experts ask of a platform's compiler.

    Of a TPU's, that products of runs are its kernel. By itself libtpu 0.0.52 takes that for v5p
    alone. For v5e and v6e it multiplies every expert with all pairs: E times the products, 13,194
    GFLOP in place of 103 for one of Qwen3-30B-A3B and 4,096 tokens (experiments/pods).
    """
    if experts is None or platform != "tpu":
        return {}
    return {"xla_tpu_enable_ragged_dot_kernel": True}


class Experts(nn.Module):
    """Σ_s share_s · expert_s(x) over the experts s of each token; each expert is a SwiGLU.

    Positions are computed each by itself, padding among them: none has a part in another's output.
    Segments say which are padding, which does not count in what is said of the routing.
    With `lora` all kernels here are frozen; none of them has an adapter.
    """

    spec: DecoderSpec
    param_dtype: jnp.dtype
    mesh: AnyMesh
    lora: Lora | None = None

    @nn.compact
    def __call__(
        self, x_BLD: Float[Array, "B L D"], segments_BL: Int[AnyArray, "B L"]
    ) -> Float[Array, "B L D"]:
        experts = self.spec.experts
        assert experts is not None, "the family says what experts its layers have"
        E, F, D = experts.count, experts.width, self.spec.hidden_size
        router = layers.Linear(
            "BLD,ED->BLE",
            (E + experts.absent, D),
            ("router", "embed"),
            0,
            self.spec.init_std,
            self.param_dtype,
            sharding.platform(self.mesh),
            lora=self.lora,
            name="router",
        )
        # In the compute dtype, as transformers has it: what is trained is what others run.
        logits_BLE = router(x_BLD)
        kernels = (
            self._kernel("expert_gate", (E, F, D), ("experts", "mlp", "embed")),
            self._kernel("expert_up", (E, F, D), ("experts", "mlp", "embed")),
            self._kernel("expert_down", (E, D, F), ("experts", "embed", "mlp")),
        )
        y_BLD, pairs_BE, shares_BE = _on_every_device(
            self.mesh, experts, x_BLD, logits_BLE, segments_BL > 0, *kernels
        )
        # Nobody keeps them but who asks for them: see `routing.collect`.
        routing.sow(self, pairs_BE, shares_BE)
        return y_BLD

    def _kernel(self, name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> Any:
        init = nn.with_partitioning(nn.initializers.normal(self.spec.init_std), axes)
        return self.param(name, init, shape, self.param_dtype)


def _on_every_device(
    mesh: AnyMesh,
    experts: ExpertsSpec,
    x_BLD: Float[Array, "B L D"],
    logits_BLE: Float[Array, "B L E"],
    is_token_BL: Bool[AnyArray, "B L"],
    gate_eFD: Float[Array, "e F D"],
    up_eFD: Float[Array, "e F D"],
    down_eDF: Float[Array, "e D F"],
) -> tuple[Float[Array, "B L D"], Int[Array, "B E"], Float[Array, "B E"]]:
    """`through_experts`, where each device has its own rows, and sorts none but theirs; and the
    sums of `routing.row_sums`.

    Sorted over all rows of the batch, tokens would change devices in every layer, and XLA gathers
    what it sorts. So rows stay where they are, and of the experts each device has its own along
    `expert`, of these its part of the width (`tensor`) and, gathered over `fsdp` for use as of any
    layer, all of the rest.
    """
    rows = sharding.spec(x_BLD.shape, ("batch", "length", "embed_activation"), mesh)
    _, width, _ = sharding.spec(gate_eFD.shape, ("experts", "mlp", "embed_activation"), mesh)
    split_along = EXPERT if mesh.shape[EXPERT] > 1 else None
    wide, back = P(split_along, width, None), P(split_along, None, width)
    platform = sharding.platform(mesh)
    # Rows along the batch axes, and their positions along `sequence` where these are cut.
    row_axes, positions = rows[0] or (), rows[1]
    differs_along = dict.fromkeys([*row_axes, positions, split_along, width])
    differs_along = tuple(axis for axis in differs_along if axis is not None)

    def local(x_bLD: Array, logits_bLE: Array, is_token_bL: Array, *kernels: Array) -> Any:
        *_, D = x_bLD.shape
        shares_NS, chosen_NS = route(experts, logits_bLE.reshape(-1, logits_bLE.shape[-1]))
        tokens = x_bLD.reshape(-1, D), shares_NS, chosen_NS
        through = functools.partial(
            through_experts, platform, kernels=kernels, differs_along=differs_along
        )
        if experts.absent:
            y_ND = _part(through, 0, experts.count)(tokens)
        elif split_along is None:
            y_ND = through(*tokens)
        else:
            n_own = experts.count // mesh.shape[EXPERT]
            y_ND = by_all_devices(through, n_own, EXPERT in row_axes, *tokens)
        y_bLD = y_ND.reshape(x_bLD.shape)
        if width is not None:
            # Each device along `tensor` has summed over its part of the width.
            y_bLD = jax.lax.psum(y_bLD, width)
        chosen_bLS = chosen_NS.reshape(*is_token_bL.shape, -1)
        sums_bE = routing.row_sums(logits_bLE, chosen_bLS, is_token_bL)
        if positions is not None:
            # Each device has some of the positions of its rows.
            sums_bE = jax.lax.psum(sums_bE, positions)
        return y_bLD, *sums_bE

    sums = P(rows[0], None)
    run = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(rows, rows, P(*rows[:2]), wide, wide, back),
        out_specs=(rows, sums, sums),
    )
    dtype = x_BLD.dtype
    if platform == "tpu":
        # Its gradient lies so too then: the product makes that as [e, F, D], and XLA would keep it
        # so, with the width last, of which each device has a part. 8 of 2,048 places on 256 devices
        # take as much memory as the 128 of a TPU's tile: of Qwen3-30B-A3B 1,152 MiB in place of 72.
        down_eDF = with_layout_constraint(down_eDF, Layout(major_to_minor=(0, 1, 2)))
    kernels = gate_eFD.astype(dtype), up_eFD.astype(dtype), down_eDF.astype(dtype)
    return run(x_BLD, logits_BLE, is_token_BL, *kernels)


def by_all_devices(
    through: Callable[..., Array],
    n_own: int,
    has_other_tokens: bool,
    *tokens: Array,
) -> Float[Array, "N D"]:
    """Tokens through all experts, of which each device along `expert` has `n_own`; inside
    shard_map.

    Tokens of one device are taken at a time, and nothing of its pairs is kept for the backward
    pass: together they would take M times the memory of a device's own, most of it for pairs that
    are not here.

    Args:
      through: `through_experts` of the experts that are here, which have numbers from 0.
      has_other_tokens: whether each device has tokens of its own; else all have the same.
      tokens: x_ND, shares_NS and chosen_NS of this device.
    """
    part = _part(through, jax.lax.axis_index(EXPERT) * n_own, n_own)
    if not has_other_tokens:
        # Each device takes other pairs of them, and their gradients are to be added up.
        tokens = jax.lax.pcast(tokens, EXPERT, to="varying")
        return jax.lax.psum(part(tokens), EXPERT)
    # Tokens of all devices come to each, …
    y_MND = jax.lax.map(part, jax.lax.all_gather(tokens, EXPERT))
    # … and what its experts make of them is added up where they came from.
    return jax.lax.psum_scatter(y_MND, EXPERT, scatter_dimension=0)


def _part(through: Callable[..., Array], first: Any, n_own: int) -> Callable[..., Array]:
    """What `n_own` experts from number `first` on make of tokens that may go through others too."""

    # A scan's forward and backward pass are two loops: nothing of them can be merged.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def part(tokens: tuple[Array, ...]) -> Float[Array, "N D"]:
        x_ND, shares_NS, chosen_NS = tokens
        number_NS = chosen_NS - first
        is_here_NS = (number_NS >= 0) & (number_NS < n_own)
        return through(x_ND, shares_NS, jnp.where(is_here_NS, number_NS, n_own), some_absent=True)

    return part


def through_experts(
    platform: str,
    x_ND: Float[Array, "N D"],
    shares_NS: Float[Array, "N S"],
    chosen_NS: Int[Array, "N S"],
    kernels: tuple[Float[Array, "E _ _"], ...],
    differs_along: tuple[str, ...] = (),
    some_absent: bool = False,
) -> Float[Array, "N D"]:
    """Tokens through their experts, on one device of a `platform`; `kernels` are gate, up, down.

    Sums over a token's experts are float32. `differs_along` is that of `in_turn`, and `some_absent`
    that of `sorted_by_expert`.
    """
    if platform == "tpu":
        y_ND = sorted_by_expert(x_ND, shares_NS, chosen_NS, *kernels, some_absent=some_absent)
    else:
        y_ND = in_turn(x_ND, shares_NS, chosen_NS, *kernels, differs_along=differs_along)
    return y_ND.astype(x_ND.dtype)


def sorted_by_expert(
    x_ND: Float[Array, "N D"],
    shares_NS: Float[Array, "N S"],
    chosen_NS: Int[Array, "N S"],
    gate_EFD: Float[Array, "E F D"],
    up_EFD: Float[Array, "E F D"],
    down_EDF: Float[Array, "E D F"],
    some_absent: bool = False,
) -> Float[Array, "N D"]:
    """Each expert multiplied with its own pairs; in the dtype of the shares.

    With `some_absent` the number E stands for experts that are not here: their pairs come last,
    add nothing, and nothing is kept for the backward pass under any policy.
    """
    pairs = sort_pairs(chosen_NS, len(gate_EFD))
    kept, present = checkpoint_name, _itself
    if some_absent:
        kept, present = _itself, functools.partial(_first_rows, pairs.sizes_E.sum())

    def product(x_PI: Array, kernel_EOI: Array) -> Array:
        return present(jax.lax.ragged_dot(x_PI, kernel_EOI.swapaxes(1, 2), pairs.sizes_E))

    # Saved for the backward pass are `gate` and `up`; what comes of them is made again, as in a
    # dense layer.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def gated_product(gate_PF: Array, up_PF: Array) -> Array:
        return product(layers.SwiGLU.gated(gate_PF, up_PF), down_EDF)

    x_PD = present(_spread(x_ND, pairs.order_P, pairs.places_P))
    gate_PF = kept(product(x_PD, gate_EFD), PRODUCT)
    up_PF = kept(product(x_PD, up_EFD), PRODUCT)
    y_PD = kept(gated_product(gate_PF, up_PF), PRODUCT)
    y_PD = _in_order(y_PD, pairs.order_P, pairs.places_P)
    y_NSD = y_PD.reshape(*chosen_NS.shape, -1)
    return jnp.einsum("NSD,NS->ND", y_NSD.astype(shares_NS.dtype), shares_NS)


def _itself(x: Array, *name: str) -> Array:
    return x


def _first_rows(count: Int[Array, ""], x_PI: Float[Array, "P I"]) -> Float[Array, "P I"]:
    """Zeros in place of the others, also of their gradients.

    Rows in no expert's run are whatever was in memory after a TPU's product, and other products
    may read them: 0 · NaN is NaN.
    """
    return jnp.where(jnp.arange(len(x_PI))[:, None] < count, x_PI, 0)


def in_turn(
    x_ND: Float[Array, "N D"],
    shares_NS: Float[Array, "N S"],
    chosen_NS: Int[Array, "N S"],
    gate_EFD: Float[Array, "E F D"],
    up_EFD: Float[Array, "E F D"],
    down_EDF: Float[Array, "E D F"],
    differs_along: tuple[str, ...] = (),
) -> Float[Array, "N D"]:
    """One expert after the other on all tokens, most of which have no share of it; in the dtype of
    the shares.

    Nothing of an expert is kept for the backward pass, under any policy: of all that would be
    E / S times what the other way keeps.

    Args:
      differs_along: inside shard_map, the axes of the mesh along which tokens or kernels differ.
    """
    # An axis of length 1, which products run over: policies save products that have none such.
    x_1ND = x_ND[None]

    def product(x_1NI: Array, kernel_OI: Array) -> Array:
        over = (((2,), (2,)), ((0,), (0,)))
        return jax.lax.dot_general(x_1NI, kernel_OI[None], over)

    # A scan's forward and backward pass are two loops: nothing of them can be merged.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def add(y_ND: Array, expert: tuple[Array, ...]) -> tuple[Array, None]:
        number, gate_FD, up_FD, down_DF = expert
        gated_1NF = layers.SwiGLU.gated(product(x_1ND, gate_FD), product(x_1ND, up_FD))
        out_ND = product(gated_1NF, down_DF)[0].astype(y_ND.dtype)
        share_N = jnp.where(chosen_NS == number, shares_NS, 0).sum(axis=1)
        return y_ND + share_N[:, None] * out_ND, None

    numbers_E = jnp.arange(len(gate_EFD), dtype=chosen_NS.dtype)
    begin_ND = jnp.zeros(x_ND.shape, shares_NS.dtype)
    # A loop's sum begins as it goes on: other on each device along these axes.
    begin_ND = jax.lax.pcast(begin_ND, differs_along, to="varying")
    y_ND, _ = jax.lax.scan(add, begin_ND, (numbers_E, gate_EFD, up_EFD, down_EDF))
    return y_ND


def route(
    experts: ExpertsSpec, logits_NE: Float[Array, "N E"]
) -> tuple[Float[Array, "N S"], Int[Array, "N S"]]:
    """Each token's shares and experts, the largest first; softmax and shares are float32.

    Shares are softmax over all experts; `experts.normalised` makes those of a token add up to 1. Of
    equal ones the lower number is taken. transformers rounds the shares of Qwen3 to the compute
    dtype, and not those of Mixtral; here neither is.
    """
    wide = jnp.promote_types(jnp.float32, logits_NE.dtype)
    shares_NE = jax.nn.softmax(logits_NE.astype(wide), axis=-1)
    shares_NS, chosen_NS = jax.lax.top_k(shares_NE, experts.per_token)
    if experts.normalised:
        shares_NS = shares_NS / shares_NS.sum(axis=-1, keepdims=True)
    return shares_NS, chosen_NS


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of a token and one of its experts: pair n·S + s is of token n.

    `order_P` are the pairs sorted by expert, `places_P` the place of each pair among them, and
    `sizes_E` the number of pairs of each expert. They add up to P: none is dropped.
    """

    order_P: Array
    places_P: Array
    sizes_E: Array


def sort_pairs(chosen_NS: Int[Array, "N S"], n_experts: int) -> Pairs:
    """The pairs of tokens and the experts chosen for them, by expert; within one in their order."""
    expert_P = chosen_NS.reshape(-1)
    order_P = jnp.argsort(expert_P, stable=True)
    is_of_PE = expert_P[:, None] == jnp.arange(n_experts, dtype=expert_P.dtype)[None, :]
    return Pairs(order_P, jnp.argsort(order_P), is_of_PE.sum(axis=0, dtype=jnp.int32))


# Both gather backward as well: the gradient of a gather would be a scatter, which GPUs add up in an
# order that differs from run to run, and here every place is known.
@jax.custom_vjp
def _spread(x_ND, order_P, places_P):
    """The token of each pair, the pairs in order."""
    return x_ND[order_P // (order_P.size // len(x_ND))]


def _spread_forward(x_ND, order_P, places_P):
    return _spread(x_ND, order_P, places_P), (places_P, len(x_ND))


def _spread_backward(kept, dx_PD):
    places_P, N = kept
    dx_NSD = dx_PD[places_P].reshape(N, -1, dx_PD.shape[-1])
    return dx_NSD.sum(axis=1, dtype=dx_PD.dtype), None, None


_spread.defvjp(_spread_forward, _spread_backward)


@jax.custom_vjp
def _in_order(y_PD, order_P, places_P):
    """Sorted pairs back in the order of their tokens."""
    return y_PD[places_P]


def _in_order_forward(y_PD, order_P, places_P):
    return y_PD[places_P], order_P


def _in_order_backward(order_P, dy_PD):
    return dy_PD[order_P], None, None


_in_order.defvjp(_in_order_forward, _in_order_backward)
