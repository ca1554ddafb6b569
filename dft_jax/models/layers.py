"""The parts of a decoder layer.

Kernels keep the checkpoint's order, outputs first, so that importing one is a plain copy.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from dft_jax.models.lora import Lora
from dft_jax.models.spec import DecoderSpec, LayerSpec, MRope, Rope, Yarn
from dft_jax.types import AnyArray

# Of a model with adapters: the products that the policy `dots` saves, by this name (decoder.py).
KEPT = "product_beside_adapter"


def _param(
    module: nn.Module,
    name: str,
    init: Callable,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    dtype: jnp.dtype,
) -> Any:
    """One declaration gives shape, dtype and logical axes."""
    return module.param(name, nn.with_partitioning(init, axes), shape, dtype)


class Linear(nn.Module):
    """A product with a kernel [*outputs, *inputs]; `einsum` says over which letters it runs.

    `platform` is that of the devices that will run it (see `sharding.platform`). Where there is an
    `operand`, the kernel is multiplied with what it makes of the inputs, element by element; the
    backward pass makes that again instead of finding it saved.

    With `lora` the kernel is frozen, and where this module is one of its targets, an adapter adds
    to the product. Its matrices are in the collection "lora".
    """

    einsum: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    bias_dims: int  # leading kernel dimensions that a bias has; 0 for none
    init_std: float
    param_dtype: jnp.dtype
    platform: str
    operand: Callable | None = None
    lora: Lora | None = None

    @nn.compact
    def __call__(self, *inputs: Array) -> Array:
        kernel = _param(
            self,
            "kernel",
            nn.initializers.normal(self.init_std),
            self.shape,
            self.axes,
            self.param_dtype,
        )
        kernel = kernel.astype(inputs[0].dtype)
        if self.lora is None:
            y = self._product()(kernel, *inputs)
        else:
            y = self._frozen_product(self.lora)(kernel, *inputs)
        if self.bias_dims:
            shape, axes = self.shape[: self.bias_dims], self.axes[: self.bias_dims]
            # A bias lives where its kernel's outputs do; along the width of the model it is not
            # cut, as scales of norms are not.
            if axes == ("embed",):
                axes = ("norm",)
            bias = _param(self, "bias", nn.initializers.zeros, shape, axes, self.param_dtype)
            y = y + jnp.expand_dims(bias.astype(y.dtype), tuple(range(y.ndim - bias.ndim)))
        return y

    def _product(self) -> Callable:
        """product(kernel, *inputs), with its gradients."""
        operand, einsum = self.operand, self.einsum
        if self.platform == "cpu":
            # What the kernel is multiplied with is kept here: to make it again as well took longer.
            make = jax.checkpoint(operand, prevent_cse=False) if operand else _itself
            return lambda kernel, *inputs: _cpu_product(einsum, make(*inputs), kernel)
        if operand is None:
            return lambda kernel, x: jnp.einsum(einsum, x, kernel)

        def product(kernel: Array, *inputs: Array) -> Array:
            return jnp.einsum(einsum, operand(*inputs), kernel)

        # A scan's forward and backward pass are two loops: nothing has to keep XLA from merging.
        return jax.checkpoint(product, prevent_cse=False)

    def _frozen_product(self, lora: Lora) -> Callable:
        """product(kernel, *inputs), of a kernel that gets no gradient, and of its adapter."""
        adapter: tuple[Array, ...] = ()
        if self.name in lora.targets:
            adapter = self._adapter(lora)
        operand, einsum = self.operand or _itself, self.einsum

        def product(kernel: Array, *inputs: Array) -> Array:
            x = operand(*inputs)
            # Not `_cpu_product`: that is about the gradient which this kernel does not get.
            y = checkpoint_name(jnp.einsum(einsum, x, kernel), KEPT)
            if not adapter:
                return y
            return y + _adapted(einsum, x, *adapter, scale=lora.scale)

        if self.operand is None:
            return product
        return jax.checkpoint(product, prevent_cse=False)

    def _adapter(self, lora: Lora) -> tuple[Array, Array]:
        """A [rank, *inputs] and B [*outputs, rank]; the kernel is [*outputs, *inputs]."""
        n_outputs = len(self.einsum.partition("->")[2]) - _BATCH_AXES
        outputs, inputs = slice(None, n_outputs), slice(n_outputs, None)

        def matrix(name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> Any:
            # Zeros: models/adapters.py says how adapters begin.
            init = nn.with_partitioning(nn.initializers.zeros, axes)
            return self.variable("lora", name, init, None, shape, jnp.float32).value

        a = matrix("a", (lora.rank, *self.shape[inputs]), ("rank", *self.axes[inputs]))
        b = matrix("b", (*self.shape[outputs], lora.rank), (*self.axes[outputs], "rank"))
        return a, b


_BATCH_AXES = 2  # of what goes in and comes out, before the width: B and L


def _adapted(einsum: str, x: Array, a: Array, b: Array, *, scale: float) -> Array:
    """s · B (A x), in the dtype of x; products accumulate in float32, in which x is scaled.

    einsum "BLD,HKD->BLHK": A is "ZD", and B is "HKZ".
    """
    x_axes, _, y_axes = re.split(",|->", einsum)
    rows, inputs = x_axes[:_BATCH_AXES], x_axes[_BATCH_AXES:]
    outputs = y_axes[_BATCH_AXES:]
    wide = jnp.promote_types(jnp.float32, x.dtype)
    h = jnp.einsum(
        f"{x_axes},Z{inputs}->{rows}Z", x, a.astype(x.dtype), preferred_element_type=wide
    )
    h = checkpoint_name((h * scale).astype(x.dtype), KEPT)
    return jnp.einsum(f"{rows}Z,{outputs}Z->{y_axes}", h, b.astype(x.dtype))


def _itself(x: Array) -> Array:
    return x


def _cpu_product(einsum: str, x: Array, kernel: Array) -> Array:
    """`jnp.einsum`, with another gradient of the kernel.

    XLA's CPU compiler transposes the first operand of a product, computing again what that is made
    of. JAX would always put dy there; here it is the smaller of x and dy.
    """
    x_axes, kernel_axes, y_axes = re.split(",|->", einsum)

    @jax.custom_gradient
    def product(x: Array, kernel: Array) -> Any:
        def gradients(dy: Array) -> tuple[Array, Array]:
            d_x = jnp.einsum(f"{y_axes},{kernel_axes}->{x_axes}", dy, kernel)
            if dy.size <= x.size:
                return d_x, jnp.einsum(f"{y_axes},{x_axes}->{kernel_axes}", dy, x)
            transposed = jnp.einsum(f"{x_axes},{y_axes}->{kernel_axes[::-1]}", x, dy)
            # Without the barrier XLA would turn the product back.
            return d_x, jax.lax.optimization_barrier(transposed).T

        return jnp.einsum(einsum, x, kernel), gradients

    return product(x, kernel)


class RMSNorm(nn.Module):
    """x / rms(x) · scale in float32, over the last axes of x: as many as `shape` has.

    With an `offset` it is x / rms(x) · (offset + scale), which is rounded once, as Gemma does.

    Of accelerators (`platform`; see `sharding.platform`) the backward pass finds x saved and makes
    the rest again: kept, x in float32 and x / rms(x) took three times the memory of x.
    """

    shape: tuple[int, ...]
    epsilon: float
    param_dtype: jnp.dtype
    platform: str
    axes: tuple[str, ...] = ("norm",)
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.constant(1 - self.offset)
        scale = _param(self, "scale", init, self.shape, self.axes, self.param_dtype)
        norm = functools.partial(_scaled_by_rms, epsilon=self.epsilon)
        if self.offset:
            norm = functools.partial(_scaled_once, epsilon=self.epsilon, offset=self.offset)
        else:
            scale = scale.astype(x.dtype)
        if self.platform != "cpu":
            norm = jax.checkpoint(norm, prevent_cse=False)
        return norm(x, scale)


def _scaled_by_rms(x: Array, scale: Array, *, epsilon: float) -> Array:
    x32 = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    last_axes = tuple(range(-scale.ndim, 0))
    rms = jnp.sqrt(jnp.mean(x32 * x32, axis=last_axes, keepdims=True) + epsilon)
    normalised = (x32 / rms).astype(x.dtype)
    leading_axes = tuple(range(x.ndim - scale.ndim))
    return normalised * jnp.expand_dims(scale, leading_axes)


def _scaled_once(x: Array, scale: Array, *, epsilon: float, offset: float) -> Array:
    wide = jnp.promote_types(jnp.float32, x.dtype)
    return _scaled_by_rms(x.astype(wide), offset + scale.astype(wide), epsilon=epsilon).astype(
        x.dtype
    )


def _silu_gated(gate: Array, up: Array) -> Array:
    return nn.silu(gate) * up


def _gelu_gated(gate: Array, up: Array) -> Array:
    """With GELU's approximation by tanh (arXiv 1606.08415)."""
    return nn.gelu(gate, approximate=True) * up


