"""Done-files: what a study has finished, as small JSON files that can be committed.

STUDY/done/<arm>/inputs.json       what the arm's results depend on
STUDY/done/<arm>/train-0008.json   steps 5 to 8, if 4 is measured before 8: what each step reported
STUDY/done/<arm>/heldout-0008.json, evaluate.json, prune.json
STUDY/checkpoints/<arm>/           of an arm in progress; without it the arm is trained again
STUDY/evaluations/<arm>/           completions and verdicts
STUDY/exports/<arm>/               what `keep='parameters'` keeps

Done-files outlast everything else: checkpoints and evaluations may be removed at any time.
"""

import dataclasses
import datetime
import json
import sys
from pathlib import Path
from typing import Any

from dft_jax.data import order
from dft_jax.runtime import environment, errors, files
from dft_jax.study import spec as spec_lib
from dft_jax.study.spec import Arm, Phase, Spec

DONE, INPUTS = "done", "inputs.json"


@dataclasses.dataclass(frozen=True)
class Done:
    """The content of a done-file; its fields are the keys of the JSON.

    `work` is how much was done, in the unit of its kind: steps, readings of the texts, requests.
    """

    phase: str
    inputs_sha256: str
    seconds: float
    work: int
    finished_at: str
    made_by: dict[str, Any]
    results: dict[str, Any]


class Records:
    """The done-files of a study in `folder`, held against what `spec` says."""

    def __init__(self, folder: Path, spec: Spec):
        self.folder = folder / DONE
        self.spec = spec

    def read(self, phase: Phase) -> Done | None:
        """What a phase left; None where it is not done.

        Raises:
          UserError: the file cannot be read, or is that of other inputs.
        """
        file = self.folder / phase.file
        if not file.exists():
            return None
        remedy = "remove it, to have the phase done again"
        # TypeError: JSON of another shape, or with other keys than the fields.
        kinds = (OSError, ValueError, TypeError)
        with errors.user_errors(f"{file}: not a done-file", remedy, kinds):
            done = Done(**json.loads(file.read_text(encoding="utf-8")))
        wanted = spec_lib.digest(spec_lib.inputs_of(self.spec, phase.arm), phase.kind)
        if done.inputs_sha256 != wanted:
            raise errors.UserError(
                [f"{file} has other inputs than the spec; {_REMEDY}", *self._changes(phase.arm)]
            )
        return done

    def _inputs_file(self, arm: Arm | None) -> Path:
        return self.folder / spec_lib.name_of(arm) / INPUTS

    def _changes(self, arm: Arm | None) -> list[str]:
        """What the inputs file names that the spec has otherwise."""
        file = self._inputs_file(arm)
        held = {}
        if file.exists():
            held = _read_json(file)
        return _changes(held, spec_lib.inputs_of(self.spec, arm))

    def open_arm(self, arm: Arm | None, contents: dict[str, Any]) -> None:
        """Writes the arm's inputs, or compares them with those that are there.

        Args:
          contents: digests of weights, tokenizer, training data and texts, and the order's version.

        Raises:
          UserError: they differ.
        """
        file = self._inputs_file(arm)
        inputs = spec_lib.inputs_of(self.spec, arm) | contents
        if file.exists():
            held = _read_json(file)
            changes = _changes(held, inputs)
            if changes:
                raise errors.UserError([f"{file} has other inputs; {_REMEDY}", *changes])
            # Keys that a later spec added join those that are there.
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
        remedy = "make room, then run the same command again"
        with errors.user_errors(f"{file}: cannot be written", remedy):
            file.parent.mkdir(parents=True, exist_ok=True)
            files.write_text(file, json.dumps(dataclasses.asdict(done)) + "\n")

    def is_done(self, phase: Phase) -> bool:
        """Whether a phase has a done-file; raises as `read`."""
        return self.read(phase) is not None

    def is_complete(self, arm: Arm | None) -> bool:
        """Whether an arm's phases are all done."""
        return all(self.is_done(phase) for phase in spec_lib.phases_of(self.spec, arm))


def stream_version(folder: Path) -> int:
    """The version of data/order.py that the study in `folder` was begun with, or today's.

    A study from before there were versions has none in its inputs; its own is 1.
    """
    held = sorted((folder / DONE).glob(f"*/{INPUTS}"))
    if not held:
        return order.VERSION
    return _read_json(held[0]).get(f"contents.{order.FINGERPRINT_KEY}", 1)


def with_first_warmup(spec: Spec, folder: Path) -> Spec:
    """The spec with the warm-up from zero with which arms in `folder` were begun, if they were.

    That is all of a study from before there was a choice: see optimizer.SECTION.
    """
    key = "config.optimizer.warmup_from"
    if key not in spec_lib.inputs_of(spec, spec.arms[0]):
        return spec
    held = [_read_json(file) for file in sorted((folder / DONE).glob(f"*/{INPUTS}"))]
    # The base has no objective: it is not trained.
    began = [inputs for inputs in held if "config.objective" in inputs]
    if not began or key in began[0]:
        return spec
    print(f"note: {folder} began with {key}=zero and keeps it", file=sys.stderr)
    config = spec.config.copy_and_resolve_references().unlock()
    config.optimizer.warmup_from = "zero"
    return dataclasses.replace(spec, config=config.lock())


def _changes(held: dict[str, Any], inputs: dict[str, Any]) -> list[str]:
    """`name: old -> new` for what differs.

    Keys of a config that are in only one of the two have their default in the other; of the rest,
    what was added to the spec later is no change.
    """
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    for name in held.keys() | inputs.keys():
        if name in held and name in inputs:
            before[name] = held[name]
            after[name] = inputs[name]
        elif name.startswith("config."):
            default = spec_lib.default_of(name)
            before[name] = held.get(name, default)
            after[name] = inputs.get(name, default)
    return list(errors.differences(before, after).values())


_REMEDY = "undo the change, or give another --out, or remove the arm's folder there"


def _read_json(file: Path) -> dict[str, Any]:
    with errors.user_errors(f"{file}: cannot be read", "remove it", (OSError, ValueError)):
        return json.loads(file.read_text(encoding="utf-8"))


def made_by() -> dict[str, Any]:
    """What a reader of a done-file needs to know of the machine and the code."""
    described = environment.describe()
    return {
        "git": described["git"],
        "python": described["python"],
        "devices": described["devices"],
        "jax": described["versions"]["jax"],
    }


def status(records: Records) -> str:
    """A line for each arm: which phases are done, and which is next; then how many are in all."""
    spec = records.spec
    lines = []
    n_done = 0
    for arm in (None, *spec.arms):
        phases = spec_lib.phases_of(spec, arm)
        left = [phase for phase in phases if not records.is_done(phase)]
        n_done_of_arm = len(phases) - len(left)
        n_done += n_done_of_arm
        if not left:
            state = "complete"
        elif not n_done_of_arm:
            state = "not begun"
        else:
            following = f"{left[0].kind} to step {left[0].step}"
            state = f"{n_done_of_arm} of {len(phases)} phases; next: {following}"
        lines.append(f"{spec_lib.name_of(arm):44s} {state}")
    n_complete = sum(records.is_complete(arm) for arm in spec.arms)
    n_phases = len(spec_lib.phases(spec))
    lines.append(
        f"{n_complete} of {len(spec.arms)} arms complete, {n_done} of {n_phases} phases done"
    )
    return "\n".join(lines)
