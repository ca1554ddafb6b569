"""Models of the public API: opened, and exported."""

from collections.abc import Mapping
from pathlib import Path

from dft_jax.lm.language_model import LM
from dft_jax.lm.opening import open_lm
from dft_jax.lm.run import open_run
from dft_jax.models.hf import export as export_lib
from dft_jax.models.hf.rounding import Rounding
from dft_jax.runtime import folders
from dft_jax.training import origin


def load(
    path: str | Path,
    *,
    revision: str = "main",
    mesh: Mapping[str, int] | None = None,
    compute_dtype: str | None = None,
) -> LM:
    """Opens a language model. Its parameters are read when they are first used.

    Args:
      path: a Hugging Face folder, a hub id, or the directory of a run (its newest checkpoint).
      revision: of a hub id: branch, tag or commit.
      mesh: sizes by axis ("data", "fsdp", "tensor"), one of which may be -1 for what is left; by
        default every device has a copy of the model.
      compute_dtype: of matrix products; by default float32 on CPUs, else bfloat16.

    Raises:
      UserError: nothing is there, or it is not supported, or does not fit the devices.

    >>> base = load("Qwen/Qwen2.5-Math-1.5B", mesh={"fsdp": -1})
    """
    return open_lm(str(path), revision=revision, mesh=mesh, compute_dtype=compute_dtype)


def export(lm: LM, out: str | Path, *, dtype: str = "auto", max_shard_gb: float = 5.0) -> Rounding:
    """Writes a model as a Hugging Face folder that `transformers` loads.

    Args:
      lm: a trained model (`run.lm`, or a run that was loaded), or any other.
      out: a new folder, or an earlier export, which is replaced once the new one is complete.
      dtype: of the weights: "auto" (that of the base, or float32 where rounding to it would lose a
        tenth of what was trained), "source", "float32", "bfloat16".

    Returns:
      What rounding to the files' type loses.

    >>> export(run.lm, "exports/gsm8k-dft")
    """
    workdir = Path(lm.path)
    about = None
    if (workdir / "checkpoints").is_dir():
        saved = open_run(workdir)
        about = origin.of_run(workdir, saved.config, lm.identify()["step"], saved.identity)
    place = folders.local_folder(str(out), "out")
    return export_lib.export(
        lm.params,
        lm.model,
        lm.source,
        place,
        dtype=dtype,
        max_shard_gb=max_shard_gb,
        origin=about,
    )
