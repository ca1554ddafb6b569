"""The complete default config and everything that can be said about a config before work starts."""

import dataclasses
import hashlib
import importlib.util
import json
import math
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dft_jax.checkpoints import manifest
from dft_jax.data import formats, templates
from dft_jax.data.sources import locate
from dft_jax.evals.runner import Settings
from dft_jax.losses import objectives
from dft_jax.models.attention.kernels import BACKENDS
from dft_jax.models.model import REMAT_POLICIES, DecoderSpec
from dft_jax.runtime import errors
from dft_jax.sharding import MESH_AXES, mesh_sizes
from dft_jax.training import optimizer
from dft_jax.training.reporter import parse_steps


def plain(value: Any) -> Any:
    """A setting as a config has it: ml_collections reads no tuples from a command line, they are
    text with commas.
    """
    return ",".join(map(str, value)) if isinstance(value, tuple) else value


# Of a benchmark evaluation; evals/runner.py explains each.
_SETTINGS = {name: plain(value) for name, value in dataclasses.asdict(Settings()).items()}

_DEFAULT = {
    "objective": "dft",  # objectives.py: sft, dft, power(alpha=0.5), threshold(tau=0.2), …
    "model": {
        "path": "",  # folder or hub id of a Hugging Face checkpoint
        "revision": "main",
        "init": "checkpoint",  # or "random": only config.json and tokenizer are read
        # master weights, and moments; or "bfloat16": see optimizer.rounding
        "param_dtype": "float32",
        "compute_dtype": "bfloat16",  # matrix products; logits, softmax and loss are float32 always
        "remat": "none",  # or "dots", "full": less memory, more arithmetic
        # or a name of models/attention_backends.py: "blocked", "splash", "cudnn"
        "attention": "auto",
        "attention_block": 512,  # queries per attention block
    },
    "data": {
        "train": "",  # .jsonl, .json, .parquet, a folder, or a hub dataset
        "heldout": "",  # the same; empty for none
        "subset": "",  # of hub datasets, both
        "split": "train",  # of a hub dataset or a folder, for data.train …
        "heldout_split": "test",  # … and for data.heldout
        "revision": "",
        "rows": "fields",  # data/formats.py: what a row means
        "prompt_field": "prompt",
        "completion_field": "completion",
        "messages_field": "messages",
        "template": "tokenizer",  # or a name of data/chat.py, or a .jinja file
        # YYYY-MM-DD, for templates that write the date; by default the day on which the run begins
        "date": "",
        "max_length": 2048,  # tokens of an example, prompt and EOS included
        "row_length": 0,  # positions of a packed row, at least max_length; 0: as many as max_length
        "max_rows": 0,  # the first rows of data.train; 0 for all
        "bad_rows": "refuse",  # or "drop": leave malformed rows out, counted
        # of the rows of data.train that may be cut or dropped; 1 accepts all
        "max_lost_fraction": 0.5,
    },
    "optimizer": {
        "learning_rate": 5e-5,
        "schedule": "cosine",
        "warmup_fraction": 0.1,
        "b1": 0.9,
        "b2": 0.95,
        "eps": 1e-8,
        "weight_decay": 0.01,
        "decay": "all",  # or "matrices": not norms and biases
        # that of the parameters; "bfloat16_first", "bfloat16": of one moment, of both
        "moment_dtype": "param",
        "clip_norm": 1.0,
        # of bfloat16 parameters; "nearest", as in the authors' run, loses small updates
        "rounding": "stochastic",
    },
    "train": {
        "global_batch": 256,  # examples per update, over all devices
        "accumulation": 1,  # micro-batches per update
        "epochs": 1.0,  # passes over the data, rounded up to whole batches …
        "steps": 0,  # … unless this does
        "seed": 0,
        # tokens of the global batch; "official": sum of micro-batch means
        "loss_normalization": "global",
        "loss_chunk_tokens": 1024,  # trained tokens whose logits exist at once on a device
        "max_skipped_steps": 5,  # non-finite updates in a row before the run stops
    },
    "mesh": {
        "data": -1,  # replicas; -1 takes the devices that the others leave
        "fsdp": 1,  # parameters sharded, gathered for use
        "tensor": 1,  # heads, feed-forward and vocabulary split
    },
    "eval": {
        "every": 0,  # steps between evaluations on data.heldout; 0: only before and after
        "max_examples": 512,  # the first ones; 0 for all
        # names from evals/benchmarks.py, separated by commas, to be sampled and graded at the end
        "benchmarks": "",
        "benchmarks_every": 0,  # … and every so many steps; 0: only at the end
        **_SETTINGS,
    },
    "checkpoint": {
        "every": 100,  # steps; one is always saved at the end
        "every_minutes": 10.0,  # since the last one, as process 0's clock has it; 0: only by steps
        "keep": 2,
        # before one is used: compare with its manifest by "sha256", by "sizes", or "off"
        "verify": "sha256",
    },
    "resume": {
        # names, separated by commas, of what may differ from the checkpoint, as in train.seed
        "allow_changed": "",
    },
    "export": {
        "enabled": True,  # a Hugging Face folder under workdir/export at the end
        # "auto": that of the checkpoint ("source") unless it loses a tenth of what was trained,
        # then "float32"
        "dtype": "auto",  # or "source", "float32", "bfloat16" by name
        "max_shard_gb": 5.0,
    },
    "profile": "",  # first and last step of a profile in workdir/profile, as in 10,12
    "log": {
        "every": 1,  # steps between rows of metrics.jsonl
        "tensorboard": True,
        "wandb_project": "",  # empty: not used
    },
}


