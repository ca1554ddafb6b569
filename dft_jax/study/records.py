"""Done-files: what a study has finished, as small JSON files that outlast everything else, and can
be committed.

STUDY/done/<arm>/inputs.json       what the arm's results depend on
STUDY/done/<arm>/train-0008.json   steps 5 to 8, if 4 is measured before 8: what each step reported
STUDY/done/<arm>/heldout-0008.json, evaluate.json, prune.json
STUDY/checkpoints/<arm>/           of an arm in progress; may be gone, then the arm is trained again
where needed STUDY/evaluations/<arm>/           completions and verdicts
STUDY/exports/<arm>/               what `keep='parameters'` keeps
"""

import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

from dft_jax.data import order
from dft_jax.runtime import environment, errors, files
from dft_jax.study import spec as spec_lib
from dft_jax.study.spec import Arm, Phase, Spec

DONE, INPUTS = "done", "inputs.json"


@dataclasses.dataclass(frozen=True)
class Done:
    """The content of a done-file. `work` is how much was done, in the unit of its kind: steps,
    positions, tokens."""

    phase: str
    inputs_sha256: str
    seconds: float
    work: int
    finished_at: str
    made_by: dict[str, Any]
    results: dict[str, Any]


class Records:
    """The done-files of a study in `folder`, against what `spec` says; reads and writes no
    arrays."""

    def __init__(self, folder: Path, spec: Spec):
        self.folder, self.spec = folder / DONE, spec

    def read(self, phase: Phase) -> Done | None:
        """None where the phase is not done.

        Raises:
          UserError: the file cannot be read, or is that of other inputs.
        """
        file = self.folder / phase.file
        if not file.exists():
            return None
        remedy = "remove it, to have the phase done again"
        with errors.user_errors(
            f"{file}: not a done-file", remedy, (OSError, ValueError, TypeError)
        ):
            done = Done(**json.loads(file.read_text(encoding="utf-8")))
        wanted = spec_lib.digest(spec_lib.inputs_of(self.spec, phase.arm), phase.kind)
        if done.inputs_sha256 != wanted:
            raise errors.UserError(
                [f"{file} has other inputs than the spec; {_REMEDY}", *self._changes(phase.arm)]
            )
        return done

    def _changes(self, arm: Arm | None) -> list[str]:
        file = self.folder / (arm.name if arm else spec_lib.BASE) / INPUTS
        held = _read_json(file) if file.exists() else {}
        return _changes(held, spec_lib.inputs_of(self.spec, arm))

    def open_arm(self, arm: Arm | None, contents: dict[str, str]) -> None:
        """Writes the arm's inputs, or compares them with those that are there.

        `contents` are digests of weights, tokenizer, training data and texts, and the order's
        version.

        Raises:
          UserError: they differ.
        """
        file = self.folder / (arm.name if arm else spec_lib.BASE) / INPUTS
        inputs = spec_lib.inputs_of(self.spec, arm) | contents
        if file.exists():
            held = _read_json(file)
            changes = _changes(held, inputs)
            if changes:
                raise errors.UserError([f"{file} has other inputs; {_REMEDY}", *changes])
            inputs = held | inputs
        with errors.user_errors(f"{file}: cannot be written", "make room, or give another --out"):
            file.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(file, inputs)

    def write(
        self,
        phase: Phase,
        seconds: float,
        work: int,
        made_by: dict[str, Any],
        results: dict[str, Any],
    ) -> None:
        """Makes the phase done: the file appears whole, or not at all."""
        done = Done(
            phase=str(phase),
            inputs_sha256=spec_lib.digest(spec_lib.inputs_of(self.spec, phase.arm), phase.kind),
            seconds=round(seconds, 1),
            work=work,
            finished_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            made_by=made_by,
            results=results,
        )
        file = self.folder / phase.file
        with errors.user_errors(
            f"{file}: cannot be written", "make room, then run the same command again"
        ):
            file.parent.mkdir(parents=True, exist_ok=True)
            files.write_text(file, json.dumps(dataclasses.asdict(done)) + "\n")

    def is_done(self, phase: Phase) -> bool:
        return self.read(phase) is not None

    def is_complete(self, arm: Arm | None) -> bool:
        return all(self.is_done(phase) for phase in spec_lib.phases_of(self.spec, arm))


def stream_version(folder: Path) -> int:
    """The version of data/order.py that the study in `folder` was begun with; a new one's where
    there is none."""
    held = sorted((folder / DONE).glob(f"*/{INPUTS}"))
    return (
        _read_json(held[0]).get(f"contents.{order.FINGERPRINT_KEY}", 1) if held else order.VERSION
    )


def _changes(held: dict[str, Any], inputs: dict[str, Any]) -> list[str]:
    """`name: old -> new` for what differs. Keys of a config that are in only one of the two have
    their default in the other; of the rest, what was added to the spec later is no change."""
    before, after = {}, {}
    for name in held.keys() | inputs.keys():
        if name in held and name in inputs:
            before[name], after[name] = held[name], inputs[name]
        elif name.startswith("config."):
            default = spec_lib.default_of(name)
            before[name], after[name] = held.get(name, default), inputs.get(name, default)
    return list(errors.differences(before, after).values())


_REMEDY = "undo the change, or give another --out, or remove the arm's folder there"


def _read_json(file: Path) -> dict[str, Any]:
    with errors.user_errors(f"{file}: cannot be read", "remove it", (OSError, ValueError)):
        return json.loads(file.read_text(encoding="utf-8"))


def made_by() -> dict[str, Any]:
    """What a reader of a done-file needs to know of the machine and the code."""
    described = environment.describe()
    names = ("git", "python", "devices")
    found = {name: described[name] for name in names}
    return found | {"jax": described["versions"]["jax"]}


def status(records: Records) -> str:
    """A line for each arm: which phases are done, and which is next; then how many are in all."""
    lines, n_done = [], 0
    every = spec_lib.phases(records.spec)
    for arm in (None, *records.spec.arms):
        own = spec_lib.phases_of(records.spec, arm)
        done = [phase for phase in own if records.is_done(phase)]
        n_done += len(done)
        left = [phase for phase in own if phase not in done]
        if not left:
            state = "complete"
        elif not done:
            state = "not begun"
        else:
            state = f"{len(done)} of {len(own)} phases; next: {left[0].kind} to step {left[0].step}"
        lines.append(f"{arm.name if arm else spec_lib.BASE:44s} {state}")
    arms = [arm for arm in records.spec.arms if records.is_complete(arm)]
    total = f"{len(arms)} of {len(records.spec.arms)} arms complete, {n_done} of {len(every)} phases done"
    return "\n".join([*lines, total])
