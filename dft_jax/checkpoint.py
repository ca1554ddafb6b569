"""Orbax checkpoints of a run: parameters, optimizer and step, saved in the background, restored as they were."""

import contextlib
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from dft_jax import errors
from dft_jax.types import Params, TrainState


class Checkpoints:
    """The checkpoints under `workdir/checkpoints`. The step number is all the data position there is."""

    def __init__(self, folder: Path, *, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self.folder = folder
        handlers = {"state": ocp.StandardCheckpointHandler(), "run": ocp.JsonCheckpointHandler()}
        self.manager = ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handlers)

    @property
    def latest(self) -> int | None:
        return self.manager.latest_step()

    def save(self, step: int, state: TrainState, run: dict[str, Any]) -> None:
        """Starts saving; `run` (plain JSON) says which run and data these are."""
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run))
        started = self.manager.save(step, args=items, force=True)
        assert started, f"step {step} is not above {self.latest}"

    def run_of(self, step: int) -> dict[str, Any]:
        """What `save` was given as `run`."""
        with self._complete(step):
            return self.manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]

    @contextlib.contextmanager
    def _complete(self, step: int):
        """Orbax lists a half-copied step like any other; reading it ends in one of many exceptions."""
        try:
            yield
        except (KeyError, FileNotFoundError, ValueError) as error:
            if isinstance(error, errors.UserError):
                raise
            raise errors.UserError(
                f"{self.folder / str(step)}: not a complete checkpoint ({errors.first_line(error)});"
                " remove that folder to go on from the one before"
            ) from error

    def restore(self, step: int, abstract_state: TrainState) -> TrainState:
        """The state of `step`, laid out as `abstract_state` says, whatever mesh saved it.

        Raises:
          UserError: tree, shapes or dtypes differ from the run's (Orbax would cast or reshape silently).
        """
        with self._complete(step):
            stored = self.manager.metadata(step).item_metadata["state"]
            errors.raise_if_any(_differences(stored, abstract_state, str(self.folder / str(step))))
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
            return self.manager.restore(step, args=args)["state"]

    def restore_params(self, step: int, abstract_params: Params) -> Params:
        """The parameters of `step` alone: the moments, twice as large, are not read."""
        with self._complete(step):
            stored = self.manager.metadata(step).item_metadata["state"].tree["params"]
            errors.raise_if_any(_differences(stored, abstract_params, str(self.folder / str(step))))
            abstract = {"params": abstract_params}
            args = ocp.args.PyTreeRestore(
                abstract, ocp.checkpoint_utils.construct_restore_args(abstract), partial_restore=True
            )
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                return checkpointer.restore(self.folder.absolute() / str(step) / "state", args=args)["params"]

    def close(self) -> None:
        """Waits for the save in progress; raises what went wrong in it."""
        self.manager.wait_until_finished()
        self.manager.close()


def _differences(stored: Any, wanted: Any, where: str) -> list[str]:
    def table(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {_plain(path): (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in leaves}

    old, new = table(stored), table(wanted)
    return [
        f"{where}: {path} is {old.get(path, 'absent')}, this run has {new.get(path, 'absent')}; give another --workdir"
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path)
    ]


def _plain(path) -> str:
    """A path without the kinds of its nodes: Orbax gives tuples back as lists and dataclasses as dicts."""
    return ".".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
