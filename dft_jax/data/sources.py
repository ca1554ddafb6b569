"""Rows from a file, a folder or the hub; what a row means is in formats.py."""

import dataclasses
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dft_jax import errors
from dft_jax.data import world

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


class BadRow(ValueError):
    """A row that cannot be trained on; the text says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One row and where it stands: `train.jsonl:12`, or `numina[12]` for tables without lines."""

    where: str
    content: dict[str, Any] | str  # text says what is wrong with it

    @property
    def value(self) -> dict[str, Any]:
        if isinstance(self.content, str):
            raise BadRow(self.content)
        return self.content


def read_rows(path: str, config: ConfigDict, split: str) -> Iterator[Row]:
    """Rows of `path` in order; the `value` of a malformed line raises BadRow.

    `path` is a .jsonl, .json or .parquet file, a folder that `datasets` can load, a hub id, or a part of the
    laboratory's world, `world(…)`; `split` is that of a folder or hub dataset.

    Raises:
      UserError: nothing readable there.
    """
    part = world.parse(path)
    if part is not None:
        return (Row(f"world[{number}]", value) for number, value in enumerate(world.rows(**part)))
    file = Path(path)
    if file.is_file():
        if file.suffix not in _READERS:
            raise errors.UserError(f"data file {path}: unknown ending {file.suffix!r}; known: {', '.join(_READERS)}")
        return _READERS[file.suffix](file)
    return _read_datasets(path, config, split)


def is_path(path: str) -> bool:
    """Whether it can be no dataset of the hub."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).suffix in _READERS


def _read_jsonl(file: Path) -> Iterator[Row]:
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield Row(f"{file.name}:{number}", _object(line))


def _object(line: bytes) -> dict[str, Any] | str:
    """The JSON object of a line, or what is wrong with it."""
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=errors.unique_keys)
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start}; re-save the file as UTF-8"
    except json.JSONDecodeError as error:
        cut = "" if line.endswith(b"\n") else ", and the line has no end: was the file cut off?"
        return f"not JSON at column {error.colno} ({error.msg}){cut}; mend or remove the line"
    except errors.KeyTwice as error:
        return str(error)
    except (ValueError, RecursionError) as error:  # a number of 5000 digits, brackets 10000 deep
        return f"not JSON that Python reads ({error}); mend or remove the line"
    found = type(value).__name__
    return value if found == "dict" else f"expected a JSON object, found {found}; write one object per line"


def _read_json(file: Path) -> Iterator[Row]:
    content = file.read_bytes()
    try:
        rows = json.loads(content.decode("utf-8"), object_pairs_hook=errors.unique_keys)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise errors.UserError(f"{file.name}:{line}: not UTF-8; re-save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        remedy = "if each line is an object, name the file .jsonl" if error.msg == "Extra data" else "mend it"
        what = f"not JSON ({error.msg} at column {error.colno})"
        raise errors.UserError(f"{file.name}:{error.lineno}: {what}; {remedy}") from error
    except (ValueError, RecursionError) as error:  # a key twice, a number of 5000 digits, brackets 10000 deep
        raise errors.UserError(f"{file.name}: not readable as JSON ({error}); mend the file") from error
    if not isinstance(rows, list):
        found = type(rows).__name__
        raise errors.UserError(f"{file.name}:1: expected a list of objects, found {found}; put the rows into [ ]")
    for number, value in enumerate(rows):
        is_object = isinstance(value, dict)
        yield Row(f"{file.name}[{number}]", value if is_object else "expected a JSON object; mend or remove it")


def _read_table(file: Path) -> Iterator[Row]:
    from pyarrow import parquet

    damaged = errors.told(f"{file.name}: not a readable parquet file", "write it again", (Exception,))  # of many types
    with damaged, parquet.ParquetFile(file) as table:
        values = (value for batch in table.iter_batches() for value in batch.to_pylist())
        for number, value in enumerate(values):
            yield Row(f"{file.name}[{number}]", value)


def _read_datasets(path: str, config: ConfigDict, split: str) -> Iterator[Row]:
    import datasets

    if is_path(path) and not Path(path).is_dir():
        raise errors.UserError(f"data file {path!r} does not exist (looked from {Path.cwd()}); correct the path")
    datasets.logging.set_verbosity(logging.CRITICAL)  # it would log errors that are reported below
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(path, config.subset or None, split=split, revision=config.revision or None)
    except Exception as error:  # offline, unknown, gated, no such split: many types
        if Path(path).is_dir():
            remedy = "put .jsonl, .json or .parquet files there, or name one of them"
        else:
            remedy = f"give a local file, or fetch it where there is a network: hf download --repo-type dataset {path}"
        raise errors.UserError(
            f"dataset {path!r} (subset {config.subset!r}, split {split!r}) could not be loaded:"
            f" {errors.first_line(error)[:160]}; {remedy}"
        ) from error
    for number, value in enumerate(table):
        yield Row(f"{path}[{number}]", value)


_READERS = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_table}
