"""The model of a Hugging Face folder, or of the hub, which says what its weights are."""

from pathlib import Path
from typing import Any

from dft_jax.lm.checkpoint import base_of, open_checkpoint
from dft_jax.lm.language_model import LM
from dft_jax.models import options as model_options
from dft_jax.models.hf.digests import weights_hashes, weights_sample
from dft_jax.models.hf.load import load_params
from dft_jax.models.hf.locate import tokenizer_files
from dft_jax.models.hf.provenance import provenance
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.runtime import files, options


def lm_of_checkpoint(
    path: str, folder: Path, revision: str, mesh: dict[str, int], compute_dtype: str
) -> LM:
    """The model of a Hugging Face folder; nothing is loaded yet.

    Args:
      folder: what `path` and `revision` stand for: the same, or a snapshot of the hub.
      mesh: sizes by axis.

    Raises:
      UserError: as `open_checkpoint`.
    """
    settings = options.defaults(model_options.SECTION)
    settings |= {"param_dtype": compute_dtype, "compute_dtype": compute_dtype}
    source, model, tokenizer = open_checkpoint(str(folder), revision, mesh, settings)
    name = Path(path).absolute().name

    def identify() -> dict[str, Any]:
        weights = weights_hashes(source)
        sha256 = files.joined_digest(weights)
        origin = _exported_from(source)
        if not origin:
            origin = {"base": base_of(path, revision, "checkpoint", source, sha256)}
        others = files.sha256_of({source / "config.json", *tokenizer_files(source)})
        digest = files.joined_digest(weights | others)
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
