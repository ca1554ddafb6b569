"""Which attention backend a run uses; a kernel has to show first that it keeps segments apart.

One that drops segment ids trains without an error. So each runs on a small packed batch, with the
heads, windows, precision and mesh of the run, and is compared with every segment by itself in plain
JAX: outputs and gradients.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dft_jax import sharding
from dft_jax.models.attention.masked import causal_attention
from dft_jax.models.spec import DecoderSpec
from dft_jax.runtime import errors, processes

_NATIVE = {"tpu": "splash", "gpu": "cudnn"}
_NEEDS = {
    "splash": "a TPU",
    "cudnn": "compute capability 9 or 10, bfloat16, and a head_dim of 8, 16, … or 128",
}

# The test's even and odd rows: their segments, and how long these are. The rows are no whole number
# of tiles.
_ROWS = (((1, 2, 3, 0), (390, 10, 500, 100)), ((1, 2, 3), (1, 499, 500)))
_MOST_SEGMENTS = max(len(segments) for segments, _ in _ROWS)
_SEGMENTS_2L = np.array([np.repeat(segments, lengths) for segments, lengths in _ROWS], np.int32)
_LONGEST_WINDOW = 100  # longer ones are tested as this, so that they cut something
# Largest error of a position, over the root mean square of all. On CPUs blocked and splash have up
# to 0.04 in bfloat16 and 2e-5 in float32; one key too many in a window, or one too few, makes 1 or
# more.
_TOLERANCE = {"bfloat16": 0.15, "float32": 1e-3}


def choose_attention(asked: str, c: DecoderSpec, mesh: Mesh, compute_dtype: str, block: int) -> str:
    """The backend that `config.model.attention` comes to.

    Raises:
      UserError: one that is asked for by name cannot run here, or fails the test.
    """
    device = mesh.devices.flat[0]
    name = _named(asked, device)
    if name == "blocked":
        return name
    problem = unmet(name, device, c, compute_dtype) or uncut(name, mesh.shape["sequence"])
    problem = problem or mistake(name, c, mesh, compute_dtype, block)
    if problem and asked != "auto":
        raise errors.UserError(f"config.model.attention={asked!r} {problem}; use auto or blocked")
    chosen, why = name, "packed equals separate"
    if problem:
        chosen, why = "blocked", f"{name} {problem}"
    if processes.is_first():
        print(f"attention: {chosen} ({why})", file=sys.stderr)
    return chosen


def foreseen(asked: str, device: Any, c: DecoderSpec, compute_dtype: str, ways: int = 1) -> str:
    """The backend that `asked` comes to on such a device, as far as can be said without it.

    `ways` is the number of devices over which a mesh cuts rows.
    """
    name = _named(asked, device)
    if asked != "auto" or name == "blocked":
        return name
    if unmet(name, device, c, compute_dtype) or uncut(name, ways):
        return "blocked"
    return name


def _named(asked: str, device: Any) -> str:
    if asked == "auto":
        return _NATIVE.get(device.platform, "blocked")
    return asked


def require(asked: str, c: DecoderSpec, mesh: Mesh, compute_dtype: str) -> None:
    """UserError where something forbids a backend that is asked for by name, as far as can be said
    without compiling.
    """
    if asked in ("auto", "blocked"):
        return
    ways = mesh.shape["sequence"]
    problem = unmet(asked, mesh.devices.flat[0], c, compute_dtype) or uncut(asked, ways)
    if problem:
        raise errors.UserError(f"config.model.attention={asked!r} {problem}; use auto or blocked")


def unmet(name: str, device: Any, c: DecoderSpec, compute_dtype: str) -> str | None:
    """What a backend needs, if it is not all here, as far as can be said without compiling."""
    capability = str(getattr(device, "compute_capability", "none"))
    if name == "splash":
        is_met = device.platform == "tpu"
    else:
        is_known_gpu = capability.split(".")[0] in ("9", "10")
        is_known_width = c.head_dim in range(8, 129, 8)
        is_met = is_known_gpu and is_known_width and compute_dtype == "bfloat16"
    if is_met:
        return None
    return (
        f"needs {_NEEDS[name]} (here: {device.device_kind!r}, compute capability {capability},"
        f" {compute_dtype}, head_dim {c.head_dim})"
    )


def uncut(name: str, ways: int) -> str | None:
    """Why a backend cannot attend in rows that a mesh cuts over so many devices, if so."""
    if name == "cudnn" and ways > 1:
        return f"needs whole rows, and config.mesh.sequence={ways} cuts them"
    return None


def mistake(name: str, c: DecoderSpec, mesh: Mesh, compute_dtype: str, block: int) -> str | None:
    """What a backend does wrong in the test; None if nothing."""
    try:
        found = packed_errors(name, c, mesh, compute_dtype, block)
    except Exception as error:  # whatever a kernel's compiler throws
        return f"does not run here ({errors.first_line(error)})"
    wrong = []
    for quantity, error in found.items():
        # also where it is NaN
        if not error <= _TOLERANCE[compute_dtype]:
            wrong.append(f"{quantity} {error:.2g}")
    if wrong:
        return f"mixes what is packed together (errors: {', '.join(wrong)})"
    return None


def packed_errors(
    name: str, c: DecoderSpec, mesh: Mesh, compute_dtype: str, block: int
) -> dict[str, float]:
    """The largest error of a position, over the root mean square of all, by quantity.

    The quantities are the output and the three gradients. Where layers have different windows, it
    is the largest among these.
    """
    worst: dict[str, float] = {}
    for window in c.windows:
        found = _errors_with_window(name, c, window, mesh, compute_dtype, block)
        for quantity, error in found.items():
            # NumPy's, which keeps NaN
            worst[quantity] = float(np.maximum(error, worst.get(quantity, 0.0)))
    return worst


def _errors_with_window(
    name: str, c: DecoderSpec, window: int | None, mesh: Mesh, compute_dtype: str, block: int
) -> dict[str, float]:
    if window is not None:
        window = min(window, _LONGEST_WINDOW)
    attend = functools.partial(causal_attention, window=window, block=block)
    n_rows = 2 * sharding.batch_shards(mesh)

    def draw(seed: int, heads: int, scale: float = 1.0) -> jax.Array:
        shape = (n_rows, _SEGMENTS_2L.shape[1], heads, c.head_dim)
        x_BLXK = scale * jax.random.normal(jax.random.key(seed), shape)
        # Rows and heads on the devices that have them in a run.
        return sharding.with_logical_layout(
            x_BLXK.astype(compute_dtype), mesh, "batch", "length", "heads", "head_dim"
        )

    def draw_all() -> tuple[jax.Array, ...]:
        # Scores of standard deviation 4: a query looks at few keys, so that one key too many or too
        # few is no small thing.
        q_BLHK = draw(0, c.num_heads, scale=4.0)
        k_BLGK = draw(1, c.num_kv_heads)
        v_BLGK = draw(2, c.num_kv_heads)
        cotangent_BLHK = draw(3, c.num_heads)
        return q_BLHK, k_BLGK, v_BLGK, cotangent_BLHK

    def packed(q_BLHK: jax.Array, k_BLGK: jax.Array, v_BLGK: jax.Array) -> jax.Array:
        segments_BL = jnp.tile(_SEGMENTS_2L, (n_rows // 2, 1))
        found = functools.partial(attend, mesh=mesh, backend=name, most_segments=_MOST_SEGMENTS)
        n_parts = sharding.n_parts(segments_BL.shape[1], mesh)
        lying = []
        for x_BL in (q_BLHK, k_BLGK, v_BLGK, segments_BL):
            lying.append(sharding.in_parts(x_BL, n_parts))
        return sharding.in_row_order(found(*lying), n_parts)

    def separate(*qkv: jax.Array) -> jax.Array:
        """The same, each segment by itself in plain JAX."""
        rows = []
        for kind, (_, lengths) in enumerate(_ROWS):
            ends = np.cumsum(lengths)[:-1]
            q_pieces, k_pieces, v_pieces = (jnp.split(x[kind::2], ends, axis=1) for x in qkv)
            outputs = []
            for q, k, v in zip(q_pieces, k_pieces, v_pieces, strict=True):
                outputs.append(attend(q, k, v, jnp.ones(q.shape[:2], jnp.int32)))
            rows.append(jnp.concatenate(outputs, axis=1))
        return jnp.stack(rows, axis=1).reshape(qkv[0].shape)

    *qkv, cotangent_BLHK = jax.jit(draw_all)()
    made_by = jax.jit(_with_gradients, static_argnums=0)
    found = made_by(packed, qkv, cotangent_BLHK)
    with jax.default_matmul_precision("highest"):
        exact = made_by(separate, [x.astype(jnp.float32) for x in qkv], cotangent_BLHK)
    # Replicated, so that every process has the numbers.
    compare = jax.jit(_largest_errors, out_shardings=sharding.named(mesh))
    quantities = ("output", "dq", "dk", "dv")
    return dict(zip(quantities, map(float, compare(found, exact)), strict=True))


def _with_gradients(
    attend: Callable, qkv: Sequence[jax.Array], cotangent_BLHK: jax.Array
) -> tuple[jax.Array, ...]:
    """The output, and the gradients of queries, keys and values."""
    out_BLHK, gradients = jax.vjp(attend, *qkv)
    return (out_BLHK, *gradients(cotangent_BLHK.astype(out_BLHK.dtype)))


def _largest_errors(
    found: Sequence[jax.Array], exact: Sequence[jax.Array]
) -> tuple[jax.Array, ...]:
    largest = []
    for found_BLXK, exact_BLXK in zip(found, exact, strict=True):
        error_BLX = jnp.square(found_BLXK.astype(jnp.float32) - exact_BLXK).sum(axis=-1)
        size = jnp.square(exact_BLXK).sum(axis=-1).mean()
        largest.append(jnp.sqrt(error_BLX.max() / size))
    return tuple(largest)
