"""A run's directory and its metrics: metrics.jsonl always, TensorBoard and Weights & Biases when
asked.
"""

import hashlib
import importlib
import json
import math
import os
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dft_jax.runtime import errors, files, processes
from dft_jax.runtime.files import write_text
from dft_jax.runtime.options import Config

_PATIENCE_S = 30.0  # with a service that does not answer


class Writer:
    """Appends rows of metrics; only process 0 writes."""

    def __init__(
        self,
        workdir: Path,
        settings: Config,
        *,
        resume_from: int | None,
        run_id: str | None = None,
        about: dict[str, Any] | None = None,
    ):
        """`resume_from` is the step of the checkpoint that the run goes on from; None for a run
        from the start.

        `run_id` is the run's own; runs of older versions have none.
        """
        self.active = processes.is_first()
        self.boards: list[_Board] = []
        self.file = workdir / "metrics.jsonl"
        last_kept = -1
        if resume_from is not None:
            last_kept = resume_from
        kept = _rows_up_to(self.file, last_kept)
        self.kept_metrics = {(row["step"], name) for row in kept for name in row}
        if not self.active:
            return
        with self._told():
            write_text(self.file, "".join(json.dumps(row) + "\n" for row in kept))
            # Open for the whole run.
            self.rows = open(self.file, "a", encoding="utf-8")  # noqa: SIM115
        if settings.tensorboard:
            self.boards.append(_tensorboard(workdir, last_kept + 1))
        if settings.wandb_project:
            id_ = board_id(workdir, run_id)
            self.boards.append(_wandb(workdir, settings.wandb_project, about or {}, id_))

    def write(self, step: int, values: dict[str, Any]) -> None:
        if not self.active or not values:
            return
        finite, scalars = {}, {}
        for name, value in values.items():
            finite[name] = value
            # JSON has no NaN.
            if isinstance(value, float) and not math.isfinite(value):
                finite[name] = None
            if isinstance(value, (int, float)):
                scalars[name] = value
        with self._told():
            self.rows.write(json.dumps({"step": step, **finite}) + "\n")
            self.rows.flush()
        for board in self.boards:
            board.add(step, scalars)

    def sync(self) -> None:
        """Makes the rows outlast the machine, as the checkpoint that is going to be saved will."""
        if self.active:
            with self._told():
                os.fsync(self.rows.fileno())

    def _told(self):
        return errors.user_errors(
            f"{self.file}: cannot be written", "make it possible, then run the same command again"
        )

    def has(self, step: int, prefix: str) -> bool:
        """Whether a row from before the run was taken up again has a metric of this kind at this
        step.
        """
        return any(at == step and name.startswith(prefix) for at, name in self.kept_metrics)

    def close(self) -> None:
        for board in self.boards:
            board.close()
        if self.active:
            self.rows.close()


def require_boards(log: Config) -> None:
    """UserError where a package that the config asks for cannot be imported. A service that is down
    is another thing: it may come back, and the run goes on without it.
    """
    wanted = {
        "tensorboardX": ("config.log.tensorboard", log.tensorboard),
        "wandb": ("config.log.wandb_project", log.wandb_project),
    }
    for package, (key, is_wanted) in wanted.items():
        if is_wanted:
            what = f"{key} is set, but {package} cannot be imported"
            with errors.user_errors(what, f"pip install {package}, or unset the key", (Exception,)):
                importlib.import_module(package)


class _Board:
    """Somewhere else that the metrics go, in a thread of its own: a service that is down, or hangs,
    costs nothing but a warning. metrics.jsonl has it all.

    Args:
      open_: makes what has add(step, scalars) and close(); called in the thread.
    """

    def __init__(self, name: str, open_: Callable[[], Any]):
        self.name, self.open = name, open_
        self.waiting: queue.SimpleQueue[tuple[int, dict] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        try:
            board = self.open()
            while True:
                item = self.waiting.get()
                if item is None:
                    break
                board.add(*item)
            board.close()
        # Some libraries end the process, or the thread, where they have no key.
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            self._warn(f"left out from now on ({errors.first_line(error)})")

    def add(self, step: int, scalars: dict[str, float]) -> None:
        if self.thread.is_alive():
            self.waiting.put((step, scalars))

    def close(self) -> None:
        """Waits for what is still on its way, but not for ever."""
        self.waiting.put(None)
        self.thread.join(_PATIENCE_S)
        if self.thread.is_alive():
            self._warn(f"not everything has arrived within {_PATIENCE_S:g} s")

    def _warn(self, text: str) -> None:
        print(
            f"warning: {self.name}: {text}; metrics.jsonl has it all", file=sys.stderr, flush=True
        )


def _tensorboard(workdir: Path, first_step: int) -> _Board:
    from tensorboardX import SummaryWriter

    class TensorBoard:
        def __init__(self):
            self.writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step)

        def add(self, step: int, scalars: dict[str, float]) -> None:
            for name, value in scalars.items():
                self.writer.add_scalar(name, value, step)

        def close(self) -> None:
            self.writer.close()

    return _Board("TensorBoard", TensorBoard)


def board_id(workdir: Path, run_id: str | None) -> str:
    """What a run is called at Weights & Biases: the same each time it is resumed, and as no other
    is.

    Folders of one path on two machines, or one after the other, hold runs of different ids; a copy
    of a folder, from which another curve may branch off, has another path. Older runs have no id,
    and only their folder's name there.
    """
    named = str(workdir) if run_id is None else f"{run_id} {workdir}"
    return hashlib.sha256(named.encode()).hexdigest()[:16]


def _wandb(workdir: Path, project: str, settings: dict[str, Any], id_: str) -> _Board:
    import wandb  # pyright: ignore[reportMissingImports]

    class WeightsAndBiases:
        def __init__(self):
            about = dict(project=project, dir=workdir, config=settings)
            # It would keep the address of the git remote, which may hold a token, and the command;
            # env.json says enough. Without a key it would ask for one, and wait; and without a
            # network it would wait as well.
            limits = dict(init_timeout=_PATIENCE_S, login_timeout=_PATIENCE_S)
            private = wandb.Settings(
                disable_git=True, disable_code=True, x_disable_meta=True, **limits
            )
            self.run = wandb.init(id=id_, resume="allow", settings=private, **about)

        def add(self, step: int, scalars: dict[str, float]) -> None:
            self.run.log(scalars, step=step)

        def close(self) -> None:
            self.run.finish()

    return _Board("Weights & Biases", WeightsAndBiases)


def _rows_up_to(file: Path, step: int) -> list[dict[str, Any]]:
    """A resumed run repeats the steps after its checkpoint; their first rows go, so that each step
    has one.
    """
    return [row for row in files.json_lines(file) if row["step"] <= step]
