"""The decoder with a cache of keys and values: whole prompts, then one token of each row at a time.

Training scans over stacked layers, to compile one. Here every layer has its own arrays, in the
compute dtype: a loop that makes tokens would otherwise copy each layer's weights out of the stack,
and its cache out and in, at every token.

The head is cut for drawing tokens: head_UDMW is U chunks of M blocks of W tokens, transposed so
that XLA's CPU compiler does not do that for each product (it took two thirds of the time of a
token).
Further letters here and in `sampling`: S places of a cache, B rows (slots, or prompts).
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from dft_jax import sharding
from dft_jax.models.adapters import layer_of, merged_layer
from dft_jax.models.attention.cached import LayerCache
from dft_jax.models.decoder import Stack, angles_at
from dft_jax.models.layers import embed, scaled_embedding
from dft_jax.models.longrope import angles_of_texts
from dft_jax.models.model import Model, balanced, head, image_tokens, split
from dft_jax.models.parts import VISION
from dft_jax.models.spec import LayerPlace, at
from dft_jax.types import AnyMesh, Batch, ImageBatch, Params, Weights

VOCAB_BLOCK = 256  # tokens whose logits are summed up before one of their blocks is chosen
_BLOCKS_AT_ONCE = 40  # blocks whose logits exist at once
Cache = list[LayerCache]  # of all layers


def unstack(weights: Weights, *, model: Model) -> Params:
    """The parameters for inference: "embed" (absent if tied), "head", "final_norm" and "layers".

    "layers" is a list with the parameters of each. `head` is [chunks, D, blocks, VOCAB_BLOCK]. Of a
    model with a tower its own are under VISION, as in training. All are in the compute dtype, laid
    out on the mesh as in training; adapters are merged into their kernels, in float32. Jitted by
    the caller.
    """
    params, adapters = split(weights)
    dtype = model.module.compute_dtype
    mesh = model.mesh
    c = model.config

    def take_layer(place: LayerPlace) -> Params:
        def take(layer_param: jax.Array, abstract: jax.ShapeDtypeStruct) -> jax.Array:
            # The spec's first axis is that of the layers, which is not cut.
            layout = abstract.sharding.spec[1:]
            return sharding.with_layout(layer_param.astype(dtype), mesh, *layout)

        layer = layer_of(params, place)
        if adapters is not None and model.lora is not None:
            layer = merged_layer(layer, layer_of(adapters, place), model.lora.scale)
        return jax.tree.map(take, layer, at(model.abstract_params, place.path))

    made = {
        "head": _cut_head(head(params).astype(dtype), mesh),
        "final_norm": jax.tree.map(lambda x: x.astype(dtype), params["final_norm"]),
        "layers": [take_layer(place) for place in c.layer_places()],
    }
    if "head" in params:
        # As the table is cut in training.
        layout = model.abstract_params["embed"].sharding.spec
        made["embed"] = sharding.with_layout(params["embed"].astype(dtype), mesh, *layout)
    if model.tower is not None:

        def take_whole(param: jax.Array, abstract: jax.ShapeDtypeStruct) -> jax.Array:
            return sharding.with_layout(param.astype(dtype), mesh, *abstract.sharding.spec)

        made[VISION] = jax.tree.map(take_whole, params[VISION], model.tower.abstract_params)
    return made


def _cut_head(head_VD: Float[Array, "V D"], mesh: AnyMesh) -> Float[Array, "U D M W"]:
    """The head in chunks of blocks of tokens; the vocabulary is padded so that all are equal."""
    V, D = head_VD.shape
    n_tensor = mesh.shape["tensor"]
    n_blocks = -(-V // VOCAB_BLOCK)
    U = -(-n_blocks // _BLOCKS_AT_ONCE)
    M = -(-n_blocks // (U * n_tensor)) * n_tensor
    padded_VD = jnp.pad(head_VD, ((0, U * M * VOCAB_BLOCK - V), (0, 0)))
    head_UDMW = padded_VD.reshape(U, M, VOCAB_BLOCK, D).transpose(0, 3, 1, 2)
    # Blocks lie along `tensor`, the width as in training.
    width_axis = sharding.spec((D,), ("embed",), mesh)
    return sharding.with_layout(head_UDMW, mesh, None, *width_axis, "tensor")


def prefill(
    params: Params,
    model: Model,
    tokens_BL: Int[Array, "B L"],
    lengths_B: Int[Array, " B"],
    images: ImageBatch | None = None,
) -> tuple[Float[Array, "B D"], Cache]:
    """Runs prompts, padded on the right to L, from position 0.

    Args:
      images: those of the prompts, of a model with a tower; with them the positions of all tokens.

    Returns:
      The final hidden state of each prompt's last token, and the cache [B, G, L, K] of every layer.
    """
    B, L = tokens_BL.shape
    positions_BL = jnp.broadcast_to(jnp.arange(L, dtype=jnp.int32)[None, :], (B, L))
    # causal: what comes after the prompt is not seen by it
    segments_BL = jnp.ones((B, L), jnp.int32)
    # Where the mesh cuts rows, positions lie as attention wants them.
    prompts = Batch(tokens_BL, tokens_BL, segments_BL, segments_BL, positions_BL, images=images)
    prompts = balanced(prompts, model.mesh)
    positions_BL = prompts.positions_BL
    x_BLD, angles_BLk = _embed(params, model, prompts.tokens_BL), None
    if prompts.images is not None:
        found = image_tokens(model.tower, params, prompts.images)
        x_BLD, angles_BLk = found.put_into(x_BLD), found.angles(model.config)
    rope = model.config.long_rope
    if rope is not None:
        is_long_BL = jnp.tile((lengths_B > rope.original_context)[:, None], (1, L))
        angles_BLk = angles_of_texts(rope, model.config.head_dim, positions_BL, is_long_BL)
    no_cache = [None] * model.config.num_layers
    hidden_BLD, cache = _layers(
        params, model, x_BLD, segments_BL, positions_BL, no_cache, angles_BLk
    )
    last_B1 = jnp.maximum(lengths_B - 1, 0)[:, None]
    if prompts.n_parts > 1:
        # Where each place of the row lies.
        lies_at_L = np.argsort(sharding.places_in_parts(L, prompts.n_parts))
        last_B1 = jnp.asarray(lies_at_L)[last_B1]
        cache = jax.tree.map(lambda x_BGLK: x_BGLK[:, :, lies_at_L], cache)
    return jnp.take_along_axis(hidden_BLD, last_B1[:, :, None], axis=1)[:, 0], cache


def decode(
    params: Params,
    model: Model,
    tokens_B: Int[Array, " B"],
    places_B: Int[Array, " B"],
    cache: Cache,
    deltas_B: Int[Array, " B"] | None = None,
) -> tuple[Float[Array, "B D"], Cache]:
    """Runs one more token of each row, at its place in the cache. Returns final hidden states and
    the extended cache.

    Args:
      deltas_B: position - place of the tokens that follow each prompt; None of a model without a
        tower. An image has fewer positions than tokens (image_rows.positions_of): behind one of
        2 × 3 units it is -3, and the token at place 12 turns by 9.
    """
    places_B1, tokens_B1 = places_B[:, None], tokens_B[:, None]
    segments_B1, angles_B1k = jnp.ones_like(places_B1), None
    if deltas_B is not None:
        # Of text: time, row and column are one number.
        positions_B13 = jnp.tile((places_B + deltas_B)[:, None, None], (1, 1, 3))
        angles_B1k = angles_at(positions_B13, model.config)
    rope = model.config.long_rope
    if rope is not None:
        # What is in the cache has to be of the same kind: the caller prefills anew where a text
        # becomes a long one (`first_long_length`).
        is_long_B1 = places_B1 >= rope.original_context
        angles_B1k = angles_of_texts(rope, model.config.head_dim, places_B1, is_long_B1)
    x_B1D = _embed(params, model, tokens_B1)
    hidden_B1D, cache = _layers(params, model, x_B1D, segments_B1, places_B1, cache, angles_B1k)
    return hidden_B1D[:, 0], cache


class CachedDecoder(Stack):
    """Embedded tokens to final hidden states, with parameters of its own for every layer."""

    @nn.compact
    def __call__(
        self,
        x_BLD: Float[Array, "B L D"],
        segments_BL: Int[Array, "B L"],
        positions_BL: Int[Array, "B L"],
        caches: Sequence[LayerCache | None],
        angles_BLk: Float[Array, "B L k"] | None = None,
    ) -> tuple[Float[Array, "B L D"], Cache]:
        return self.layers_and_norm(x_BLD, segments_BL, positions_BL, caches, angles_BLk)


def _layers(
    params: Params,
    model: Model,
    x_BLD: Float[Array, "B L D"],
    segments_BL: Int[Array, "B L"],
    positions_BL: Int[Array, "B L"],
    caches: Sequence[LayerCache | None],
    angles_BLk: Float[Array, "B L k"] | None,
) -> tuple[Float[Array, "B L D"], Cache]:
    module = model.module
    # Parameters are in the compute dtype already. Prompts go the `blocked` way, which all run.
    decoder = CachedDecoder(
        spec=model.config,
        param_dtype=module.compute_dtype,
        compute_dtype=module.compute_dtype,
        mesh=module.mesh,
        block=module.block,
    )
    variables = {"final_norm": params["final_norm"]}
    for number, layer_params in enumerate(params["layers"]):
        variables[f"layers_{number}"] = layer_params
    found: Any = decoder.apply(
        {"params": variables}, x_BLD, segments_BL, positions_BL, caches, angles_BLk
    )
    return found


def _embed(params: Params, model: Model, tokens_BL: Int[Array, "B L"]) -> Float[Array, "B L D"]:
    if "embed" in params:
        x_BLD = embed(params["embed"], tokens_BL, model.module.compute_dtype)
    else:
        blocks_BL, rows_BL = tokens_BL // VOCAB_BLOCK, tokens_BL % VOCAB_BLOCK
        x_BLD = head_rows(params["head"], blocks_BL, model.mesh, rows_BL)
    x_BLD = scaled_embedding(x_BLD, model.config)
    # The layers want the width whole on every device.
    return sharding.with_logical_layout(x_BLD, model.mesh, "batch", "length", "embed_activation")


def head_rows(
    head_UDMW: Float[Array, "U D M W"],
    blocks_X: Int[Array, "*X"],
    mesh: AnyMesh,
    rows_X: Int[Array, "*X"] | None = None,
) -> Array:
    """Blocks of the head, [*X, D, W], or one row of each, [*X, D], on every device.

    Each device looks its own part of the head up; without this, XLA would first bring all of the
    head together.
    """
    n_blocks = head_UDMW.shape[2]
    (width_axis,) = sharding.spec(head_UDMW.shape[1:2], ("embed",), mesh)

    def look_up(head_udmw: Array, blocks_X: Array, rows_X: Array | None) -> Array:
        """On one device, of whose part of the head the axes are small letters."""
        m = head_udmw.shape[2]
        block_X = blocks_X % n_blocks - lax.axis_index("tensor") * m
        is_here_X = (block_X >= 0) & (block_X < m)
        chunk_X, block_X = blocks_X // n_blocks, jnp.clip(block_X, 0, m - 1)
        if rows_X is None:
            found = head_udmw[chunk_X, :, block_X]
        else:
            found = head_udmw[chunk_X, :, block_X, rows_X]
        new_axes = tuple(range(is_here_X.ndim, found.ndim))
        found = jnp.where(jnp.expand_dims(is_here_X, new_axes), found, 0)
        # One device has it, the others have zeros.
        return lax.psum(found, "tensor")

    look_up_everywhere = jax.shard_map(
        look_up,
        mesh=mesh,
        in_specs=(P(None, width_axis, "tensor"), P(), P()),
        out_specs=P(*[None] * blocks_X.ndim, width_axis),
    )
    # Gathers the width, and gives every device all of it.
    return sharding.with_layout(look_up_everywhere(head_UDMW, blocks_X, rows_X), mesh)
