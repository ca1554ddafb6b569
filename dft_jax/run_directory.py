"""A run's directory: one process at a time writes there, it says what the run is, and another run is refused."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from dft_jax import config as config_lib, errors, writer
from dft_jax.checkpoint import Checkpoints
from dft_jax.data.chat import Template, agreed_date
from dft_jax.data.loader import Examples
from dft_jax.models import Model, hf

_LOCK_NAME = ".lock"


def local_folder(path: str, flag: str = "--workdir") -> Path:
    """`path` with ~ expanded; UserError for a bucket, which would become a folder named `gs:`."""
    if "://" in path:
        raise errors.UserError(f"{flag}={path}: give a local or mounted folder; buckets can be mounted")
    return Path(path).expanduser().absolute()


@contextlib.contextmanager
def locked(folder: Path, flag: str = "--workdir") -> Iterator[None]:
    """Makes the folder, and keeps other jobs out of it for as long as the context, or the process, lasts.

    Process 0 of a job holds the lock. Where the file system knows no locks, nothing is checked.

    Raises:
      UserError: the folder cannot be made, or another job is at work in it.
    """
    with errors.told(f"{flag}={folder}: cannot be used", "give another"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / _LOCK_NAME, "a")  # noqa: SIM115 — NFS locks files, not folders
    with lock:
        try:
            if jax.process_index() == 0:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            what = "another process is at work there; wait for it, stop it, or give another folder"
            raise errors.UserError(f"{flag}={folder}: {what}") from error
        except OSError:
            pass  # no locks here
        yield


def with_date(config: ConfigDict, workdir: Path, tokenizer: Any) -> ConfigDict:
    """The config with the date that its dated templates are given; as it is where no template of it is dated.

    A run keeps the date of its first start, which its folder has: what it reads is the same on the next day.
    """
    given = config.data.date
    templates = [Template(config.data.template, tokenizer, date=given)]
    if config.eval.benchmarks:
        templates.append(Template(config.eval.prompt, tokenizer, setting="config.eval.prompt", date=given))
    if not any(template.is_dated for template in templates):
        return config
    file = workdir / "config.json"
    recorded = hf.read_json(file).get("data", {}).get("date", "") if file.exists() else ""
    dated = config.copy_and_resolve_references()
    dated.data.date = agreed_date(given or recorded)
    return dated


def fingerprint(
    config: ConfigDict, source: Path, model: Model, tokenizer: Any, train: Examples, steps: int, reference: bool
) -> dict[str, Any]:
    """What makes a run the one it is, as plain values by name; a run goes on only from a checkpoint of its own.

    The training data's hash covers all that became of it, tokens and masks; tokenizer and template are named as
    well, to say what it was. With `reference`, the base that the objective compares with counts, weights and all.
    """
    found = {f"config.{key}": value for key, value in config_lib.kept_on_resume(config).items()}
    found |= {f"architecture.{key}": value for key, value in dataclasses.asdict(model.config).items()}
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.abstract_params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found[f"parameters.{name}"] = f"{leaf.dtype}{list(leaf.shape)}"
    found |= {
        "steps": steps,
        "training_data_sha256": train.report["sha256"],
        "tokenizer_sha256": hf.digest(hf.tokenizer_files(source)),
        "chat_template_sha256": _sha256(Template(config.data.template, tokenizer, date=config.data.date).text),
    }
    if reference and config.model.init == "checkpoint":
        found["reference_sha256"] = hf.digest(hf.Checkpoint(source).files)
    return json.loads(json.dumps(found))  # as it will be read back: a tuple is a list


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def open_workdir(
    workdir: Path, config: ConfigDict, fingerprint: dict[str, Any]
) -> tuple[Checkpoints, int | None, dict[str, Any]]:
    """The checkpoints in `workdir`, the step to go on from (None: the beginning), and what new ones say of the run.

    Raises:
      UserError: they are those of another run, and the change is not named in `resume.allow_changed`.
    """
    with errors.told(f"--workdir={workdir}: cannot be used", "give another"):
        (workdir / "checkpoints").mkdir(exist_ok=True)
        checkpoints = Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep, verify=config.checkpoint.verify)
        step = checkpoints.newest(repair=True)
    run = {"fingerprint": fingerprint, "changes": []}
    if step is not None:
        held = checkpoints.run_of(step)
        allowed = tuple(name.strip() for name in config.resume.allow_changed.split(",") if name.strip())
        _refuse_unknown(allowed, held["fingerprint"].keys() | fingerprint.keys())
        changes = errors.differences(held["fingerprint"], fingerprint)
        refused = [line for name, line in changes.items() if not any(_covers(one, name) for one in allowed)]
        remedy = "undo the change, or give a new --workdir, or name what may change in config.resume.allow_changed"
        errors.raise_if_any(refused and [f"--workdir={workdir} holds another run: {remedy}", *refused])
        run["changes"] = held["changes"] + [f"step {step}: {line}" for line in changes.values()]
    return checkpoints, step, run


def _refuse_unknown(allowed: tuple[str, ...], names: set[str]) -> None:
    for name in allowed:
        if not any(_covers(name, known) for known in names):
            hint = errors.did_you_mean(name, sorted(known.removeprefix("config.") for known in names))
            raise errors.UserError(f"config.resume.allow_changed: {name!r} is not in a run's fingerprint{hint}")


def _covers(allowed: str, name: str) -> bool:
    """Allowed is a whole name, or its beginning up to a dot: `train.seed`, `optimizer`; `config.` may be left out."""
    return f"{name}.".startswith((f"{allowed}.", f"config.{allowed}."))


def describe_run(workdir: Path, config: ConfigDict, model: Model, train: Examples, heldout: Examples | None) -> None:
    """Writes what a reader of the run needs: config.json, env.json, data_report.json."""
    with errors.told(f"--workdir={workdir}: cannot be written", "give another"):
        writer.write_text(workdir / "config.json", config_lib.to_json(config))
        writer.write_json(workdir / "env.json", writer.environment() | {"attention": model.module.backend})
        reports = {"train": train.report} | ({"heldout": heldout.report} if heldout else {})
        writer.write_json(workdir / "data_report.json", reports)
