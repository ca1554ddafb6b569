"""Fine-tuning of the public API."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from dft_jax import config as config_lib
from dft_jax.api.benchmarks import benchmark_evaluators
from dft_jax.lm.language_model import LM
from dft_jax.runtime import distributed, errors, folders, interrupts, progress
from dft_jax.runtime.options import Config
from dft_jax.training.run import Run, fine_tune


def train(config: Config, workdir: str | Path) -> Run:
    """Fine-tunes as `config` says, in `workdir`; resumes when a checkpoint of the same run is
    there. `finetune` is the same for notebooks.

    Raises:
      UserError: anything wrong with config, checkpoint, data or workdir, before compilation; a save
      that failed.
      Stopped: a signal asked for it (runtime/interrupts.py); the state is saved.
    """
    if not isinstance(config, ConfigDict):
        what = f"config is of type {type(config).__name__}"
        raise errors.UserError(f"{what}; give what dft.recipe(FILE) or dft.get_default() returns")
    with distributed.together("config"):
        errors.raise_if_any(config_lib.validate_on(config, jax.device_count()))
    return fine_tune(config, folders.run_folder(str(workdir)), benchmark_evaluators)


def finetune(
    base: LM | None, config: Config, workdir: str | Path, *, show_progress: bool = True
) -> Run:
    """Fine-tunes, and resumes if it was stopped: the same call then continues.

    Args:
      base: the model to begin with, opened from a Hugging Face folder or hub id; its mesh is used.
        None where `config.model.path` names it.
      config: see `recipe` and `get_default`.
      workdir: the run's folder: checkpoints, metrics.jsonl, config.json.

    Returns:
      The finished run: `run.lm` is the trained model, `run.plot()` draws its curve.

    Raises:
      UserError: something given is wrong; nothing was trained.
      KeyboardInterrupt: it was stopped; all of it is saved.

    >>> run = finetune(base, config, "runs/gsm8k")
    """
    if base is not None:
        config = _on_base(base, config)
    stopped = None
    with progress.silent(not show_progress), _interruptible():
        try:
            return train(config, workdir)
        except errors.Stopped as error:
            stopped = error
    # Raised outside, where signals are handled as before.
    raise KeyboardInterrupt(f"stopped by {stopped}; all is saved, the same call continues")


def _on_base(base: LM, config: Config) -> Config:
    """The config with the path and mesh of an opened model."""
    if (Path(base.path) / "checkpoints").is_dir():
        what = f"{base.path} is a run"
        raise errors.UserError(f"{what}: export it first, and load the export to train it further")
    named = config.model.path
    if named and Path(named).absolute() != Path(base.path).absolute() and named != base.path:
        what = f"config.model.path={named!r}, but the model given is {base.path!r}"
        raise errors.UserError(f"{what}; leave the path empty, or give None for the model")
    config = config.copy_and_resolve_references()
    config.model.path = base.path
    config.model.revision = base.revision
    config.mesh.update(base.mesh)
    return config.lock()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Signals are answered by saving, where they can be caught: in the main thread, and once."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or interrupts.are_caught():
        yield
        return
    with interrupts.Interrupts():
        yield
