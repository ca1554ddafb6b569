"""A Hugging Face checkpoint opened: its model on a mesh and its tokenizer, both checked."""

from pathlib import Path
from typing import Any

from dft_jax import sharding
from dft_jax.models import options as model_options
from dft_jax.models.hf.digests import weights_digest_by_all, weights_sample
from dft_jax.models.hf.load import check_tensors
from dft_jax.models.hf.locate import load_tokenizer, read_config, resolve
from dft_jax.models.hf.safetensors import Checkpoint, weights_dtype
from dft_jax.models.hf.tokenizer import Tokenizer
from dft_jax.models.model import OPTIONS, Model, build
from dft_jax.models.parts import ALL, TEXT
from dft_jax.runtime import errors, hub
from dft_jax.runtime.options import Config


def open_checkpoint(
    path: str,
    revision: str,
    mesh: Config,
    model_settings: Config,
    *,
    max_length: int = 2,
    is_random: bool = False,
    parts: str = TEXT,
) -> tuple[Path, Model, Tokenizer]:
    """The checkpoint's folder, the model on its mesh (nothing allocated) and the tokenizer, all
    checked.

    Args:
      mesh: sizes by axis, as in config.mesh.
      model_settings: `models.model.OPTIONS` by name, as in config.model.
      max_length: tokens of the longest row that the model is going to read.
      is_random: the weights are not going to be read; there may be none.
      parts: what is going to be trained of a model with images, as config.train has it.

    Raises:
      UserError: no such checkpoint, an architecture or tensors that are not supported, or a mesh
      that does not fit.
    """
    # Before anything is downloaded.
    on_devices = sharding.checked_mesh(**mesh)
    source = resolve(path, revision)
    architecture = read_config(source)
    errors.raise_if_any(
        model_options.architecture_problems(mesh, max_length, architecture, on_devices.size)
    )
    if is_random and architecture.vision is not None and parts != ALL:
        raise errors.UserError(
            f"config.model.init='random': {source} is a model with images, whose tower would stay"
            f" random; use init='checkpoint', or train.parts={ALL!r}"
        )
    settings = {name: model_settings[name] for name in OPTIONS}
    model = build(architecture, on_devices, **settings)
    if is_random:
        # Nothing else looks at it before the export, which should not be what refuses it.
        weights_dtype(source)
    else:
        check_tensors(Checkpoint(source), model)
    return source, model, load_tokenizer(source)


def open_config(config: Config) -> tuple[Path, Model, Tokenizer]:
    """The model that a run's config names: see `open_checkpoint`.

    Only `model`, `mesh`, `data.max_length` and `train.parts` matter.
    """
    return open_checkpoint(
        config.model.path,
        config.model.revision,
        config.mesh,
        config.model,
        max_length=config.data.max_length,
        is_random=config.model.init == "random",
        # Runs that are older than the key have none.
        parts=config.train.get("parts", TEXT),
    )


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


def base_of_run(model_settings: Config, source: Path) -> dict[str, Any]:
    """`base_of` the checkpoint that a run begins with, whose weights are hashed.

    All processes of a job call it. `model_settings` is `config.model`.
    """
    sha256 = None
    if model_settings.init == "checkpoint":
        sha256 = weights_digest_by_all(source)
    path, revision = model_settings.path, model_settings.revision
    return base_of(path, revision, model_settings.init, source, sha256)


def require_tower(what: str, began_with: str, source: Path) -> None:
    """Requires the base that a run began with, of a model with images.

    Its checkpoints have no tower: an export takes that from `source`, and would take another's.

    Args:
      what: the run, for the message.
      began_with: `weights_sample` of its base.

    Raises:
      UserError: the weights in `source` are others.
    """
    if weights_sample(source) != began_with:
        raise errors.UserError(
            f"{what}: {source} has other weights than the run began with, and the tower would be"
            " taken from there; put the base back"
        )


def require_base(what: str, trained_on: str, source: Path) -> str:
    """Requires the base that adapters were trained on; all processes of a job call it.

    Args:
      what: the adapters, for the message.
      trained_on: SHA-256 of all weights of their base; empty where that is not known.

    Returns:
      That of the weights in `source`.

    Raises:
      UserError: these are others.
    """
    found = weights_digest_by_all(source)
    if trained_on not in ("", found):
        raise errors.UserError(
            f"{what}: its base had weights of SHA-256 {trained_on}, {source} has {found};"
            " give the base that it was trained on"
        )
    return found
