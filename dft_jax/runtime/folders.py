"""Folders that one job at a time writes to."""

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

import jax

from dft_jax.runtime import distributed, errors, files, hub, processes, system

_LOCK_NAME = ".lock"


def local_folder(path: str, flag: str = "--workdir") -> Path:
    """`path` made absolute, with ~ expanded.

    Raises:
      UserError: a bucket, of which a folder named `gs:` would be made here.
    """
    if "://" in path:
        raise errors.UserError(
            f"{flag}={path}: give a local or mounted folder; a bucket can be mounted (gcsfuse,"
            " mount-s3)"
        )
    return Path(path).expanduser().absolute()


def local_file(path: str, flag: str) -> Path:
    """`path`, with ~ expanded.

    Raises:
      UserError: a bucket, of which a Path would be `gs:/…`.
    """
    hub.refuse_address(path, flag)
    return Path(path).expanduser()


class Busy(errors.UserError):
    """Another process is at work in the folder."""


@contextlib.contextmanager
def locked(folder: Path, flag: str = "--workdir") -> Iterator[None]:
    """Makes the folder, and keeps other jobs out of it while the context or the process lasts.

    Process 0 of a job holds the lock. Where the file system knows no locks, nothing is checked. All
    processes enter this, and all end in the same error.

    Raises:
      Busy: another job is at work in it.
      UserError: the folder cannot be made, or it is not one folder for all processes.
    """
    # All processes take part, so that where process 0 finds a lock, all end with its message.
    with distributed.together("lock"):
        with errors.user_errors(f"{flag}={folder}: cannot be used", "give another folder"):
            folder.mkdir(parents=True, exist_ok=True)
            # A file, because NFS locks no folders; open for as long as the lock is held.
            lock = open(folder / _LOCK_NAME, "a")  # noqa: SIM115
        try:
            if processes.is_first():
                system.lock(lock)
        except BlockingIOError as error:
            lock.close()
            raise Busy(
                f"{flag}={folder}: another process is at work there; wait for it, stop it, or give"
                " another folder"
            ) from error
        except OSError:
            # The file system has no locks.
            pass
    with lock:
        _require_shared(folder, flag)
        yield


def _require_shared(folder: Path, flag: str) -> None:
    """UserError where a process has another folder under this name.

    A folder on a local disk of each host would have a part of each checkpoint.
    """
    if jax.process_count() == 1:
        return
    # Process 0 writes a word that no other folder holds; the others have to find it.
    word = secrets.token_hex(8)
    file = folder / _LOCK_NAME
    with distributed.together("folder written"):
        if processes.is_first():
            with errors.user_errors(f"{flag}={folder}: cannot be written", "give another"):
                file.write_text(word)
                files.flush(file)
    word = distributed.decided("folder", word, lambda words: words[0])
    with distributed.together("folder read"):
        if file.read_text() != word:
            raise errors.UserError(
                f"{flag}={folder}: is not the folder that process 0 has under this name;"
                " give one on a file system that all hosts share"
            )
