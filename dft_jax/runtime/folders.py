"""Folders that one job at a time writes to."""

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

import jax

from dft_jax.runtime import distributed, errors, files, processes, system

_LOCK_NAME = ".lock"


def local_folder(path: str, flag: str = "--workdir") -> Path:
    """`path` with ~ expanded; UserError for a bucket, which would become a folder named `gs:`."""
    if "://" in path:
        raise errors.UserError(
            f"{flag}={path}: give a local or mounted folder; buckets can be mounted"
        )
    return Path(path).expanduser().absolute()


@contextlib.contextmanager
def locked(folder: Path, flag: str = "--workdir") -> Iterator[None]:
    """Makes the folder, and keeps other jobs out of it for as long as the context, or the process,
    lasts.

    Process 0 of a job holds the lock. Where the file system knows no locks, nothing is checked. All
    processes enter this, and all end in the same error.

    Raises:
      UserError: the folder cannot be made, another job is at work in it, or it is not one folder
      for all processes.
    """
    with distributed.together("lock"):
        with errors.user_errors(f"{flag}={folder}: cannot be used", "give another folder"):
            folder.mkdir(parents=True, exist_ok=True)
            lock = open(folder / _LOCK_NAME, "a")  # noqa: SIM115 — NFS locks files, not folders
        try:
            if processes.is_first():
                system.lock(lock)
        except BlockingIOError as error:
            lock.close()
            what = "another process is at work there; wait for it, stop it, or give another folder"
            raise errors.UserError(f"{flag}={folder}: {what}") from error
        except OSError:
            pass  # no locks here
    with lock:
        _require_shared(folder, flag)
        yield


def _require_shared(folder: Path, flag: str) -> None:
    """UserError where a process has another folder under this name: half of each checkpoint would
    be elsewhere.
    """
    if jax.process_count() == 1:
        return
    word, file = secrets.token_hex(8), folder / _LOCK_NAME
    with distributed.together("folder written"):
        if processes.is_first():
            with errors.user_errors(f"{flag}={folder}: cannot be written", "give another"):
                file.write_text(word)
                files.flush(file)
    word = distributed.decided("folder", word, lambda words: words[0])
    with distributed.together("folder read"):
        if file.read_text() != word:
            what = "is not the folder that process 0 has under this name"
            raise errors.UserError(
                f"{flag}={folder}: {what}; give one on a file system that all hosts share"
            )
