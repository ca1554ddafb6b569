"""A run's directory: one process at a time writes there, it says what the run is, and another run
is refused.
"""

import contextlib
import hashlib
import itertools
import json
import os
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from dft_jax.checkpoints import manifest
from dft_jax.checkpoints.manager import Checkpoints
from dft_jax.checkpoints.manifest import has_checkpoint
from dft_jax.data.batches import Examples
from dft_jax.data.templates import AUTO, Template, today
from dft_jax.lm import TEMPLATE_NAME, base_of
from dft_jax.models.hf.locate import tokenizer_files
from dft_jax.models.hf.safetensors import Checkpoint, weights_sample
from dft_jax.models.model import Model
from dft_jax.runtime import distributed, environment, errors, files
from dft_jax.runtime.environment import process_facts
from dft_jax.runtime.options import Config, flatten
from dft_jax.training.optimizer import rounding_of

# What a checkpoint says of its run since it began, and keys that fingerprints of older versions
# lack.
_SAID_ONCE = ("run_id", "base", "data")
_LATER = ("weights_sha256_of_sample",)
# Keys of a config that may differ between hosts: what they lead to is compared instead.
_LEAD_TO_CONTENT = ("model.path", "data.train", "data.heldout")
# Of a fingerprint: what these lead to is compared, whatever they are.
_LED_TO_DATA = ("config.data.subset", "config.data.split", "config.data.revision")
# A resumed run may change these: they say how a run is carried out and watched, not what it
# computes. Data and model may move: the data's hash and the architecture are compared, and the
# parameters come from the checkpoint.
_MAY_CHANGE = (
    "checkpoint.",
    "data.heldout",
    "data.max_lost_fraction",
    "data.train",
    "eval.",
    "export.",
    "log.",
    "mesh.",
    "model.attention",
    "model.path",
    "model.remat",
    "model.revision",
    "profile",
    "resume.",
    "train.loss_chunk_tokens",
)
# Keys whose values may be files and folders, or be the hub's.
_PATHS = ("model.path", "data.train", "data.heldout", "eval.benchmark_data")


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
    if kept.get("data.row_length") == 0:
        del kept["data.row_length"]
    return kept


def digest(config: Config) -> str:
    """SHA-256 of what makes a run the one it is: the checkpoint it began with, and all that a
    resumed run must keep.
    """
    kept = kept_on_resume(config)
    for key in ("path", "revision"):
        kept[key] = config.model[key]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def paths(config: Config) -> dict[str, str]:
    """Key -> value of what may be files and folders, or be the hub's; those that are given."""
    flat = flatten(config)
    return {key: flat[key] for key in _PATHS if flat.get(key)}


def first_date(config: Config, workdir: Path) -> str:
    """The day on which the run in `workdir` began, YYYY-MM-DD, or the one that the config names;
    process 0 says it.

    A run whose template writes the date reads the same on the next day, and on every host.
    """
    recorded = _recorded(workdir).get("data", {}).get("date", "") if has_checkpoint(workdir) else ""
    return distributed.decided(
        "date", config.data.get("date", "") or recorded or today(), lambda dates: dates[0]
    )


def _recorded(workdir: Path) -> dict[str, Any]:
    """The config.json in `workdir`; empty where there is none, or a damaged one, which is written
    anew.
    """
    with contextlib.suppress(errors.UserError):
        return files.read_json(workdir / "config.json")
    return {}


def _began_nearest(config: Config, workdir: Path) -> bool:
    """Whether a bfloat16 run goes on in `workdir` that rounds to nearest, and nothing is to change
    about that.
    """
    if not has_checkpoint(workdir):
        return False
    if any(_covers(one, "config.optimizer.rounding") for one in _allowed(config)):
        return False
    recorded = _recorded(workdir)
    dtypes = {config.model.param_dtype, recorded.get("model", {}).get("param_dtype")}
    rounding = recorded.get("optimizer", {}).get("rounding", "nearest")
    return dtypes == {"bfloat16"} and rounding == "nearest"


def with_first_rounding(config: Config, workdir: Path) -> Config:
    """The config with rounding to nearest where the bfloat16 run in `workdir` began with it;
    process 0 says so.

    Before `optimizer.rounding` was there, all did. `resume.allow_changed` can name it, to go on
    with the other.
    """
    goes_on = distributed.decided(
        "first rounding", _began_nearest(config, workdir), lambda answers: answers[0]
    )
    if not goes_on or rounding_of(config.optimizer) == "nearest":
        return config
    if jax.process_index() == 0:
        change = "resume.allow_changed=optimizer.rounding changes that"
        print(
            f"note: {workdir} began with optimizer.rounding=nearest and goes on with it; {change}",
            file=sys.stderr,
        )
    nearest = config.copy_and_resolve_references()
    nearest.optimizer.rounding = "nearest"
    return nearest


