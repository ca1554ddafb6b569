"""Rows from a .jsonl, .json or .parquet file, and from the files of a folder in their order."""

import codecs
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dft_jax.data.sources import folders
from dft_jax.data.sources.rows import Row
from dft_jax.runtime import errors

# Of a table.
_BYTES_AT_ONCE = 64 * 2**20
_MOST_ROWS_AT_ONCE = 65536


def read_file(file: Path) -> Iterator[Row]:
    """The rows of one file, with its name in their origins.

    Raises:
      UserError: an ending other than ENDINGS, or (at the first row) a file that cannot be read.
    """
    if file.suffix not in _READERS:
        known = ", ".join(_READERS)
        raise errors.UserError(f"data file {file}: unknown ending {file.suffix!r}; known: {known}")
    return _rows_of(file, file.name)


def read_folder(folder: Path, subset: str, split: str) -> Iterator[Row]:
    """The rows of the files of a split, each file read by itself.

    So no type of a column in one file is forced on another, as libraries do that make one table.
    """
    for file in folders.data_files(folder, subset, split):
        yield from _rows_of(file, file.relative_to(folder).as_posix())


def _rows_of(file: Path, name: str) -> Iterator[Row]:
    """The rows of a file of a known ending; `name` is what their origins begin with."""
    with errors.user_errors(f"data file {file} cannot be read", "make it readable, or remove it"):
        yield from _READERS[file.suffix](file, name)


def _read_jsonl(file: Path, name: str) -> Iterator[Row]:
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield Row(f"{name}:{number}", _json_object(line))


def _json_object(line: bytes) -> dict[str, Any] | str:
    """The JSON object of a line, or what is wrong with it."""
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=errors.unique_keys)
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start}; re-save the file as UTF-8"
    except json.JSONDecodeError as error:
        # Of a second file that was joined to the first; the first line's own is removed before.
        if line.startswith(codecs.BOM_UTF8):
            return "begins with a byte order mark (BOM); remove these three bytes"
        cut = ""
        if not line.endswith(b"\n"):
            cut = ", and the line has no end: was the file cut off?"
        return f"not JSON at column {error.colno} ({error.msg}){cut}; fix or remove the line"
    except errors.DuplicateKey as error:
        return str(error)
    # A number of 5000 digits, brackets 10000 deep.
    except (ValueError, RecursionError) as error:
        return f"not JSON that Python reads ({error}); fix or remove the line"
    if not isinstance(value, dict):
        found = type(value).__name__
        return f"expected a JSON object, found {found}; write one object per line"
    return value


def _read_json(file: Path, name: str) -> Iterator[Row]:
    content = file.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        values = json.loads(content.decode("utf-8"), object_pairs_hook=errors.unique_keys)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise errors.UserError(f"{name}:{line}: not UTF-8; re-save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        remedy = "fix it"
        if error.msg == "Extra data":
            remedy = "if each line is an object, name the file .jsonl"
        what = f"not JSON ({error.msg} at column {error.colno})"
        raise errors.UserError(f"{name}:{error.lineno}: {what}; {remedy}") from error
    # A key twice, a number of 5000 digits, brackets 10000 deep.
    except (ValueError, RecursionError) as error:
        raise errors.UserError(f"{name}: not readable as JSON ({error}); fix the file") from error
    if not isinstance(values, list):
        found = type(values).__name__
        raise errors.UserError(
            f"{name}:1: expected a list of objects, found {found}; put the rows into [ ]"
        )
    for number, value in enumerate(values):
        if not isinstance(value, dict):
            value = "expected a JSON object; fix or remove it"
        yield Row(f"{name}[{number}]", value)


def _read_parquet(file: Path, name: str) -> Iterator[Row]:
    from pyarrow import parquet

    # pyarrow's exceptions are of many types.
    readable = errors.user_errors(
        f"{name}: not a readable parquet file", "write it again", (Exception,)
    )
    with readable, parquet.ParquetFile(file) as table:
        columns = table.schema_arrow.names
        for column in columns:
            if columns.count(column) > 1:
                raise errors.UserError(f"{name}: column {column!r} is there twice; keep one")
        number = 0
        for batch in table.iter_batches(_rows_at_once(table.metadata)):
            for value in batch.to_pylist():
                yield Row(f"{name}[{number}]", value)
                number += 1


def _rows_at_once(metadata: Any) -> int:
    """As many rows as come to some 64 MiB: of images in a table a thousand would be a gigabyte."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    n_bytes = sum(group.total_byte_size for group in groups)
    of_a_row = n_bytes // max(1, metadata.num_rows) + 1
    return max(1, min(_MOST_ROWS_AT_ONCE, _BYTES_AT_ONCE // of_a_row))


_READERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
ENDINGS = tuple(_READERS)
