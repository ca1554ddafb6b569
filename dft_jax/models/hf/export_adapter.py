"""Adapters exported: merged into their base, as PEFT's files, or both."""

import dataclasses
from pathlib import Path

from dft_jax.models.hf import peft, provenance
from dft_jax.models.hf.export import export_tensors
from dft_jax.models.hf.export_folder import new_folder, writing
from dft_jax.models.hf.fetch import merged_fetch
from dft_jax.models.hf.merging import Pairs
from dft_jax.models.hf.provenance import Origin
from dft_jax.models.hf.rounding import Rounding
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.lora import Lora
from dft_jax.models.model import Model
from dft_jax.runtime import errors, processes

# Of an exported model, where the adapter is that has been merged into it.
ADAPTER_FOLDER = "adapter"


@dataclasses.dataclass(frozen=True)
class Trained:
    """An adapter in host memory, and what its files are to say of it."""

    pairs: Pairs
    # None where modules differ in rank or scale: of such only the merged model can be written.
    lora: Lora | None
    base: dict[str, str]  # "path", "revision" and "sha256" of its weights


def export_adapter(
    trained: Trained,
    model: Model,
    source: Path,
    out: Path,
    *,
    what: str = "auto",
    dtype: str = "auto",
    max_shard_gb: float = 5.0,
    origin: Origin | None = None,
) -> Rounding | None:
    """Writes the folder `out`: the merged model, with the adapter in `out`/adapter; or one alone.

    The model is made of the tensors in `source` and what the adapter adds to them, in float32: what
    it does not add to is as it was, byte for byte. Rounding, dtypes and files are those of
    `export_tensors`.

    Args:
      model: of the base.
      what: "auto", "merged" or "adapter", as config.export.what.

    Returns:
      What rounding to the files' type loses of the adapter; None where it is alone.

    Raises:
      UserError: as `export_tensors`; or `what="adapter"` of one that cannot be written.
    """
    origin = origin or Origin()
    if what == "adapter":
        if trained.lora is None:
            raise errors.UserError("what='adapter': it is in an adapter's folder; copy that")
        with new_folder(out) as folder, writing(out):
            if processes.is_first():
                _write(trained, model, origin, source, folder)
        return None

    def write_more(folder: Path) -> None:
        if what == "auto" and trained.lora is not None:
            (folder / ADAPTER_FOLDER).mkdir()
            _write(trained, model, origin, source, folder / ADAPTER_FOLDER)

    return export_tensors(
        merged_fetch(Checkpoint(source), trained.pairs),
        model,
        source,
        out,
        dtype=dtype,
        max_shard_gb=max_shard_gb,
        origin=origin,
        write_more=write_more,
    )


def _write(trained: Trained, model: Model, origin: Origin, source: Path, folder: Path) -> None:
    """The adapter's files, and what they are of."""
    assert trained.lora is not None, "asked for one that can be written"
    root = peft.ROOT if model.config.vision is None else peft.ROOT_WITH_IMAGES
    peft.write_adapter(trained.pairs, trained.lora, trained.base, folder, root)
    # A chat template goes with a tokenizer, which an adapter has none of.
    about = dataclasses.replace(origin, template_text=None)
    provenance.write(folder, about, source, library="peft")
