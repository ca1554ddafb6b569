"""The manifest of a checkpoint: the size and SHA-256 of its every file, written last, so that it
says "this is whole".

Orbax has no checksum of array data: a flipped bit is restored as if nothing were. A folder without
a manifest is one whose saving never ended; a folder that differs from its manifest is damaged.
"""

import concurrent.futures
import hashlib
import json
import os
import time
from pathlib import Path

import jax
from tqdm import tqdm

from dft_jax.runtime.files import joined_digest, write_atomically

NAME = "manifest.json"
VERIFY = ("sha256", "sizes", "off")
_PART = ".sha256."  # the number of a process follows
_PART_TIMEOUT_S = 600.0


def write(folder: Path, step: int) -> None:
    """Every process hashes its share of the files; process 0 gathers the shares and writes the
    manifest.

    Runs in a thread beside training, so processes meet through the folder (all of them see it, as
    Orbax needs too) and not through the devices.

    Raises:
      OSError: a file cannot be read or written.
      TimeoutError: another process has not delivered its share.
    """
    mine = jax.process_index()
    parts = [folder / f"{_PART}{process}.json" for process in range(jax.process_count())]
    found = (file for file in folder.rglob("*") if file.is_file() and file != folder / NAME)
    files = sorted(file for file in found if not file.name.startswith(_PART))
    share = _hashes(folder, files[mine :: len(parts)], is_new=True)
    if mine > 0:
        return write_atomically(parts[mine], json.dumps(share))
    deadline = time.monotonic() + _PART_TIMEOUT_S
    for part in parts[1:]:
        while not part.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{part} was not written within {_PART_TIMEOUT_S:.0f} s")
            time.sleep(0.05)
        share |= json.loads(part.read_text())
        part.unlink()
    write_atomically(folder / NAME, _text(step, share))


def problems(folder: Path, step: int, verify: str = "sha256") -> list[str]:
    """How the files of a checkpoint differ from its manifest, one line each; `verify` is one of
    VERIFY.
    """
    if verify == "off":
        return []
    try:
        text = (folder / NAME).read_text(encoding="utf-8")
        content = json.loads(text)
        files = content["files"]
        sizes = {name: entry["bytes"] for name, entry in files.items()}
        if content["step"] != step or text != _text(step, files):
            return [f"{NAME} is not as it was written"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{NAME} cannot be read ({type(error).__name__})"]
    found = []
    for name, size in sizes.items():
        file = folder / name
        if not file.is_file():
            found.append(f"{name} is missing")
        elif file.stat().st_size != size:
            found.append(f"{name} has {file.stat().st_size} bytes, not {size}")
    if verify == "sha256" and not found:
        return changed(folder)
    return found


def changed(folder: Path, share: slice = slice(None)) -> list[str]:
    """The files, or a share of them, that have not the SHA-256 of the manifest, which was found to
    be whole.
    """
    try:
        files = json.loads((folder / NAME).read_text(encoding="utf-8"))["files"]
        mine = sorted(files)[share]
        hashes = _hashes(folder, [folder / name for name in mine], is_new=False)
    except OSError as error:
        return [f"{error.filename} cannot be read ({error.strerror})"]
    return [f"{name} has another content" for name in mine if hashes[name] != files[name]]


def digest(folder: Path) -> str:
    """One SHA-256 of a checkpoint's files, that of models/hf.py's `digest`, from the manifest: no
    data is read.

    Raises:
      OSError, ValueError: there is no manifest, or it names no file.
    """
    content = (folder / NAME).read_bytes()
    files = json.loads(content)["files"]
    hashes = {folder / name: entry["sha256"] for name, entry in files.items()}
    if not hashes:
        raise ValueError(f"{folder / NAME} names no file")
    return joined_digest(hashes | {folder / NAME: hashlib.sha256(content).hexdigest()})


def _text(step: int, files: dict) -> str:
    return json.dumps({"step": step, "files": files}, indent=1, sort_keys=True) + "\n"


def _hashes(folder: Path, files: list[Path], is_new: bool) -> dict[str, dict]:
    """{relative name: {bytes, sha256}}, several files at a time (hashing leaves the interpreter to
    others).

    New files are flushed to the disk as well: the manifest must not outlast a power cut that they
    do not.
    """

    def of(file: Path) -> tuple[str, dict]:
        with open(file, "rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
            if is_new:
                os.fsync(handle.fileno())
        return str(file.relative_to(folder)), {"bytes": file.stat().st_size, "sha256": digest}

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        hashed = threads.map(of, files)
        how = dict(
            desc="verify",
            total=len(files),
            unit="file",
            leave=False,
            delay=2,
            disable=is_new or None,
        )
        return dict(tqdm(hashed, **how))


def has_checkpoint(workdir: Path) -> bool:
    """Whether there is a run to go on with in `workdir`; what is left there otherwise is of an
    earlier one.
    """
    found = (workdir / "checkpoints").glob(f"*/{NAME}")
    return any(file.parent.name.isdigit() for file in found)
