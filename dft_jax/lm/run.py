"""The folder of a run opened: its newest checkpoint, and what it says of its model."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dft_jax.checkpoints.manager import Checkpoints
from dft_jax.data import source_list
from dft_jax.lm.checkpoint import open_config, require_base, require_tower
from dft_jax.lm.language_model import LM
from dft_jax.lm.merging import Merging, as_trained, is_whole, read_all
from dft_jax.models.hf.tokenizer import Tokenizer
from dft_jax.models.model import Model
from dft_jax.runtime import errors, files
from dft_jax.runtime.options import Config
from dft_jax.types import Params

NEWEST, BEST = "newest", "best"  # of the steps that there are
TEMPLATE_NAME = "chat_template.jinja"  # in a run's folder: the file that it was trained with


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """What a run's folder holds: its config, and one of its checkpoints, not yet read.

    The model has the adapters that the run trains, if it trains such.
    """

    workdir: Path
    config: Config
    source: Path
    model: Model
    tokenizer: Tokenizer
    checkpoints: Checkpoints
    step: int  # the one that was asked for

    @property
    def identity(self) -> dict[str, Any]:
        """What the checkpoint says of its run: run_id, base, data, fingerprint, changes."""
        return self.checkpoints.run_of(self.step)

    @property
    def lm(self) -> LM:
        """The model of the checkpoint. What says of which run it is, is read now: a run that trains
        on may have let the checkpoint go by the time it is asked for.
        """
        run, sha256 = self.identity, self.checkpoints.digest(self.step)
        return lm_of_run(
            self.workdir,
            self.config,
            self.source,
            self.model,
            self.tokenizer,
            step=self.step,
            run=run,
            sha256=sha256,
            read=self.params,
        )

    def params(self) -> Params:
        """What was trained, parameters or adapters, alone: moments are twice their size, and are
        not read.

        Raises:
          UserError: beneath adapters, or beside the parts of a model with images that are trained,
          is not the base that the run began with.
        """
        if self.model.config.vision is not None and not is_whole(self.model):
            began_with = self.identity["fingerprint"]["weights_sha256_of_sample"]
            require_tower(str(self.workdir), began_with, self.source)
        if self.model.lora is not None:
            trained_on = self.identity["fingerprint"]["base_sha256"]
            require_base(str(self.workdir), trained_on, self.source)
        return self.checkpoints.restore_params(self.step, self.model.trainable)


def open_run(
    workdir: Path, overrides: Mapping[str, Any] | None = None, wanted: str | int = NEWEST
) -> SavedRun:
    """A run's folder. Its model is sharded over this machine's devices, whatever mesh trained it.

    Args:
      overrides: keys of the config that it is opened with, as in `{"mesh.tensor": 2}`.
      wanted: the number of a step, NEWEST or BEST.

    Raises:
      UserError: there is no run, or no checkpoint of it yet, or none of that step.
    """
    require_step(wanted)
    file = workdir / "config.json"
    if not file.exists():
        raise errors.UserError(f"{workdir}: no config.json there; give the directory of a run")
    config: Config = ConfigDict(files.read_json(file)).lock()
    # The model as it lies on this machine: what trained it may have been a pod.
    here = config.copy_and_resolve_references()
    sizes = {"data": 1, "fsdp": -1, "tensor": 1, "sequence": 1, "expert": 1}
    # Runs from before there was an axis have no size of it.
    here.mesh.update({axis: sizes[axis] for axis in here.mesh})
    here.update_from_flattened_dict(overrides or {})
    source, model, tokenizer = open_config(here)
    model = as_trained(config, model)
    settings = config.checkpoint
    checkpoints = Checkpoints(
        workdir / "checkpoints",
        verify=settings.verify,
        # Runs from before there was this key have none.
        best=settings.get("best", ""),
    )
    step = _step_of(workdir, checkpoints, wanted)
    return SavedRun(workdir, config, source, model, tokenizer, checkpoints, step)


def require_step(wanted: str | int) -> None:
    """UserError for what can be no step of a run."""
    if wanted not in (NEWEST, BEST) and not str(wanted).isdecimal():
        hint = errors.did_you_mean(str(wanted), [NEWEST, BEST])
        raise errors.UserError(f"--step={wanted}{hint}: give {NEWEST}, {BEST}, or a number")


def _step_of(workdir: Path, checkpoints: Checkpoints, wanted: str | int) -> int:
    """The step that is wanted, whose checkpoint is complete and as it was written."""
    if wanted == NEWEST:
        newest = checkpoints.newest()
        if newest is None:
            raise errors.UserError(f"{workdir}: no checkpoint there yet; train first")
        return newest
    if wanted != BEST:
        step = int(wanted)
    elif not checkpoints.metric:
        what = f"{workdir} was trained without checkpoint.best, so no best step was kept"
        raise errors.UserError(f"--step={BEST}: {what}; give the number of a step, or {NEWEST}")
    else:
        best = checkpoints.best().step
        if best is None:
            what = f"no checkpoint of {workdir} has a {checkpoints.metric} yet"
            raise errors.UserError(f"--step={BEST}: {what}; train on, or give {NEWEST}")
        step = best
    checkpoints.require_good(step)
    return step


def lm_of_run(
    workdir: Path,
    config: Config,
    source: Path,
    model: Model,
    tokenizer: Tokenizer,
    *,
    step: int,
    run: dict[str, Any],
    sha256: str = "",
    read: Callable[[], Params],
) -> LM:
    """The model of a run after `step` steps, whether it was just trained or is in a checkpoint.

    Args:
      source: the Hugging Face folder that config and tokenizer are of.
      run: what the run's checkpoints say of it; see `SavedRun.identity`.
      sha256: the digest of the checkpoint of that step; where it is not given, that checkpoint is
        asked when somebody wants to know.
      model: with the adapters of a run that trains such; they are merged as they are read.
      read: gives what was trained, laid out as `model.trainable`.
    """
    name = workdir.name
    kept, computed = str(model.module.param_dtype), model.module.compute_dtype
    pairs = None
    if model.lora is None and model.abstract_base is not None:
        read = functools.partial(read_all, read, model, source)
    if model.lora is not None:
        merging = Merging(model, source, read)
        model, read, pairs = merging.model, merging.params, merging.pairs
        kept = "merged"
    origin = {key: run.get(key) for key in ("run_id", "base", "data")}

    def identify() -> dict[str, Any]:
        digest = sha256 or Checkpoints(workdir / "checkpoints").digest(step)
        found = {"name": name, "step": step, "sha256": digest, "origin": origin}
        if pairs is not None:
            # A checkpoint of adapters says nothing of what is beneath them.
            found["base_sha256"] = run["fingerprint"]["base_sha256"]
        return found

    return LM(
        model,
        tokenizer,
        identify=identify,
        read=read,
        source=source,
        path=str(workdir),
        what=f"{name}, step {step}: its {kept} weights, computed in {computed}",
        pairs=pairs,
        date=config.data.get("date", ""),
        trained=_trained_template(config, workdir),
    )


def keep_template(workdir: Path, config: Config) -> None:
    """Copies the .jinja file that a run is trained with, if it is such a file, into its folder: it
    may change, or go, before the run is exported.
    """
    template = source_list.trained_template(config.data)
    if template.endswith(".jinja"):
        files.write_text(workdir / TEMPLATE_NAME, Path(template).read_text(encoding="utf-8"))


def template_file(workdir: Path) -> Path | None:
    """The copy of the .jinja file that a run was trained with; None of a run of before this was
    kept.
    """
    file = workdir / TEMPLATE_NAME
    return file if file.exists() else None


def _trained_template(config: Config, workdir: Path) -> str:
    """What a run was trained with, as a value of --prompt; of a .jinja file, the run's copy."""
    name = source_list.trained_template(config.data)
    if name.endswith(".jinja"):
        return str(template_file(workdir) or name)
    return name
