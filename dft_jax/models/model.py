"""Models as pure functions over a plain params tree; Flax Linen stays inside this folder."""

import dataclasses
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dft_jax import sharding
from dft_jax.models import moe, parts as parts_lib, routing as routing_lib
from dft_jax.models.abstract import abstract_of, layouts_of
from dft_jax.models.attention.select import choose_attention, require as require_attention
from dft_jax.models.decoder import Decoder, ImageTokens
from dft_jax.models.lora import Lora
from dft_jax.models.parts import VISION
from dft_jax.models.rematerialisation import REMAT_POLICIES, require as require_memory
from dft_jax.models.spec import DecoderSpec
from dft_jax.models.vision import Tower, build_tower
from dft_jax.types import (
    Adapted,
    AnyMesh,
    Batch,
    FeatureBatch,
    ImageBatch,
    Params,
    Weights,
)

# of `build`, and of config.model
OPTIONS = ("param_dtype", "compute_dtype", "remat", "attention_block")
__all__ = [
    "OPTIONS",
    "REMAT_POLICIES",
    "DecoderSpec",
    "Model",
    "apply_with_routing",
    "balanced",
    "build",
    "cast_layers",
    "head",
    "image_tokens",
    "layouts_of",
    "matmul_precision",
    "require_of_devices",
    "split",
    "with_attention",
    "with_backend",
    "with_lora",
    "with_tower",
]


@dataclasses.dataclass(frozen=True)
class Model:
    """A decoder on a mesh; nothing is allocated.

    `abstract_params` holds shape, dtype and sharding of every leaf. `init(key)` gives random
    parameters laid out so, `apply(params, batch)` the final hidden states. Where the mesh cuts
    rows the batch is a balanced one (`balanced`), and hidden states lie as its tokens.

    With `lora` the parameters are frozen: `apply(params, batch, adapters)`. Without the adapters
    that is the model as it was before them.

    With a `tower` the parameters have its own under VISION, and batches may have images
    (`with_tower`). Of the parameters those of `parts` are trained.
    """

    config: DecoderSpec
    module: Decoder
    abstract_params: Params
    init: Callable[[jax.Array], Params]
    apply: Callable[..., Float[Array, "B L D"]]
    abstract_adapters: Params | None = None
    tower: Tower | None = None
    parts: str = parts_lib.TEXT

    @property
    def lora(self) -> Lora | None:
        return self.module.lora

    @property
    def compiler_options(self) -> dict[str, Any]:
        """For `jax.jit` of a program that applies the model."""
        return moe.compiler_options(self.config.experts, sharding.platform(self.mesh))

    @property
    def trainable(self) -> Params:
        """What training changes: `abstract_adapters`, or without `lora` the parameters in `parts`,
        which are all of a model without a tower.
        """
        if self.lora is not None:
            return self.abstract_adapters
        return self.divide(self.abstract_params)[0]

    @property
    def abstract_base(self) -> Params | None:
        """What is computed with and not trained; None where all is trained."""
        if self.lora is not None:
            return self.abstract_params
        return self.divide(self.abstract_params)[1]

    def divide(self, params: Params) -> tuple[Params, Params | None]:
        """Of parameters those that are trained, without `lora`, and the rest; None without rest."""
        return parts_lib.divide(params, self.parts)

    def join(self, trained: Params, base: Params | None) -> Weights:
        """What the model computes with, of what is trained, and what is beneath or beside it."""
        if base is None:
            return trained
        if self.lora is not None:
            return Adapted(base, trained)
        return parts_lib.merge(trained, base)

    @property
    def trains_head(self) -> bool:
        """Whether a gradient of the output head is needed."""
        return self.lora is None and "embed" in self.trainable

    @property
    def abstract_weights(self) -> Weights:
        """Of all that it computes with."""
        if self.lora is None:
            return self.abstract_params
        return Adapted(self.abstract_params, self.abstract_adapters)

    @property
    def mesh(self) -> Any:
        """The mesh of `build`. Where its devices are used it is a Mesh, not only an AnyMesh."""
        return self.module.mesh


