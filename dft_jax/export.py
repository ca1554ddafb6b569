"""A run as a Hugging Face folder that `transformers` loads: sharded safetensors, config and
tokenizer.

python -m dft_jax.export --workdir=runs/tiny --out=runs/tiny/export
"""

import contextlib
import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from dft_jax.checkpoints.manager import Checkpoints
from dft_jax.commands import cli
from dft_jax.models.hf.export import Origin, export
from dft_jax.models.model import Model
from dft_jax.runtime import errors, files, folders
from dft_jax.training import identity as run_directory, optimizer as optimizer_lib
from dft_jax.training.job import load_model
from dft_jax.training.loop import Run
from dft_jax.training.state import abstract_state
from dft_jax.types import TrainState


def open_run(
    workdir: Path, **overrides: Any
) -> tuple[ConfigDict, Path, Model, Any, Checkpoints, int]:
    """A run's config, source checkpoint, model, tokenizer, checkpoints and the newest whole step;
    nothing is loaded.

    The model is sharded over this machine's devices, whatever mesh trained it; `overrides` change
    other keys of the config for it, as in `{"mesh.tensor": 2}`.
    """
    file = workdir / "config.json"
    if not file.exists():
        raise errors.UserError(f"{workdir}: no config.json there; give the directory of a run")
    config = ConfigDict(files.read_json(file)).lock()
    here = config.copy_and_resolve_references()
    here.update_from_flattened_dict({"mesh.data": 1, "mesh.fsdp": -1, "mesh.tensor": 1} | overrides)
    source, model, tokenizer = load_model(here)
    checkpoints = Checkpoints(workdir / "checkpoints", verify=config.checkpoint.verify)
    step = checkpoints.newest()
    if step is None:
        raise errors.UserError(f"{workdir}: no checkpoint there yet; train first")
    return config, source, model, tokenizer, checkpoints, step


def restore(config: ConfigDict, model: Model, checkpoints: Checkpoints, step: int) -> TrainState:
    """The state of a checkpoint, in the precision it was trained in."""
    optimizer = optimizer_lib.make_optimizer(config.optimizer)
    with checkpoints:
        return checkpoints.restore(step, abstract_state(model, optimizer))


def load_run(workdir: Path) -> Run:
    """A run with its newest whole checkpoint."""
    config, source, model, _, checkpoints, step = open_run(workdir)
    identity = checkpoints.run_of(step)
    return Run(workdir, config, source, model, restore(config, model, checkpoints, step), identity)


def origin_of(workdir: Path, config: ConfigDict, step: int, run: dict[str, Any]) -> Origin:
    """What an export of a run should say of it; `run` is what its checkpoints say."""
    template, text = config.data.template, None
    if template.endswith(".jinja"):
        text = run_directory.trained_template(workdir)
        if text is None:
            template = "tokenizer"
            what = f"{config.data.template}, which the run was trained with, is not in {workdir}"
            print(
                f"warning: {what}: the export keeps the checkpoint's own chat template",
                file=sys.stderr,
            )
    base = config.model
    date = config.data.get("date", "")
    return Origin(
        config.objective, step, template, text, date, base.path, base.revision, base.init, run
    )


_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run; an interrupted run there is resumed."
)
_OUT = flags.DEFINE_string("out", None, "Folder to write; by default the run's export/.")
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["auto", "source", "float32", "bfloat16"],
    "Of the weights; by default the run's export.dtype.",
)


def main() -> None:
    cli.parse(required=["workdir"])
    workdir = folders.local_folder(_WORKDIR.value)
    out = Path(_OUT.value).expanduser().absolute() if _OUT.value else workdir / "export"
    if out != workdir / "export" and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise errors.UserError(
            f"--out={out} exists and is not empty; give a new folder, or remove it first"
        )
    config, source, model, _, checkpoints, step = open_run(workdir)
    with checkpoints:
        run = checkpoints.run_of(step)
        params = checkpoints.restore_params(step, model.abstract_params)
    settings, origin = config.export, origin_of(workdir, config, step, run)
    # A run that goes on in the folder will export to the same place.
    lock = folders.locked(workdir) if out.parent == workdir else contextlib.nullcontext()
    with lock:
        options = dict(dtype=_DTYPE.value or settings.dtype, max_shard_gb=settings.max_shard_gb)
        export(params, model, source, out, origin=origin, **options)
    print(f"exported step {step} to {out}")


if __name__ == "__main__":
    errors.exit_on_user_error(main)()
