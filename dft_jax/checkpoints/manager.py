"""Checkpoints of a run: Orbax writes them in the background, a manifest says that one is whole,
only whole ones count.

checkpoints/8/state, 8/run     parameters, moments and step; which run and data these are
checkpoints/8/manifest.json    written last: a folder without it is the debris of a killed run
checkpoints/4.damaged          differed from its manifest when the run was taken up again, and was set aside
checkpoints/6.unfinished       has no manifest, and nothing before it is whole; removed when a later step is
"""

import concurrent.futures
import contextlib
import functools
import logging
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from dft_jax.checkpoints import manifest
from dft_jax.runtime import distributed, errors, files, interrupts, processes
from dft_jax.runtime.options import AT_LEAST_0, AT_LEAST_1, Option
from dft_jax.types import Params, TrainState

# config.checkpoint
SECTION = {
    "every": Option(100, "steps between checkpoints; one is always saved at the end", AT_LEAST_1),
    "every_minutes": Option(
        10.0,
        "minutes between checkpoints, by the clock of process 0; 0: only by steps",
        AT_LEAST_0,
    ),
    "keep": Option(2, "newest complete checkpoints that stay", AT_LEAST_1),
    "verify": Option(
        "sha256", "how a checkpoint is compared with its manifest before use", manifest.VERIFY
    ),
}
_PATIENCE_S = 20.0
_log = logging.getLogger(__name__)  # the phases of a save, for whoever wants to interfere with them


class Gone(errors.UserError):
    """A checkpoint that was there is no longer: the run that trains on has let it go for a newer
    one.
    """