def held_fingerprint(workdir: Path) -> dict[str, Any] | None:
    """The fingerprint in the newest whole checkpoint of a folder, None where there is none; process
    0 says it.

    Nothing is verified, and nothing waits for another process: the folder may not be one for all of
    them yet.
    """
    found: dict[str, Any] | None = None
    folders = [file.parent for file in (workdir / "checkpoints").glob(f"*/{manifest.NAME}")]
    folders = [folder for folder in folders if folder.name.isdigit()]
    for folder in sorted(folders, key=lambda folder: int(folder.name)):
        # what is damaged is set aside later
        with contextlib.suppress(OSError, ValueError, KeyError):
            found = json.loads((folder / "run" / "metadata").read_text(encoding="utf-8"))[
                "fingerprint"
            ]
    return distributed.decided("held fingerprint", found, lambda everyone: everyone[0])


def with_date(config: Config, date: str, tokenizer: Any) -> Config:
    """The config with the date of its dated templates; as it is where none of its templates is
    dated.
    """
    templates = [Template(config.data.template, tokenizer, date=date)]
    # that is data.template, or of an older start
    if config.eval.benchmarks and config.eval.prompt != AUTO:
        templates.append(
            Template(config.eval.prompt, tokenizer, setting="config.eval.prompt", date=date)
        )
    if not any(template.is_dated for template in templates):
        return config
    dated = config.copy_and_resolve_references()
    dated.data.date = date
    return dated


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
    reference: bool,
) -> dict[str, Any]:
    """What makes a run the one it is, as plain values by name; a run goes on only from a checkpoint
    of its own.

    The training data's hash covers all that became of it, tokens and masks; tokenizer and template
    are named as well, to say what it was. With `reference`, the base that the objective compares
    with counts, weights and all.
    """
    found = {f"config.{key}": value for key, value in kept_on_resume(config).items()}
    for key, value in model.config.fingerprint().items():
        found[f"architecture.{key}"] = value
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.abstract_params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found[f"parameters.{name}"] = f"{leaf.dtype}{list(leaf.shape)}"
    found |= {
        "steps": steps,
        "training_data_sha256": train.report["sha256"],
        "tokenizer_sha256": files.digest(tokenizer_files(source)),
        "chat_template_sha256": _sha256(
            Template(config.data.template, tokenizer, date=config.data.date).text
        ),
    }
    if config.model.init == "checkpoint":
        # of the base, whose parameters it began with
        found["weights_sha256_of_sample"] = weights_sample(source)
    if reference and config.model.init == "checkpoint":
        found["reference_sha256"] = files.digest(Checkpoint(source).files)
    return json.loads(json.dumps(found))  # as it will be read back: a tuple is a list


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def refuse_moved(config: Config, workdir: Path) -> None:
    """UserError where a path of the config was a file or folder when the run began, and is none
    from here.

    A relative path with one slash would else be taken as the name of a repository on the hub.
    """
    held: dict[str, Any] = {}
    with contextlib.suppress(errors.UserError):  # of no run, or a damaged one that is written anew
        held = files.read_json(workdir / "config.json")
    problems = []
    for key, given in paths(config).items():
        section, name = key.split(".")
        values = held.get(section)
        began = str(values.get(name, "")) if isinstance(values, dict) else ""
        if began != given and began.endswith(f"{os.sep}{given}") and not Path(given).exists():
            what = f"no such file or folder (looked from {os.getcwd()})"
            problems.append(
                f"config.{key}={given!r}: {what}; the run began with {began}: give that"
            )
    errors.raise_if_any(problems)


def open_workdir(
    workdir: Path, config: Config, fingerprint: dict[str, Any], source: Path, train: Examples
) -> tuple[Checkpoints, int | None, dict[str, Any]]:
    """The checkpoints in `workdir`, the step to go on from (None: the beginning), and what new ones
    say of the run.

    Evaluations of steps that are going to be made again are set aside. What is said is its
    fingerprint, the changes that were allowed since, and what was said when it began (see
    `_begin`).

    Raises:
      UserError: they are those of another run, and the change is not named in
      `resume.allow_changed`.
    """
    with errors.user_errors(f"--workdir={workdir}: cannot be used", "give another"):
        (workdir / "checkpoints").mkdir(exist_ok=True)
        settings = config.checkpoint
        checkpoints = Checkpoints(
            workdir / "checkpoints",
            keep=settings.keep,
            verify=settings.verify,
            every=settings.every,
        )
        step = checkpoints.newest(repair=True)
    run = {"fingerprint": fingerprint, "changes": []}
    if step is None:
        run |= _begin(workdir, config, source, train)
    else:
        held = checkpoints.run_of(step)
        run |= {name: held[name] for name in _SAID_ONCE if name in held}
        before = {name: fingerprint[name] for name in _LATER if name in fingerprint} | held[
            "fingerprint"
        ]
        allowed = _allowed(config)
        _refuse_unknown(allowed, before.keys() | fingerprint.keys())
        changes = errors.differences(before, fingerprint)
        refused = refused_changes(changes, allowed)
        remedy = (
            "undo the change, or give a new --workdir, or name what may change in"
            " config.resume.allow_changed"
        )
        errors.raise_if_any(
            refused and [f"--workdir={workdir} holds another run: {remedy}", *refused]
        )
        run["changes"] = held["changes"] + [f"step {step}: {line}" for line in changes.values()]
        with distributed.together("evaluations"):  # process 0 renames
            if jax.process_index() == 0:
                _set_aside(workdir, after=step)
    return checkpoints, step, run


