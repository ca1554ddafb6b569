"""A language model opened from wherever it is: a Hugging Face folder, a hub id, or a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dft_jax import sharding
from dft_jax.lm.checkpoint import base_of, open_checkpoint
from dft_jax.lm.language_model import LM
from dft_jax.lm.run import lm_of_run, open_run
from dft_jax.models import options as model_options
from dft_jax.models.hf.load import load_params
from dft_jax.models.hf.locate import tokenizer_files
from dft_jax.models.hf.provenance import provenance
from dft_jax.models.hf.safetensors import Checkpoint, weights_sample
from dft_jax.runtime import files, options


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
        compute_dtype = _fast_dtype(sizes)
    folder = Path(path).expanduser()
    if (folder / "checkpoints").is_dir():
        return _of_run(folder, sizes, compute_dtype)
    if folder.is_dir():
        path = str(folder)
    return _of_checkpoint(path, revision, sizes, compute_dtype)


def _fast_dtype(mesh: dict[str, int]) -> str:
    """Of matrix products, on the devices of such a mesh."""
    # Few CPUs multiply bfloat16 fast.
    if sharding.platform(sharding.checked_mesh(**mesh)) == "cpu":
        return "float32"
    return "bfloat16"


def _of_run(folder: Path, mesh: dict[str, int], compute_dtype: str) -> LM:
    changes: dict[str, Any] = {f"mesh.{axis}": size for axis, size in mesh.items()}
    changes["model.compute_dtype"] = compute_dtype
    saved = open_run(folder, changes)
    # Read now: a run that trains on may have let the checkpoint go by the time it is asked for.
    run, sha256 = saved.identity, saved.checkpoints.digest(saved.step)
    return lm_of_run(
        folder,
        saved.config,
        saved.source,
        saved.model,
        saved.tokenizer,
        step=saved.step,
        run=run,
        sha256=lambda: sha256,
        read=saved.params,
    )


def _of_checkpoint(path: str, revision: str, mesh: dict[str, int], compute_dtype: str) -> LM:
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
