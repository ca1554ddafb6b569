"""What makes a run the one it is: its fingerprint, and which changes a resumed run may make."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from dft_jax.data.examples import Examples
from dft_jax.data.templates import Template
from dft_jax.models.hf.digests import weights_digest_by_all, weights_sample
from dft_jax.models.hf.locate import tokenizer_files
from dft_jax.models.model import Model
from dft_jax.runtime import errors, files
from dft_jax.runtime.environment import process_facts
from dft_jax.runtime.options import Config, flatten
from dft_jax.training import adapters
from dft_jax.training.optimizer import rounding_of
from dft_jax.types import Params

# What a checkpoint says of its run since it began, and keys that fingerprints of older versions
# lack.
SAID_ONCE = ("run_id", "base", "data")
ADDED_LATER = ("weights_sha256_of_sample",)
# Keys of a config that may differ between hosts: what they lead to is compared instead.
_LEAD_TO_CONTENT = (
    "model.path",
    "data.train",
    "data.heldout",
    "data.image_folder",
    "lora.adapter",
)
# Of a fingerprint: what these lead to is compared, whatever they are.
_LED_TO_DATA = ("config.data.subset", "config.data.split", "config.data.revision")
# A resumed run may change these: they say how a run is carried out and watched, not what it
# computes. Data and model may move: the data's hash and the architecture are compared, and the
# parameters come from the checkpoint.
_MAY_CHANGE = (
    "checkpoint.",
    "data.heldout",
    "data.image_features",
    "data.image_folder",
    "data.max_lost_fraction",
    "data.train",
    "eval.",
    "export.",
    "log.",
    "lora.adapter",
    "mesh.",
    "model.attention",
    "model.path",
    "model.remat",
    "model.revision",
    "profile",
    "resume.",
    "train.loss_chunk_tokens",
)
_SAY_NOTHING = {
    "data.row_length": 0,
    "data.image_field": "",
    "data.image_min_pixels": 0,
    "data.image_max_pixels": 768 * 768,
    "data.image_max_patches": 0,
    "data.weight_field": "",
    "data.prompt_weight": 0,
    "data.sample_rows": 0,
    "data.sample_seed": 0,
    "train.balance_weight": 0.0,
    "train.parts": "text",
}


def kept_on_resume(config: Config) -> dict[str, Any]:
    """The keys, with their values, whose change would make a resumed run another run.

    A run from before a key was there has none, and means what is left out here.
    """
    kept = {key: value for key, value in flatten(config).items() if not key.startswith(_MAY_CHANGE)}
    if kept.get("data.date") == "":
        del kept["data.date"]  # no template writes one
    is_bfloat16 = config.model.get("param_dtype") == "bfloat16"
    if not (is_bfloat16 and rounding_of(config.optimizer) == "stochastic"):
        kept.pop("optimizer.rounding", None)  # they rounded to nearest, or not at all
    if kept.get("optimizer.warmup_from") == "zero" or not kept.get("optimizer.warmup_fraction"):
        kept.pop("optimizer.warmup_from", None)  # they began at a rate of zero, or without warm-up
    # With these values they say what a run says that is older than they are.
    for key, nothing in _SAY_NOTHING.items():
        if kept.get(key) == nothing:
            del kept[key]
    if not adapters.is_adapted(config):
        kept = {key: value for key, value in kept.items() if not key.startswith("lora.")}
    return kept


def digest(config: Config) -> str:
    """SHA-256 of what makes a run the one it is: the checkpoint it began with, and all that a
    resumed run must keep.
    """
    kept = kept_on_resume(config)
    for key in ("path", "revision"):
        kept[key] = config.model[key]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def run_facts(
    config: Config,
    fingerprint: dict[str, Any],
    row_counts: Iterable[int],
    heldout: Examples | None,
) -> dict[str, Any]:
    """All that a training job's processes each read by themselves, as plain values that must be the
    same on all.
    """
    facts = process_facts() | fingerprint
    for key, value in flatten(config).items():
        if key not in _LEAD_TO_CONTENT:
            facts[f"config.{key}"] = value
    facts["heldout_data_sha256"] = heldout.report["sha256"] if heldout else ""
    facts["row_counts"] = list(row_counts)
    return facts


def fingerprint(
    config: Config,
    source: Path,
    model: Model,
    tokenizer: Any,
    train: Examples,
    steps: int,
) -> dict[str, Any]:
    """What makes a run the one it is, as plain values by name; a run goes on only from a checkpoint
    of its own.

    The training data's hash covers all that became of it, tokens and masks; tokenizer and template
    are named as well, to say what it was. `fingerprint_of_weights` has the rest.
    """
    found = {f"config.{key}": value for key, value in kept_on_resume(config).items()}
    for key, value in model.config.fingerprint().items():
        found[f"architecture.{key}"] = value
    found |= _shapes("parameters", model.abstract_params)
    found |= _shapes("adapters", model.abstract_adapters)
    found |= adapters.fingerprint(config)
    found |= {
        "steps": steps,
        "training_data_sha256": train.report["sha256"],
        "tokenizer_sha256": files.digest(tokenizer_files(source)),
        "chat_template_sha256": _sha256(
            Template(config.data.template, tokenizer, date=config.data.date).text
        ),
    }
    if train.shares:
        # What is drawn; the hash of the data covers it, and this says it.
        found["mixture"] = train.drawn_in_an_epoch
    if config.model.init == "checkpoint":
        # of the base, whose parameters it began with
        found["weights_sha256_of_sample"] = weights_sample(source)
    return json.loads(json.dumps(found))  # as it will be read back: a tuple is a list


def fingerprint_of_weights(config: Config, source: Path, reference: bool) -> dict[str, Any]:
    """What a fingerprint says of weights that are in no checkpoint of the run, and are hashed
    whole: those beneath adapters, and with `reference` those that the objective compares with.

    All processes of a job call it, once they know that they have the same files.

    Raises:
      UserError: `lora.adapter` was trained on another base.
    """
    found = adapters.fingerprint_of_base(config, source)
    if reference and config.model.init == "checkpoint":
        found["reference_sha256"] = weights_digest_by_all(source)
    return found


def _shapes(kind: str, abstract: Params | None) -> dict[str, str]:
    """Dtype and shape of each leaf, by kind and name."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found[f"{kind}.{name}"] = f"{leaf.dtype}{list(leaf.shape)}"
    return found


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def origin_of(run: dict[str, Any], config: Config, train: Examples) -> dict[str, Any]:
    """What tells evaluations of a run from those of any other; `run` is what its checkpoints say.

    A run of an older version has no id, and neither have its evaluations.
    """
    sha256 = train.report["sha256"]
    origin = {"config_sha256": digest(config), "training_data_sha256": sha256}
    if "run_id" in run:
        made_of = {"base": run["base"], "data": run.get("data")}
        origin |= {"run_id": run["run_id"], "origin": made_of}
    return origin


