"""The decoder-only transformer that the supported families share, as a Flax Linen module."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from dft_jax import sharding
from dft_jax.models import layers
from dft_jax.models.attention.cached import cached_attention
from dft_jax.models.attention.masked import causal_attention
from dft_jax.models.spec import DecoderSpec

# What the backward pass finds saved: everything, the results of matrix products, or only each
# layer's input.
REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions; q/k norm and biases as the family has
    them.

    With a `cache` the rows are single tokens that extend it (see `cached_attention`). Returned
    beside the output are the keys and values: the extended cache, or those of the rows as a cache
    [B, G, L, K].
    """

    config: DecoderSpec
    param_dtype: jnp.dtype
    mesh: Mesh
    block: int
    backend: str

    @nn.compact
    def __call__(self, x_BLD, segments_BL, positions_BL, cache=None):
        c = self.config
        D, H, G, K = c.hidden_size, c.num_heads, c.num_kv_heads, c.head_dim

        def linear(name, einsum, shape, axes, bias_dims):
            platform = sharding.platform(self.mesh)
            return layers.Linear(
                einsum, shape, axes, bias_dims, c.init_std, self.param_dtype, platform, name=name
            )

        def project(name, heads, axis):
            axes, bias_dims = (axis, "head_dim", "embed"), 2 if c.qkv_bias else 0
            return linear(name, "BLD,HKD->BLHK", (heads, K, D), axes, bias_dims)(x_BLD)

        q_BLHK, k_BLGK, v_BLGK = (
            project("q", H, "heads"),
            project("k", G, "kv_heads"),
            project("v", G, "kv_heads"),
        )
        if c.qk_norm:
            q_BLHK = layers.RMSNorm(K, c.rms_epsilon, self.param_dtype, name="q_norm")(q_BLHK)
            k_BLGK = layers.RMSNorm(K, c.rms_epsilon, self.param_dtype, name="k_norm")(k_BLGK)
        frequencies = layers.rope_frequencies(c.rope, K)
        q_BLHK = layers.apply_rope(q_BLHK, positions_BL, frequencies, c.rope.attention_factor)
        k_BLGK = layers.apply_rope(k_BLGK, positions_BL, frequencies, c.rope.attention_factor)
        q_BLHK = sharding.with_logical_layout(
            q_BLHK, self.mesh, "batch", "length", "heads", "head_dim"
        )
        if cache is None:
            how = dict(
                window=c.sliding_window, block=self.block, backend=self.backend, mesh=self.mesh
            )
            out_BLHK = causal_attention(q_BLHK, k_BLGK, v_BLGK, segments_BL, **how)
            cache = (k_BLGK.swapaxes(1, 2), v_BLGK.swapaxes(1, 2))
        else:
            new = (q_BLHK[:, 0], k_BLGK[:, 0], v_BLGK[:, 0])
            out_BHK, cache = cached_attention(
                *new, cache, positions_BL[:, 0], window=c.sliding_window, mesh=self.mesh
            )
            out_BLHK = out_BHK[:, None]
        out = linear(
            "o", "BLHK,DHK->BLD", (D, H, K), ("embed", "heads", "head_dim"), 1 if c.o_bias else 0
        )
        return out(out_BLHK), cache


class Layer(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream. Scanned over layers
    in training.
    """

    config: DecoderSpec
    param_dtype: jnp.dtype
    mesh: Mesh
    block: int
    backend: str = "blocked"
    keep_cache: bool = False

    @nn.compact
    def __call__(self, x_BLD, segments_BL, positions_BL, cache=None):
        c = self.config

        def norm(name):
            return layers.RMSNorm(c.hidden_size, c.rms_epsilon, self.param_dtype, name=name)

        attention = Attention(
            c, self.param_dtype, self.mesh, self.block, self.backend, name="attention"
        )
        out_BLD, cache = attention(norm("attention_norm")(x_BLD), segments_BL, positions_BL, cache)
        x_BLD = x_BLD + out_BLD
        mlp = layers.MLP(c, self.param_dtype, sharding.platform(self.mesh), name="mlp")
        x_BLD = x_BLD + mlp(norm("mlp_norm")(x_BLD))
        x_BLD = sharding.with_logical_layout(
            x_BLD, self.mesh, "batch", "length", "embed_activation"
        )
        return x_BLD, cache if self.keep_cache else None


class Decoder(nn.Module):
    """Token ids to final hidden states (after the last norm). The head is applied by `losses`, in
    chunks.
    """

    config: DecoderSpec
    param_dtype: jnp.dtype
    compute_dtype: jnp.dtype
    mesh: Mesh
    remat: str = "none"
    block: int = 512
    backend: str = "blocked"  # of attention; see attention_backends.py

    @nn.compact
    def __call__(
        self,
        tokens_BL: Int[Array, "B L"],
        segments_BL: Int[Array, "B L"],
        positions_BL: Int[Array, "B L"],
    ) -> Float[Array, "B L D"]:
        c = self.config

        def table(name):
            init = nn.with_partitioning(nn.initializers.normal(c.init_std), ("vocab", "embed"))
            return self.param(name, init, (c.vocab_size, c.hidden_size), self.param_dtype)

        x_BLD = layers.embed(table("embed"), tokens_BL, self.compute_dtype)
        if not c.tie_embeddings:
            table("head")  # declared here with everything else; used by the loss
        x_BLD = sharding.with_logical_layout(
            x_BLD, self.mesh, "batch", "length", "embed_activation"
        )
        layer = Layer
        if (policy := REMAT_POLICIES[self.remat]) is not None:
            # inside a scan nothing can be merged
            layer = nn.remat(Layer, policy=policy, prevent_cse=False)
        stack = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=c.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        layers_ = stack(c, self.param_dtype, self.mesh, self.block, self.backend, name="layers")
        x_BLD, _ = layers_(x_BLD, segments_BL, positions_BL)
        return layers.RMSNorm(c.hidden_size, c.rms_epsilon, self.param_dtype, name="final_norm")(
            x_BLD
        )
