"""The decoder-only transformer that the supported families share, as Flax Linen modules."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from dft_jax import sharding
from dft_jax.models import layers, longrope, moe, rematerialisation, routing
from dft_jax.models.attention.cached import CACHE_SPEC, LayerCache, cached_attention
from dft_jax.models.attention.masked import Backend, causal_attention
from dft_jax.models.lora import Lora
from dft_jax.models.spec import DecoderSpec, LayerLoop, LayerSpec, MRope, place_in_period
from dft_jax.types import AnyArray, AnyMesh


class Attention(nn.Module):
    """Grouped-query self-attention; positions, q/k norm, window and biases as the layer has them.

    Rows with images give the angles that queries and keys turn by, as those of a model with
    LongRope do; all others are turned by their positions.

    With a `cache` the rows are single tokens that extend it (see `cached_attention`); positions are
    then their places in it, and differ from what they turn by where angles are given. Returned
    beside the output are the keys and values: the extended cache, or those of the rows as a cache
    [B, G, L, K].
    """

    spec: DecoderSpec
    layer: LayerSpec
    param_dtype: jnp.dtype
    mesh: AnyMesh
    backend: Backend
    lora: Lora | None = None

    @nn.compact
    def __call__(
        self,
        x_BLD: Float[Array, "B L D"],
        segments_BL: Int[AnyArray, "B L"],
        positions_BL: Int[AnyArray, "B L"],
        angles_BLk: Float[Array, "B L k"] | None = None,
        cache: LayerCache | None = None,
    ) -> tuple[Float[Array, "B L D"], LayerCache]:
        D, K = self.spec.hidden_size, self.spec.head_dim
        H, G = self.spec.num_heads, self.spec.num_kv_heads
        q_BLHK = self._project("q", H, "heads", x_BLD)
        k_BLGK = self._project("k", G, "kv_heads", x_BLD)
        v_BLGK = self._project("v", G, "kv_heads", x_BLD)
        if self.layer.qk_norm:
            q_BLHK = self._norm("q_norm", H, "heads", q_BLHK)
            k_BLGK = self._norm("k_norm", G, "kv_heads", k_BLGK)
        rope = self.layer.rope
        if angles_BLk is not None and rope is not None:
            q_BLHK = layers.rotate(q_BLHK, angles_BLk, rope.attention_factor)
            k_BLGK = layers.rotate(k_BLGK, angles_BLk, rope.attention_factor)
        elif rope is not None:
            frequencies = layers.rope_frequencies(rope, K)
            q_BLHK = layers.apply_rope(q_BLHK, positions_BL, frequencies, rope.attention_factor)
            k_BLGK = layers.apply_rope(k_BLGK, positions_BL, frequencies, rope.attention_factor)
        if self.spec.query_factor != 1.0:
            q_BLHK = q_BLHK * self.spec.query_factor
        # Each device attends with its own heads; keys and values follow from the queries' layout.
        q_BLHK = sharding.with_logical_layout(
            q_BLHK, self.mesh, "batch", "length", "heads", "head_dim"
        )
        window = self.layer.sliding_window
        if cache is None:
            out_BLHK = causal_attention(
                q_BLHK,
                k_BLGK,
                v_BLGK,
                segments_BL,
                window=window,
                block=self.backend.block,
                backend=self.backend.name,
                most_segments=self.backend.most_segments,
                mesh=self.mesh,
            )
            cache = (k_BLGK.swapaxes(1, 2), v_BLGK.swapaxes(1, 2))
        else:
            out_BHK, cache = cached_attention(
                q_BLHK[:, 0],
                k_BLGK[:, 0],
                v_BLGK[:, 0],
                cache,
                positions_BL[:, 0],
                window=window,
                mesh=self.mesh,
            )
            out_BLHK = out_BHK[:, None]
        out = self._linear(
            "o",
            "BLHK,DHK->BLD",
            shape=(D, H, K),
            axes=("embed", "heads", "head_dim"),
            bias_dims=int(self.layer.o_bias),
        )
        return out(out_BLHK), cache

    def _project(self, name: str, n_heads: int, axis: str, x_BLD: Array) -> Array:
        """Queries, keys or values [B, L, heads, K]."""
        linear = self._linear(
            name,
            "BLD,HKD->BLHK",
            shape=(n_heads, self.spec.head_dim, self.spec.hidden_size),
            axes=(axis, "head_dim", "embed"),
            # A bias has the two dimensions of the outputs, heads and their width.
            bias_dims=2 * int(self.layer.qkv_bias),
        )
        return linear(x_BLD)

    def _linear(
        self, name: str, einsum: str, shape: tuple[int, ...], axes: tuple[str, ...], bias_dims: int
    ) -> layers.Linear:
        return layers.Linear(
            einsum,
            shape,
            axes,
            bias_dims,
            self.spec.init_std,
            self.param_dtype,
            sharding.platform(self.mesh),
            lora=self.lora,
            name=name,
        )

    def _norm(self, name: str, n_heads: int, axis: str, x_BLHK: Array) -> Array:
        """Of queries or keys: each head by itself, or all of a position together."""
        shape, axes = (self.spec.head_dim,), ("norm",)
        if self.layer.qk_norm == "width":
            # The scale lies where the heads do; the mean over all of them crosses devices.
            shape, axes = (n_heads, self.spec.head_dim), (axis, "head_dim")
        norm = layers.RMSNorm(
            shape,
            self.spec.rms_epsilon,
            self.param_dtype,
            sharding.platform(self.mesh),
            axes,
            self.spec.norm_offset,
            name=name,
        )
        return norm(x_BLHK)


class Layer(nn.Module):
    """Attention and feed-forward, each added to the residual stream, each with its norm."""

    spec: DecoderSpec
    layer: LayerSpec
    param_dtype: jnp.dtype
    mesh: AnyMesh
    backend: Backend
    lora: Lora | None = None
    keep_cache: bool = False

    @nn.compact
    def __call__(
        self,
        x_BLD: Float[Array, "B L D"],
        segments_BL: Int[AnyArray, "B L"],
        positions_BL: Int[AnyArray, "B L"],
        angles_BLk: Float[Array, "B L k"] | None = None,
        cache: LayerCache | None = None,
    ) -> tuple[Float[Array, "B L D"], LayerCache | None]:
        attention = Attention(
            self.spec,
            self.layer,
            self.param_dtype,
            self.mesh,
            self.backend,
            self.lora,
            name="attention",
        )
        feed_forward = self._feed_forward(segments_BL)
        x_BLD = checkpoint_name(x_BLD, rematerialisation.LAYER_INPUT)
        inputs_BLD = self._norm_before("attention_norm", x_BLD)
        out_BLD, cache = attention(inputs_BLD, segments_BL, positions_BL, angles_BLk, cache)
        x_BLD = x_BLD + self._norm_after("attention_norm", out_BLD)
        out_BLD = feed_forward(self._norm_before("mlp_norm", x_BLD))
        x_BLD = x_BLD + self._norm_after("mlp_norm", out_BLD)
        # Rows along the batch axes and the width whole, so that every layer begins as the first.
        x_BLD = sharding.with_logical_layout(
            x_BLD, self.mesh, "batch", "length", "embed_activation"
        )
        if not self.keep_cache:
            # Training keeps none: a scan would stack the keys and values of all layers.
            return x_BLD, None
        return x_BLD, cache

    def _feed_forward(self, segments_BL: Int[AnyArray, "B L"]) -> Callable[[Array], Array]:
        if self.layer.feed_forward == moe.NAME:
            experts = moe.Experts(self.spec, self.param_dtype, self.mesh, self.lora, name="mlp")
            return functools.partial(experts, segments_BL=segments_BL)
        return layers.FEED_FORWARDS[self.layer.feed_forward](
            self.spec,
            self.layer,
            self.param_dtype,
            sharding.platform(self.mesh),
            self.lora,
            name="mlp",
        )

    def _norm_before(self, name: str, x_BLD: Array) -> Array:
        """What goes into attention or feed-forward."""
        return x_BLD if self.layer.norm == "after" else self._norm(name, x_BLD)

    def _norm_after(self, name: str, x_BLD: Array) -> Array:
        """What is added to the residual stream."""
        if self.layer.norm == "before":
            return x_BLD
        # A layer with both has two of them, each with a name of its own.
        return self._norm(f"{name}_after" if self.layer.norm == "both" else name, x_BLD)

    def _norm(self, name: str, x_BLD: Array) -> Array:
        return _norm_of_width(self.spec, self.param_dtype, self.mesh, name)(x_BLD)


def _norm_of_width(
    spec: DecoderSpec, param_dtype: jnp.dtype, mesh: AnyMesh, name: str
) -> layers.RMSNorm:
    """Of the residual stream, or what is added to it; a part of the module that is running."""
    return layers.RMSNorm(
        (spec.hidden_size,),
        spec.rms_epsilon,
        param_dtype,
        sharding.platform(mesh),
        offset=spec.norm_offset,
        name=name,
    )


class Period(nn.Module):
    """One trip of a loop whose neighbouring layers differ.

    XLA holds the weights and gradients of a trip's layers together: of 24 layers in periods of
    four, a training step took 11 % more memory than of 24 equal ones, and the planner's account
    was within 10 %.
    """

    spec: DecoderSpec
    period: tuple[LayerSpec, ...]
    param_dtype: jnp.dtype
    mesh: AnyMesh
    backend: Backend
    remat: str
    lora: Lora | None = None

    @nn.compact
    def __call__(
        self,
        x_BLD: Float[Array, "B L D"],
        segments_BL: Int[AnyArray, "B L"],
        positions_BL: Int[AnyArray, "B L"],
        angles_BLk: Float[Array, "B L k"] | None = None,
    ) -> tuple[Float[Array, "B L D"], None]:
        for number, layer_spec in enumerate(self.period):
            layer = _layer_class(self.remat, self.lora)(
                self.spec,
                layer_spec,
                self.param_dtype,
                self.mesh,
                self.backend,
                self.lora,
                name=place_in_period(number),
            )
            x_BLD, _ = layer(x_BLD, segments_BL, positions_BL, angles_BLk)
        return x_BLD, None


def _layer_class(remat: str, lora: Lora | None) -> type[Layer]:
    policy = rematerialisation.policy_of(remat, is_adapted=lora is not None)
    if policy is None:
        return Layer
    # A scan's forward and backward pass are two loops: nothing of them can be merged, so nothing
    # has to prevent it.
    return nn.remat(Layer, policy=policy, prevent_cse=False)


class Stack(nn.Module):
    """All layers in order and the last norm: what training, prefilling and decoding all run."""

    spec: DecoderSpec
    param_dtype: jnp.dtype
    compute_dtype: jnp.dtype
    mesh: AnyMesh
    remat: str = "none"
    block: int = 512  # queries that `blocked` attention takes together
    backend: str = "blocked"  # of attention; see attention/select.py
    most_segments: int | None = None  # of a row; see types.Batch
    lora: Lora | None = None  # of the adapters, which only stacked layers can have

    def layers_and_norm(
        self,
        x_BLD: Float[Array, "B L D"],
        segments_BL: Int[AnyArray, "B L"],
        positions_BL: Int[AnyArray, "B L"],
        caches: Sequence[LayerCache | None] | None = None,
        angles_BLk: Float[Array, "B L k"] | None = None,
    ) -> tuple[Float[Array, "B L D"], list[LayerCache]]:
        """Embedded tokens to final hidden states; called by the `__call__` of a subclass.

        Without `caches`, as in training, the parameters of layers are stacked and the layers
        scanned. With them, one of each layer (None where it is still to be made), every layer has
        parameters of its own, and the extended caches are returned beside the hidden states.
        """
        extended = []
        if caches is None:
            for loop in self.spec.loops:
                x_BLD, _ = self._scanned(loop)(x_BLD, segments_BL, positions_BL, angles_BLk)
        else:
            for number, (layer_spec, cache) in enumerate(
                zip(self.spec.layers, caches, strict=True)
            ):
                layer = Layer(
                    self.spec,
                    layer_spec,
                    self.param_dtype,
                    self.mesh,
                    self._backend,
                    keep_cache=True,
                    name=f"layers_{number}",
                )
                x_BLD, cache = layer(x_BLD, segments_BL, positions_BL, angles_BLk, cache)
                # Rows along the batch axes, heads along `tensor`: the next token finds it so.
                extended.append(sharding.with_layout(cache, self.mesh, *CACHE_SPEC))
        norm = _norm_of_width(self.spec, self.param_dtype, self.mesh, "final_norm")
        return norm(x_BLD), extended

    @property
    def _backend(self) -> Backend:
        return Backend(self.backend, self.block, self.most_segments)

    def _scanned(self, loop: LayerLoop) -> nn.Module:
        """The layers of a loop, compiled once however many trips it has."""
        first, *others = loop.period
        if others:
            return _scan(Period, loop.times)(
                self.spec,
                loop.period,
                self.param_dtype,
                self.mesh,
                self._backend,
                remat=self.remat,
                lora=self.lora,
                name=loop.name,
            )
        return _scan(_layer_class(self.remat, self.lora), loop.times)(
            self.spec,
            first,
            self.param_dtype,
            self.mesh,
            self._backend,
            self.lora,
            name=loop.name,
        )


def _scan(body: type[nn.Module], times: int) -> Any:
    """A module that runs `body` so many times, its parameters and adapters stacked along a first
    axis.
    """
    in_axes: Any = (nn.broadcast,) * 3  # segments, positions, and angles where there are some
    return nn.scan(
        body,
        variable_axes={"params": 0, "lora": 0, routing.COLLECTION: 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        length=times,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


@dataclasses.dataclass(frozen=True)
class ImageTokens:
    """What a tower made of a batch's images, and where it goes; see types.ImageBatch."""

    features_BJD: Float[Array, "B J D"]
    units_BL: Int[AnyArray, "B L"]
    positions_BL3: Int[AnyArray, "B L 3"]

    def put_into(self, x_BLD: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Embedded tokens, those of images replaced by their features.

        That is a gather: every token looks up its unit, which lies in its own row.
        """
        places_BL1 = jnp.maximum(self.units_BL - 1, 0)[:, :, None]
        found_BLD = jnp.take_along_axis(self.features_BJD, places_BL1, axis=1)
        return jnp.where((self.units_BL > 0)[:, :, None], found_BLD.astype(x_BLD.dtype), x_BLD)

    def angles(self, spec: DecoderSpec) -> Float[Array, "B L k"]:
        """What queries and keys turn by, once for all layers, which have the same positions."""
        return angles_at(self.positions_BL3, spec)


def angles_at(positions_BL3: Int[AnyArray, "B L 3"], spec: DecoderSpec) -> Float[Array, "B L k"]:
    """What queries and keys turn by at times, rows and columns, in every layer; k is K/2."""
    rope = spec.layers[0].rope
    assert isinstance(rope, MRope), "only families with a tower have rows with images"
    return layers.mrope_angles(rope, spec.head_dim, positions_BL3)


class Decoder(Stack):
    """Token ids to final hidden states. The head is applied by `losses`, in chunks."""

    @nn.compact
    def __call__(
        self,
        tokens_BL: Int[AnyArray, "B L"],
        segments_BL: Int[AnyArray, "B L"],
        positions_BL: Int[AnyArray, "B L"],
        images: ImageTokens | None = None,
    ) -> Float[Array, "B L D"]:
        x_BLD = layers.embed(self._table("embed"), tokens_BL, self.compute_dtype)
        x_BLD = layers.scaled_embedding(x_BLD, self.spec)
        if not self.spec.tie_embeddings:
            self._table("head")  # declared here with everything else; used by the loss
        # Looking rows up leaves them as the table is cut; the layers want the width whole.
        x_BLD = sharding.with_logical_layout(
            x_BLD, self.mesh, "batch", "length", "embed_activation"
        )
        angles_BLk = None
        if images is not None:
            x_BLD = images.put_into(x_BLD)
            angles_BLk = images.angles(self.spec)
        rope = self.spec.long_rope
        if rope is not None:
            n = sharding.n_parts(tokens_BL.shape[1], self.mesh)
            # It looks for other tokens of an example, at their places in the row.
            is_long_BL = longrope.is_in_long_text(
                sharding.in_row_order(segments_BL, n),
                sharding.in_row_order(positions_BL, n),
                rope.original_context,
            )
            is_long_BL = sharding.in_parts(is_long_BL, n)
            angles_BLk = longrope.angles_of_texts(
                rope, self.spec.head_dim, positions_BL, is_long_BL
            )
        hidden_BLD, _ = self.layers_and_norm(
            x_BLD, segments_BL, positions_BL, angles_BLk=angles_BLk
        )
        return hidden_BLD

    def _table(self, name: str) -> Any:
        """The embedding or the head [V, D]."""
        init = nn.with_partitioning(nn.initializers.normal(self.spec.init_std), ("vocab", "embed"))
        shape = (self.spec.vocab_size, self.spec.hidden_size)
        return self.param(name, init, shape, self.param_dtype)
