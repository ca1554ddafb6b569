"""An opened language model: with its tokenizer, and with what says which weights it has."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dft_jax.models.hf.load import load_params
from dft_jax.models.hf.merging import Pairs
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.hf.tokenizer import Tokenizer
from dft_jax.models.model import Model, with_tower
from dft_jax.models.parts import VISION
from dft_jax.runtime import errors
from dft_jax.types import Params


@dataclasses.dataclass(frozen=True)
class LM:
    """A model with its tokenizer. Parameters are read when they are first asked for.

    Args:
      identify: says in plain values which weights these are; what it has under `origin` is for a
        reader: which run or hub commit they are of, and what that began with.
      read: gives the parameters, laid out as `model.abstract_params`.
      source: the Hugging Face folder that config and tokenizer are of.
      path: where it was opened from: a folder, a hub id, or the directory of a run.
      revision: of a hub id.
      what: which weights these are, for a reader: of a run, or of an export, which may be rounded.
      pairs: gives what an adapter adds to the tensors of `source`, where the parameters are those
        with an adapter merged into them.
      weights_sha256_of_sample: of a Hugging Face folder, which each host may have on its own disk.
      date: YYYY-MM-DD, of a run, or its export, whose template writes the date.
      trained: the prompt that it was trained with; empty where nobody says.
    """

    model: Model
    tokenizer: Tokenizer
    identify: Callable[[], dict[str, Any]]
    read: Callable[[], Params]
    source: Path
    path: str = ""
    revision: str = "main"
    what: str = ""
    pairs: Callable[[], Pairs] | None = None
    weights_sha256_of_sample: str = ""
    date: str = ""
    trained: str = ""

    @functools.cached_property
    def params(self) -> Params:
        return self.read()

    def forget_params(self) -> None:
        """Lets the parameters go; they are read again when they are next asked for."""
        self.__dict__.pop("params", None)

    def with_images(self) -> "LM":
        """The same with its tower, for prompts that show images; its text is read once for both.

        Where the text alone was trained, the tower is that of `source`.

        Raises:
          UserError: it is a model for text alone.
        """
        if self.model.tower is not None:
            return self
        if self.model.config.vision is None:
            raise errors.UserError(
                f"{self.name} is a model for text alone (model_type={self.model.config.family!r}),"
                " and cannot be shown an image; give a model with images, such as Qwen2.5-VL"
            )
        model = with_tower(self.model)
        tower = {VISION: model.abstract_params[VISION]}

        def read() -> Params:
            return self.params | load_params(Checkpoint(self.source), model, only=tower)

        return dataclasses.replace(self, model=model, read=read)

    @property
    def mesh(self) -> dict[str, int]:
        """Sizes of the mesh by axis."""
        return dict(self.model.mesh.shape)

    @property
    def name(self) -> str:
        """Of its folder, or the last part of its hub id."""
        return Path(self.path).absolute().name
