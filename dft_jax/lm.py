"""A language model opened from wherever it is: a Hugging Face folder, a hub id, or a run."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from dft_jax import sharding
from dft_jax.checkpoints.manager import Checkpoints
from dft_jax.models import options as model_options
from dft_jax.models.hf.load import check_tensors, load_params
from dft_jax.models.hf.locate import load_tokenizer, read_config, resolve, tokenizer_files
from dft_jax.models.hf.provenance import provenance
from dft_jax.models.hf.safetensors import Checkpoint, weights_dtype, weights_sample
from dft_jax.models.hf.tokenizer import Tokenizer
from dft_jax.models.model import OPTIONS, Model, build
from dft_jax.runtime import errors, files, hub, options
from dft_jax.runtime.options import Config
from dft_jax.types import Params

TEMPLATE_NAME = "chat_template.jinja"  # in a run's folder: the file that it was trained with


@dataclasses.dataclass(frozen=True)
class LM:
    """A model with its tokenizer. Parameters are read when they are first asked for.

    Args:
      identify: says in plain values which weights these are; what it has under `origin` is for a
        reader: which run or hub commit they are of, and what that began with.
      read: gives the parameters, laid out as `model.abstract_params`.
      source: the Hugging Face folder that config and tokenizer are of.
      path: where it was opened from: a folder, a hub id, or the directory of a run.
      revision: of a hub id.
      what: which weights these are, for a reader: of a run, or of an export, which may be rounded.
      weights_sha256_of_sample: of a Hugging Face folder, which each host may have on its own disk.
      date: YYYY-MM-DD, of a run, or its export, whose template writes the date.
      trained: the prompt that it was trained with; empty where nobody says.
    """

    model: Model
    tokenizer: Tokenizer
    identify: Callable[[], dict[str, Any]]
    read: Callable[[], Params]
    source: Path
    path: str = ""
    revision: str = "main"
    what: str = ""
    weights_sha256_of_sample: str = ""
    date: str = ""
    trained: str = ""

    @functools.cached_property
    def params(self) -> Params:
        return self.read()

    def forget_params(self) -> None:
        """Lets the parameters go; they are read again when they are next asked for."""
        self.__dict__.pop("params", None)

    @property
    def mesh(self) -> dict[str, int]:
        """Sizes of the mesh by axis."""
        return dict(self.model.mesh.shape)

    @property
    def name(self) -> str:
        """Of its folder, or the last part of its hub id."""
        return Path(self.path).absolute().name


def open_checkpoint(
    path: str,
    revision: str,
    mesh: Config,
    model_settings: Config,
    *,
    max_length: int = 2,
    is_random: bool = False,
) -> tuple[Path, Model, Tokenizer]:
    """The checkpoint's folder, the model on its mesh (nothing allocated) and the tokenizer, all
    checked.

    Args:
      mesh: sizes by axis, as in config.mesh.
      model_settings: `models.model.OPTIONS` by name, as in config.model.
      max_length: tokens of the longest row that the model is going to read.
      is_random: the weights are not going to be read; there may be none.

    Raises:
      UserError: no such checkpoint, an architecture or tensors that are not supported, or a mesh
      that does not fit.
    """
    n_devices = jax.device_count()
    in_slices = sharding.tpu_slices()
    errors.raise_if_any(sharding.problems(**mesh, device_count=n_devices, tpu_slices=in_slices))
    source = resolve(path, revision)
    architecture = read_config(source)
    errors.raise_if_any(
        model_options.architecture_problems(mesh, max_length, architecture, n_devices)
    )
    settings = {name: model_settings[name] for name in OPTIONS}
    model = build(architecture, sharding.make_mesh(**mesh), **settings)
    if is_random:
        # Nothing else looks at it before the export, which should not be what refuses it.
        weights_dtype(source)
    else:
        check_tensors(Checkpoint(source), model)
    return source, model, load_tokenizer(source)


def open_config(config: Config) -> tuple[Path, Model, Tokenizer]:
    """The model that a run's config names: see `open_checkpoint`.

    Only `model`, `mesh` and `data.max_length` matter.
    """
    return open_checkpoint(
        config.model.path,
        config.model.revision,
        config.mesh,
        config.model,
        max_length=config.data.max_length,
        is_random=config.model.init == "random",
    )


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """What a run's folder holds: its config, and its newest complete checkpoint, not yet read."""

    config: Config
    source: Path
    model: Model
    tokenizer: Tokenizer
    checkpoints: Checkpoints
    step: int

    @property
    def identity(self) -> dict[str, Any]:
        """What the checkpoint says of its run: run_id, base, data, fingerprint, changes."""
        return self.checkpoints.run_of(self.step)

    def params(self) -> Params:
        """The parameters alone: moments are twice their size, and are not read."""
        return self.checkpoints.restore_params(self.step, self.model.abstract_params)


