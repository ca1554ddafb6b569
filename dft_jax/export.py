"""A run as a Hugging Face folder that `transformers` loads: sharded safetensors, config and tokenizer.

python -m dft_jax.export --workdir=runs/tiny --out=runs/tiny/export
"""

import contextlib
import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from huggingface_hub import split_state_dict_into_shards_factory
from ml_collections import ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import save_file
from tqdm import tqdm

from dft_jax import cli, errors, interrupts, optimizer as optimizer_lib, run_directory, train
from dft_jax.checkpoint import Checkpoints
from dft_jax.models import Model, hf
from dft_jax.types import Params, TrainState
from dft_jax.writer import flush, write_json

_log = logging.getLogger(__name__)  # phases, as in checkpoint.py


def export(params: Params, model: Model, source: Path, out: Path, *, dtype: str = "source", max_shard_gb: float = 5.0):
    """Writes `params` to the folder `out`, with config and tokenizer files from the checkpoint in `source`.

    All is written to a temporary folder beside `out`, which then takes its name, replacing an earlier
    export. Every process takes part; process 0 writes. `dtype` "source" keeps that of the checkpoint, so an
    untouched checkpoint comes out byte for byte.

    Raises:
      UserError: there is no room, or no permission; an earlier export is as it was.
      Stopped: a signal asked for it; likewise.
    """
    dtype = hf.source_dtype(source) if dtype == "source" else dtype
    temporary = out.with_name(f".{out.name}.tmp")
    is_writer = jax.process_index() == 0
    what, remedy = f"{out}: the export could not be written", "make it possible, then run the same command again"
    with errors.told(what, remedy, (OSError, SafetensorError)):  # safetensors has its own type for a full disk
        try:
            if is_writer:
                shutil.rmtree(temporary, ignore_errors=True)  # of an export that was killed
                temporary.mkdir(parents=True)
                _copy_config(source, temporary, dtype)
            _write_tensors(params, model, temporary, dtype, max_shard_gb)
            if is_writer:
                _log.debug("export rename")
                _replace(temporary, out)
        finally:
            if is_writer:
                shutil.rmtree(temporary, ignore_errors=True)


def _write_tensors(params: Params, model: Model, to: Path, dtype: str, max_shard_gb: float) -> None:
    table = sorted(hf.tensor_table(model), key=lambda e: (e[1] is not None, e[1] or 0))  # in layer order
    entries = {name: (path, layer, shape) for path, layer, name, shape in table}
    shards = split_state_dict_into_shards_factory(
        entries,
        get_storage_size=lambda entry: int(np.prod(entry[2])) * jnp.dtype(dtype).itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=int(max_shard_gb * 1e9),
    )
    read = hf.tensor_reader(params, model)
    is_writer = jax.process_index() == 0
    with tqdm(total=len(table), desc="export", unit="tensor", disable=not is_writer) as progress:
        for file_name, names in shards.filename_to_tensors.items():
            tensors = {}
            for name in names:
                interrupts.check()
                _log.debug("export %s", name)
                tensor = read(*entries[name])  # by all processes together
                if is_writer:
                    tensors[name] = np.ascontiguousarray(tensor.astype(dtype))
                progress.update()
            if is_writer:
                _save(tensors, to / file_name)
    if is_writer and shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": dict(sorted(shards.tensor_to_filename.items()))}
        write_json(to / hf.INDEX_NAME, index)


def _save(tensors: dict[str, np.ndarray], file: Path) -> None:
    save_file(tensors, file, metadata={"format": "pt"})  # transformers refuses a file without a format
    shutil.copymode(file.with_name("config.json"), file)  # safetensors writes for the owner's eyes only
    flush(file)


def _copy_config(source: Path, to: Path, dtype: str) -> None:
    """config.json unchanged unless the dtype is another; generation config and tokenizer files as they are."""
    raw = hf.read_json(source / "config.json")
    key = "torch_dtype" if "torch_dtype" in raw else "dtype"
    if raw.get(key, dtype) == dtype:
        shutil.copyfile(source / "config.json", to / "config.json")
    else:
        write_json(to / "config.json", {**raw, key: dtype})
    generation = source / "generation_config.json"
    for file in [*([generation] if generation.exists() else []), *hf.tokenizer_files(source)]:
        shutil.copyfile(file, to / file.name)


def _replace(temporary: Path, out: Path) -> None:
    """`temporary` takes the name `out`; an earlier export there goes only when the new one has its place."""
    old = out.with_name(f".{out.name}.old")
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
    temporary.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def open_run(workdir: Path, **overrides: Any) -> tuple[ConfigDict, Path, Model, Any, Checkpoints, int]:
    """A run's config, source checkpoint, model, tokenizer, checkpoints and the newest whole step; nothing is loaded.

    The model is sharded over this machine's devices, whatever mesh trained it; `overrides` change other keys of the
    config for it, as in `{"mesh.tensor": 2}`.
    """
    file = workdir / "config.json"
    if not file.exists():
        raise errors.UserError(f"{workdir}: no config.json there; give the directory of a run")
    config = ConfigDict(hf.read_json(file)).lock()
    here = config.copy_and_resolve_references()
    here.update_from_flattened_dict({"mesh.data": 1, "mesh.fsdp": -1, "mesh.tensor": 1} | overrides)
    source, model, tokenizer = train.load_model(here)
    checkpoints = Checkpoints(workdir / "checkpoints", verify=config.checkpoint.verify)
    step = checkpoints.newest()
    if step is None:
        raise errors.UserError(f"{workdir}: no checkpoint there yet; train first")
    return config, source, model, tokenizer, checkpoints, step


def restore(config: ConfigDict, model: Model, checkpoints: Checkpoints, step: int) -> TrainState:
    """The state of a checkpoint, in the precision it was trained in."""
    optimizer = optimizer_lib.make_optimizer(config.optimizer, lambda count: 0.0)
    with checkpoints:
        return checkpoints.restore(step, train.abstract_state(model, optimizer))


def load_run(workdir: Path) -> train.Run:
    """A run with its newest whole checkpoint."""
    config, source, model, _, checkpoints, step = open_run(workdir)
    return train.Run(workdir, config, source, model, restore(config, model, checkpoints, step))


_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; an interrupted run there is resumed.")
_OUT = flags.DEFINE_string("out", None, "Folder to write; by default the run's export/.")


def main() -> None:
    cli.parse(required=["workdir"])
    workdir = run_directory.local_folder(_WORKDIR.value)
    out = Path(_OUT.value).expanduser().absolute() if _OUT.value else workdir / "export"
    if out != workdir / "export" and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise errors.UserError(f"--out={out} exists and is not empty; give a new folder, or remove it first")
    run = load_run(workdir)
    settings = run.config.export
    # A run that goes on in the folder will export to the same place.
    lock = run_directory.locked(workdir) if out.parent == workdir else contextlib.nullcontext()
    with lock:
        export(run.state.params, run.model, run.source, out, dtype=settings.dtype, max_shard_gb=settings.max_shard_gb)
    print(f"exported step {int(run.state.step)} to {out}")


if __name__ == "__main__":
    errors.exit_on_user_error(main)()