def build(
    config: DecoderSpec,
    mesh: AnyMesh,
    *,
    param_dtype: str = "float32",
    compute_dtype: str = "float32",
    remat: str = "none",
    attention_block: int = 512,
    lora: Lora | None = None,
) -> Model:
    """The model of `config` on `mesh`, which may be one of devices that need not be there.

    `remat` is a name in REMAT_POLICIES; `attention_block` is how many queries attend together.
    """
    module = Decoder(
        spec=config,
        param_dtype=jnp.dtype(param_dtype),
        compute_dtype=jnp.dtype(compute_dtype),
        mesh=mesh,
        remat=remat,
        block=attention_block,
        lora=lora,
    )
    # the fewest rows that every device has a part of
    rows = sharding.batch_shards(mesh)

    def init_boxed(key: jax.Array) -> dict[str, Params]:
        tokens_BL = jnp.zeros((rows, 1), jnp.int32)
        return dict(module.init(key, tokens_BL, tokens_BL, tokens_BL))

    found = abstract_of(jax.eval_shape(lambda: init_boxed(jax.random.key(0))), mesh)
    abstract_params = found["params"]
    layouts = layouts_of(abstract_params)

    init = jax.jit(lambda key: nn.meta.unbox(init_boxed(key)["params"]), out_shardings=layouts)
    apply = functools.partial(_apply, module)
    return Model(config, module, abstract_params, init, apply, found.get("lora"))


def balanced(batch: Batch, mesh: AnyMesh) -> Batch:
    """A batch [B, L] whose positions lie so that devices along `sequence` have as much to do.

    Cut one after another, the last of n devices would have (2n - 1) / n times the mean of causal
    attention, and of one long example all that is trained. Inside jit; nothing is exchanged, for
    each device has all positions of its rows until the model cuts them.
    """
    n = sharding.n_parts(batch.tokens_BL.shape[1], mesh)
    if n == 1:
        return batch
    weights_BL, images = batch.weights_BL, batch.images
    if weights_BL is not None:
        weights_BL = sharding.in_parts(weights_BL, n)
    if images is not None:
        # Patches and features stay: each token says which of them it is.
        images = dataclasses.replace(
            images,
            units_BL=sharding.in_parts(images.units_BL, n),
            positions_BL3=sharding.in_parts(images.positions_BL3, n),
        )
    return dataclasses.replace(
        batch,
        tokens_BL=sharding.in_parts(batch.tokens_BL, n),
        targets_BL=sharding.in_parts(batch.targets_BL, n),
        mask_BL=sharding.in_parts(batch.mask_BL, n),
        segments_BL=sharding.in_parts(batch.segments_BL, n),
        positions_BL=sharding.in_parts(batch.positions_BL, n),
        weights_BL=weights_BL,
        images=images,
        n_parts=n,
    )


def _apply(
    module: Decoder,
    params: Params,
    batch: Batch,
    adapters: Params | None = None,
    tower: Tower | None = None,
    collections: tuple[str, ...] = (),
) -> Any:
    """Final hidden states; with names of collections what modules leave there, beside them."""
    expected = sharding.n_parts(batch.tokens_BL.shape[1], module.mesh)
    assert batch.n_parts == expected, "the mesh cuts these rows: balanced() comes first"
    images = None
    if batch.images is not None:
        images = image_tokens(tower, params, batch.images)
    if tower is not None:
        params = parts_lib.text_of(params)
    # Part of the shape, so of the module: an argument of a scanned layer would be traced.
    module = module.clone(most_segments=batch.most_segments)
    variables = {"params": params}
    if adapters is None:
        # A reference, which is not differentiated: the model beneath.
        module = module.clone(lora=None)
    else:
        variables["lora"] = adapters
    given = batch.tokens_BL, batch.segments_BL, batch.positions_BL, images
    if not collections:
        return module.apply(variables, *given)
    return module.apply(variables, *given, mutable=collections)


def apply_with_routing(
    model: Model, params: Params, batch: Batch, adapters: Params | None = None
) -> tuple[Float[Array, "B L D"], routing_lib.Routing | None]:
    """`Model.apply`, and how tokens were spread over experts; None of a model without any."""
    if model.config.experts is None:
        return model.apply(params, batch, adapters), None
    names = (routing_lib.COLLECTION,)
    hidden_BLD, left = _apply(model.module, params, batch, adapters, model.tower, names)
    return hidden_BLD, routing_lib.collect(left)


