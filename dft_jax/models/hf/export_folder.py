"""The folder of an export: written by several processes, and under its name only when complete."""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from dft_jax.models.hf.provenance import PROVENANCE_NAME
from dft_jax.runtime import distributed, errors, folders, processes

_log = logging.getLogger(__name__)  # phases, for fault injection, as in checkpoints/manager.py


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Around files that processes write by themselves: all enter it, whoever has something to do.

    Raises:
      UserError: the files of one could not be written, which ends all of them here. It names the
        export.
    """
    # safetensors has its own type for a full disk
    named = errors.user_errors(*_failure(out), (OSError, SafetensorError))
    with distributed.together("export"), named:
        yield


def _failure(out: Path) -> tuple[str, str]:
    """The problem and the remedy."""
    remedy = "make it possible, then run the same command again"
    return f"{out}: the export could not be written", remedy


def require_replaceable(out: Path) -> None:
    """All processes call it before an export to a folder that a user has named.

    Raises:
      UserError: something is there that no export has written, and it would be deleted.
    """
    with writing(out):
        if not processes.is_first() or (out / PROVENANCE_NAME).is_file():
            return
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise errors.UserError(
                f"{out} is there and no export (it has no {PROVENANCE_NAME}): what it holds would"
                " be deleted; give a new folder, or move it away"
            )


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write to, made by process 0.

    It takes the name `out` at the end, replacing an earlier export; where that does not come, it
    is removed. A link stays one: what it leads to is replaced.
    """
    # Else the link would be what is renamed, and the export would not lie where it leads.
    out = Path(os.path.realpath(out))
    temporary = out.with_name(f".{out.name}.tmp")
    is_first = processes.is_first()
    try:
        with writing(out):
            if is_first:
                shutil.rmtree(temporary, ignore_errors=True)  # of an export that was killed
                temporary.mkdir(parents=True)
        yield temporary
        with writing(out):
            if is_first:
                _log.debug("export rename")
                _replace(temporary, out)
    finally:
        if is_first:
            shutil.rmtree(temporary, ignore_errors=True)


def writers_in(folder: Path, out: Path) -> list[int]:
    """The numbers of the processes that can write to process 0's `folder`: at least its own.

    Raises:
      UserError: as `writing`.
    """
    return folders.shared_with(folder, *_failure(out))


def _replace(temporary: Path, out: Path) -> None:
    """`temporary` takes the name `out`; an earlier export goes when the new one has its place."""
    old = out.with_name(f".{out.name}.old")
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
    temporary.rename(out)
    shutil.rmtree(old, ignore_errors=True)
