"""Adapters opened: PEFT's files with their base."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dft_jax.lm.checkpoint import require_base
from dft_jax.lm.language_model import LM
from dft_jax.models.hf import peft
from dft_jax.models.hf.load import load_params
from dft_jax.models.hf.locate import tokenizer_files
from dft_jax.models.hf.provenance import provenance
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.runtime import errors, files


def open_adapter(
    folder: Path, name: str, base: str, open_base: Callable[[str, str], LM], revision: str
) -> LM:
    """The model of an adapter's folder: its base, with the adapter merged into it as it is read.

    Args:
      name: what a user calls the adapter: the folder, or a hub id.
      base: folder or hub id of its base; empty for the one that the adapter names.
      open_base: opens a base by path and revision.
      revision: of `base`.

    Raises:
      UserError: an adapter or base that cannot be used, or another base than it was trained on.
    """
    adapter = peft.read_adapter(folder)
    if not base:
        base, revision = adapter.config.base, adapter.config.revision
    if not base:
        what = f"{folder / peft.CONFIG_NAME}: base_model_name_or_path is empty"
        raise errors.UserError(f"{what}; give the base (--base, or base=)")
    lm = open_base(base, revision)
    peft.check(adapter, lm.model)
    _refuse_other_tokenizer(folder, lm.source)
    if adapter.base_sha256:
        require_base(str(folder), adapter.base_sha256, lm.source)
    about = provenance(folder) or {}

    def identify() -> dict[str, Any]:
        base_is = lm.identify()
        origin = {key: about[key] for key in ("run_id", "step", "base") if about.get(key)}
        return {
            "name": Path(name).absolute().name,
            "sha256": peft.digest(folder),
            "base_sha256": base_is["sha256"],
            "origin": origin or base_is["origin"],
        }

    return dataclasses.replace(
        lm,
        identify=identify,
        read=lambda: load_params(Checkpoint(lm.source), lm.model, adapter.pairs),
        pairs=lambda: adapter.pairs,
        path=name,
        what=f"{Path(name).absolute().name}, an adapter merged into {lm.what}",
        weights_sha256_of_sample=f"{lm.weights_sha256_of_sample} {peft.digest(folder)}",
        date=about.get("date", ""),
        trained=about.get("template", ""),
    )


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and not a model (which may have one beside it)."""
    has_model = any(folder.glob("model*.safetensors"))
    return (folder / peft.CONFIG_NAME).exists() and not has_model


def _refuse_other_tokenizer(folder: Path, source: Path) -> None:
    """A tokenizer beside an adapter may be that of a vocabulary which was resized."""
    for file in tokenizer_files(folder):
        of_base = source / file.name
        if not of_base.exists() or files.digest([file]) != files.digest([of_base]):
            what = f"{file} is not that of the base ({of_base})"
            raise errors.UserError(f"{what}, which is used: remove the file if that is right")