def image_tokens(
    tower: Tower | None, params: Params, images: ImageBatch | FeatureBatch
) -> ImageTokens:
    """What the tower makes of a batch's images, or has made; `params` has its own under VISION."""
    assert tower is not None, "rows with images are for models with a tower"
    if isinstance(images, FeatureBatch):
        features_BJD = images.features_BJD
    else:
        features_BJD = tower.apply(params[VISION], images)
    return ImageTokens(features_BJD, images.units_BL, images.positions_BL3)


def with_attention(model: Model, asked: str) -> Model:
    """The model with the attention backend that config.model.attention, `asked`, comes to.

    As built it has `blocked`, which runs anywhere.
    """
    dtype = str(model.module.compute_dtype)
    with matmul_precision(dtype):
        backend = choose_attention(asked, model.config, model.mesh, dtype, model.module.block)
    return with_backend(model, backend)


def require_of_devices(model: Model, asked: str) -> None:
    """UserError where the mesh's devices lack what is asked for by name, as far as can be said
    without compiling: config.model.attention, `asked`, or memory that rematerialisation saves in.
    """
    require_attention(asked, model.config, model.mesh, str(model.module.compute_dtype))
    require_memory(model.module.remat, model.mesh.local_devices)


def with_backend(model: Model, backend: str) -> Model:
    """The model with an attention backend by name, one of BACKENDS, which nobody has tested."""
    module = model.module.clone(backend=backend)
    apply = functools.partial(_apply, module, tower=model.tower)
    return dataclasses.replace(model, module=module, apply=apply)


def with_tower(model: Model, parts: str = parts_lib.TEXT) -> Model:
    """The model with its tower, for rows with images; of both, `parts` is trained.

    Args:
      parts: one of parts.PARTS.
    """
    spec, module = model.config.vision, model.module
    assert spec is not None, "a model for text alone has no tower"
    tower = build_tower(
        spec,
        model.mesh,
        param_dtype=str(module.param_dtype),
        compute_dtype=str(module.compute_dtype),
        remat=module.remat != "none" and parts == parts_lib.ALL,
    )

    def init(key: jax.Array) -> Params:
        text = parts_lib.text_of(model.init(key))
        # A key of its own: those of the text are the same as without images.
        return text | {VISION: tower.init(jax.random.fold_in(key, 1))}

    return dataclasses.replace(
        model,
        abstract_params=model.abstract_params | {VISION: tower.abstract_params},
        init=init,
        apply=functools.partial(_apply, module, tower=tower),
        tower=tower,
        parts=parts,
    )


def with_lora(model: Model, lora: Lora | None, param_dtype: str | None = None) -> Model:
    """The model with such adapters, or without any; and with parameters of another dtype."""
    module = model.module
    built = build(
        model.config,
        model.mesh,
        param_dtype=param_dtype or str(module.param_dtype),
        compute_dtype=str(module.compute_dtype),
        remat=module.remat,
        attention_block=module.block,
        lora=lora,
    )
    if model.tower is not None:
        built = with_tower(built, model.parts)
    return with_backend(built, module.backend)


def split(weights: Weights) -> tuple[Params, Params | None]:
    """Parameters, and adapters where there are any."""
    if isinstance(weights, Adapted):
        return weights.params, weights.adapters
    return weights, None


def matmul_precision(compute_dtype: str) -> AbstractContextManager:
    """Context in which float32 means float32.

    Without it, TPUs and GPUs multiply float32 matrices in bfloat16 or tf32.
    """
    if compute_dtype == "float32":
        return jax.default_matmul_precision("highest")
    return jax.default_matmul_precision("default")


def cast_layers(params: Params, model: Model) -> Params:
    """The parameters with those of all layers in the compute dtype, where that is narrower.

    A layer casts its own, with the same result. Cast beforehand they are cast once, not in every
    micro-batch; nothing of each one's cast is kept for its backward pass, and gradients come in the
    compute dtype. The tables stay as they are: their gradients are sums over many tokens, which are
    added up in float32.
    """
    dtype = model.module.compute_dtype
    if dtype.itemsize >= model.module.param_dtype.itemsize:
        return params
    made = {}
    for name, part in params.items():
        if name not in ("embed", "head"):
            part = jax.tree.map(lambda leaf: leaf.astype(dtype), part)
        made[name] = part
    return made


def head(params: Params) -> Float[Array, "V D"]:
    """The output head: its own table, or the embedding when the checkpoint ties them."""
    return params.get("head", params["embed"])


def parameter_count(abstract_params: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params))
