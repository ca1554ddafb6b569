"""The tower of Qwen2.5-VL (arXiv 2502.13923, section 2.1): patches of images to tokens of the text.

Patches become vectors, blocks of attention and feed-forward mix them, and a merger makes one
feature of each unit of 2 × 2 patches. Most blocks attend within windows of 8 × 8 patches, some
within the whole image; rows and columns are rotary positions, and nothing is causal.

Attention does not know in which order patches lie, so a window is a segment, and there is no
permutation here: data/image_rows.py stores patches window by window (see types.ImageBatch), which
makes windows contiguous, and a token finds its unit by number.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from dft_jax import sharding
from dft_jax.models import layers
from dft_jax.models.abstract import abstract_of, layouts_of
from dft_jax.models.spec import Rope, VisionSpec
from dft_jax.types import AnyArray, AnyMesh, ImageBatch, Params

COLOURS = 3
FRAMES = 2  # that a patch of a video has; an image is its own second frame
# Of CLIP, by colour, for values from 0 to 1.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_EPSILON = 1e-6  # of all norms
_THETA = 10_000.0
_QUERIES = 512  # that attend together in blocks with full attention


@dataclasses.dataclass(frozen=True)
class Tower:
    """The tower of a model on a mesh; nothing is allocated.

    `abstract_params` holds shape, dtype and sharding of every leaf, `init(key)` gives random
    parameters laid out so. `apply(params, images)` gives the features of all units of each row, as
    many as its patches / 4, those of padding included.
    """

    config: VisionSpec
    mesh: AnyMesh
    abstract_params: Params
    init: Callable[[jax.Array], Params]
    apply: Callable[[Params, ImageBatch], Float[Array, "B J D"]]


def build_tower(
    config: VisionSpec,
    mesh: AnyMesh,
    *,
    param_dtype: str = "float32",
    compute_dtype: str = "float32",
    remat: bool = False,
) -> Tower:
    """The tower of `config` on `mesh`, which may be one of devices that need not be there.

    With `remat` the backward pass makes each block's activations again from its input.
    """
    module = _Tower(config, jnp.dtype(param_dtype), jnp.dtype(compute_dtype), mesh, remat)
    rows, I = sharding.batch_shards(mesh), config.window_patches

    def init_boxed(key: jax.Array) -> Params:
        numbers_BI = jnp.zeros((rows, I), jnp.int32)
        patches_BIX = jnp.zeros((rows, I, config.patch_values), jnp.uint8)
        return module.init(key, patches_BIX, *[numbers_BI] * 4)["params"]

    abstract_params = abstract_of(jax.eval_shape(lambda: init_boxed(jax.random.key(0))), mesh)
    layouts = layouts_of(abstract_params)
    init = jax.jit(lambda key: nn.meta.unbox(init_boxed(key)), out_shardings=layouts)

    def apply(params: Params, images: ImageBatch) -> Float[Array, "B J D"]:
        numbers = (images.rows_BI, images.cols_BI, images.images_BI, images.windows_BI)
        features: Any = module.apply({"params": params}, images.patches_BIX, *numbers)
        return features

    return Tower(config, mesh, abstract_params, init, apply)


def angles(
    head_dim: int, rows_BI: Int[AnyArray, "B I"], cols_BI: Int[AnyArray, "B I"]
) -> Float[Array, "B I k"]:
    """What queries and keys turn by: half of the dimension pairs by the row, half by the column.

    k is K/2; f[j] = 10000^(-2j/(K/2)) for both halves.
    """
    frequencies = jnp.asarray(layers.rope_frequencies(Rope(_THETA), head_dim // 2))[None, None, :]
    by_row = rows_BI[:, :, None].astype(jnp.float32) * frequencies
    by_col = cols_BI[:, :, None].astype(jnp.float32) * frequencies
    return jnp.concatenate([by_row, by_col], axis=-1)


def window_attention(
    q_BIHK: Float[Array, "B I H K"],
    k_BIHK: Float[Array, "B I H K"],
    v_BIHK: Float[Array, "B I H K"],
    windows_BI: Int[AnyArray, "B I"],
    band: int,
) -> Float[Array, "B I H K"]:
    """Each patch attends to those of its window, which are at most `band` and contiguous.

    So a block of `band` queries finds its keys in its own block, the one before and the one after:
    3 · I · band scores in place of I². I is a multiple of `band`. What padding gives is of no use.
    """
    B, I, H, K = q_BIHK.shape
    N = I // band

    def blocks(x: AnyArray) -> Any:
        """[B, N, band, ...]"""
        return x.reshape(B, N, band, *x.shape[2:])

    def neighbours(x: AnyArray) -> Array:
        """[B, N, 3 · band, ...]: of each block, the one before, itself, and the one after."""
        padding = [(0, 0), (1, 1)] + [(0, 0)] * (x.ndim - 1)
        padded = jnp.pad(blocks(x), padding)
        return jnp.concatenate([padded[:, :-2], padded[:, 1:-1], padded[:, 2:]], axis=2)

    queries_BNQ, keys_BNS = blocks(windows_BI), neighbours(windows_BI)
    sees_BNQS = queries_BNQ[:, :, :, None] == keys_BNS[:, :, None, :]
    out = _attend(blocks(q_BIHK), neighbours(k_BIHK), neighbours(v_BIHK), sees_BNQS)
    return out.reshape(B, I, H, K)


def full_attention(
    q_BIHK: Float[Array, "B I H K"],
    k_BIHK: Float[Array, "B I H K"],
    v_BIHK: Float[Array, "B I H K"],
    images_BI: Int[AnyArray, "B I"],
    block: int = _QUERIES,
) -> Float[Array, "B I H K"]:
    """Each patch attends to those of its image; `block` queries at a time."""
    B, I, H, K = q_BIHK.shape
    k_B1SHK, v_B1SHK = k_BIHK[:, None], v_BIHK[:, None]

    def attend(q_BQHK: Array, images_BQ: AnyArray) -> Array:
        sees_BQI = images_BQ[:, :, None] == images_BI[:, None, :]
        return _attend(q_BQHK[:, None], k_B1SHK, v_B1SHK, sees_BQI[:, None])[:, 0]

    if block >= I:
        return attend(q_BIHK, images_BI)
    # Queries up to a multiple of the block; the scores of one block exist at a time.
    N = -(-I // block)
    more = N * block - I
    q_BIHK = jnp.pad(q_BIHK, ((0, 0), (0, more), (0, 0), (0, 0)))
    padded_BI = jnp.pad(images_BI, ((0, 0), (0, more)))
    q_NBQHK = jnp.moveaxis(q_BIHK.reshape(B, N, block, H, K), 1, 0)
    images_NBQ = jnp.moveaxis(padded_BI.reshape(B, N, block), 1, 0)
    out_NBQHK = jax.lax.map(jax.checkpoint(lambda one: attend(*one)), (q_NBQHK, images_NBQ))
    return jnp.moveaxis(out_NBQHK, 0, 1).reshape(B, N * block, H, K)[:, :I]


def _attend(q_BNQHK: Array, k_BNSHK: Array, v_BNSHK: Array, sees_BNQS: AnyArray) -> Array:
    """Attention within blocks, each with keys of its own; float32 softmax."""
    wide = jnp.promote_types(jnp.float32, q_BNQHK.dtype)
    scores = jnp.einsum("BNQHK,BNSHK->BNHQS", q_BNQHK, k_BNSHK, preferred_element_type=wide)
    scores = scores.astype(wide) * q_BNQHK.shape[-1] ** -0.5
    # Finite: a query without any key would be 0/0, and its gradient NaN though nobody reads it.
    scores = jnp.where(sees_BNQS[:, :, None], scores, jnp.finfo(wide).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BNSHK.dtype)
    return jnp.einsum("BNHQS,BNSHK->BNQHK", weights, v_BNSHK)


class _Part(nn.Module):
    """What the modules of the tower share."""

    spec: VisionSpec
    param_dtype: jnp.dtype
    mesh: AnyMesh

    def linear(
        self, name: str, einsum: str, shape: tuple[int, ...], axes: tuple[str, ...], n_outputs: int
    ) -> layers.Linear:
        """With a bias, of as many dimensions as there are outputs."""
        return layers.Linear(
            einsum,
            shape,
            axes,
            n_outputs,
            self.spec.init_std,
            self.param_dtype,
            sharding.platform(self.mesh),
            name=name,
        )

    def norm(self, name: str) -> layers.RMSNorm:
        platform = sharding.platform(self.mesh)
        shape = (self.spec.hidden_size,)
        return layers.RMSNorm(shape, _EPSILON, self.param_dtype, platform, name=name)


class _Block(_Part):
    """Attention and feed-forward, each added to the residual stream, each after its norm."""

    @nn.compact
    def __call__(
        self,
        x_BIE: Array,
        is_full: Array,
        angles_BIk: Array,
        images_BI: AnyArray,
        windows_BI: AnyArray,
    ) -> tuple[Array, None]:
        E, H, K, F = (
            self.spec.hidden_size,
            self.spec.num_heads,
            self.spec.head_dim,
            self.spec.intermediate_size,
        )
        # One product for queries, keys and values (T), as checkpoints have it.
        qkv = self.linear(
            "qkv",
            "BIE,THKE->BITHK",
            (3, H, K, E),
            ("qkv", "heads", "head_dim", "embed"),
            3,
        )
        o = self.linear("o", "BIHK,EHK->BIE", (E, H, K), ("embed", "heads", "head_dim"), 1)
        gate = self.linear("gate", "BIE,FE->BIF", (F, E), ("mlp", "embed"), 1)
        up = self.linear("up", "BIE,FE->BIF", (F, E), ("mlp", "embed"), 1)
        down = self.linear("down", "BIF,EF->BIE", (E, F), ("embed", "mlp"), 1)

        q_BIHK, k_BIHK, v_BIHK = jnp.moveaxis(qkv(self.norm("attention_norm")(x_BIE)), 2, 0)
        q_BIHK = layers.rotate(q_BIHK, angles_BIk)
        k_BIHK = layers.rotate(k_BIHK, angles_BIk)
        # Each device attends with its own heads; keys and values follow from the queries' layout.
        q_BIHK = sharding.with_logical_layout(
            q_BIHK, self.mesh, "batch", "length", "heads", "head_dim"
        )
        out_BIHK = jax.lax.cond(
            is_full,
            lambda: full_attention(q_BIHK, k_BIHK, v_BIHK, images_BI),
            lambda: window_attention(q_BIHK, k_BIHK, v_BIHK, windows_BI, self.spec.window_patches),
        )
        x_BIE = x_BIE + o(out_BIHK)
        n_BIE = self.norm("mlp_norm")(x_BIE)
        return x_BIE + down(nn.silu(gate(n_BIE)) * up(n_BIE)), None


class _Merger(_Part):
    """One feature of the patches of a unit, which lie one after another."""

    @nn.compact
    def __call__(self, x_BIE: Array) -> Array:
        B, I, E = x_BIE.shape
        n_together = self.spec.merge**2
        M, D = n_together * E, self.spec.out_size
        x_BJM = self.norm("norm")(x_BIE).reshape(B, I // n_together, M)
        up = self.linear("up", "BJM,NM->BJN", (M, M), ("mlp", "embed"), 1)
        down = self.linear("down", "BJN,DN->BJD", (D, M), ("embed", "mlp"), 1)
        return down(jax.nn.gelu(up(x_BJM), approximate=False))


class _PatchEmbed(_Part):
    """Pixels to vectors: a convolution over patches that do not overlap, so a product."""

    compute_dtype: jnp.dtype

    @nn.compact
    def __call__(self, patches_BIX: UInt8[AnyArray, "B I X"]) -> Array:
        E, P = self.spec.hidden_size, self.spec.patch_size
        init = nn.with_partitioning(
            nn.initializers.normal(self.spec.init_std), ("embed", *["pixels"] * 4)
        )
        kernel: Any = self.param("kernel", init, (E, COLOURS, FRAMES, P, P), self.param_dtype)
        # Both frames are the same picture: one copy of it, times the sum of their kernels. It
        # travels as bytes, an eighth of what it is in float32 and twice.
        kernel_EX = kernel.sum(axis=2).reshape(E, -1)
        wide = jnp.promote_types(jnp.float32, self.compute_dtype)
        of_pixel = np.repeat(np.array([MEAN, STD], np.float32), P * P, axis=1)[:, None, None, :]
        x_BIX = (patches_BIX.astype(wide) / 255 - of_pixel[0]) / of_pixel[1]
        dtype = self.compute_dtype
        return jnp.einsum("BIX,EX->BIE", x_BIX.astype(dtype), kernel_EX.astype(dtype))


class _Tower(nn.Module):
    """Patches of images to features of their units."""

    spec: VisionSpec
    param_dtype: jnp.dtype
    compute_dtype: jnp.dtype
    mesh: AnyMesh
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        patches_BIX: UInt8[AnyArray, "B I X"],
        rows_BI: Int[AnyArray, "B I"],
        cols_BI: Int[AnyArray, "B I"],
        images_BI: Int[AnyArray, "B I"],
        windows_BI: Int[AnyArray, "B I"],
    ) -> Float[Array, "B J D"]:
        shared = self.spec, self.param_dtype, self.mesh
        x_BIE = _PatchEmbed(*shared, self.compute_dtype, name="patch_embed")(patches_BIX)
        # The product leaves the width as its kernel is cut; the blocks want it whole.
        x_BIE = sharding.with_logical_layout(
            x_BIE, self.mesh, "batch", "length", "embed_activation"
        )
        is_full = np.isin(np.arange(self.spec.depth), self.spec.full_blocks)
        # One block is compiled, which attends as its flag says.
        in_axes: Any = (0, nn.broadcast, nn.broadcast, nn.broadcast)
        block = nn.remat(_Block, prevent_cse=False) if self.remat else _Block
        scanned: Any = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=in_axes,
            length=self.spec.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        turned_BIk = angles(self.spec.head_dim, rows_BI, cols_BI)
        x_BIE, _ = scanned(*shared, name="blocks")(
            x_BIE, jnp.asarray(is_full), turned_BIk, images_BI, windows_BI
        )
        return _Merger(*shared, name="merger")(x_BIE)
