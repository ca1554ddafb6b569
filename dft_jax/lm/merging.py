"""What a run trains as a model like any other: adapters merged into their base as it is read, and
parts beside the rest.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dft_jax.models.hf import peft
from dft_jax.models.hf.load import load_params
from dft_jax.models.hf.merging import Pairs
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.lora import of_config
from dft_jax.models.model import Model, with_lora, with_tower
from dft_jax.models.parts import ALL, TEXT
from dft_jax.runtime.options import Config
from dft_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Merging:
    """Weights W + s · B A, made in float32 and kept in the dtype that they are computed in.

    Args:
      adapted: the model that the adapters are of.
      source: the folder of the base.
      read: gives the adapters, laid out as `adapted.abstract_adapters`.
    """

    adapted: Model
    source: Path
    read: Callable[[], Params]

    @property
    def model(self) -> Model:
        """That of the merged weights, which has no adapters."""
        dtype = str(self.adapted.module.compute_dtype)
        return with_lora(self.adapted, None, param_dtype=dtype)

    def pairs(self) -> Pairs:
        """What the adapters add to the tensors of the base."""
        return peft.pairs_of(self.read(), self.adapted)

    def params(self) -> Params:
        """The merged parameters, laid out as `model.abstract_params`."""
        return load_params(Checkpoint(self.source), self.model, self.pairs())


def as_trained(config: Config, model: Model) -> Model:
    """The model with what the run of a config trains: adapters, or parts of its tower.

    Of a run whose text alone is trained the checkpoints have no tower, and neither has this.
    """
    lora = of_config(config.get("lora"))
    if lora is not None:
        model = with_lora(model, lora)
    # Runs that are older than the key have none.
    parts: Any = config.train.get("parts", TEXT)
    return model if parts == TEXT else with_tower(model, parts)


def is_whole(model: Model) -> bool:
    """Whether the checkpoints of its run have all of a model with images."""
    return model.tower is not None and model.parts == ALL


def read_all(read: Callable[[], Params], model: Model, source: Path) -> Params:
    """All parameters, of the part that was trained, which `read` gives, and the others, which are
    as in `source`.
    """
    base = load_params(Checkpoint(source), model, only=model.abstract_base)
    return model.join(read(), base)
