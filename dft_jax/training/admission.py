"""Whether a run may begin or go on in a folder, and what it writes there of itself."""

import itertools
import secrets
import sys
from pathlib import Path
from typing import Any

from dft_jax.checkpoints.manager import Checkpoints
from dft_jax.data.examples import Examples
from dft_jax.lm.checkpoint import base_of_run
from dft_jax.lm.run import keep_template
from dft_jax.runtime import distributed, environment, errors, files, processes
from dft_jax.runtime.options import Config
from dft_jax.training.identity import (
    ADDED_LATER,
    SAID_ONCE,
    allowed_changes,
    data_of,
    refuse_unknown,
    refused_changes,
)
from dft_jax.training.places import with_absolute_paths

_OTHER_HELDOUT = "other_heldout_sha256"  # a key of data_report.json


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
            best=settings.best,
        )
        step = checkpoints.newest(repair=True)
    run = {"fingerprint": fingerprint, "changes": []}
    if step is None:
        run |= _begin(workdir, config, source, train)
    else:
        held = checkpoints.run_of(step)
        run |= {name: held[name] for name in SAID_ONCE if name in held}
        before = {name: fingerprint[name] for name in ADDED_LATER if name in fingerprint} | held[
            "fingerprint"
        ]
        allowed = allowed_changes(config)
        refuse_unknown(allowed, before.keys() | fingerprint.keys())
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
            if processes.is_first():
                _set_aside(workdir, after=step)
    return checkpoints, step, run


def with_other_heldout(workdir: Path, config: Config, account: dict[str, Any]) -> dict[str, Any]:
    """The account, with the SHA-256 of what steps before were measured on, where it was something
    else: data_report.json of one start after the other carries it on.

    For a run that resumes. `account` is of its data: the content of the next data_report.json.

    Raises:
      UserError: with `checkpoint.best`, which would compare the steps of one with the other's.
    """
    before = _last_account(workdir / "data_report.json", config)
    others = set(before.get(_OTHER_HELDOUT, ()))
    if "heldout" in before:
        others.add(before["heldout"]["sha256"])
    if "heldout" in account:
        others.discard(account["heldout"]["sha256"])
    if not others:
        return account
    if config.checkpoint.best:
        raise errors.UserError(
            f"config.checkpoint.best={config.checkpoint.best!r}: steps before were measured on"
            " other held-out examples, so not all can be compared; give data.heldout and"
            " eval.max_examples as they always were, or --config.checkpoint.best="
        )
    return account | {_OTHER_HELDOUT: sorted(others)}


def _last_account(file: Path, config: Config) -> dict[str, Any]:
    """The data_report.json of the start before; empty where there is none, or a damaged one, which
    is written anew.
    """
    if not file.exists():
        return {}
    try:
        return files.read_json(file, "remove it")
    except errors.UserError:
        # All that hangs on it is which steps can be compared.
        if config.checkpoint.best:
            raise
        return {}


def _begin(workdir: Path, config: Config, source: Path, train: Examples) -> dict[str, Any]:
    """What is said of a run once, when it begins from nothing: an id of its own, the base it begins
    with, the data.

    Evaluations that an earlier run left in the folder are set aside: they would pass for this
    one's.
    """
    with distributed.together("beginning"):  # process 0 renames
        if processes.is_first():
            _set_aside(workdir, after=-1)
    base = base_of_run(config.model, source)
    mine = {"run_id": secrets.token_hex(8), "base": base, "data": data_of(train)}
    return distributed.decided("run", mine, lambda everyone: everyone[0])


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


def describe_run(
    workdir: Path, config: Config, attention: str, account: dict[str, Any], run: dict[str, Any]
) -> None:
    """Writes what a reader of the run needs: config.json, env.json, data_report.json, a chat
    template.

    `attention` is the backend, `account` is of its data, and `run` what `open_workdir` said of it.
    """
    with errors.user_errors(f"--workdir={workdir}: cannot be written", "give another"):
        files.write_json(
            workdir / "config.json", with_absolute_paths(config).to_dict(), sort_keys=True
        )
        made_of = {name: run.get(name) for name in SAID_ONCE}  # of an older run nobody knows
        described = environment.describe() | {"attention": attention}
        files.write_json(workdir / "env.json", described | made_of)
        files.write_json(workdir / "data_report.json", account)
        keep_template(workdir, config)
