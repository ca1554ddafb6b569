"""The command `python -m dft_jax.export`: its flags, and the calls that they ask for."""

import contextlib

from absl import flags

from dft_jax.commands import cli
from dft_jax.lm.run import NEWEST, open_run, require_step
from dft_jax.models.hf import push as push_lib
from dft_jax.runtime import errors, folders
from dft_jax.training.exporting import export_run

_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Directory of the run, or gs://BUCKET/RUN; an interrupted run there is resumed.",
    allow_override=True,
)
_OUT = flags.DEFINE_string(
    "out", None, "Folder to write; by default the run's export/.", allow_override=True
)
# dft_jax.evaluate has the flag too, and one process may import both.
_STEP = flags.DEFINE_string(
    "step",
    NEWEST,
    "Of the run: newest, best (by its checkpoint.best), or a number.",
    allow_override=True,
)
_PUSH = flags.DEFINE_string(
    "push",
    None,
    "OWNER/NAME on the Hugging Face Hub, to which the export is sent; a new repository is private.",
)
_PUBLIC = flags.DEFINE_bool("public", False, "With --push: a new repository is public.")
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["auto", "source", "float32", "bfloat16"],
    "Of the weights; by default the run's export.dtype.",
)
_WHAT = flags.DEFINE_enum(
    "what",
    None,
    ["auto", "merged", "adapter"],
    "Of a run with adapters: the merged model, the adapter, or both (auto, which puts it in the"
    " model's folder); by default the run's export.what.",
)


def main() -> None:
    cli.parse(required=["workdir"])
    require_step(_STEP.value)
    if _PUSH.value is not None:
        push_lib.require_name(_PUSH.value)
    elif _PUBLIC.value:
        raise errors.UserError("--public has no effect without --push=OWNER/NAME; remove it")
    workdir = folders.run_folder(str(_WORKDIR.value), is_new=False)
    out, shown = workdir / "export", f"{folders.shown(workdir)}/export"
    if _OUT.value:
        out = folders.local_folder(_OUT.value, "--out")
        shown = str(out)
    if out != workdir / "export" and out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = f"--out={out} exists and is not empty"
        raise errors.UserError(f"{what}; give a new folder, or remove it first")
    saved = open_run(workdir, wanted=_STEP.value)
    # A run that goes on in the folder will export to the same place.
    lock = contextlib.nullcontext()
    if out.parent == workdir:
        lock = folders.locked(workdir)
    with saved.checkpoints, lock:
        export_run(
            saved.lm,
            saved.config,
            saved.step,
            saved.identity,
            out,
            what=_WHAT.value,
            dtype=_DTYPE.value,
        )
    print(f"exported step {saved.step} to {shown}", flush=True)
    if _PUSH.value is not None:
        print(f"pushed to {push_lib.push(out, _PUSH.value, is_public=_PUBLIC.value)}")
