"""The manifest of a checkpoint: size and SHA-256 of every file, written when all are complete.

Orbax has no checksum of array data: a flipped bit is restored without a word. A folder without a
manifest is one whose save was never completed; one that differs from its manifest is damaged.
"""

import concurrent.futures
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import jax

from dft_jax.checkpoints import storage
from dft_jax.checkpoints.storage import Folder
from dft_jax.runtime import progress
from dft_jax.runtime.files import joined_digest

NAME = storage.MANIFEST
VERIFY = ("sha256", "sizes", "off")
_PART = ".sha256."  # the number of a process follows
# Between the first process that has hashed its share and the last.
_PART_TIMEOUT_S = 600.0


def write(folder: Folder, step: int) -> None:
    """Every process hashes its share of the files; process 0 gathers them and writes the manifest.

    Runs in a thread beside training, so processes meet through the folder (all of them see it, as
    Orbax needs too) and not through the devices.

    Raises:
      OSError: a file cannot be read or written.
      TimeoutError: another process has not delivered its share.
    """
    process = jax.process_index()
    store = storage.of(folder)
    parts = [folder / f"{_PART}{number}.json" for number in range(jax.process_count())]
    files = []
    for file in store.files(folder):
        is_own = file == folder / NAME or file.name.startswith(_PART)
        if not is_own:
            files.append(file)
    share = _hashes(folder, files[process :: len(parts)], is_new=True)
    if process > 0:
        store.write(parts[process], json.dumps(share))
        return
    deadline = time.monotonic() + _PART_TIMEOUT_S
    for part in parts[1:]:
        # The other process writes its part atomically: where it exists it is complete.
        while not part.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{part} was not written within {_PART_TIMEOUT_S:.0f} s")
            time.sleep(0.05)
        share |= json.loads(part.read_text())
        part.unlink()
    store.write(folder / NAME, _text(step, share))


def problems(folder: Folder, step: int, verify: str = "sha256") -> list[str]:
    """How the files of a checkpoint differ from its manifest, one line each.

    `verify` is one of VERIFY.
    """
    if verify == "off":
        return []
    try:
        text = (folder / NAME).read_text(encoding="utf-8")
        content = json.loads(text)
        files = content["files"]
        sizes = {name: entry["bytes"] for name, entry in files.items()}
        # Written anew it has to be the same text: else a flipped bit in a hash or a name could
        # pass for damage of another file, or for none.
        if content["step"] != step or text != _text(step, files):
            return [f"{NAME} is not as it was written"]
    except ConnectionError:
        # Of a bucket that cannot be asked nothing is known.
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{NAME} cannot be read ({type(error).__name__})"]
    found = []
    for name, size in sizes.items():
        problem = storage.of(folder).size_problem(folder / name, size)
        if problem:
            found.append(f"{name} {problem}")
    if verify == "sha256" and not found:
        return changed(folder)
    return found


def changed(folder: Folder, share: slice = slice(None)) -> list[str]:
    """The files, or a share of them, whose SHA-256 is not that of the manifest.

    The manifest itself was found to be as it was written, by `problems`.
    """
    try:
        files = json.loads((folder / NAME).read_text(encoding="utf-8"))["files"]
        names = sorted(files)[share]
        hashes = _hashes(folder, [folder / name for name in names], is_new=False)
    except ConnectionError:
        raise
    except OSError as error:
        return [f"{error.filename} cannot be read ({error.strerror})"]
    return [f"{name} has another content" for name in names if hashes[name] != files[name]]


def digest(folder: Folder) -> str:
    """One SHA-256 of a checkpoint's files, from the manifest: no data is read.

    It is the one that `digest` of runtime/files.py makes of the files themselves.

    Raises:
      OSError, ValueError: there is no manifest, or it names no file.
    """
    content = (folder / NAME).read_bytes()
    files = json.loads(content)["files"]
    hashes = {folder / name: entry["sha256"] for name, entry in files.items()}
    # The hash of nothing would be the same for any two checkpoints that are gone.
    if not hashes:
        raise ValueError(f"{folder / NAME} names no file")
    return joined_digest(hashes | {folder / NAME: hashlib.sha256(content).hexdigest()})


def _text(step: int, files: dict[str, dict]) -> str:
    """The manifest as it is written, byte for byte: any other text is a damaged one."""
    return json.dumps({"step": step, "files": files}, indent=1, sort_keys=True) + "\n"


def _hashes(folder: Folder, files: list[Folder], is_new: bool) -> dict[str, dict]:
    """{relative name: {bytes, sha256}} of files.

    New files are flushed to the disk as well: the manifest must not outlast a power cut that they
    do not.
    """

    store = storage.of(folder)

    def entry_of(file: Folder) -> dict[str, Any]:
        return store.entry_of(file, is_new)

    names = [str(file.relative_to(folder)) for file in files]
    # Threads, because hashing releases the interpreter's lock. While training goes on beside it,
    # a second bar would tear the first.
    with concurrent.futures.ThreadPoolExecutor(4) as threads, progress.silent(is_new):
        entries = progress.bar(
            threads.map(entry_of, files),
            desc="verify",
            unit="file",
            total=len(files),
            leave=False,
            delay=2,
        )
        return dict(zip(names, entries, strict=True))


def has_checkpoint(workdir: Path) -> bool:
    """Whether there is a run to resume in `workdir`; what is left there otherwise is of an earlier
    one.
    """
    folder = storage.place_of(workdir / "checkpoints")
    return any(path.name.isdigit() for path in storage.of(folder).complete(folder))
