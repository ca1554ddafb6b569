"""What an earlier start left in a run's folder, and what a resumed run keeps of it."""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from dft_jax.checkpoints import storage
from dft_jax.checkpoints.manifest import has_checkpoint
from dft_jax.data import source_list
from dft_jax.data.templates import AUTO, Template, today
from dft_jax.runtime import distributed, errors, files, processes
from dft_jax.runtime.options import Config
from dft_jax.training.identity import allowed_changes, covers, kept_on_resume
from dft_jax.training.optimizer import rounding_of
from dft_jax.training.places import path_under, paths


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
    if _may_change(config, "optimizer.rounding"):
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
    return _kept(config, workdir, "optimizer.rounding", "nearest")


def with_first_warmup(config: Config, workdir: Path, held: dict[str, Any] | None) -> Config:
    """The config with a warm-up from zero where the run in `workdir` began with one; process 0 says
    so.

    Before `optimizer.warmup_from` was there, all did. `resume.allow_changed` can name it, to go on
    with the other.

    Args:
      held: what `held_fingerprint` found.
    """
    key = "optimizer.warmup_from"
    # What it is not named for is a rate of zero, or a run without a warm-up.
    if held is None or f"config.{key}" in held or key not in kept_on_resume(config):
        return config
    if _may_change(config, key):
        return config
    return _kept(config, workdir, key, "zero")


def _may_change(config: Config, key: str) -> bool:
    """Whether `resume.allow_changed` names the key."""
    return any(covers(one, f"config.{key}") for one in allowed_changes(config))


def _kept(config: Config, workdir: Path, key: str, value: str) -> Config:
    """The config with a value that the run in `workdir` began with; process 0 says so."""
    if processes.is_first():
        change = f"resume.allow_changed={key} changes that"
        print(f"note: {workdir} began with {key}={value} and keeps it; {change}", file=sys.stderr)
    kept = config.copy_and_resolve_references()
    kept.update_from_flattened_dict({key: value})
    return kept


def held_fingerprint(workdir: Path) -> dict[str, Any] | None:
    """The fingerprint in the newest whole checkpoint of a folder, None where there is none; process
    0 says it.

    Nothing is verified, and nothing waits for another process: the folder may not be one for all of
    them yet.
    """
    found: dict[str, Any] | None = None
    place = storage.place_of(workdir / "checkpoints")
    folders = [folder for folder in storage.of(place).complete(place) if folder.name.isdigit()]
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
    for key in ("train", "heldout"):
        for setting, name in source_list.templates_of(
            config.data[key], f"config.data.{key}"
        ).items():
            templates.append(Template(name, tokenizer, setting=setting, date=date))
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
        began = path_under(held, key)
        if began != given and began.endswith(f"{os.sep}{given}") and not Path(given).exists():
            what = f"no such file or folder (looked from {os.getcwd()})"
            problems.append(
                f"config.{key}={given!r}: {what}; the run began with {began}: give that"
            )
    errors.raise_if_any(problems)
