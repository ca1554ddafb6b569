"""Models of the public API: opened, and exported."""

from collections.abc import Mapping
from pathlib import Path

from dft_jax.api import given
from dft_jax.lm.language_model import LM
from dft_jax.lm.opening import open_lm
from dft_jax.lm.run import NEWEST, open_run
from dft_jax.models import options as model_options
from dft_jax.models.hf import push as push_lib
from dft_jax.models.hf.export_folder import require_replaceable
from dft_jax.models.hf.rounding import Rounding
from dft_jax.runtime import distributed, folders, processes
from dft_jax.training.exporting import export_other, export_run


def load(
    path: str | Path,
    *,
    revision: str = "main",
    base: str | Path = "",
    mesh: Mapping[str, int] | None = None,
    compute_dtype: str | None = None,
    step: str | int = NEWEST,
) -> LM:
    """Opens a language model. Its parameters are read when they are first used.

    Args:
      path: a Hugging Face folder, a hub id, or the directory of a run. Of a LoRA adapter in PEFT's
        format, and of a run that trains one, the model is the base with the adapter merged into it.
      revision: of a hub id: branch, tag or commit.
      base: of an adapter: its base, where that is not where the adapter says.
      mesh: sizes by axis ("data", "fsdp", "tensor", …), one of which may be -1 for what is left; by
        default every device has a copy of the model.
      compute_dtype: of matrix products; by default float32 on CPUs, else bfloat16.
      step: of a run: "newest", "best" (where the run has a `checkpoint.best`), or a number.

    Raises:
      UserError: nothing is there, or it is not supported, or does not fit the devices.

    >>> base = load("Qwen/Qwen2.5-Math-1.5B", mesh={"fsdp": -1})
    """
    if compute_dtype is not None:
        given.checked("compute_dtype", compute_dtype, model_options.SECTION["compute_dtype"])
    return open_lm(
        str(path),
        revision=revision,
        base=str(base),
        mesh=given.mesh_sizes(mesh or {}),
        compute_dtype=compute_dtype,
        step=step,
    )


def export(
    lm: LM,
    out: str | Path,
    *,
    what: str = "auto",
    dtype: str = "auto",
    max_shard_gb: float = 5.0,
    push: str | None = None,
    public: bool = False,
) -> Rounding | None:
    """Writes a model as a Hugging Face folder that `transformers` loads.

    Args:
      lm: a trained model (`run.lm`, or a run that was loaded), or any other.
      out: a new folder, or an earlier export, which is replaced once the new one is complete.
      what: of a run that trained an adapter: "merged", the model with it; "adapter", PEFT's files;
        "auto", the model with the adapter in `out`/adapter.
      dtype: of the weights: "auto" (that of the base, or float32 where rounding to it would lose a
        tenth of what was trained), "source", "float32", "bfloat16".
      push: OWNER/NAME on the Hugging Face Hub, to which the export is sent.
      public: whether a repository that is made for it is public.

    Returns:
      What rounding to the files' type loses; None of an adapter alone.

    Raises:
      UserError: `out` holds what no export has written; or it cannot be written, or not be sent;
        then the export is complete in `out`.

    >>> export(run.lm, "exports/gsm8k-dft")
    """
    if push is not None:
        push_lib.require_name(push, "push")
    place = folders.local_folder(str(out), "out")
    require_replaceable(place)
    rounding = _write(lm, place, what, dtype, max_shard_gb)
    if push is not None:
        # Process 0 has written it, and sends it; the others end as it does.
        with distributed.together("push"):
            if processes.is_first():
                print(f"pushed to {push_lib.push(place, push, is_public=public)}")
    return rounding


def _write(lm: LM, place: Path, what: str, dtype: str, max_shard_gb: float) -> Rounding | None:
    """Writes the folder `place`, by what the model was opened from."""
    if (Path(lm.path) / "checkpoints").is_dir():
        saved = open_run(Path(lm.path), wanted=lm.identify()["step"])
        return export_run(
            lm,
            saved.config,
            saved.step,
            saved.identity,
            place,
            what=what,
            dtype=dtype,
            max_shard_gb=max_shard_gb,
        )
    return export_other(lm, place, what=what, dtype=dtype, max_shard_gb=max_shard_gb)
