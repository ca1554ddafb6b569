"""Parameters written as the .safetensors files of a Hugging Face folder."""

import logging
import math
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.numpy import save_file

from dft_jax.models.hf.load import TensorReader
from dft_jax.models.hf.safetensors import INDEX_NAME
from dft_jax.models.hf.tensors import Tensor, tensor_table
from dft_jax.models.model import Model
from dft_jax.runtime import interrupts, processes, progress
from dft_jax.runtime.files import flush, write_json

_log = logging.getLogger(__name__)  # phases, for fault injection, as in checkpoints/manager.py


def _n_bytes(tensor: Tensor, dtype: str) -> int:
    return math.prod(tensor.shape) * jnp.dtype(dtype).itemsize


def total_bytes(model: Model, dtype: str, others: dict[str, str]) -> int:
    """Of all tensors, each as `dtype` or as the one that `others` has for it."""
    table = tensor_table(model)
    return sum(_n_bytes(tensor, others.get(tensor.name, dtype)) for tensor in table)


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
) -> None:
    """Each tensor as `dtype`, or as the one that `others` has for it, and the index of the files.

    Every process takes part; process 0 writes. `max_shard_gb` is the most that one file holds. The
    folder `to` has its config.json already, whose permissions the files get.
    """
    table = sorted(tensor_table(model), key=_layer_order)
    by_name = {tensor.name: tensor for tensor in table}
    dtypes = {tensor.name: others.get(tensor.name, dtype) for tensor in table}
    sizes = {tensor.name: _n_bytes(tensor, dtypes[tensor.name]) for tensor in table}
    shards = split_state_dict_into_shards_factory(
        sizes,
        get_storage_size=lambda n_bytes: n_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=int(max_shard_gb * 1e9),
    )
    is_writer = processes.is_first()
    with progress.bar(total=len(table), desc="export", unit="tensor") as bar:
        for file_name, names in shards.filename_to_tensors.items():
            tensors = {}
            for name in names:
                interrupts.check()
                _log.debug("export %s", name)
                array = read(by_name[name])  # by all processes together
                if is_writer:
                    tensors[name] = np.ascontiguousarray(array.astype(dtypes[name]))
                bar.update()
            if is_writer:
                _save(tensors, to / file_name)
    if is_writer and shards.is_sharded:
        weight_map = dict(sorted(shards.tensor_to_filename.items()))
        write_json(to / INDEX_NAME, {"metadata": shards.metadata, "weight_map": weight_map})


def _save(tensors: dict[str, np.ndarray], file: Path) -> None:
    # transformers refuses a file without a format
    save_file(tensors, file, metadata={"format": "pt"})
    # safetensors writes for the owner's eyes only
    shutil.copymode(file.with_name("config.json"), file)
    flush(file)
