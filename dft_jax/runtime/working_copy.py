"""A run in a bucket: a folder of this machine, whose files are copied there as they change.

A bucket has no files that grow and no folders that are renamed. So all that a run writes and reads
lies in a folder that ends with the process, exactly as a run of this machine has it, and process 0
copies what changed: every half minute, before each save of a checkpoint, and at the end. Only the
checkpoints, which are large and written by all processes, go to the bucket at once.
"""

import atexit
import contextlib
import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path

from dft_jax.runtime import bucket, errors, lease

EVERY_S = 30.0
LEASE_NAME = ".lock"
_MARK = ".bucket"  # names the address of which a folder is the copy
_CHECKPOINTS = "checkpoints"
# Written, and never read again by a run: not fetched, but what is left there of an earlier one goes
# when it is written anew.
_ONLY_WRITTEN = ("export", "profile")


def of_run(address: str, *, is_new: bool = True) -> Path:
    """A folder of this machine that stands for the run at `address`, as far as it has come.

    Args:
      is_new: whether a run may begin there.

    Raises:
      UserError: the bucket cannot be read; or no run is there, and `is_new` is false.
    """
    of_bucket, _, name = address.removeprefix(bucket.SCHEME).rstrip("/").partition("/")
    if not of_bucket or not name:
        raise errors.UserError(f"{address}: names no run in a bucket; give gs://BUCKET/RUN")
    # Some libraries would leave these parts out, and others not.
    if {"", ".", ".."} & set(name.split("/")):
        what = "a part of the name is empty, . or .."
        raise errors.UserError(f"{address}: {what}; give gs://BUCKET/RUN without it")
    address = f"{bucket.SCHEME}{of_bucket}/{name}"
    with _usable(address):
        is_there = any(name.startswith(f"{_CHECKPOINTS}/") for name in bucket.names(address))
    if not is_there and not is_new:
        raise errors.UserError(f"{address}: no checkpoints of a run there; give the address of one")
    temporary = Path(tempfile.mkdtemp(prefix="dft_jax-"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    # Evaluations and exports name the run by its folder.
    folder = temporary / name.rpartition("/")[2]
    (folder / _CHECKPOINTS).mkdir(parents=True)
    (folder / _MARK).write_text(address, encoding="utf-8")
    fetch(folder)
    return folder


def address_of(folder: Path) -> str | None:
    """The address of which `folder` is a copy; None of a folder that is none."""
    mark = folder / _MARK
    if not mark.is_file():
        return None
    return mark.read_text(encoding="utf-8")


def fetch(folder: Path) -> dict[str, tuple[int, int]]:
    """Brings the files of a copy to what the bucket has; returns how each is then, by name.

    Raises:
      UserError: the bucket cannot be read.
    """
    address = address_of(folder)
    assert address is not None, "the folder is a copy"
    with _usable(address):
        names = [name for name in bucket.names(address) if _is_copied(name)]
        fetched = [name for name in names if name.partition("/")[0] not in _ONLY_WRITTEN]
        for name in fetched:
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(bucket.read(f"{address}/{name}"))
    for name in _files(folder).keys() - set(fetched):
        (folder / name).unlink()
    # Not even an empty folder stays: it would say that what the bucket has was written anew.
    for name in _ONLY_WRITTEN:
        shutil.rmtree(folder / name, ignore_errors=True)
    return dict.fromkeys(names, (-1, -1)) | _files(folder)


def _usable(address: str):
    return errors.user_errors(
        f"{address}: the bucket cannot be used",
        "correct the name, or give credentials that may read and write there"
        " (GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth application-default login)",
    )


def _is_copied(name: str) -> bool:
    """Whether a file is the run's own: neither a lock nor what is being written."""
    parts = name.split("/")
    return parts[0] != _CHECKPOINTS and not any(
        part.startswith(".") or part.endswith(".tmp") for part in parts
    )


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """When each file was written, in ns, and its size, by its name from `folder`; oldest first."""
    found = {}
    # Files and folders may be renamed meanwhile: os.walk passes over those that are gone.
    for place, _, file_names in os.walk(folder):
        for file in (Path(place) / each for each in file_names):
            name = file.relative_to(folder).as_posix()
            with contextlib.suppress(FileNotFoundError):
                if _is_copied(name):
                    found[name] = (file.stat().st_mtime_ns, file.stat().st_size)

    def place_of(item: tuple[str, tuple[int, int]]) -> tuple[bool, tuple[int, int]]:
        # As they were written, so that a kill leaves there what it may leave on a disk. Half an
        # export is none: no library opens it without its config.
        return item[0] == "export/config.json", item[1]

    return dict(sorted(found.items(), key=place_of))


class Mirror:
    """Copies to the bucket what changes in a copy, for as long as its lease is held.

    Raises:
      lease.Taken: another job is at work there.
      UserError: the bucket cannot be used.
    """

    def __init__(self, folder: Path):
        address = address_of(folder)
        assert address is not None, "the folder is a copy"
        self.folder, self.address = folder, address
        self.lease = lease.Lease(f"{address}/{LEASE_NAME}")
        # The job before may have written until a moment ago.
        try:
            self.there = fetch(folder)
        except BaseException:
            self.lease.release()
            raise
        self.lock = threading.Lock()
        self.ends = threading.Event()
        self.thread = threading.Thread(target=self._copy_on, name="mirror", daemon=True)
        self.thread.start()

    def _copy_on(self) -> None:
        while not self.ends.wait(EVERY_S):
            try:
                self.copy()
            except (errors.UserError, OSError) as error:
                # Before the next checkpoint it has to succeed.
                print(f"warning: {error}", file=sys.stderr, flush=True)

    def copy(self) -> None:
        """Copies what has changed since the last time, and deletes what is gone.

        Raises:
          UserError: it cannot be written, or another job has taken the folder.
        """
        try:
            self.lease.require()
        except lease.Taken as error:
            raise errors.UserError(
                f"{self.address}: {error} has taken over, as this job did not renew its lock for"
                f" {lease.STALE_S:.0f} s; only one of them may go on"
            ) from error
        what = f"{self.address}: cannot be written"
        with self.lock, errors.user_errors(what, "make it possible, then run it again"):
            files = _files(self.folder)
            for name, written in files.items():
                if self.there.get(name) == written:
                    continue
                # What has another name by now is copied under that one the next time.
                with contextlib.suppress(FileNotFoundError):
                    bucket.write(f"{self.address}/{name}", (self.folder / name).read_bytes())
                    self.there[name] = written
            for name in self.there.keys() - files.keys():
                top = name.partition("/")[0]
                # Of an earlier start, which this one did not come to write again.
                if top in _ONLY_WRITTEN and not (self.folder / top).exists():
                    continue
                bucket.delete(f"{self.address}/{name}")
                del self.there[name]

    def close(self) -> None:
        """Copies for the last time, and leaves the folder to others."""
        self.ends.set()
        self.thread.join()
        try:
            self.copy()
        finally:
            self.lease.release()
