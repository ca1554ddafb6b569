"""Causal attention within the segments of packed rows."""

import dataclasses
import functools

import jax
from jax.sharding import AbstractMesh, PartitionSpec as P
from jaxtyping import Array, Float, Int

from dft_jax.models.attention import described, sequence
from dft_jax.models.attention.kernels import BACKENDS
from dft_jax.sharding import BATCH_AXES
from dft_jax.types import AnyArray, AnyMesh


@dataclasses.dataclass(frozen=True)
class Backend:
    """How a model's attention is computed: arguments of `causal_attention`."""

    name: str
    block: int
    most_segments: int | None


def causal_attention(
    q_BLHK: Float[Array, "B L H K"],
    k_BLGK: Float[Array, "B L G K"],
    v_BLGK: Float[Array, "B L G K"],
    segments_BL: Int[AnyArray, "B L"],
    *,
    window: int | None,
    block: int,
    backend: str = "blocked",
    most_segments: int | None = None,
    mesh: AnyMesh | None = None,
) -> Float[Array, "B L H K"]:
    """Each position attends to the positions of its own segment up to itself; float32 softmax.

    segments  1 1 2 2 2       query 3 (segment 2) sees keys 2, 3
    window    2               query 4 sees keys 3, 4 (the last `window`, itself included)

    Query head h belongs to key/value head h // R, as in the published checkpoints (H = G·R).
    Segments are contiguous.

    A `backend` other than "blocked" is a kernel for one device: each works on its own rows and
    heads of the mesh. `most_segments` is that of types.Batch; without it there is no "cudnn".

    Where the mesh cuts rows along `sequence`, all arrays have their positions in the order of
    `model.balanced`, and so has what is returned; a device has some of the queries of its rows,
    and the keys and values of all positions come to it (sequence.py).
    """
    if mesh is not None and sequence.is_cut(q_BLHK.shape[1], mesh):
        return sequence.attention(
            q_BLHK,
            k_BLGK,
            v_BLGK,
            segments_BL,
            window=window,
            block=block,
            backend=backend,
            mesh=mesh,
        )
    attend = functools.partial(BACKENDS[backend], window=window, block=block)
    if backend == "cudnn":
        # On devices that need not be there nothing runs, and there is no GPU to be asked.
        kernel = described.cudnn if isinstance(mesh, AbstractMesh) else BACKENDS[backend]
        attend = functools.partial(kernel, window=window, block=block, most_segments=most_segments)
    if backend != "blocked":
        # Rows and heads lie on the devices that attend with them: nothing is exchanged.
        heads = P(BATCH_AXES, None, "tensor", None)
        rows = P(BATCH_AXES, None)
        attend = jax.shard_map(
            attend,
            mesh=mesh,
            in_specs=(heads, heads, heads, rows),
            out_specs=heads,
            # Kernels do not say along which axes their results vary, so that is not checked.
            check_vma=False,
        )
    return attend(q_BLHK, k_BLGK, v_BLGK, segments_BL)
