"""Models as the planner builds them: on devices that need not be there."""

from typing import Any

import jax

from dft_jax import sharding
from dft_jax.data import batches, image_rows, image_settings, packing
from dft_jax.models import model as models
from dft_jax.models.lora import Lora, is_adapted
from dft_jax.models.model import DecoderSpec, Model
from dft_jax.planner import devices
from dft_jax.runtime.options import Config
from dft_jax.sharding import Sizes, SomeSizes
from dft_jax.training.adapters import lora_for
from dft_jax.types import Batch, FeatureBatch, Frozen, Hyperparameters, ImageBatch

# Of a row's examples, tokens: kernels of attention take memory for each example that a row may
# have, which nobody knows without the data. Of mathematics a row of 2048 has about ten.
_LEAST_MEAN_LENGTH = 64


def build(
    config: Config,
    architecture: DecoderSpec,
    device: devices.Device,
    mesh: SomeSizes,
    remat: str = "none",
    lora: Lora | None = None,
) -> Model:
    """The model of this architecture on `mesh`, computed as the config says.

    Args:
      device: whose backend of attention it gets.
      mesh: devices along its axes.
      lora: see `lora_of`.
    """
    settings: dict[str, Any] = {name: config.model[name] for name in models.OPTIONS}
    settings["remat"] = remat
    absent = sharding.abstract_mesh(mesh, device.platform)
    model = models.build(architecture, absent, **settings, lora=lora)
    if architecture.vision is not None:
        # Rows with images take more than rows of text alone, for which there need be no tower.
        model = models.with_tower(model, config.train.parts)
    ways = Sizes(*mesh).sequence
    asked, computed = config.model.attention, config.model.compute_dtype
    return models.with_backend(model, device.attention(asked, architecture, computed, ways))


def patches_of(config: Config, architecture: DecoderSpec) -> int:
    """Patches of images in a row, as many as it has room for; of a model without a tower none."""
    vision = architecture.vision
    if vision is None:
        return 0
    return packing.round_up(image_settings.max_patches(config.data), vision.window_patches)


def images_of(
    config: Config, architecture: DecoderSpec, shape_ABL: tuple[int, int, int]
) -> ImageBatch | FeatureBatch | None:
    """The shapes of a step's images, or of their features where these are kept, of one device."""
    dtype = config.model.compute_dtype if config.data.image_features else ""
    n_patches = patches_of(config, architecture)
    return image_rows.abstract_images(shape_ABL, None, architecture.vision, n_patches, dtype)


def batch_of(
    config: Config, architecture: DecoderSpec, accumulation: int, rows: int, ways: int
) -> Batch:
    """The shapes of a step's batch, [A, B, L], of one device, which works on one of `ways` parts of
    its rows.
    """
    length = batches.row_length(config.data)
    shape = (accumulation, rows, length // ways)
    integers = jax.ShapeDtypeStruct(shape, "int32")
    booleans = jax.ShapeDtypeStruct(shape, "bool")
    weights = None
    if batches.may_weigh(config.data):
        weights = jax.ShapeDtypeStruct(shape, "float32")
    # Of the whole row: a device's part may have all of its short examples.
    most_segments = max(length // _LEAST_MEAN_LENGTH, 1)
    images = images_of(config, architecture, shape)
    return Batch(integers, integers, booleans, integers, integers, most_segments, weights, images)


def lora_of(config: Config, architecture: DecoderSpec) -> Lora | None:
    """The adapters that the config asks for; None where all is trained.

    Raises:
      UserError: they do not fit the architecture.
    """
    section = config.get("lora")
    # A model is built for the check alone: plans of full fine-tuning need none.
    if not is_adapted(section):
        return None
    return lora_for(section, models.build(architecture, sharding.abstract_mesh((1, 1, 1))))


def frozen_of(model: Model, hyperparameters: Hyperparameters, needs_reference: bool) -> Frozen:
    """The shapes of what a step reads and never changes."""
    reference = None
    if needs_reference and model.lora is None:
        reference = model.trainable
    return Frozen(hyperparameters, reference, model.abstract_base)