def get_default() -> ConfigDict:
    """Every key there is, with the paper's recipe as values; locked. `config.json` of a run has
    just these keys.
    """
    return ConfigDict(_DEFAULT).lock()


_CHOICES = {
    "model.init": ("checkpoint", "random"),
    "model.param_dtype": ("float32", "bfloat16"),
    "model.compute_dtype": ("float32", "bfloat16"),
    "model.remat": tuple(REMAT_POLICIES),
    "model.attention": ("auto", *BACKENDS),
    "data.rows": tuple(formats.ROW_FORMATS),
    "data.bad_rows": ("refuse", "drop"),
    "optimizer.schedule": optimizer.SCHEDULES,
    "optimizer.decay": optimizer.DECAYS,
    "optimizer.moment_dtype": tuple(optimizer.MOMENT_DTYPES),
    "optimizer.rounding": optimizer.ROUNDINGS,
    "train.loss_normalization": ("global", "official"),
    "checkpoint.verify": manifest.VERIFY,
    "export.dtype": ("auto", "source", "float32", "bfloat16"),
}

# Key -> (test, what it should be).
_RANGES = {
    key: (is_legal, words)
    for is_legal, words, keys in (
        (lambda v: v >= 2, "at least 2 (one token to read, one to predict)", "data.max_length"),
        (
            lambda v: v >= 1,
            "at least 1",
            "model.attention_block train.global_batch train.accumulation",
        ),
        (lambda v: v >= 1, "at least 1", "train.loss_chunk_tokens train.max_skipped_steps"),
        (lambda v: v >= 1, "at least 1", "checkpoint.every checkpoint.keep log.every"),
        (lambda v: v >= 0, "at least 0", "data.max_rows train.steps optimizer.weight_decay"),
        (lambda v: v >= 0, "at least 0 (as data.max_length)", "data.row_length"),
        (lambda v: v >= 0, "at least 0", "eval.every eval.benchmarks_every eval.max_examples"),
        (lambda v: v >= 0, "at least 0", "checkpoint.every_minutes"),
        (lambda v: v > 0, "above 0", "optimizer.learning_rate optimizer.eps optimizer.clip_norm"),
        (lambda v: v > 0, "above 0", "train.epochs export.max_shard_gb"),
        (lambda v: 0 <= v <= 1, "in [0, 1]", "data.max_lost_fraction"),
        (lambda v: 0 <= v < 1, "in [0, 1)", "optimizer.b1 optimizer.b2 optimizer.warmup_fraction"),
        (lambda v: 0 <= v < 2**32, f"at least 0 and below {2**32}", "train.seed"),
        (
            lambda v: v >= 1 or v == -1,
            "at least 1, or -1 for the rest",
            "mesh.data mesh.fsdp mesh.tensor",
        ),
    )
    for key in keys.split()
}


