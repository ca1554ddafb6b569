"""Models as the planner builds them: on devices that need not be there."""

from typing import Any

from dft_jax import sharding
from dft_jax.models import model as models
from dft_jax.models.lora import Lora, is_adapted
from dft_jax.models.model import DecoderSpec, Model
from dft_jax.planner import devices
from dft_jax.runtime.options import Config
from dft_jax.training.adapters import lora_for
from dft_jax.types import Frozen, Hyperparameters


def build(
    config: Config,
    architecture: DecoderSpec,
    device: devices.Device,
    mesh: tuple[int, int, int],
    remat: str = "none",
    lora: Lora | None = None,
) -> Model:
    """The model of this architecture on `mesh`, computed as the config says.

    Args:
      device: whose backend of attention it gets.
      mesh: sizes of data, fsdp and tensor.
      lora: see `lora_of`.
    """
    settings: dict[str, Any] = {name: config.model[name] for name in models.OPTIONS}
    settings["remat"] = remat
    absent = sharding.abstract_mesh(mesh, device.platform)
    model = models.build(architecture, absent, **settings, lora=lora)
    backend = device.attention(config.model.attention, architecture, config.model.compute_dtype)
    return models.with_backend(model, backend)


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
    if model.lora is not None:
        return Frozen(hyperparameters, base=model.abstract_params)
    if needs_reference:
        return Frozen(hyperparameters, reference=model.abstract_params)
    return Frozen(hyperparameters)
