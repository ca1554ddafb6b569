"""Parameters written as the .safetensors files of a Hugging Face folder."""

import dataclasses
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.numpy import save_file

from dft_jax.models.hf.export_folder import writers_in, writing
from dft_jax.models.hf.fetch import Fetch
from dft_jax.models.hf.safetensors import DTYPES, INDEX_NAME, Checkpoint
from dft_jax.models.hf.tensors import Tensor, carried_tensors, tensor_table
from dft_jax.models.model import Model
from dft_jax.runtime import processes, progress
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
    fetch: Fetch,
    model: Model,
    to: Path,
    out: Path,
    dtype: str,
    others: dict[str, str],
    max_shard_gb: float,
    source: Checkpoint | None = None,
) -> None:
    """Each tensor as `dtype`, or as the one that `others` has for it, and the index of the files.

    Every process takes part, and writes a share of the files if it sees the folder. `max_shard_gb`
    is the most that one file holds, and that a process holds of it. The folder `to`, which becomes
    `out`, has its config.json already, whose permissions the files get. `source` is what the model
    began with: names are as there, and what is no parameter of the model (the tower of one with
    images) is copied from it, in its dtype.

    Raises:
      UserError: what a process could not write, on all of them.
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
    names_in = shards.filename_to_tensors
    writers = writers_in(to, out)
    files_of: list[list[str]] = [[] for _ in range(jax.process_count())]
    for number, file_name in enumerate(names_in):
        files_of[writers[number % len(writers)]].append(file_name)
    mine = files_of[jax.process_index()]
    n_mine = sum(len(names_in[file_name]) for file_name in mine)
    with progress.bar(total=n_mine, desc="export", unit="tensor") as bar:
        # Each writer has one file in memory at a time; the last ones may have fewer of them.
        for number in range(len(files_of[writers[0]])):
            entries: list[dict[str, _Entry]] = [{} for _ in files_of]
            for process, file_names in enumerate(files_of):
                if number < len(file_names):
                    names = names_in[file_names[number]]
                    entries[process] = {name: by_name[name] for name in names}
            tensors = _fetch_entries(fetch, entries, bar)
            with writing(out):
                if tensors:
                    _save(tensors, to / mine[number])
    with writing(out):
        if processes.is_first() and shards.is_sharded:
            weight_map = dict(sorted(shards.tensor_to_filename.items()))
            write_json(to / INDEX_NAME, {"metadata": shards.metadata, "weight_map": weight_map})


def _fetch_entries(
    fetch: Fetch, entries: list[dict[str, _Entry]], bar: Any
) -> dict[str, np.ndarray]:
    """What this process's file is to hold, by name; `entries` are those of every process's."""
    wanted = []
    for of_process in entries:
        parameters = [entry for entry in of_process.values() if entry.copied_from is None]
        wanted.append([part for entry in parameters for part in entry.parts])
    mine = entries[jax.process_index()]
    dtype_of = {entry.name: entry.dtype for entry in mine.values()}
    parts = {}
    for tensor, array in fetch(wanted):
        _log.debug("export %s", tensor.name)
        parts[tensor] = array.astype(dtype_of[tensor.name], order="C")
    tensors = {}
    for name, entry in mine.items():
        if entry.copied_from is None:
            joined = [parts.pop(part) for part in entry.parts]
        else:
            joined = [entry.copied_from.read(entry.name)]
        # Several parameters lie one after another along the rows of the file's tensor.
        tensors[name] = joined[0] if len(joined) == 1 else np.concatenate(joined)
        bar.update()
    return tensors


def _save(tensors: dict[str, np.ndarray], file: Path) -> None:
    # transformers refuses a file without a format
    save_file(tensors, file, metadata={"format": "pt"})
    # safetensors writes for the owner's eyes only
    shutil.copymode(file.with_name("config.json"), file)
    flush(file)