def parse_argument(argument: str, **defaults: str) -> dict[str, str]:
    """The part of --config after the colon: `objective=dft,size=7b`, over `defaults`, which name
    what is legal.
    """
    values = dict(defaults)
    for part in filter(None, argument.split(",")):
        name, equals, value = part.partition("=")
        if name not in defaults or not equals:
            legal = ", ".join(f"{key}={default}" for key, default in defaults.items())
            hint = errors.did_you_mean(name, list(defaults))
            raise errors.UserError(f"--config=…:{part}{hint}: expected some of {legal}")
        values[name] = value
    return values


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """{'train.seed': 0, …}"""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, ConfigDict) else {name: value})
    return flat


def unknown_key(key: str) -> str:
    """What to say about a key that the default config does not have."""
    known = list(flatten(get_default()))
    inside = [name for name in known if name.startswith(f"{key}.")]
    if inside:
        return f"config.{key} is a section, so it has no value; its keys: {', '.join(inside)}"
    namesakes = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    meant = (
        f" (did you mean {' or '.join(map(repr, namesakes))}?)"
        if namesakes
        else errors.did_you_mean(key, known)
    )
    return f"config.{key}: unknown key{meant}; dft_jax/config.py lists them all"


def validate(config: ConfigDict) -> list[str]:
    """All that is wrong with a config by itself: one line each, with the key, the value and the
    remedy.
    """
    default, found = flatten(get_default()), flatten(config)
    problems = [unknown_key(key) for key in found if key not in default]
    missing = [key for key in default if key not in found]
    problems += [
        f"config.{key} is missing; start from dft_jax.config.get_default()" for key in missing
    ]
    well_typed = {}
    for key in sorted(default.keys() & found.keys()):
        if problem := _type_problem(key, found[key], default[key]):
            problems.append(problem)
        else:
            well_typed[key] = found[key]
    for key, value in well_typed.items():
        if key in _CHOICES and value not in _CHOICES[key]:
            hint, known = errors.did_you_mean(value, _CHOICES[key]), ", ".join(_CHOICES[key])
            problems.append(f"config.{key}={value!r} is unknown{hint}; known: {known}")
        if key in _RANGES and not _RANGES[key][0](value):
            problems.append(f"config.{key}={value} should be {_RANGES[key][1]}")
    if well_typed.keys() >= {"data.row_length", "data.max_length"}:
        problems += _row_problems(config.data)
    if well_typed.keys() >= {"optimizer.moment_dtype", "optimizer.b2"}:
        problems += validate_moments(config.optimizer)
    if "objective" in well_typed:
        try:
            objectives.make_objective(config.objective)
        except errors.UserError as error:
            problems.append(f"config.{error}")
    if well_typed.get("profile"):
        try:
            parse_steps(config.profile)
        except ValueError:
            problems.append(
                f"config.profile={config.profile!r} should be the first and the last step, as in 10,12"
            )
    if well_typed.keys() >= {f"eval.{name}" for name in _SETTINGS} and config.eval.benchmarks:
        try:
            problems += benchmark_settings(config).mistakes("config.eval.")
        except errors.UserError as error:
            problems.append(str(error))
    return problems + _path_problems(well_typed)


def _row_problems(config: ConfigDict) -> list[str]:
    """`config` is `config.data`. An example of data.max_length tokens has to fit a row."""
    if not 0 < config.row_length < config.max_length:
        return []
    what = (
        f"config.data.row_length={config.row_length} is below data.max_length={config.max_length}"
    )
    return [f"{what}: the longest examples would fit no row; give at least that, or 0 for the same"]


def validate_moments(config: ConfigDict) -> list[str]:
    """A bfloat16 keeps 8 bits: an average that should shrink by less than 1/256 of itself a step
    never would.
    """
    if config.moment_dtype != "bfloat16" or 1 - config.b2 >= 1 / 256:
        return []
    what = (
        f"config.optimizer.moment_dtype='bfloat16' cannot hold a second moment with b2={config.b2}"
    )
    return [
        f"{what}: rounding would undo every decrease; use 'bfloat16_first', or optimizer.b2 of at most 0.996"
    ]


