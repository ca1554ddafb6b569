"""Sections of a config that say how long is trained, and what is written of it."""

import importlib.util
from typing import Any

from dft_jax.data import batches
from dft_jax.models.parts import PARTS, TEXT
from dft_jax.runtime.options import ABOVE_0, AT_LEAST_0, AT_LEAST_1, Config, Legal, Option
from dft_jax.sharding import Sizes

TRAIN = {
    "global_batch": Option(256, "examples of an update, over all devices", AT_LEAST_1),
    "accumulation": Option(1, "micro-batches of an update", AT_LEAST_1),
    "epochs": Option(1.0, "passes over the data, rounded up to whole batches", ABOVE_0),
    "steps": Option(0, "updates; 0: as many as train.epochs takes", AT_LEAST_0),
    "seed": Option(
        0,
        "of the order of examples, and of random weights and rounding",
        Legal(lambda seed: 0 <= seed < 2**32, f"at least 0 and below {2**32}"),
    ),
    "loss_normalization": Option(
        "global",
        "by the tokens of the global batch; official: a sum of means of micro-batches",
        ("global", "official"),
    ),
    "loss_chunk_tokens": Option(
        1024, "trained tokens whose logits exist at once on a device", AT_LEAST_1
    ),
    "balance_weight": Option(
        0.0,
        "of the loss that balances experts (models/routing.py); 0 adds none",
        AT_LEAST_0,
    ),
    "parts": Option(
        TEXT,
        "what is trained of a model whose rows have images: its text, the merger, the tower too",
        PARTS,
    ),
    "max_skipped_steps": Option(
        5, "updates in a row that are not finite, after which the run stops", AT_LEAST_1
    ),
}
# What config.eval has of training; the rest are the settings of a benchmark evaluation.
EVAL = {
    "every": Option(
        0, "steps between evaluations on data.heldout; 0: only before and after", AT_LEAST_0
    ),
    "max_examples": Option(512, "the first of data.heldout; 0 for all", AT_LEAST_0),
    "benchmarks_every": Option(
        0, "steps between evaluations on benchmarks; 0: only at the end", AT_LEAST_0
    ),
}
RESUME = {
    "allow_changed": Option(
        "", "names, separated by commas, of what may differ from the checkpoint, as in train.seed"
    ),
}
PROFILE = Option("", "first and last step of a profile in workdir/profile, as in 10,12")
LOG = {
    "every": Option(1, "steps between rows of metrics.jsonl", AT_LEAST_1),
    "tensorboard": Option(True, "write events for TensorBoard as well"),
    "wandb_project": Option("", "of Weights & Biases; empty: not used"),
}


def parse_steps(text: str) -> tuple[int, int]:
    """'10,12' as two numbers of steps. ValueError for anything else."""
    first, last = map(int, text.split(","))
    if not 1 <= first <= last:
        raise ValueError(text)
    return first, last


def profile_problems(profile: str) -> list[str]:
    """What is wrong with `config.profile`."""
    if not profile:
        return []
    try:
        parse_steps(profile)
    except ValueError:
        should = "should be the first and the last step, as in 10,12"
        return [f"config.profile={profile!r} {should}"]
    return []


def feature_problems(image_features: str, parts: str) -> list[str]:
    """What is wrong between `config.data.image_features` and `config.train.parts`."""
    if not image_features or parts == TEXT:
        return []
    what = f"config.data.image_features={image_features!r} with config.train.parts={parts!r}"
    return [
        f"{what}: a tower or merger that is trained makes other features in every step; empty it"
        f" (--config.data.image_features=), or train.parts={TEXT!r}"
    ]


def log_problems(given: dict[str, Any]) -> list[str]:
    """What is wrong with `config.log`; `given` are values by their key in LOG."""
    if not given.get("wandb_project") or importlib.util.find_spec("wandb"):
        return []
    what = "config.log.wandb_project is set, but wandb is not installed"
    return [f"{what}: pip install wandb, or empty it"]


def batch_problems(
    global_batch: int, accumulation: int, mesh: Config, device_count: int
) -> list[str]:
    """What does not fit between a batch and a mesh that is right on this number of devices."""
    sizes = Sizes(**mesh).on(device_count)
    fewest = sizes.data * sizes.fsdp * sizes.expert * accumulation
    if global_batch >= fewest:
        return []
    over = f"data={sizes.data} × fsdp={sizes.fsdp}"
    if sizes.expert > 1:
        over += f" × expert={sizes.expert}"
    rows = f"{over} × accumulation={accumulation} = {fewest} rows"
    what = f"config.train.global_batch={global_batch} examples cannot fill {rows}"
    return [f"{what}; use at least {fewest}, or fewer of those"]


def row_problems(data: Config, mesh: Config, device_count: int) -> list[str]:
    """What does not fit between the length of rows and a mesh that is right on these devices."""
    row_length = batches.row_length(data)
    sequence = Sizes(**mesh).on(device_count).sequence
    # Of rows that are cut each device has two pieces (model.balanced).
    pieces = 1 if sequence == 1 else 2 * sequence
    if row_length % pieces == 0:
        return []
    what = f"config.mesh.sequence={sequence} cuts rows into {pieces} pieces"
    what += f", which does not divide {row_length} tokens"
    remedy = -(-row_length // pieces) * pieces
    return [f"{what}; use another, or data.row_length={remedy}"]