class SwiGLU(nn.Module):
    """down(silu(gate x) · up x), arXiv 2002.05202."""

    gated = staticmethod(_silu_gated)

    spec: DecoderSpec
    layer: LayerSpec
    param_dtype: jnp.dtype
    platform: str
    lora: Lora | None = None

    @nn.compact
    def __call__(self, x_BLD: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        D, F = self.spec.hidden_size, self.spec.intermediate_size
        gate_BLF = self._linear("gate", "BLD,FD->BLF", (F, D), ("mlp", "embed"))(x_BLD)
        up_BLF = self._linear("up", "BLD,FD->BLF", (F, D), ("mlp", "embed"))(x_BLD)
        # What `gated` would save for the backward pass costs more to keep than to make again.
        down = self._linear("down", "BLF,DF->BLD", (D, F), ("embed", "mlp"), self.gated)
        return down(gate_BLF, up_BLF)

    def _linear(
        self,
        name: str,
        einsum: str,
        shape: tuple[int, ...],
        axes: tuple[str, ...],
        operand: Callable | None = None,
    ) -> Linear:
        return Linear(
            einsum,
            shape,
            axes,
            int(self.layer.mlp_bias),
            self.spec.init_std,
            self.param_dtype,
            self.platform,
            operand,
            self.lora,
            name=name,
        )


class GeGLU(SwiGLU):
    """down(gelu(gate x) · up x), arXiv 2002.05202."""

    gated = staticmethod(_gelu_gated)


# By LayerSpec.feed_forward. Each is made as module(spec, layer, param_dtype, platform, lora).
FEED_FORWARDS = {"swiglu": SwiGLU, "geglu": GeGLU}


def rope_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Inverse wavelengths [K/2] for every type of scaling, float32; K is the dimensions that turn.

    `llama3` divides low frequencies by `factor`, keeps high ones, and blends between (Llama 3.1's
    model card). `yarn` does so along the dimensions (arXiv 2309.00071, section 3.2, with a ramp
    that is linear in the dimension). Those of `longrope`, before its factors, are as by default
    (models/longrope.py). Computed in float32 as the reference does: at position 100,000 a last-bit
    difference is visible.
    """
    frequencies = (1.0 / unscaled_wavelengths(rope, head_dim)).astype(np.float32)
    if rope.type == "linear":
        return frequencies / np.float32(rope.factor)
    if rope.type == "llama3":
        wavelengths = 2 * math.pi / frequencies
        turns = rope.original_context / wavelengths  # within the original context
        keep = np.clip(
            (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0, 1
        )
        return (keep * frequencies + (1 - keep) * frequencies / rope.factor).astype(np.float32)
    if isinstance(rope, Yarn):
        stretched = frequencies / np.float32(rope.factor)
        keep = _yarn_kept(rope, head_dim)
        return (stretched * (1 - keep) + frequencies * keep).astype(np.float32)
    return frequencies


def unscaled_wavelengths(rope: Rope, head_dim: int) -> np.ndarray:
    """theta^(2i/K) [K/2], float32; K is the dimensions that turn."""
    width = rope.width(head_dim)
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    return np.float32(rope.theta) ** exponents


def _yarn_kept(rope: Yarn, head_dim: int) -> np.ndarray:
    """The share of each frequency [K/2] that YaRN keeps: 1 for fast ones, 0 for slow ones."""

    def dimension(turns: float) -> float:
        """The one that makes so many turns within the original context."""
        wavelength = rope.original_context / turns
        return head_dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # a step instead of a ramp
    ramp = (np.arange(head_dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    return 1 - np.clip(ramp, 0, 1)


def apply_rope(
    x_BLHK: Float[Array, "B L H K"],
    positions_BL: Int[AnyArray, "B L"],
    frequencies: np.ndarray,
    factor: float,
) -> Float[Array, "B L H K"]:
    """Rotates the pairs (x[k], x[k + K/2]) by position · frequency[k], and multiplies by `factor`.

    Angles and products are float32. `factor` is 1 but under YaRN. Where there are fewer frequencies
    than K/2, only so many pairs turn, of the first dimensions.
    """
    angles_BLK = (
        positions_BL[:, :, None].astype(jnp.float32) * jnp.asarray(frequencies)[None, None, :]
    )
    return rotate(x_BLHK, angles_BLK, factor)


def rotate(
    x_BLHK: Float[Array, "B L H K"], angles_BLk: Float[AnyArray, "B L k"], factor: float = 1.0
) -> Float[Array, "B L H K"]:
    """Rotates the pairs (x[k], x[k + K/2]) by their angle, and multiplies by `factor`, in float32.

    k is K/2, or less: then the first 2 k dimensions are K here, and the others stay as they are.
    """
    width = 2 * angles_BLk.shape[-1]
    if width < x_BLHK.shape[-1]:
        turned_BLHK = rotate(x_BLHK[..., :width], angles_BLk, factor)
        return jnp.concatenate([turned_BLHK, x_BLHK[..., width:]], axis=-1)
    dtype = jnp.promote_types(jnp.float32, x_BLHK.dtype)
    cos = (jnp.cos(angles_BLk) * factor)[:, :, None, :].astype(dtype)
    sin = (jnp.sin(angles_BLk) * factor)[:, :, None, :].astype(dtype)
    first, second = jnp.split(x_BLHK.astype(dtype), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BLHK.dtype)


def mrope_angles(
    rope: MRope, head_dim: int, positions_BL3: Int[AnyArray, "B L 3"]
) -> Float[Array, "B L k"]:
    """What `rotate` turns by: each dimension pair by the position along its own axis; k is K/2."""
    positions_BLk = positions_BL3[:, :, np.array(rope.axes)].astype(jnp.float32)
    return positions_BLk * jnp.asarray(rope_frequencies(rope, head_dim))[None, None, :]


def scaled_embedding(x_BLD: Float[Array, "B L D"], spec: DecoderSpec) -> Float[Array, "B L D"]:
    """Embedded tokens as the first layer reads them: Gemma's are times √D, which its programs round
    to the dtype of the embedding.
    """
    if not spec.scales_embeddings:
        return x_BLD
    return x_BLD * jnp.asarray(math.sqrt(spec.hidden_size), x_BLD.dtype)


def embed(
    table_VD: Float[Array, "V D"], tokens_BL: Int[AnyArray, "B L"], dtype: jnp.dtype
) -> Float[Array, "B L D"]:
    """Rows of the table in the compute dtype. Ids are checked on the host: JAX would clamp them.

    The gradient of a row is added up in float32 and cast once. In bfloat16 a sum stops at 256 times
    what is added: of a token in a third of 65,536 positions a fifth and more was lost.
    """
    kind = jax.ShapeDtypeStruct(table_VD.shape, table_VD.dtype)
    return _rows(table_VD, tokens_BL, dtype, kind)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _rows(table_VD, tokens_BL, dtype, kind: jax.ShapeDtypeStruct):
    return jnp.take(table_VD, tokens_BL, axis=0, mode="clip").astype(dtype)


def _rows_forward(table_VD, tokens_BL, dtype, kind):
    return _rows(table_VD, tokens_BL, dtype, kind), tokens_BL


def _rows_backward(dtype, kind, tokens_BL, d_x_BLD):
    wide = jnp.promote_types(kind.dtype, jnp.float32)
    d_table_VD = jnp.zeros(kind.shape, wide).at[tokens_BL].add(d_x_BLD.astype(wide), mode="clip")
    return d_table_VD.astype(kind.dtype), None


_rows.defvjp(_rows_forward, _rows_backward)