def benchmark_settings(config: ConfigDict) -> Settings:
    """The benchmark evaluation that `config.eval` asks for; UserError for a temperature that is no
    number.
    """
    return Settings.read({name: config.eval[name] for name in _SETTINGS}, "config.eval.")


def _type_problem(key: str, value: Any, default: Any) -> str | None:
    """ConfigDict lets True pass for an int, None for anything, and makes tuples of some
    command-line values.
    """
    wanted = type(default)
    is_right = type(value) is wanted or (wanted is float and type(value) is int)
    if not is_right:
        return f"config.{key}={value!r} should be {wanted.__name__}, not {type(value).__name__}"
    if wanted is float and not math.isfinite(value):
        return f"config.{key}={value} should be a finite number"
    return None


def _path_problems(given: dict[str, Any]) -> list[str]:
    problems = []
    path, template = given.get("model.path"), given.get("data.template", "tokenizer")
    if path == "":
        problems.append(
            "config.model.path is empty: give the folder or hub id of a Hugging Face checkpoint"
        )
    if given.get("data.train") == "":
        problems.append(
            "config.data.train is empty: give a .jsonl, .json or .parquet file, a folder or a hub dataset"
        )
    absent = [key for key in ("data.train", "data.heldout") if locate.is_path(given.get(key, ""))]
    absent = [key for key in absent if not Path(given[key]).exists()]
    if template.endswith(".jinja") and not Path(template).is_file():
        absent.append("data.template")
    remedy = f"(looked from {os.getcwd()}); correct the path"
    problems += [f"config.{key}={given[key]!r}: no such file {remedy}" for key in absent]
    if path and path.startswith((".", "/")) and not Path(path).is_dir():
        problems.append(f"config.model.path={path!r}: no such folder {remedy}")
    problems += _idle_problems(given)
    problems += templates.name_problems("config.data.template", template)
    problems += templates.date_problems("config.data.date", given.get("data.date", ""))
    if given.get("log.wandb_project") and not importlib.util.find_spec("wandb"):
        problems.append(
            "config.log.wandb_project is set, but wandb is not installed: pip install wandb, or empty it"
        )
    return problems


def _idle_problems(given: dict[str, Any]) -> list[str]:
    """Settings that say which part of a dataset or model is meant, where there is none to choose
    from.
    """
    default = flatten(get_default())
    path = given.get("model.path", "")
    data = [given[key] for key in ("data.train", "data.heldout") if given.get(key)]
    from_hub = any(locate.is_hub_id(place) for place in data)
    in_parts = from_hub or any(Path(place).is_dir() for place in data)
    # Key -> whether it has an effect, and why it would have none.
    has_effect = {
        "model.revision": (not Path(path).is_dir(), f"model.path={path!r} is a folder"),
        "data.revision": (from_hub, "the data is no dataset of the hub"),
        "data.subset": (in_parts, "the data is neither of the hub nor a folder"),
    }
    for key, split in (("data.train", "data.split"), ("data.heldout", "data.heldout_split")):
        place = given.get(key, "")
        is_whole = bool(place) and not locate.is_hub_id(place) and not Path(place).is_dir()
        has_effect[split] = (not is_whole, f"{key}={place!r} has no splits")
    found = []
    for key, (is_used, why) in has_effect.items():
        value = given.get(key, default[key])
        if value not in ("", default[key]) and not is_used:
            remedy = f"remove it (--config.{key}={default[key]})"
            found.append(f"config.{key}={value!r} has no effect: {why}; {remedy}")
    return found


def validate_on(config: ConfigDict, device_count: int) -> list[str]:
    """All that is wrong with a config on this number of devices, before anything is read or
    fetched.
    """
    problems = validate(config)

    def is_sound(*keys: str) -> bool:
        return not any(problem.startswith(f"config.{key}") for problem in problems for key in keys)

    if is_sound("mesh"):
        problems += mesh_problems(config, device_count)
    if is_sound("mesh", "train.global_batch", "train.accumulation"):
        problems += _batch_problems(config, device_count)
    return problems