def data_of(train: Examples) -> dict[str, Any]:
    """The data that a run is trained on: where it was found, the hub's commit, and SHA-256 of
    tokens and masks.
    """
    made_of = {
        "path": _place(train.report["path"]),
        "commit": train.report["commit"],
        "sha256": train.report["sha256"],
    }
    if train.shares:
        made_of["mixture"] = train.drawn_in_an_epoch
    return made_of


def _place(path: str | list[str]) -> str | list[str]:
    """A path, or those of a mixture, as they are to be found from any folder."""
    if isinstance(path, list):
        return [str(_place(one)) for one in path]
    place = Path(path)
    return str(place.absolute()) if place.exists() else path


def allowed_changes(config: Config) -> tuple[str, ...]:
    """The names in `resume.allow_changed`."""
    return tuple(name.strip() for name in config.resume.allow_changed.split(",") if name.strip())


def refused_changes(changes: dict[str, str], allowed: tuple[str, ...]) -> list[str]:
    """Those lines of `changes` (by name) that no name in `allowed` covers, and that no other part
    compares.
    """
    allowed += _LED_TO_DATA
    return [line for name, line in changes.items() if not any(covers(one, name) for one in allowed)]


def refuse_unknown(allowed: tuple[str, ...], names: set[str]) -> None:
    for name in allowed:
        if not any(covers(name, known) for known in names):
            hint = errors.did_you_mean(
                name, sorted(known.removeprefix("config.") for known in names)
            )
            raise errors.UserError(
                f"config.resume.allow_changed: {name!r} is not in a run's fingerprint{hint}"
            )


def covers(allowed: str, name: str) -> bool:
    """Allowed is a whole name, or its beginning up to a dot: `train.seed`, `optimizer`; `config.`
    may be left out.
    """
    return f"{name}.".startswith((f"{allowed}.", f"config.{allowed}."))
