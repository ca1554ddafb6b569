"""Parameters written as the .safetensors files of a Hugging Face folder."""

import dataclasses
import logging
import math
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.numpy import save_file

from dft_jax.models.hf.load import TensorReader
from dft_jax.models.hf.safetensors import DTYPES, INDEX_NAME, Checkpoint
from dft_jax.models.hf.tensors import Tensor, carried_tensors, tensor_table
from dft_jax.models.model import Model
from dft_jax.runtime import interrupts, processes, progress
from dft_jax.runtime.files import flush, write_json

_log = logging.getLogger(__name__)  # phases, for fault injection, as in checkpoints/manager.py


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A tensor as it is going to be written."""

    parts: tuple[Tensor, ...]  # by their rows; one, unless the file's tensor holds several
    dtype: str
    copied_from: Checkpoint | None = None  # None of a parameter

    @property
    def n_bytes(self) -> int:
        return math.prod(self.parts[0].whole_shape) * jnp.dtype(self.dtype).itemsize

    @property
    def name(self) -> str:
        return self.parts[0].name


def _entries(
    model: Model, dtype: str, others: dict[str, str], source: Checkpoint | None
) -> list[_Entry]:
    """What is outside the layers, the layers, and what is carried along as it is in the source."""
    parts_of: dict[str, list[Tensor]] = {}
    for tensor in sorted(tensor_table(model), key=_layer_order):
        parts_of.setdefault(tensor.name, []).append(tensor)
    found = []
    for name, parts in parts_of.items():
        parts.sort(key=lambda part: part.rows.start if part.rows else 0)
        found.append(_Entry(tuple(parts), others.get(name, dtype)))
    for tensor in carried_tensors(model):
        assert source is not None, "a model with images has its tower from a checkpoint"
        found.append(_Entry((tensor,), DTYPES[source.headers[tensor.name][1]], source))
    return found


def total_bytes(model: Model, dtype: str, others: dict[str, str], source: Checkpoint | None) -> int:
    """Of all tensors that `write_tensors` would write."""
    return sum(entry.n_bytes for entry in _entries(model, dtype, others, source))


def _layer_order(tensor: Tensor) -> int:
    """Files begin with what is outside the layers."""
    return -1 if tensor.layer is None else tensor.layer


def write_tensors(
    read: TensorReader,
    model: Model,
    to: Path,
    dtype: str,
    others: dict[str, str],
    max_shard_gb: float,
    source: Checkpoint | None = None,
) -> None:
    """Each tensor as `dtype`, or as the one that `others` has for it, and the index of the files.

    Every process takes part; process 0 writes. `max_shard_gb` is the most that one file holds. The
    folder `to` has its config.json already, whose permissions the files get. `source` is what the
    model began with: names are as there, and what is no parameter of the model (the tower of one
    with images) is copied from it, in its dtype.
    """
    by_name = {}
    for entry in _entries(model, dtype, others, source):
        name = entry.name
        by_name[name if source is None else source.spelled(name)] = entry
    sizes = {name: entry.n_bytes for name, entry in by_name.items()}
    shards = split_state_dict_into_shards_factory(
        sizes,
        get_storage_size=lambda n_bytes: n_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=int(max_shard_gb * 1e9),
    )
    is_writer = processes.is_first()
    with progress.bar(total=len(by_name), desc="export", unit="tensor") as bar:
        for file_name, names in shards.filename_to_tensors.items():
            tensors = {}
            for name in names:
                interrupts.check()
                _log.debug("export %s", name)
                entry = by_name[name]
                if entry.copied_from is None:
                    array = _joined(read, entry)  # by all processes together
                else:
                    array = entry.copied_from.read(entry.name)
                if is_writer:
                    tensors[name] = np.ascontiguousarray(array.astype(entry.dtype))
                bar.update()
            if is_writer:
                _save(tensors, to / file_name)
    if is_writer and shards.is_sharded:
        weight_map = dict(sorted(shards.tensor_to_filename.items()))
        write_json(to / INDEX_NAME, {"metadata": shards.metadata, "weight_map": weight_map})


def _joined(read: TensorReader, entry: _Entry) -> np.ndarray:
    """What the file's tensor is to hold: a parameter, or several along its rows."""
    if len(entry.parts) == 1:
        return read(entry.parts[0])
    return np.concatenate([read(part) for part in entry.parts])


def _save(tensors: dict[str, np.ndarray], file: Path) -> None:
    # transformers refuses a file without a format
    save_file(tensors, file, metadata={"format": "pt"})
    # safetensors writes for the owner's eyes only
    shutil.copymode(file.with_name("config.json"), file)
    flush(file)