def mesh_problems(config: ConfigDict, device_count: int) -> list[str]:
    """What is wrong with the mesh on this number of devices."""
    sizes = {axis: config.mesh[axis] for axis in MESH_AXES}
    text = " × ".join(f"{axis}={size}" for axis, size in sizes.items())
    fixed = math.prod(size for size in sizes.values() if size != -1)
    n_free = list(sizes.values()).count(-1)
    if n_free > 1:
        return [f"config.mesh: {text}: only one axis can be -1; give the sizes of the others"]
    if (n_free and device_count % fixed) or (not n_free and fixed != device_count):
        legal = [n for n in range(1, device_count + 1) if device_count % n == 0]
        return [
            f"config.mesh: {text} makes {fixed}{' × the rest' if n_free else ''}, but there are {device_count} devices;"
            f" axis sizes should divide {device_count} ({', '.join(map(str, legal))}) and multiply to it"
        ]
    return []


def _batch_problems(config: ConfigDict, device_count: int) -> list[str]:
    data, fsdp, _ = mesh_sizes(**config.mesh, device_count=device_count)
    fewest = data * fsdp * config.train.accumulation
    if config.train.global_batch < fewest:
        return [
            f"config.train.global_batch={config.train.global_batch} examples cannot fill data={data} × fsdp={fsdp} ×"
            f" accumulation={config.train.accumulation} = {fewest} rows; use at least {fewest}, or fewer of those"
        ]
    return []


def validate_architecture(
    config: ConfigDict, architecture: DecoderSpec, device_count: int
) -> list[str]:
    """What does not fit between a config, a mesh and the checkpoint's architecture."""
    problems = []
    *_, tensor = mesh_sizes(**config.mesh, device_count=device_count)
    for name, count in (
        ("attention", architecture.num_heads),
        ("key/value", architecture.num_kv_heads),
    ):
        if count % tensor:
            legal = [n for n in range(1, count + 1) if count % n == 0]
            problems.append(
                f"config.mesh.tensor={tensor} does not divide the model's {count} {name} heads;"
                f" legal here: {', '.join(map(str, legal))}"
            )
    if config.data.max_length > architecture.max_length:
        problems.append(
            f"config.data.max_length={config.data.max_length} is beyond the model's max_position_embeddings="
            f"{architecture.max_length}; use at most {architecture.max_length}"
        )
    return problems


def paths(config: ConfigDict) -> dict[str, str]:
    """Key -> value of what may be files and folders, or be the hub's; those that are given."""
    flat = flatten(config)
    keys = ("model.path", "data.train", "data.heldout", "eval.benchmark_data")
    return {key: flat[key] for key in keys if flat.get(key)}


def to_json(config: ConfigDict) -> str:
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


# A resumed run may change these: they say how a run is carried out and watched, not what it
# computes. Data and model may move: the data's hash and the architecture are compared, and the
# parameters come from the checkpoint.
_MAY_CHANGE = tuple(
    "mesh. eval. checkpoint. resume. export. log. profile data.train data.heldout"
    " data.max_lost_fraction model.path model.revision model.remat model.attention"
    " train.loss_chunk_tokens".split()
)


def kept_on_resume(config: ConfigDict) -> dict[str, Any]:
    """The keys, with their values, whose change would make a resumed run another run."""
    kept = {key: value for key, value in flatten(config).items() if not key.startswith(_MAY_CHANGE)}
    if kept.get("data.date") == "":
        # no template writes one; runs from before the key was there have none either
        del kept["data.date"]
    rounds = (
        config.model.get("param_dtype") == "bfloat16"
        and optimizer.rounding_of(config.optimizer) == "stochastic"
    )
    if not rounds:
        # runs from before the key was there rounded to nearest, or not at all
        kept.pop("optimizer.rounding", None)
    if kept.get("data.row_length") == 0:
        # runs from before the key was there have none, and mean the same
        del kept["data.row_length"]
    return kept


def digest(config: ConfigDict) -> str:
    """SHA-256 of what makes a run the one it is: the checkpoint it began with, and all that a
    resumed run must keep.
    """
    kept = kept_on_resume(config)
    kept |= {key: config.model[key] for key in ("path", "revision")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
