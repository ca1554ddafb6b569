"""The model of a run exported, as its config says."""

from pathlib import Path
from typing import Any

from dft_jax.lm.language_model import LM
from dft_jax.models.hf.export import export
from dft_jax.models.hf.export_adapter import Trained, export_adapter
from dft_jax.models.hf.merging import Pairs
from dft_jax.models.hf.rounding import Rounding
from dft_jax.models.lora import of_config
from dft_jax.models.model import Model
from dft_jax.runtime import errors, hub
from dft_jax.runtime.options import Config
from dft_jax.training import origin
from dft_jax.types import Params


def export_run(
    lm: LM,
    config: Config,
    step: int,
    run: dict[str, Any],
    out: Path,
    *,
    what: str | None = None,
    dtype: str | None = None,
    max_shard_gb: float | None = None,
) -> Rounding | None:
    """Writes the folder `out`: see `export`, and of a run that trains adapters `export_adapter`.

    Args:
      lm: the run's, opened from its directory.
      config: the run's; what is not given here is as its section `export` has it.
      run: what its checkpoints say of it.

    Raises:
      UserError: it cannot be written; or `what` of a run that trains all of its model.
    """
    about = origin.of_run(Path(lm.path), config, step, run)
    settings = config.export
    trained = None
    if lm.pairs is not None:
        trained = trained_of(lm.pairs(), config, run)
        what = what or settings.what
    return _write(
        lm,
        trained,
        about,
        out,
        what=what,
        dtype=dtype or settings.dtype,
        max_shard_gb=max_shard_gb or settings.max_shard_gb,
    )


def export_trained(
    params: Params, model: Model, source: Path, out: Path, config: Config, step: int
) -> Rounding:
    """Writes what `step` steps by a config have made of a model without a folder of a run: see
    `export`.
    """
    return export(
        params,
        model,
        source,
        out,
        dtype=config.export.dtype,
        max_shard_gb=config.export.max_shard_gb,
        origin=origin.of_config(config, step),
    )


def export_other(
    lm: LM, out: Path, *, what: str, dtype: str, max_shard_gb: float
) -> Rounding | None:
    """Writes a model that is no run's: see `export`, and of an adapter `export_adapter`."""
    trained = None
    if lm.pairs is not None:
        # Of an adapter's folder; that itself is there.
        trained = Trained(lm.pairs(), None, {})
    about = origin.of_lm(lm)
    return _write(lm, trained, about, out, what=what, dtype=dtype, max_shard_gb=max_shard_gb)


def _write(
    lm: LM,
    trained: Trained | None,
    about: origin.Origin,
    out: Path,
    *,
    what: str | None,
    dtype: str,
    max_shard_gb: float,
) -> Rounding | None:
    """`trained` are the adapters of a model that has such."""
    if trained is None:
        refuse_idle_what(what)
        return export(
            lm.params,
            lm.model,
            lm.source,
            out,
            dtype=dtype,
            max_shard_gb=max_shard_gb,
            origin=about,
        )
    return export_adapter(
        trained,
        lm.model,
        lm.source,
        out,
        what="auto" if what is None else what,
        dtype=dtype,
        max_shard_gb=max_shard_gb,
        origin=about,
    )


def trained_of(pairs: Pairs, config: Config, run: dict[str, Any]) -> Trained:
    """The adapters of a run; `run` is what its checkpoints say of it."""
    path = config.model.path
    # An adapter is opened from any folder, where a relative path would be another one or a hub id;
    # and by PEFT, to which hf:// is a part of an id.
    place = str(Path(path).absolute()) if Path(path).is_dir() else path.removeprefix(hub.PREFIX)
    base = {
        "path": place,
        "revision": config.model.revision,
        "sha256": run["fingerprint"]["base_sha256"],
    }
    return Trained(pairs, of_config(config.lora), base)


def refuse_idle_what(what: str | None) -> None:
    """UserError where an adapter is asked for of a model that has none."""
    if what not in (None, "auto"):
        reason = "all of this model was trained, and it has no adapter"
        raise errors.UserError(f"what={what!r} has no effect: {reason}; leave it out")