def _begin(workdir: Path, config: Config, source: Path, train: Examples) -> dict[str, Any]:
    """What is said of a run once, when it begins from nothing: an id of its own, the base it begins
    with, the data.

    Evaluations that an earlier run left in the folder are set aside: they would pass for this
    one's.
    """
    base: dict[str, Any] = {}
    with distributed.together("beginning"):  # process 0 writes and hashes
        if jax.process_index() == 0:
            _set_aside(workdir, after=-1)
            sha256 = None
            if config.model.init == "checkpoint":
                sha256 = files.digest(Checkpoint(source).files)
            named = config.model
            base = base_of(named.path, named.revision, named.init, source, sha256)
    mine = {"run_id": secrets.token_hex(8), "base": base, "data": data_of(train)}
    return distributed.decided("run", mine, lambda everyone: everyone[0])


def data_of(train: Examples) -> dict[str, Any]:
    """The data that a run is trained on: where it was found, the hub's commit, and SHA-256 of
    tokens and masks.
    """
    path = Path(train.report["path"])
    place = str(path.absolute()) if path.exists() else train.report["path"]
    return {"path": place, "commit": train.report["commit"], "sha256": train.report["sha256"]}


def _set_aside(workdir: Path, after: int) -> None:
    """Renames evaluations of steps after `after`: eval/8 -> eval.old-1/8. Those steps are going to
    be made again.

    Their checkpoints are gone. What is trained in their place may differ, by an earlier run, other
    weights or other code, and would be given their scores. For -1, where a run begins from nothing,
    all that is there goes.
    """
    folder = workdir / "eval"
    stale = [
        each
        for each in folder.glob("*")
        if after < 0 or (each.name.isdigit() and int(each.name) > after)
    ]
    if not stale:
        return
    number = next(
        n for n in itertools.count(1) if not folder.with_name(f"{folder.name}.old-{n}").exists()
    )
    place = folder.with_name(f"{folder.name}.old-{number}")
    with errors.user_errors(f"{folder}: cannot be renamed", "move it away"):
        place.mkdir()
        for each in stale:
            each.rename(place / each.name)
    begins = "from nothing" if after < 0 else f"again from step {after}"
    names = ", ".join(sorted(each.name for each in stale))
    what = f"the run begins {begins}, and these evaluations are of what was there before"
    print(f"note: {folder}: {names} set aside in {place.name}: {what}", file=sys.stderr, flush=True)


def _allowed(config: Config) -> tuple[str, ...]:
    """The names in `resume.allow_changed`."""
    return tuple(name.strip() for name in config.resume.allow_changed.split(",") if name.strip())


def refused_changes(changes: dict[str, str], allowed: tuple[str, ...]) -> list[str]:
    """Those lines of `changes` (by name) that no name in `allowed` covers, and that no other part
    compares.
    """
    allowed += _LED_TO_DATA
    return [
        line for name, line in changes.items() if not any(_covers(one, name) for one in allowed)
    ]


def _refuse_unknown(allowed: tuple[str, ...], names: set[str]) -> None:
    for name in allowed:
        if not any(_covers(name, known) for known in names):
            hint = errors.did_you_mean(
                name, sorted(known.removeprefix("config.") for known in names)
            )
            raise errors.UserError(
                f"config.resume.allow_changed: {name!r} is not in a run's fingerprint{hint}"
            )


def _covers(allowed: str, name: str) -> bool:
    """Allowed is a whole name, or its beginning up to a dot: `train.seed`, `optimizer`; `config.`
    may be left out.
    """
    return f"{name}.".startswith((f"{allowed}.", f"config.{allowed}."))


def describe_run(
    workdir: Path, config: Config, model: Model, account: dict[str, Any], run: dict[str, Any]
) -> None:
    """Writes what a reader of the run needs: config.json, env.json, data_report.json, a chat
    template.

    `account` is of its data, and `run` what `open_workdir` said of it.
    """
    with errors.user_errors(f"--workdir={workdir}: cannot be written", "give another"):
        files.write_json(
            workdir / "config.json", with_absolute_paths(config).to_dict(), sort_keys=True
        )
        made_of = {name: run.get(name) for name in _SAID_ONCE}  # of an older run nobody knows
        described = environment.describe() | {"attention": model.module.backend}
        files.write_json(workdir / "env.json", described | made_of)
        files.write_json(workdir / "data_report.json", account)
        # the file may change, or go, before the run is exported
        if config.data.template.endswith(".jinja"):
            files.write_text(
                workdir / TEMPLATE_NAME, Path(config.data.template).read_text(encoding="utf-8")
            )


def with_absolute_paths(config: Config) -> Config:
    """The config as it is to be read from any folder: a relative path might mean something else
    there.
    """
    absolute = config.copy_and_resolve_references()
    for key, path in paths(config).items():
        if Path(path).exists():
            absolute.update_from_flattened_dict({key: str(Path(path).absolute())})
    return absolute