def open_run(workdir: Path, **overrides: Any) -> SavedRun:
    """A run's folder. Its model is sharded over this machine's devices, whatever mesh trained it.

    `overrides` change keys of the config for it, as in `{"mesh.tensor": 2}`.

    Raises:
      UserError: there is no run, or no checkpoint of it yet.
    """
    file = workdir / "config.json"
    if not file.exists():
        raise errors.UserError(f"{workdir}: no config.json there; give the directory of a run")
    config: Config = ConfigDict(files.read_json(file)).lock()
    # The model as it lies on this machine: what trained it may have been a pod.
    here = config.copy_and_resolve_references()
    here.update_from_flattened_dict({"mesh.data": 1, "mesh.fsdp": -1, "mesh.tensor": 1} | overrides)
    source, model, tokenizer = open_config(here)
    checkpoints = Checkpoints(workdir / "checkpoints", verify=config.checkpoint.verify)
    step = checkpoints.newest()
    if step is None:
        raise errors.UserError(f"{workdir}: no checkpoint there yet; train first")
    return SavedRun(config, source, model, tokenizer, checkpoints, step)


def open_lm(
    path: str,
    *,
    revision: str = "main",
    mesh: Mapping[str, int] | None = None,
    compute_dtype: str | None = None,
) -> LM:
    """The model of a Hugging Face checkpoint, or of a run's newest checkpoint; nothing is loaded
    yet.

    Args:
      path: a folder, a hub id, or the directory of a run.
      mesh: sizes by axis; without it every device has a copy of the model.
      compute_dtype: of matrix products; float32 on CPUs and else bfloat16 where it is None.

    Raises:
      UserError: neither is there, or what is there is not supported, or does not fit the devices.
    """
    sizes = {"data": -1, "fsdp": 1, "tensor": 1}
    if mesh:
        sizes = {"data": 1, "fsdp": 1, "tensor": 1} | dict(mesh)
    if compute_dtype is None:
        compute_dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    folder = Path(path).expanduser()
    if (folder / "checkpoints").is_dir():
        return _lm_of_run(folder, sizes, compute_dtype)
    if folder.is_dir():
        path = str(folder)
    return _lm_of_checkpoint(path, revision, sizes, compute_dtype)


def _lm_of_run(folder: Path, mesh: dict[str, int], compute_dtype: str) -> LM:
    changes = {f"mesh.{axis}": size for axis, size in mesh.items()}
    saved = open_run(folder, **changes, **{"model.compute_dtype": compute_dtype})
    # Read now: a run that trains on may have let the checkpoint go by the time it is asked for.
    run, sha256 = saved.identity, saved.checkpoints.digest(saved.step)
    origin = {name: run.get(name) for name in ("run_id", "base", "data")}
    identity = {"name": folder.name, "step": saved.step, "sha256": sha256, "origin": origin}
    masters = saved.model.module.param_dtype
    return LM(
        saved.model,
        saved.tokenizer,
        identify=lambda: identity,
        read=saved.params,
        source=saved.source,
        path=str(folder),
        what=(
            f"{folder.name}, step {saved.step}: its {masters} weights, computed in {compute_dtype}"
        ),
        date=saved.config.data.get("date", ""),
        trained=trained_template(saved.config, folder),
    )


def _lm_of_checkpoint(path: str, revision: str, mesh: dict[str, int], compute_dtype: str) -> LM:
    settings = options.defaults(model_options.SECTION)
    settings |= {"param_dtype": compute_dtype, "compute_dtype": compute_dtype}
    source, model, tokenizer = open_checkpoint(path, revision, mesh, settings)
    name = Path(path).absolute().name

    def identify() -> dict[str, Any]:
        weights = Checkpoint(source).files
        hashes = files.sha256_of({source / "config.json", *weights, *tokenizer_files(source)})
        sha256 = files.joined_digest({file: hashes[file] for file in weights})
        origin = _exported_from(source)
        if not origin:
            origin = {"base": base_of(path, revision, "checkpoint", source, sha256)}
        digest = files.joined_digest(hashes)
        return {"name": name, "sha256": digest, "origin": origin}

    exported = provenance(source) or {}
    dtype = Checkpoint(source).dtype
    return LM(
        model,
        tokenizer,
        identify=identify,
        read=lambda: load_params(Checkpoint(source), model),
        source=source,
        path=path,
        revision=revision,
        what=f"{name}: {dtype} weights, computed in {compute_dtype}",
        weights_sha256_of_sample=weights_sample(source),
        date=exported.get("date", ""),
        trained=exported.get("template", ""),
    )


def _exported_from(source: Path) -> dict[str, Any]:
    """The run, step and base that an export says it is of; empty of any other folder, and where no
    base is named.
    """
    exported = provenance(source) or {}
    base = exported.get("base")
    if not isinstance(base, dict) or not base.get("path"):
        return {}
    return {name: exported.get(name) for name in ("run_id", "step", "base")}


def base_of(
    path: str, revision: str, init: str, source: Path, sha256: str | None
) -> dict[str, Any]:
    """The checkpoint that a run begins with: where it was found, the hub's commit, and SHA-256 of
    all its weights.

    `sha256` is None for weights that it does not begin with, because it draws random ones.
    """
    is_folder = Path(path).is_dir()
    return {
        "path": str(Path(path).absolute()) if is_folder else path,
        "revision": None if is_folder else revision,
        "commit": hub.commit_of(source),
        "init": init,
        "sha256": sha256,
    }


def template_file(workdir: Path) -> Path | None:
    """The copy of the .jinja file that a run was trained with; None of a run of before this was
    kept.
    """
    file = workdir / TEMPLATE_NAME
    return file if file.exists() else None


def trained_template(config: Config, workdir: Path) -> str:
    """What a run was trained with, as a value of --prompt; of a .jinja file, the run's copy."""
    name = config.data.template
    if name.endswith(".jinja"):
        return str(template_file(workdir) or name)
    return name
