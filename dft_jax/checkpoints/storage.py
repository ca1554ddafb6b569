"""Folders of checkpoints on a disk and in a bucket: what these do each in their own way.

    a disk     renames a folder in one piece; what is written has to be flushed
    a bucket   (gs://) knows objects only, each there as a whole or not at all; nothing is renamed

A checkpoint counts by its manifest on both. So in a bucket the manifest goes first when one is
removed, and comes last when one is copied. Other operations of paths are the same: `pathlib` has
them for a disk, and `etils.epath` for a bucket.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from etils import epath

from dft_jax.runtime import bucket, files, working_copy

MANIFEST = "manifest.json"
Folder = Path | epath.Path


def place_of(folder: Path) -> Folder:
    """Where the checkpoints of `folder` lie: there, or in the bucket that it is a copy of."""
    address = working_copy.address_of(folder.parent)
    if address is None:
        return folder
    return bucket.path_of(f"{address}/{folder.name}")


@runtime_checkable
class Storage(Protocol):
    """What is asked of both."""

    def complete(self, folder: Folder) -> Sequence[Folder]:
        """The folders in `folder` that have a manifest."""

    def matching(self, folder: Folder, temporary: Sequence[str]) -> Sequence[Folder]:
        """What is there under a temporary name that matches one of these patterns."""

    def files(self, folder: Folder) -> Sequence[Folder]:
        """All files in it and below, in order."""

    def write(self, file: Folder, text: str) -> None:
        """Writes a file that is there as a whole or not at all."""

    def entry_of(self, file: Folder, is_new: bool) -> dict[str, Any]:
        """{bytes, sha256} of a file; a new one outlasts a power cut from then on."""

    def size_problem(self, file: Folder, size: int) -> str:
        """How a file is not there with that size; empty where it is."""

    def move(self, folder: Folder, target: Folder) -> None:
        """Gives a folder another name."""

    def remove(self, folder: Folder, *, ignore_errors: bool = False) -> None:
        """Removes a folder that nobody reads."""

    def withdraw(self, folder: Folder, name: str) -> None:
        """Removes a checkpoint that somebody may be reading; on the way out it has this name.

        Raises:
          OSError: it stays as it is.
        """

    def flush(self, folder: Folder) -> None:
        """Makes what was renamed in it outlast a power cut."""

    def size(self, folder: Folder) -> int | None:
        """Bytes of its files; None where nothing says so."""

    def free(self, folder: Folder) -> int | None:
        """Bytes that can still be written; None without a limit."""


def of(folder: Folder) -> Storage:
    if isinstance(folder, Path):
        return _Disk()
    return _Bucket()


class _Disk:
    def complete(self, folder: Folder) -> list[Folder]:
        return [file.parent for file in folder.glob(f"*/{MANIFEST}")]

    def matching(self, folder: Folder, temporary: Sequence[str]) -> list[Folder]:
        found: list[Folder] = []
        for pattern in temporary:
            found += folder.glob(pattern)
        return found

    def files(self, folder: Folder) -> list[Folder]:
        return [file for file in sorted(folder.rglob("*")) if file.is_file()]

    def write(self, file: Folder, text: str) -> None:
        files.write_atomically(Path(file), text)

    def entry_of(self, file: Folder, is_new: bool) -> dict[str, Any]:
        with open(file, "rb") as handle:
            sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
            if is_new:
                os.fsync(handle.fileno())
        return {"bytes": os.stat(file).st_size, "sha256": sha256}

    def size_problem(self, file: Folder, size: int) -> str:
        if not file.is_file():
            return "is missing"
        found = os.stat(file).st_size
        if found != size:
            return f"has {found} bytes, not {size}"
        return ""

    def move(self, folder: Folder, target: Folder) -> None:
        folder.rename(target)

    def remove(self, folder: Folder, *, ignore_errors: bool = False) -> None:
        shutil.rmtree(folder, ignore_errors=ignore_errors)

    def withdraw(self, folder: Folder, name: str) -> None:
        # Renamed in one piece, before its files are removed one by one under a reader.
        removed = folder.with_name(name)
        try:
            folder.rename(removed)
        finally:
            shutil.rmtree(removed, ignore_errors=True)

    def flush(self, folder: Folder) -> None:
        files.flush(Path(folder))

    def size(self, folder: Folder) -> int:
        return sum(os.stat(file).st_size for file in self.files(folder))

    def free(self, folder: Folder) -> int:
        return shutil.disk_usage(folder).free


class _Bucket:
    def complete(self, folder: Folder) -> list[Folder]:
        return [path for path in folder.iterdir() if (path / MANIFEST).exists()]

    def matching(self, folder: Folder, temporary: Sequence[str]) -> list[Folder]:
        # Nothing is renamed, so nothing has a temporary name.
        return []

    def files(self, folder: Folder) -> list[Folder]:
        return [folder / name for name in bucket.names(str(folder))]

    def write(self, file: Folder, text: str) -> None:
        bucket.write(str(file), text.encode())

    def entry_of(self, file: Folder, is_new: bool) -> dict[str, Any]:
        # What was written is read back: a request whose answer came is not always one that was
        # done, and the other files of the checkpoint are worth nothing without it.
        size, sha256 = bucket.size_and_sha256(str(file))
        return {"bytes": size, "sha256": sha256}

    def size_problem(self, file: Folder, size: int) -> str:
        try:
            is_right = bucket.has_size(str(file), size)
        except FileNotFoundError:
            return "is missing"
        return "" if is_right else f"has not {size} bytes"

    def move(self, folder: Folder, target: Folder) -> None:
        for name in sorted(bucket.names(str(folder)), key=lambda name: name == MANIFEST):
            bucket.write(f"{target}/{name}", bucket.read(f"{folder}/{name}"))
        self.remove(folder)

    def remove(self, folder: Folder, *, ignore_errors: bool = False) -> None:
        try:
            names = bucket.names(str(folder), with_folders=True)
            for name in sorted(names, key=lambda name: name != MANIFEST):
                bucket.delete(f"{folder}/{name}")
        except OSError:
            if not ignore_errors:
                raise

    def withdraw(self, folder: Folder, name: str) -> None:
        self.remove(folder)

    def flush(self, folder: Folder) -> None:
        """A request that is answered is on disks."""

    def size(self, folder: Folder) -> int | None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            entries = json.loads((folder / MANIFEST).read_text())["files"].values()
            return sum(entry["bytes"] for entry in entries)
        return None

    def free(self, folder: Folder) -> None:
        return None
