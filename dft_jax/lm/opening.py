"""A language model opened from wherever it is: a Hugging Face folder, a hub id, or a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dft_jax import sharding
from dft_jax.lm.adapter import is_adapter, open_adapter
from dft_jax.lm.language_model import LM
from dft_jax.lm.published import lm_of_checkpoint
from dft_jax.lm.run import NEWEST, open_run
from dft_jax.models.hf.locate import resolve
from dft_jax.runtime import bucket, errors, files, folders


def open_lm(
    path: str,
    *,
    revision: str = "main",
    base: str = "",
    mesh: Mapping[str, int] | None = None,
    compute_dtype: str | None = None,
    step: str | int = NEWEST,
) -> LM:
    """The model of a Hugging Face checkpoint, of an adapter, or of a checkpoint of a run; nothing
    is loaded yet.

    Args:
      path: a folder, a hub id, or the directory of a run, which may lie in a bucket (gs://).
      base: of an adapter, where it is not the one that the adapter names.
      mesh: sizes by axis; without it every device has a copy of the model.
      compute_dtype: of matrix products; float32 on CPUs and else bfloat16 where it is None.
      step: of a run: "newest", "best" (by its checkpoint.best), or a number.

    Raises:
      UserError: neither is there, or what is there is not supported, or does not fit the devices.
    """
    sizes = {"data": -1, "fsdp": 1, "tensor": 1}
    if mesh:
        sizes = {"data": 1, "fsdp": 1, "tensor": 1} | dict(mesh)
    if compute_dtype is None:
        compute_dtype = _fast_dtype(sizes)
    if bucket.is_address(path):
        folder = folders.run_folder(path, "model", is_new=False)
    else:
        # What is read later, is read from here, whatever the working directory is by then.
        folder = files.named(path).absolute()
    if (folder / "checkpoints").is_dir():
        _refuse_idle_base(base, path)
        return _of_run(folder, sizes, compute_dtype, step)
    if step != NEWEST:
        raise errors.UserError(f"--step={step}: {path} is no run, so it has no steps; remove it")
    if folder.is_dir():
        path = str(folder)
    # Before anything is downloaded.
    sharding.checked_mesh(**sizes)
    folder = resolve(path, revision, "model")

    def open_base(path: str, revision: str) -> LM:
        source = resolve(path, revision, "base")
        if Path(path).is_dir():
            path = str(source)
        return lm_of_checkpoint(path, source, revision, sizes, compute_dtype)

    if is_adapter(folder):
        return open_adapter(folder, path, base, open_base, revision="main")
    _refuse_idle_base(base, path)
    return lm_of_checkpoint(path, folder, revision, sizes, compute_dtype)


def _refuse_idle_base(base: str, path: str) -> None:
    if base:
        what = f"--base={base} has no effect: {path} is no adapter"
        raise errors.UserError(f"{what}; remove it")


def _fast_dtype(mesh: dict[str, int]) -> str:
    """Of matrix products, on the devices of such a mesh."""
    # Few CPUs multiply bfloat16 fast.
    if sharding.platform(sharding.checked_mesh(**mesh)) == "cpu":
        return "float32"
    return "bfloat16"


def _of_run(folder: Path, mesh: dict[str, int], compute_dtype: str, step: str | int) -> LM:
    changes: dict[str, Any] = {f"mesh.{axis}": size for axis, size in mesh.items()}
    changes["model.compute_dtype"] = compute_dtype
    return open_run(folder, changes, step).lm
