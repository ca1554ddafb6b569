"""Causal attention where a mesh cuts the positions of rows along `sequence` (context parallelism).

Each device has L/n queries of its rows, in two pieces: an early one, which sees few keys, and a
late one, which sees many. The keys and values of the whole rows come to it, once for each layer (an
all-gather; their gradients go back by a reduce-scatter): with grouped queries these are few, 2·G·K
numbers a position beside the D of the residual stream. Nothing else of a layer looks at other
positions, so nothing else is exchanged.

    devices along sequence    0                1
    queries                   0 1     6 7      2 3     4 5        as model.balanced lays them
    keys, gathered            0 1 6 7 2 3 4 5                     and put in the order of the row
    seen                      0, 0-1  0-6, 0-7 0-2, 0-3 0-4, 0-5  together 18 on either

Cut one after another, the last of n devices would see (2n - 1) / n times the mean, and the others
wait for it. Megatron and MaxText lay positions out so, too.

Letters besides the legend's: l queries of a device, Q of a block, S keys that it can reach.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxtyping import Array, Float, Int, Shaped

from dft_jax import sharding
from dft_jax.models.attention import kernels
from dft_jax.sharding import BATCH_AXES
from dft_jax.types import AnyArray, AnyMesh

AXIS = "sequence"


def is_cut(length: int, mesh: AnyMesh) -> bool:
    """Whether rows of so many positions are cut; those that do not divide are on every device."""
    return sharding.n_parts(length, mesh) > 1


def attention(
    q_BLHK: Float[Array, "B L H K"],
    k_BLGK: Float[Array, "B L G K"],
    v_BLGK: Float[Array, "B L G K"],
    segments_BL: Int[AnyArray, "B L"],
    *,
    window: int | None,
    block: int,
    backend: str,
    mesh: AnyMesh,
) -> Float[Array, "B L H K"]:
    """As `masked.causal_attention`, of rows that are cut, in the order of `model.balanced`."""
    # A query head and its key/value head are on one device, or all heads are.
    heads = "tensor" if k_BLGK.shape[2] % mesh.shape["tensor"] == 0 else None
    positions = P(BATCH_AXES, AXIS, heads, None)
    rows = P(BATCH_AXES, None)
    inputs, specs = (q_BLHK, k_BLGK, v_BLGK, segments_BL), (positions,) * 3 + (rows,)
    attend: Any = functools.partial(_blocked, window=window, block=block)
    if backend == "splash" and is_tiled(q_BLHK.shape[1], mesh):
        n_heads = q_BLHK.shape[2] // (mesh.shape["tensor"] if heads else 1)
        kernel = kernels.splash_kernel(
            q_BLHK.shape[1], n_heads, window=window, block=block, n_parts=mesh.shape[AXIS]
        )
        # Which tiles of keys a device's queries see is in arrays of the kernel, cut as they are.
        of_queries = kernel.manual_sharding_spec(NamedSharding(mesh, P(None, AXIS)))
        inputs, specs = (kernel, *inputs), (of_queries, *specs)
        attend = _by_splash
    attend = jax.shard_map(attend, mesh=mesh, in_specs=specs, out_specs=positions, check_vma=False)
    return attend(*inputs)


def is_tiled(length: int, mesh: AnyMesh) -> bool:
    """Whether splash can be used of rows that are cut; else they attend in plain JAX."""
    return kernels.is_tiled(length, mesh.shape[AXIS])


def _whole(x_BlX: Shaped[Array, "B l ..."]) -> Shaped[Array, "B L ..."]:
    """Keys or values of all positions, in the order of the row. Said here, and not left to the
    layouts outside, it has a gradient that goes back as a reduce-scatter: otherwise XLA sums it
    whole on every device.
    """
    gathered_BLX = lax.all_gather(x_BlX, AXIS, axis=1, tiled=True)
    return sharding.in_row_order(gathered_BLX, lax.axis_size(AXIS))


def _blocked(
    q_BlHK: Float[Array, "B l H K"],
    k_BlGK: Float[Array, "B l G K"],
    v_BlGK: Float[Array, "B l G K"],
    segments_BL: Int[AnyArray, "B L"],
    *,
    window: int | None,
    block: int,
) -> Float[Array, "B l H K"]:
    """In plain JAX, as `kernels.blocked`; but where this device's queries begin is no constant.

    So a block of queries multiplies the keys of a window, or all of them; those of the early piece
    are in the first half of the row, and multiply no more than that.
    """
    n, number = lax.axis_size(AXIS), lax.axis_index(AXIS)
    keys_and_values = _whole(k_BlGK), _whole(v_BlGK)
    segments_BL = sharding.in_row_order(segments_BL, n)
    B, l, H, K = q_BlHK.shape
    L, G = keys_and_values[0].shape[1:3]
    block = min(block, max(L // 4, 64))
    q_BlGRK = q_BlHK.reshape(B, l, G, H // G, K)
    n_in_piece = l // 2
    early = number * n_in_piece
    late = (2 * n - 1 - number) * n_in_piece
    outputs = []
    for first_of_piece, begin, n_reached in ((0, early, L // 2), (n_in_piece, late, L)):
        for start in range(0, n_in_piece, block):
            n_queries = min(block, n_in_piece - start)
            n_keys = n_reached
            if window is not None:
                n_keys = min(n_reached, n_queries + window - 1)
            # JAX moves a slice that would end beyond the row; so does `first`, which is then used.
            first = jnp.clip(begin + start + n_queries - n_keys, 0, n_reached - n_keys)
            k_BSGK, v_BSGK, keys_BS = (
                lax.dynamic_slice_in_dim(x, first, n_keys, axis=1)
                for x in (*keys_and_values, segments_BL)
            )
            queries = begin + start + jnp.arange(n_queries)
            may_see_BQS = kernels.may_see(
                lax.dynamic_slice_in_dim(segments_BL, begin + start, n_queries, axis=1),
                keys_BS,
                queries,
                first + jnp.arange(n_keys),
                window,
            )
            place = first_of_piece + start
            q_BQGRK = q_BlGRK[:, place : place + n_queries]
            outputs.append(kernels.attend(q_BQGRK, k_BSGK, v_BSGK, may_see_BQS))
    return jnp.concatenate(outputs, axis=1).reshape(B, l, H, K)


def _by_splash(
    kernel: Any,
    q_BlHK: Float[Array, "B l H K"],
    k_BlGK: Float[Array, "B l G K"],
    v_BlGK: Float[Array, "B l G K"],
    segments_BL: Int[AnyArray, "B L"],
) -> Float[Array, "B l H K"]:
    """JAX's Pallas kernel for TPUs, as `kernels.splash`."""
    l = q_BlHK.shape[1]
    segments_Bl = lax.dynamic_slice_in_dim(segments_BL, lax.axis_index(AXIS) * l, l, axis=1)
    k_BLGK, v_BLGK = _whole(k_BlGK), _whole(v_BlGK)
    of_keys_BL = sharding.in_row_order(segments_BL, lax.axis_size(AXIS))
    return kernels.by_splash(kernel, q_BlHK, k_BLGK, v_BLGK, segments_Bl, of_keys_BL)
