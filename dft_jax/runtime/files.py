"""Files: written whole or not at all, JSON read strictly, tables as CSV, digests, never code."""

import codecs
import concurrent.futures
import contextlib
import csv
import hashlib
import json
import os
import types
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dft_jax.runtime import errors, processes, progress

FETCH = "fetch the file again"


def check_file(file: Path) -> None:
    """Refuses what only stands for a file of a checkpoint.

    That is a link that leads elsewhere, a git-lfs pointer, or text with a byte order mark.

    An export copies the tokenizer's files, so a link in a cloned checkpoint would carry any file of
    this machine along. The hub's cache is made of links, to blobs of its own.
    """
    target = Path(os.path.realpath(file))
    is_blob = target.parent.name == "blobs" and target.parents[1].name.startswith("models--")
    if not is_blob and not target.is_relative_to(os.path.realpath(file.parent)):
        raise errors.UserError(
            f"{file} is a link out of its folder, to {target};"
            " copy that file here if it belongs here"
        )
    if not file.is_file():
        return
    start = begins(file)
    if start.startswith(b"version https://git-lfs"):
        raise errors.UserError(
            f"{file} is a git-lfs pointer, not the file itself; run `git lfs pull` in its folder"
        )
    # Other programs refuse it, and an export too.
    if start.startswith(codecs.BOM_UTF8):
        raise errors.UserError(
            f"{file} begins with a byte order mark (BOM); re-save it as UTF-8 without one"
        )


def named(path: str | Path) -> Path:
    """What a user names, with ~ expanded, whether or not there is something.

    Raises:
      UserError: nothing can be, or may be seen: a name that is too long, a folder that is
      closed, the ~ of a user that there is not. Path's own methods raise there.
    """
    kinds = (OSError, RuntimeError)
    with errors.user_errors(f"{path}: nothing there can be read", "correct the path", kinds):
        place = Path(path).expanduser()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            place.stat()
    return place


def begins(file: Path) -> bytes:
    """The first bytes of a file, which tell what it is."""
    with open(file, "rb") as handle:
        return handle.read(32)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def read_json(file: Path, remedy: str = FETCH) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      UserError: names file and line, and the remedy for a file that is incomplete.
    """
    if not file.is_file():
        raise errors.UserError(f"{file} is missing, or no plain file; fetch it, or put it back")
    check_file(file)
    try:
        text = file.read_text(encoding="utf-8")
        value = json.loads(
            text, object_pairs_hook=errors.unique_keys, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError as error:
        raise errors.UserError(f"{file}: not UTF-8 ({error.reason}); {remedy}") from error
    except json.JSONDecodeError as error:
        raise errors.UserError(
            f"{file}:{error.lineno}: not JSON ({error.msg}); {remedy}"
        ) from error
    # A key twice, NaN, 5000 digits; nested too deep.
    except (OSError, ValueError, RecursionError) as error:
        raise errors.UserError(
            f"{file}: cannot be read ({errors.first_line(error)}); {remedy}"
        ) from error
    if not isinstance(value, dict):
        raise errors.UserError(
            f"{file}: expected a JSON object, found {type(value).__name__}; {remedy}"
        )
    return value


def json_lines(file: Path, containing: str = "") -> Iterator[dict[str, Any]]:
    """The objects of a file with one on each line, as a run appends them; none of a file that is
    not there.

    A line that a kill has cut is left out. Those without the text `containing` are not parsed.
    """
    if not file.exists():
        return
    for line in file.read_text(encoding="utf-8").splitlines():
        if containing in line:
            with contextlib.suppress(json.JSONDecodeError):
                yield json.loads(line)


def refuse_code(raw: dict[str, Any], file: Path) -> None:
    """UserError where a file of the checkpoint asks for code of the checkpoint to be run."""
    if "auto_map" in raw:
        raise errors.UserError(
            f"{file}: 'auto_map' asks to run code from the checkpoint, which is never done here;"
            " remove the key if nothing needs that code"
        )


def write_atomically(file: Path, content: str | bytes) -> None:
    """Writes under a temporary name, flushes to disk, then renames.

    So the final name never holds half a file, whenever the process is killed.
    """
    if isinstance(content, str):
        content = content.encode()
    temporary = file.with_name(f"{file.name}.tmp")
    try:
        temporary.write_bytes(content)
        flush(temporary)
        os.replace(temporary, file)
    except OSError:
        # On a disk that is full the rest would stay.
        temporary.unlink(missing_ok=True)
        raise
    # The new name is an entry of the folder, which has to reach the disk as well.
    flush(file.parent)


def flush(path: Path) -> None:
    """Makes what is written in a file, or renamed in a folder, outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(file: Path, text: str) -> None:
    """As `write_atomically`, by process 0 alone."""
    if processes.is_first():
        write_atomically(file, text)


def write_json(file: Path, value: Any, *, sort_keys: bool = False) -> None:
    """Indented JSON with a newline at its end, by process 0 alone."""
    write_text(file, json.dumps(value, indent=2, sort_keys=sort_keys) + "\n")


def write_csv(rows: Sequence[dict[str, Any]], file: Path, columns: Iterable[str] = ()) -> None:
    """A header, and a line for each row, by process 0 alone; `columns` as in `csv_text`."""
    write_text(file, csv_text(rows, columns))


def csv_text(rows: Sequence[dict[str, Any]], columns: Iterable[str] = ()) -> str:
    """The text of a CSV file, for callers that start no JAX backend; lines end in a newline alone.

    Args:
      columns: in their order; by default all that rows have, in the order of their first use.
        Cells of columns that a row lacks are empty.

    Raises:
      ValueError: a row has a column that is not among `columns`.
    """
    names = list(columns)
    if not names:
        for row in rows:
            names += [name for name in row if name not in names]
    lines: list[str] = []
    # A carriage return in a cell needs quotes, or it ends the line for who reads the file. Python
    # before 3.13 writes them only where lines end in one too, as they do by default.
    sheet = csv.DictWriter(types.SimpleNamespace(write=lines.append), names)
    sheet.writeheader()
    sheet.writerows(rows)
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines)


def digest(files: Iterable[Path]) -> str:
    """One SHA-256 of the names and contents of files, in the order of their names."""
    return joined_digest(sha256_of(files))


def sha256_of(files: Iterable[Path]) -> dict[Path, str]:
    """The SHA-256 of each file's content, in the order of their names."""
    files = sorted(files)

    def hash_of(file: Path) -> str:
        with open(file, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()

    # Threads, because hashing releases the interpreter's lock.
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        hashes = progress.bar(
            threads.map(hash_of, files),
            desc="hash",
            unit="file",
            total=len(files),
            leave=False,
            delay=1,
        )
        return dict(zip(files, hashes, strict=True))


def joined_digest(hashes: dict[Path, str]) -> str:
    """What `digest` makes of files whose own SHA-256 are known.

    Raises:
      ValueError: no files. The hash of nothing would be the same for any two things that are gone.
    """
    if not hashes:
        raise ValueError("there are no files to hash")
    total = hashlib.sha256()
    # The name without its folder: the same files have the same digest wherever they lie.
    for file in sorted(hashes):
        total.update(f"{file.name}\0{hashes[file]}\n".encode())
    return total.hexdigest()
