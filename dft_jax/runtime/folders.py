"""Folders that one job at a time writes to."""

import contextlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from dft_jax.runtime import (
    bucket,
    distributed,
    errors,
    files,
    hub,
    lease,
    processes,
    system,
    working_copy,
)

_LOCK_NAME = ".lock"
_WORD_NAME = ".word"  # of a file by which processes find out whether they share a folder
# Orbax looks for what it has written with the whole path as a pattern, and TensorStore reads an
# address as a URL, whose query and fragment are no part of a name.
_OF_PATTERNS = "*?[\\"
_OF_ADDRESSES = "#"


def local_folder(path: str, flag: str = "--workdir") -> Path:
    """`path` made absolute, with ~ expanded.

    Raises:
      UserError: a bucket, of which a folder named `gs:` would be made here.
    """
    if "://" in path:
        also = ""
        if flag == "--workdir":
            also = "; unmounted, a run can be in gs://BUCKET/RUN: Orbax knows no other buckets"
        raise errors.UserError(
            f"{flag}={path}: give a local or mounted folder; a bucket can be mounted (gcsfuse,"
            f" mount-s3){also}"
        )
    return files.named(path).absolute()


def run_folder(path: str, flag: str = "--workdir", *, is_new: bool = True) -> Path:
    """The folder of a run: `path` as `local_folder` has it, or a copy of what is in a bucket.

    All processes call this. A run may begin in it if `is_new`.

    Raises:
      UserError: a place that is neither, or a bucket that cannot be read; or checkpoints that are
      saved there could not be read.
    """
    if not bucket.is_address(path):
        folder = local_folder(path, flag)
        if is_new:
            require_plain(folder, flag)
        return folder
    _refuse_characters(path, flag, _OF_PATTERNS + _OF_ADDRESSES)
    with distributed.together("bucket"):
        return working_copy.of_run(path, is_new=is_new)


def require_plain(folder: Path, flag: str) -> None:
    """UserError for a folder in which checkpoints would be saved that cannot be read.

    Of `runs/lr=[1e-5]` Orbax finds nothing that it has written, and a checkpoint stays without its
    arrays, with a warning of its own.
    """
    _refuse_characters(str(folder), flag, _OF_PATTERNS)


def _refuse_characters(path: str, flag: str, refused: str) -> None:
    found = [character for character in refused if character in path]
    if found:
        what = f"{flag}={path}: checkpoints in a place with {found[0]} in its path cannot be read"
        raise errors.UserError(f"{what}; give one without any of {' '.join(refused)}")


def shown(folder: Path) -> str:
    """What the user calls a run's folder: its address, of the copy of one in a bucket."""
    return working_copy.address_of(folder) or str(folder)


def local_file(path: str, flag: str) -> Path:
    """`path`, with ~ expanded.

    Raises:
      UserError: a bucket, of which a Path would be `gs:/…`.
    """
    hub.refuse_address(path, flag)
    return files.named(path)


class Busy(errors.UserError):
    """Another process is at work in the folder."""


def _nothing() -> None:
    pass


@contextlib.contextmanager
def locked(folder: Path, flag: str = "--workdir") -> Iterator[Callable[[], None]]:
    """Makes the folder, and keeps other jobs out of it while the context or the process lasts.

    Process 0 of a job holds the lock. Where the file system knows no locks, nothing is checked. All
    processes enter this, and all end in the same error.

    Yields:
      A function that makes what was written there outlast this machine: of a run in a bucket it
      copies the files that changed (see working_copy.py), and of any other there is nothing to do.

    Raises:
      Busy: another job is at work in it.
      UserError: the folder cannot be made, or it is not one folder for all processes.
    """
    address = working_copy.address_of(folder)
    if address is not None:
        with _mirrored(folder, address, flag) as copy:
            yield copy
        return
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
        yield _nothing


@contextlib.contextmanager
def _mirrored(folder: Path, address: str, flag: str) -> Iterator[Callable[[], None]]:
    """`locked`, of the copy of a run in a bucket."""
    distributed.agree("bucket", {flag: address})
    with contextlib.ExitStack() as stack:
        publish = _nothing
        with distributed.together("lock"):
            if processes.is_first():
                publish = stack.enter_context(_leased(folder, address, flag)).copy
        with distributed.together("fetch"):
            if not processes.is_first():
                # What the job before had left when process 0 got the lock.
                working_copy.fetch(folder)
        yield publish


def _leased(
    folder: Path, address: str, flag: str
) -> contextlib.AbstractContextManager[working_copy.Mirror]:
    """The mirror of a copy; Busy where another job works at its address."""
    try:
        return contextlib.closing(working_copy.Mirror(folder))
    except lease.Taken as error:
        raise Busy(
            f"{flag}={address}: {error} is at work there; wait for it, stop it, or give another"
            " folder"
        ) from error


def _require_shared(folder: Path, flag: str) -> None:
    """UserError where a process has another folder under this name.

    A folder on a local disk of each host would have a part of each checkpoint.
    """
    if jax.process_count() == 1:
        return
    holders = shared_with(folder, f"{flag}={folder}: cannot be written", "give another")
    with distributed.together("folder read"):
        if jax.process_index() not in holders:
            raise errors.UserError(
                f"{flag}={folder}: is not the folder that process 0 has under this name;"
                " give one on a file system that all hosts share"
            )


def shared_with(folder: Path, problem: str, remedy: str) -> list[int]:
    """The numbers of the processes that have process 0's `folder` under this name, itself among
    them: those on its machine, or all where the file system is shared. All processes call this.

    Raises:
      UserError: process 0 cannot write there: `problem (cause); remedy`, on all of them.
    """
    # A word that no other folder of the name holds.
    word = distributed.decided("folder word", secrets.token_hex(8), lambda words: words[0])
    file = folder / _WORD_NAME
    with distributed.together("folder written"), errors.user_errors(problem, remedy):
        if processes.is_first():
            file.write_text(word)
            files.flush(file)
    is_there = False
    with contextlib.suppress(OSError):
        is_there = file.read_text() == word
    holders = distributed.decided("folder holders", is_there, _indices_of_true)
    if processes.is_first():
        file.unlink()
    return holders


def _indices_of_true(values: list[bool]) -> list[int]:
    return [index for index, value in enumerate(values) if value]
