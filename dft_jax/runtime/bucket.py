"""Objects of a bucket, gs://BUCKET/NAME, and as files for libraries that ask fsspec for them.

Orbax writes arrays by TensorStore's client, and its small files by etils.epath, which asks fsspec
for a file system. Here all requests are made by that one client: so credentials, address and
retries (503, dropped connections) are those of TensorStore, nothing is cached, and no further
package is needed.

Objects are written whole or not at all, and what is read is what was written last. Listings are the
same in Cloud Storage, and Orbax relies on it: with one that lags behind it leaves the parts of a
checkpoint unjoined, without an error. So a listing is asked for again until it shows what this
process has written and deleted there.
"""

import contextlib
import functools
import hashlib
import io
import os
import time
from collections.abc import Iterator
from typing import Any

import fsspec
import tensorstore as ts
from etils import epath

from dft_jax.runtime import errors

SCHEME = "gs://"
_CHUNK_BYTES = 64 * 2**20  # of an object that is hashed
# Of requests in vain: they fail after a minute and a half. With TensorStore's own numbers, which
# the arrays of a checkpoint have, it is a quarter of an hour.
_RETRIES = {"max_retries": 8, "initial_delay": "0.5s", "max_delay": "32s"}
_LAG_S = 60.0  # the longest that a listing is waited for
_NO_BYTES = slice(0, 0)  # asks for what the store knows of an object, not for its content


def is_address(path: str) -> bool:
    """Whether `path` names a place in a bucket."""
    return path.startswith(SCHEME)


# What this process has written (True) or deleted, by address.
_changes: dict[str, bool] = {}


@functools.cache
def _store(bucket: str) -> ts.KvStore:
    context = {"gcs_request_retries": _RETRIES}
    return ts.KvStore.open({"driver": "gcs", "bucket": bucket, "context": context}).result()


def _split(address: str) -> tuple[ts.KvStore, str]:
    bucket, _, name = address.removeprefix(SCHEME).partition("/")
    return _store(bucket), name


class Unanswered(ConnectionError):
    """A request in vain: of the object nothing is known."""


