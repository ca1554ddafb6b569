"""Trained adapters as a model like any other: merged into their base as it is read."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from dft_jax.models.hf import peft
from dft_jax.models.hf.load import load_params
from dft_jax.models.hf.merging import Pairs
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.model import Model, with_lora
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
