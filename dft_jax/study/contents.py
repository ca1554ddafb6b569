"""Digests of everything that a study reads: an arm is resumed only with the same."""

from pathlib import Path
from typing import Any

from dft_jax.data import order
from dft_jax.evals import planning
from dft_jax.models.hf import digests
from dft_jax.models.hf.locate import tokenizer_files
from dft_jax.runtime import files
from dft_jax.runtime.options import Config
from dft_jax.study.texts import HeldOut


def contents_of(
    config: Config,
    source: Path,
    train_sha256: str,
    version: int,
    texts: dict[str, HeldOut],
    plan: planning.Plan | None,
) -> dict[str, Any]:
    """The values of inputs.json that no spec says: what its paths led to.

    Args:
      source: the folder of the checkpoint.
      version: that of data/order.py.
    """
    contents: dict[str, Any] = {
        "contents.weights_sha256": weights_digest(config, source),
        "contents.tokenizer_sha256": files.digest(tokenizer_files(source)),
        "contents.train_sha256": train_sha256,
    }
    # In which order examples come is a content too: another version draws other batches.
    for key, value in order.as_fingerprint(version).items():
        contents[f"contents.{key}"] = value
    for name, text in texts.items():
        contents[f"contents.{name}_sha256"] = text.sha256
    if plan:
        contents["contents.problems_sha256"] = plan.digest()
    return contents


def weights_digest(config: Config, source: Path) -> str:
    """Of the checkpoint's weights; of random ones the seed says all."""
    if config.model.init == "random":
        return f"random, seed {config.train.seed}"
    return digests.weights_digest(source)
