"""The folder of an export: written by several processes, and under its name only when complete."""

import contextlib
import logging
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from dft_jax.runtime import distributed, errors, files, processes

# What process 0 writes, so that others can tell its folder from one of the same name on a disk of
# their own.
_WORD_NAME = ".word"
_log = logging.getLogger(__name__)  # phases, for fault injection, as in checkpoints/manager.py


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Around files that processes write by themselves: all enter it, whoever has something to do.

    Raises:
      UserError: the files of one could not be written, which ends all of them here. It names the
        export.
    """
    named = errors.user_errors(
        f"{out}: the export could not be written",
        "make it possible, then run the same command again",
        # safetensors has its own type for a full disk
        (OSError, SafetensorError),
    )
    with distributed.together("export"), named:
        yield


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write to, made by process 0.

    It takes the name `out` at the end, replacing an earlier export; where that does not come, it
    is removed.
    """
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
    """The numbers of the processes that have process 0's `folder` under this name, itself among
    them: those on its machine, or all where the file system is shared.

    Raises:
      UserError: as `writing`.
    """
    word = distributed.decided("export word", secrets.token_hex(8), lambda words: words[0])
    file = folder / _WORD_NAME
    with writing(out):
        if processes.is_first():
            file.write_text(word)
            files.flush(file)
    is_there = False
    with contextlib.suppress(OSError):
        is_there = file.read_text() == word
    writers = distributed.decided("export writers", is_there, _indices_of_true)
    if processes.is_first():
        file.unlink()
    return writers


def _indices_of_true(values: list[bool]) -> list[int]:
    return [index for index, value in enumerate(values) if value]


def _replace(temporary: Path, out: Path) -> None:
    """`temporary` takes the name `out`; an earlier export goes when the new one has its place."""
    old = out.with_name(f".{out.name}.old")
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
    temporary.rename(out)
    shutil.rmtree(old, ignore_errors=True)