class Checkpoints:
    """The checkpoints in `folder`. The step number is all the data position there is.

    Args:
      keep: whole checkpoints to keep; others go when a newer one is whole: first those between the
      steps of `every`
        (saved by the clock, or for a signal), then the oldest.
      verify: how they are compared with their manifests before use: "sha256", "sizes" or "off".
      every: the steps at which the run saves anyway are multiples of this.
    """

    def __init__(self, folder: Path, *, keep: int = 1, verify: str = "sha256", every: int = 1):
        self.folder, self.keep, self.verify, self.every = folder.absolute(), keep, verify, every
        handlers = {"state": ocp.StandardCheckpointHandler(), "run": ocp.JsonCheckpointHandler()}
        self.orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(**handlers))
        self.thread = concurrent.futures.ThreadPoolExecutor(1, "manifest")
        self.saving: concurrent.futures.Future | None = None
        self.saved: int | None = None  # the last step that was saved here, or restored
        self.is_reader = True  # until the run that writes here has looked
        self.start_clock()

    def start_clock(self) -> None:
        """From now on there is something new to save."""
        self.saved_at = time.monotonic()

    def is_due(self, every_minutes: float) -> bool:
        """Whether so much time has passed since the last save; never for 0."""
        return every_minutes > 0 and time.monotonic() - self.saved_at >= 60 * every_minutes

    def newest(self, *, repair: bool = False) -> int | None:
        """The newest step that is whole, None where no saving ever ended.

        With `repair`, which is for the run that is going to write here, what is not whole is set
        aside.

        Raises:
          UserError: there are checkpoints, and every one is damaged.
        """
        self.is_reader = self.is_reader and not repair
        is_damaged = repair and not self._by_first("sweep", self._sweep)
        tried: list[int] = []
        while (step := self._by_first("candidate", self._candidate, tried)) is not None:
            tried.append(step)
            problems = self._problems(step)
            if not problems:
                if repair:  # a run may have been killed before it came to that
                    self._by_first("retire", self._retire, step)
                return step
            is_damaged |= self._by_first("damaged", self._leave_out, step, problems, repair)
        if is_damaged or self._by_first("earlier", self._has_damaged):
            # Who only reads is not told to remove anything of a run that may be at work.
            remedy = "train again" if self.is_reader else "remove the folder to start again"
            raise errors.UserError(
                f"{self.folder}: no good checkpoint is left; put one back, or {remedy}"
            )
        return None

    def _by_first(self, topic: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """What process 0 makes of the folder, on all of them."""

        def told() -> Any:
            with errors.user_errors(
                f"{self.folder}: cannot be used", "make it readable and writable"
            ):
                return work(*arguments)

        return distributed.by_first(f"checkpoint {topic}", told)

    def _candidate(self, tried: list[int]) -> int | None:
        return max(set(self._steps()) - set(tried), default=None)

    def _problems(self, step: int) -> list[str]:
        """How a checkpoint differs from its manifest. Every process hashes its share of the files:
        18 GB take a minute."""
        folder, by_content = self.folder / str(step), self.verify == "sha256"
        _log.debug("verify %d", step)
        sizes = "sizes" if by_content else self.verify
        problems = self._by_first("sizes", manifest.problems, folder, step, sizes)
        if problems or not by_content:
            return problems
        share = slice(jax.process_index(), None, jax.process_count())
        return distributed.decided("checkpoint content", manifest.changed(folder, share), _joined)

    def _leave_out(self, step: int, problems: list[str], repair: bool) -> bool:
        """Sets a damaged checkpoint aside, or says that it is left out; False where it is gone."""
        folder = self.folder / str(step)
        if not repair and not (folder / manifest.NAME).exists():
            return False  # a run that goes on has let it go meanwhile, for a newer one
        place = folder.with_suffix(".damaged")
        action = f"set aside as {place.name}" if repair else "left out"
        _warn(f"{folder} is damaged and {action}: {'; '.join(problems[:3])}")
        if repair:
            shutil.rmtree(place, ignore_errors=True)
            folder.rename(place)
        return True

    def _has_damaged(self) -> bool:
        return any(self.folder.glob("*.damaged"))

    def _steps(self) -> list[int]:
        """Steps with a manifest."""
        names = [file.parent.name for file in self.folder.glob(f"*/{manifest.NAME}")]
        return [int(name) for name in names if name.isdigit()]

    def _sweep(self) -> bool:
        """Clears up after a run that was killed while it saved or removed; False for what no such
        run leaves behind.
        """
        self._remove_temporary()
        orphans = [
            f
            for f in self.folder.iterdir()
            if f.name.isdigit() and not (f / manifest.NAME).exists()
        ]
        if len(orphans) > 1 and not self._steps():
            _warn(
                f"{self.folder}: {len(orphans)} checkpoints and no {manifest.NAME}; were they copied without?"
            )
            return False
        for folder in orphans:
            _warn(f"{folder} has no {manifest.NAME}, so its saving never ended; it is not used")
            shutil.rmtree(folder.with_suffix(".unfinished"), ignore_errors=True)
            if self._steps():
                shutil.rmtree(folder)
            else:
                folder.rename(folder.with_suffix(".unfinished"))
        return True

    def _remove_temporary(self) -> None:
        for pattern in ("*.orbax-checkpoint-tmp*", "*.removed"):
            for folder in self.folder.glob(pattern):
                shutil.rmtree(folder, ignore_errors=True)

    def save(self, step: int, state: TrainState, run: dict[str, Any]) -> None:
        """Starts saving, unless `step` is the last that was; `run` (plain JSON) says which run and
        data these are.

        Raises:
          UserError: the save before this one failed, or there is no room for this one.
        """
        if step == self.saved:
            return
        self.wait()
        self.require_room(state)
        _log.debug("save %d", step)
        self.start_clock()
        outlook = interrupts.outlook
        outlook.save_began = self.saved_at
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run))
        with self._told(step):
            self.orbax.save(self.folder / str(step), args=items)
        self.saved = step
        self.saving = self.thread.submit(self._seal, step, outlook)

    def _seal(self, step: int, outlook: interrupts.Outlook) -> None:
        """Waits for Orbax to rename its folder, makes the checkpoint count, and lets older ones go."""
        folder = self.folder / str(step)
        try:
            self.orbax.wait_until_finished()
            _log.debug("commit %d", step)
            manifest.write(folder, step)
            files.flush(self.folder)
            outlook.save_s = time.monotonic() - self.saved_at
        finally:
            outlook.save_began = None
        _log.debug("whole %d", step)
        if processes.is_first():
            self._retire(step)

    def _retire(self, newest: int) -> None:
        """Lets go what `newest`, which is whole, makes superfluous."""
        older = [step for step in self._steps() if step < newest]
        older.sort(key=lambda step: (step % self.every == 0, step))  # what is between goes first
        for old in older[: max(len(older) + 1 - self.keep, 0)]:
            removed = (self.folder / str(old)).with_suffix(".removed")
            try:
                (self.folder / str(old)).rename(removed)
            except OSError as error:  # no reason to say that the new one was not saved
                _warn(f"{self.folder / str(old)} cannot be removed ({error.strerror})")
            shutil.rmtree(removed, ignore_errors=True)
        for debris in self.folder.glob("*.unfinished"):
            if int(debris.stem) <= newest:
                shutil.rmtree(debris, ignore_errors=True)

    def wait(self) -> None:
        """Waits for the save in progress.

        Raises:
          UserError: it failed.
        """
        if self.saving is not None:
            saving, self.saving = self.saving, None
            with self._told(self.saved):
                saving.result()

    @contextlib.contextmanager
    def _told(self, step: int | None):
        """Disks fill up and folders vanish: an OSError says so, or one of Orbax's or TensorStore's
        that names the file.

        All else is nothing that the user could mend here, such as a collective whose other process
        is gone.
        """
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            is_of_files = isinstance(error, OSError) and not isinstance(
                error, TimeoutError | ConnectionError
            )
            if not is_of_files and str(self.folder) not in str(error):
                raise
            if processes.is_first():
                self._remove_temporary()  # half a checkpoint on a disk that may be full
            raise errors.UserError(
                f"{self.folder}: step {step} could not be saved ({errors.first_line(error)[:300]}); make it possible,"
                " then run the same command again: it goes on from the newest whole checkpoint"
            ) from error

    def require_room(self, state: Any) -> None:
        """UserError where the disk has no room for one more checkpoint of `state` (arrays or their
        shapes).

        Process 0 looks: the others may come here while it still lets an old one go.
        """
        if not processes.is_first():
            return
        needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise errors.UserError(
                f"{self.folder}: a checkpoint takes {needed / 1e9:.3g} GB and {free / 1e9:.3g} GB are free; make room,"
                " then run the same command again"
            )

    def run_of(self, step: int) -> dict[str, Any]:
        """What `save` was given as `run`."""
        with self._reading(step):
            args = ocp.args.Composite(run=ocp.args.JsonRestore())
            return self.orbax.restore(self.folder / str(step), args=args)["run"]

    def digest(self, step: int) -> str:
        """One SHA-256 of all that `step` holds, from its manifest: nothing else is read."""
        with self._reading(step):
            return manifest.digest(self.folder / str(step))

    @contextlib.contextmanager
    def _reading(self, step: int):
        """Without verification, reading a damaged checkpoint ends in one of many exceptions.

        A run renames the whole folder before it removes it, so what was read is whole if the
        manifest is still there afterwards. Without a look, an array whose file went meanwhile might
        be read as zeros.

        Raises:
          Gone: it is not there any more.
          UserError: it cannot be read.
        """
        folder = self.folder / str(step)
        remedy = "remove that folder to go on from the checkpoint before it"
        if self.is_reader:  # perhaps of a run that is at work
            remedy = "it is damaged; a start of the run with config.checkpoint.verify='sha256' sets it aside"
        try:
            with errors.user_errors(
                f"{folder}: cannot be read", remedy, (KeyError, OSError, ValueError)
            ):
                yield
        except errors.UserError:
            self._require(folder)
            raise
        self._require(folder)

    def _require(self, folder: Path) -> None:
        if not (folder / manifest.NAME).exists():
            what = "is gone, let go by the run for a newer checkpoint"
            raise Gone(
                f"{folder}: {what}; run the same command again, or let the run keep more (checkpoint.keep)"
            )

    def _refuse_others(self, step: int, wanted: Any, part: str = "") -> None:
        """UserError where arrays under `part` are not there as wanted: Orbax would cast or reshape
        silently.
        """
        old, new = (
            _table(self.orbax.metadata(self.folder / str(step)).item_metadata["state"]),
            _table(wanted),
        )
        different = [
            f"{self.folder / str(step)}: {path} is {old.get(path, 'absent')}, this run has {new.get(path, 'absent')};"
            " give another --workdir"
            for path in sorted(old.keys() | new.keys())
            if path.startswith(part) and old.get(path) != new.get(path)
        ]
        errors.raise_if_any(different)

    def restore(self, step: int, abstract_state: TrainState) -> TrainState:
        """The state of `step`, laid out as `abstract_state` says, whatever mesh saved it.

        Raises:
          UserError: tree, shapes or dtypes differ from the run's.
        """
        with self._reading(step):
            self._refuse_others(step, abstract_state)
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
            state = self.orbax.restore(self.folder / str(step), args=args)["state"]
        self.saved = step
        return state

    def restore_params(self, step: int, abstract_params: Params) -> Params:
        """The parameters of `step` alone: the moments, twice as large, are not read."""
        abstract = {"params": abstract_params}
        with self._reading(step):
            self._refuse_others(step, abstract, "params")
            restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
            args = ocp.args.PyTreeRestore(abstract, restore_args, partial_restore=True)
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                return checkpointer.restore(self.folder / str(step) / "state", args=args)["params"]

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        """Waits for the save in progress; not for long if this process of many failed, perhaps
        alone.
        """
        if jax.process_count() == 1 or kind is None or issubclass(kind, errors.Stopped):
            self.close()
        elif self.saving is not None:
            concurrent.futures.wait([self.saving], timeout=_PATIENCE_S)

    def close(self) -> None:
        """Waits for the save in progress; raises what went wrong in it."""
        try:
            self.wait()
        finally:
            self.thread.shutdown()
            with self._told(self.saved):
                self.orbax.close()  # raises once more what a metadata file ran into


def _joined(everyone: list[list[str]]) -> list[str]:
    return [line for lines in everyone for line in lines]


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def _table(tree: Any) -> dict[str, tuple]:
    """Shapes and dtypes by path, without the kinds of its nodes: Orbax gives dataclasses back as
    dicts.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator=".")
    return {name(path): (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in leaves}
