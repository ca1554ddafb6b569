"""Checkpoints of a run: Orbax writes them in the background, and only complete ones count.

checkpoints/8/state, 8/run     parameters, moments and step; which run and data these are
checkpoints/8/manifest.json    written last, when the checkpoint is complete
checkpoints/4.damaged, …       what is no complete checkpoint; see folder.py
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from dft_jax.checkpoints import best as best_lib, folder as checkpoint_folder, manifest, storage
from dft_jax.checkpoints.best import Best
from dft_jax.runtime import distributed, errors, interrupts, processes
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
    "best": best_lib.OPTION,
    "verify": Option(
        "sha256", "how a checkpoint is compared with its manifest before use", manifest.VERIFY
    ),
}
best_problems = best_lib.problems
_PATIENCE_S = 20.0
_UNANSWERED = "no answer: "
_SHOWN = 300  # characters of what a library says
# Debug log of save phases; fault injection hooks into it.
_log = logging.getLogger(__name__)


class Gone(errors.UserError):
    """A checkpoint that was there is no longer: the run that trains has removed it for a newer."""


class Checkpoints:
    """The checkpoints in `folder`. The step number is all the data position there is.

    Args:
      keep: complete checkpoints to keep. Others are removed when a newer one is complete: first
        those between the steps of `every` (saved by the clock, or for a signal), then the oldest.
      verify: how they are compared with their manifests before use: "sha256", "sizes" or "off".
      every: the steps at which the run saves anyway are multiples of this.
      best: the metric, in the metrics.jsonl beside `folder`, whose best step stays in any case.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int = 1,
        verify: str = "sha256",
        every: int = 1,
        best: str = "",
    ):
        self.folder = storage.place_of(folder.absolute())
        self.rows = folder.parent / best_lib.ROWS_NAME
        self.metric = best
        self.keep = keep
        self.verify = verify
        self.every = every
        self.orbax = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(
                state=ocp.StandardCheckpointHandler(), run=ocp.JsonCheckpointHandler()
            )
        )
        self.thread = concurrent.futures.ThreadPoolExecutor(1, "manifest")
        self.saving: concurrent.futures.Future | None = None
        self.saved: int | None = None  # the last step that was saved here, or restored
        # True until the run that writes here has looked: others must remove nothing.
        self.is_reader = True
        self.start_clock()

    def start_clock(self) -> None:
        """From now on there is something new to save."""
        self.saved_at = time.monotonic()

    def is_due(self, every_minutes: float) -> bool:
        """Whether so much time has passed since the last save; never for 0."""
        return every_minutes > 0 and time.monotonic() - self.saved_at >= 60 * every_minutes

    def newest(self, *, repair: bool = False) -> int | None:
        """The newest step that is complete, None where no save was ever completed.

        With `repair`, which is for the run that is going to write here, damaged checkpoints are
        quarantined, and what a killed run left behind is removed. All processes call this.

        Raises:
          UserError: there are checkpoints, and every one is damaged.
        """
        # Each step below is settled by all processes together: they must try the same checkpoints
        # in the same order, though a shared disk may show them different files.
        self.is_reader = self.is_reader and not repair
        found_damage = False
        if repair:
            is_clean = self._by_first("sweep", checkpoint_folder.sweep, self.folder)
            found_damage = not is_clean
        tried: list[int] = []
        while True:
            step = self._by_first("candidate", checkpoint_folder.newest_step, self.folder, tried)
            if step is None:
                break
            tried.append(step)
            problems = self._problems(step)
            if not problems:
                # The run before may have been killed before it came to that.
                if repair:
                    self._by_first("retire", self._retire, step)
                return step
            if self._by_first("damaged", self._leave_out, step, problems, repair):
                found_damage = True
        if found_damage or self._by_first("earlier", self._has_damaged):
            # Who only reads is not told to remove anything of a run that may be at work.
            remedy = "remove the folder to start again"
            if self.is_reader:
                remedy = "train again"
            raise errors.UserError(
                f"{self.folder}: no good checkpoint is left; put one back, or {remedy}"
            )
        return None

    def damaged_notes(self) -> list[str]:
        """A line for each quarantined checkpoint with its size, on process 0; none elsewhere.

        They take room that a user may want back, and nothing ever removes them.
        """
        if not processes.is_first():
            return []
        notes = []
        for path in checkpoint_folder.quarantined(self.folder):
            size = checkpoint_folder.size_text(path)
            notes.append(
                f"note: {path} ({size}) differed from its manifest and is not used;"
                " remove it when you have looked"
            )
        return notes

    def _by_first(self, topic: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """What `work` returns on process 0, which alone looks into the folder, on all of them."""

        def guarded() -> Any:
            with errors.user_errors(
                f"{self.folder}: cannot be used", "make it readable and writable"
            ):
                return work(*arguments)

        return distributed.by_first(f"checkpoint {topic}", guarded)

    def _problems(self, step: int) -> list[str]:
        """How a checkpoint differs from its manifest, the same on all processes.

        Every process hashes its share of the files: 18 GB take one process a minute.
        """
        folder = self.folder / str(step)
        _log.debug("verify %d", step)
        # Sizes first, by one process: they are read at once, and most damage changes them.
        if self.verify != "sha256":
            return self._by_first("sizes", manifest.problems, folder, step, self.verify)
        problems = self._by_first("sizes", manifest.problems, folder, step, "sizes")
        if problems:
            return problems
        share = slice(jax.process_index(), None, jax.process_count())
        try:
            mine = manifest.changed(folder, share)
        except ConnectionError as error:
            mine = [f"{_UNANSWERED}{error}"]
        found = distributed.decided("checkpoint content", mine, _joined)
        # Of a bucket that one process could not ask nothing is known, and all end alike.
        for problem in found:
            if problem.startswith(_UNANSWERED):
                remedy = "make it readable and writable"
                raise errors.UserError(f"{self.folder}: cannot be used ({problem}); {remedy}")
        return found

    def _leave_out(self, step: int, problems: list[str], repair: bool) -> bool:
        """Quarantines a damaged checkpoint, or says that it is left out; False where it is gone."""
        if repair:
            checkpoint_folder.quarantine(self.folder, step, problems)
            return True
        folder = self.folder / str(step)
        if not (folder / manifest.NAME).exists():
            # The run that trains has removed it meanwhile, for a newer one.
            return False
        checkpoint_folder.warn(f"{folder} is damaged and left out: {'; '.join(problems[:3])}")
        return True

    def _has_damaged(self) -> bool:
        return bool(checkpoint_folder.quarantined(self.folder))

    def _retire(self, newest: int) -> None:
        best = self._best().step
        checkpoint_folder.retire(self.folder, newest, self.keep, self.every, best)

    def _best(self) -> Best:
        steps = checkpoint_folder.complete_steps(self.folder)
        return best_lib.of_rows(self.rows, self.metric, steps)

    def best(self) -> Best:
        """The best step of those that are here, the same on all processes, which all call this."""
        if not self.metric:
            return Best("")
        found = self._by_first("best", lambda: dataclasses.asdict(self._best()))
        return Best(self.metric, found["step"], found["value"], found["before_training"])

    def require_good(self, step: int) -> None:
        """For a reader that wants this step and no other.

        Raises:
          UserError: it is not among the complete checkpoints, or it is damaged.
        """
        steps = sorted(self._by_first("steps", checkpoint_folder.complete_steps, self.folder))
        if step not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise errors.UserError(f"{self.folder}: no checkpoint of step {step}; there: {there}")
        problems = self._problems(step)
        if problems:
            self._require(self.folder / str(step))
            what = f"{self.folder / str(step)} is damaged ({'; '.join(problems[:3])})"
            raise errors.UserError(f"{what}; give another --step, or train again")

    def save(self, step: int, state: TrainState, run: dict[str, Any]) -> None:
        """Starts saving, unless `step` is the last that was saved.

        Args:
          run: plain JSON, which run and data these are.

        Raises:
          UserError: the save before this one failed, or there is no room for this one.
        """
        if step == self.saved:
            return
        # One save at a time: two would need twice the room in memory and on disk.
        self.wait()
        self.require_room(state)
        _log.debug("save %d", step)
        self.start_clock()
        # The one of now: by the end of this save a new run may have another.
        outlook = interrupts.outlook
        outlook.save_began = self.saved_at
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run))
        # Returns when the state is copied to the host; files are written while training goes on.
        with self._report_failure(step):
            self.orbax.save(self.folder / str(step), args=items)
        self.saved = step
        self.saving = self.thread.submit(self._complete, step, outlook)

    def _complete(self, step: int, outlook: interrupts.Outlook) -> None:
        """Waits for Orbax, makes the checkpoint count, and removes older ones.

        Runs in a thread beside training. The order is what a kill must not change: the manifest
        when all files are on disk, the removal of older ones when the manifest is.
        """
        folder = self.folder / str(step)
        try:
            self.orbax.wait_until_finished()
            _log.debug("commit %d", step)
            manifest.write(folder, step)
            storage.of(self.folder).flush(self.folder)
            outlook.save_s = time.monotonic() - self.saved_at
        finally:
            outlook.save_began = None
        _log.debug("whole %d", step)
        if processes.is_first():
            self._retire(step)

    def remove(self, step: int) -> None:
        """Removes a checkpoint of which the run does not go on: it would be in the way of another
        of the same step, and be taken for newer than those before it.
        """
        self._by_first("remove", checkpoint_folder.remove, self.folder, step)

    def keep_best(self) -> None:
        """Removes what another best step makes superfluous, once the save in progress is over.

        It would go with the next save in any case, but there may be none.
        """
        self.saving = self.thread.submit(self._tidy, self.saving, self.saved)

    def _tidy(self, saving: concurrent.futures.Future | None, newest: int | None) -> None:
        if saving is not None:
            saving.result()
        if newest is not None and processes.is_first():
            self._retire(newest)

    def wait(self) -> None:
        """Waits for the save in progress.

        Raises:
          UserError: it failed.
        """
        if self.saving is None:
            return
        saving = self.saving
        self.saving = None
        with self._report_failure(self.saved):
            saving.result()

    @contextlib.contextmanager
    def _report_failure(self, step: int | None) -> Iterator[None]:
        """Makes UserErrors of what a disk that is full, or a folder that vanished, raises.

        That is an OSError, or an exception of Orbax or TensorStore that names the folder. All else
        is nothing that the user could fix here, such as a collective whose other process is gone.
        """
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            if not _is_of_files(error) and str(self.folder) not in str(error):
                raise
            if processes.is_first():
                # Half a checkpoint, on a disk that may be full.
                checkpoint_folder.remove_temporary(self.folder)
            raise errors.UserError(
                f"{self.folder}: step {step} could not be saved"
                f" ({errors.first_line(error)[:_SHOWN]}); make it possible, then run the same"
                " command again: it resumes from the newest complete checkpoint"
            ) from error

    def require_room(self, state: Any) -> None:
        """UserError where the disk has no room for a checkpoint of `state` (arrays or shapes).

        Process 0 looks: the others may come here while it still removes an old one.
        """
        if not processes.is_first():
            return
        needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        free = storage.of(self.folder).free(self.folder)
        if free is not None and free < needed:
            raise errors.UserError(
                f"{self.folder}: a checkpoint takes {needed / 1e9:.3g} GB and {free / 1e9:.3g} GB"
                " are free; make room, then run the same command again"
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
    def _reading(self, step: int) -> Iterator[None]:
        """Without verification, reading a damaged checkpoint ends in one of many exceptions.

        A run renames the whole folder before it removes it, so what was read is complete if the
        manifest is still there afterwards. Without a look, an array whose file was removed
        meanwhile might be read as zeros.

        Raises:
          Gone: it is not there any more.
          UserError: it cannot be read.
        """
        folder = self.folder / str(step)
        remedy = "remove that folder to resume from the checkpoint before it"
        if self.is_reader:
            # Perhaps of a run that is at work.
            remedy = (
                "it is damaged; a start of the run with config.checkpoint.verify='sha256'"
                " sets it aside"
            )
        kinds = (KeyError, OSError, ValueError)
        try:
            with errors.user_errors(f"{folder}: cannot be read", remedy, kinds):
                yield
        except errors.UserError:
            self._require(folder)
            raise
        self._require(folder)

    def _require(self, folder: storage.Folder) -> None:
        """Gone where a checkpoint has no manifest any more."""
        if not (folder / manifest.NAME).exists():
            raise Gone(
                f"{folder}: is gone, the run has replaced it by a newer checkpoint; run the same"
                " command again, or let the run keep more (checkpoint.keep)"
            )

    def _require_same_arrays(self, step: int, wanted: Any, part: str = "") -> None:
        """UserError where arrays under `part` are not there as wanted.

        Orbax would cast or reshape them without a word.
        """
        folder = self.folder / str(step)
        held_items = self.orbax.metadata(folder).item_metadata
        assert held_items is not None, "a composite of state and run was saved"
        old = _shapes_and_dtypes(held_items["state"])
        new = _shapes_and_dtypes(wanted)
        problems = []
        for path in sorted(old.keys() | new.keys()):
            if path.startswith(part) and old.get(path) != new.get(path):
                held = old.get(path, "absent")
                expected = new.get(path, "absent")
                problems.append(
                    f"{folder}: {path} is {held}, this run has {expected}; give another --workdir"
                )
        errors.raise_if_any(problems)

    def restore(self, step: int, abstract_state: TrainState) -> TrainState:
        """The state of `step`, laid out as `abstract_state` says, whatever mesh saved it.

        Raises:
          UserError: tree, shapes or dtypes differ from the run's.
        """
        with self._reading(step):
            self._require_same_arrays(step, abstract_state)
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
            state = self.orbax.restore(self.folder / str(step), args=args)["state"]
        # The state is on disk as it is: a stop before the next step has nothing to save.
        self.saved = step
        return state

    def restore_params(self, step: int, abstract_params: Params) -> Params:
        """The parameters of `step` alone: the moments, twice as large, are not read."""
        abstract = {"params": abstract_params}
        with self._reading(step):
            self._require_same_arrays(step, abstract, "params")
            # The handler of whole states restores whole states only.
            restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
            args = ocp.args.PyTreeRestore(abstract, restore_args, partial_restore=True)
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                restored = checkpointer.restore(self.folder / str(step) / "state", args=args)
            assert restored is not None, "a part of the state was asked for"
            return restored["params"]

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        """Waits for the save in progress.

        Not for long if this process of many failed, perhaps alone: the save ends with the others.
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
            # It raises once more what a metadata file ran into.
            with self._report_failure(self.saved):
                self.orbax.close()


def _is_of_files(error: Exception) -> bool:
    """Whether an exception is of the file system, and not of a network, which is an OSError too."""
    if isinstance(error, TimeoutError | ConnectionError):
        return False
    return isinstance(error, OSError)


def _joined(everyone: list[list[str]]) -> list[str]:
    """The problems of all processes in one list."""
    joined: list[str] = []
    for problems in everyone:
        joined += problems
    return joined


def _shapes_and_dtypes(tree: Any) -> dict[str, tuple]:
    """By path, without the kinds of its nodes: Orbax gives dataclasses back as dicts."""
    name = functools.partial(jax.tree_util.keystr, simple=True, separator=".")
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        found[name(path)] = (tuple(leaf.shape), str(leaf.dtype))
    return found