@contextlib.contextmanager
def _asked(address: str) -> Iterator[None]:
    """Makes OSErrors, as a disk has them, of what TensorStore says of a request in vain."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise Unanswered(f"{address}: {errors.first_line(error)}") from error


def read(address: str) -> bytes:
    """An object.

    Raises:
      FileNotFoundError: there is none.
      Unanswered: it cannot be read.
    """
    content, _ = read_with_generation(address)
    if content is None:
        raise FileNotFoundError(2, "no such object", address)
    return content


def read_with_generation(address: str) -> tuple[bytes | None, bytes]:
    """An object, None where there is none, and what `write_if` takes for it to be as it was."""
    with _asked(address):
        store, name = _split(address)
        held = store.read(name).result()
    if held.state == "missing":
        return None, held.stamp.generation
    return held.value, held.stamp.generation


def exists(address: str) -> bool:
    """Whether there is an object of this very name."""
    with _asked(address):
        store, name = _split(address)
        return store.read(name, byte_range=_NO_BYTES).result().state != "missing"


def write(address: str, content: bytes) -> None:
    with _asked(address):
        store, name = _split(address)
        store.write(name, content).result()
    _changes[address] = True


def write_if(address: str, content: bytes | None, generation: bytes) -> bool:
    """Writes or (None) deletes where nothing was written since the object had `generation`.

    Returns:
      Whether it was done. A request whose answer was lost may say no, although it was.
    """
    with _asked(address):
        store, name = _split(address)
        is_done = store.write(name, content, if_equal=generation).result().generation != b""
    if is_done:
        _changes[address] = content is not None
    return is_done


def delete(address: str) -> None:
    """Deletes an object; one that is not there is no error."""
    with _asked(address):
        store, name = _split(address)
        store.write(name, None).result()
    _changes[address] = False


def names(address: str, *, with_folders: bool = False) -> list[str]:
    """The names, from there, of all objects in a folder and below it, in order.

    A folder that gcsfuse or a browser made is an object too, empty, of its name with a slash. Such
    are among the names, and the folder's own is the empty one, only `with_folders`.

    Raises:
      Unanswered: it cannot be asked for, or still lacks after a minute what was written.
    """
    folder = address.rstrip("/") + "/"
    deadline = time.monotonic() + _LAG_S
    while True:
        found = _listed(folder)
        wrong = [each for each in _contradicted(folder, found) if _is_as_remembered(each)]
        if not wrong:
            return sorted(each for each in found if with_folders or _is_file(each))
        if time.monotonic() > deadline:
            raise Unanswered(f"{folder}: its listing is over {_LAG_S:.0f} s behind ({wrong[0]})")
        time.sleep(0.2)


def _is_file(name: str) -> bool:
    return name != "" and not name.endswith("/")


def _contradicted(folder: str, found: set[str]) -> list[str]:
    """What this process has changed below a folder, and a listing does not show so."""
    wrong = []
    # Another thread may write meanwhile.
    for address, is_there in list(_changes.items()):
        if address.startswith(folder) and (address.removeprefix(folder) in found) != is_there:
            wrong.append(address)
    return wrong


def _is_as_remembered(address: str) -> bool:
    """Whether an object is as this process left it; what another has changed is forgotten."""
    if exists(address) == _changes.get(address):
        return True
    _changes.pop(address, None)
    return False


def _listed(folder: str) -> set[str]:
    """What a listing shows below `folder`, which ends in a slash."""
    with _asked(folder):
        store, prefix = _split(folder)
        below = None
        if prefix:
            # "0" is the character after "/".
            below = ts.KvStore.KeyRange(prefix, f"{prefix[:-1]}0")
        found = store.list(below, strip_prefix_length=len(prefix.encode())).result()
    return {each.decode() for each in found}


def has_size(address: str, n_bytes: int) -> bool:
    """Whether an object is so long; it is asked for its last byte, and what follows.

    Raises:
      FileNotFoundError: there is none.
    """
    if n_bytes == 0:
        return _piece(address, 0, 1) == b""
    return len(_piece(address, n_bytes - 1, None)) == 1


def size_and_sha256(address: str) -> tuple[int, str]:
    """Of an object, read in pieces of 64 MiB.

    Raises:
      FileNotFoundError: there is none.
    """
    total, size = hashlib.sha256(), 0
    while True:
        # A range that goes beyond the end is refused, and the rest is shorter than a piece.
        piece = _piece(address, size, size + _CHUNK_BYTES) or _piece(address, size, None)
        total.update(piece)
        size += len(piece)
        if len(piece) < _CHUNK_BYTES:
            return size, total.hexdigest()


def _piece(address: str, start: int, stop: int | None) -> bytes:
    """The bytes of this range of an object; none of a range that goes beyond its end."""
    store, name = _split(address)
    try:
        held = store.read(name, byte_range=slice(start, stop)).result()
    except (ValueError, RuntimeError) as error:
        if "OUT_OF_RANGE" in str(error):
            return b""
        raise Unanswered(f"{address}: {errors.first_line(error)}") from error
    if held.state == "missing":
        raise FileNotFoundError(2, "no such object", address)
    return held.value


class Files(fsspec.AbstractFileSystem):
    """Objects as files for etils.epath: what Orbax asks for, and no more."""

    protocol = ("gs", "gcs")

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # A bucket has no folders. One that was made here, and is empty yet, is there all the same.
        self.made: set[str] = set()

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return os.fspath(path).removeprefix(SCHEME).rstrip("/")

    def exists(self, path: str, **kwargs: Any) -> bool:
        # fsspec's own takes a request in vain for an object that is not there.
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        name = self._strip_protocol(path)
        if "/" in name and exists(SCHEME + name):
            return _entry(name, "file")
        # A listing may lag behind: one object that is really there makes a folder.
        below = names(SCHEME + name)
        if name in self.made or any(exists(f"{SCHEME}{name}/{each}") for each in below):
            return _entry(name, "directory")
        raise FileNotFoundError(2, "no such object", path)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list:
        name = self._strip_protocol(path)
        kinds: dict[str, str] = {}
        for each in names(SCHEME + name):
            child, slash, _ = each.partition("/")
            kinds[f"{name}/{child}"] = "directory" if slash else "file"
        if not kinds and "/" in name and exists(SCHEME + name):
            kinds[name] = "file"
        if detail:
            return [_entry(each, kind) for each, kind in kinds.items()]
        return list(kinds)

    def isdir(self, path: str) -> bool:
        return self.exists(path) and self.info(path)["type"] == "directory"

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        self.made.add(self._strip_protocol(path))

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self.mkdir(path)

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        name = self._strip_protocol(path)
        if not recursive:
            delete(SCHEME + name)
            return
        for each in names(SCHEME + name, with_folders=True):
            delete(f"{SCHEME}{name}/{each}")
        self.made.discard(name)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> io.BytesIO:
        address = SCHEME + self._strip_protocol(path)
        if mode == "rb":
            return io.BytesIO(read(address))
        if mode == "wb":
            return _Upload(address)
        raise ValueError(f"{address}: an object is read or written whole, not opened as {mode!r}")


def _entry(name: str, kind: str) -> dict[str, Any]:
    # Nobody who comes this way asks for a size, which would take another request.
    return {"name": name, "type": kind, "size": None}


class _Upload(io.BytesIO):
    """What is written to it becomes the object when it is closed."""

    def __init__(self, address: str):
        super().__init__()
        self.address = address

    def close(self) -> None:
        if not self.closed:
            write(self.address, self.getvalue())
        super().close()


def path_of(address: str) -> epath.Path:
    """A path with which Orbax reads and writes here."""
    # TensorFlow, where it is installed, would make the requests of such paths.
    os.environ["EPATH_USE_TF"] = "false"
    fsspec.register_implementation("gcs", Files, clobber=True)
    return epath.Path(address)
