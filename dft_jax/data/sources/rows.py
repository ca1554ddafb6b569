"""Rows from a file, a folder or the hub; what a row means is in formats.py."""

import codecs
import dataclasses
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dft_jax.data.sources import folders, world
from dft_jax.runtime import errors, hub

# {"role": "system" | "user" | "assistant", "content": text}; with ONLY_READ an answer is read, not
# trained.
Message = dict[str, Any]
ONLY_READ = "only_read"


def is_only_read(message: Message) -> bool:
    """Whether an answer is there for those after it, and not trained."""
    return message.get(ONLY_READ, False)


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


@dataclasses.dataclass(frozen=True)
class Source:
    """Rows in their order, and the commit of the hub that they are of; None of what is no snapshot
    of it.
    """

    rows: Iterator[Row]
    commit: str | None = None


def read_rows(path: str, config: ConfigDict, split: str) -> Iterator[Row]:
    """The rows of `open_rows` alone."""
    return open_rows(path, config, split).rows


def open_rows(path: str, config: ConfigDict, split: str) -> Source:
    """Rows of `path` in order; the `value` of a malformed line raises BadRow.

    `path` is a .jsonl, .json or .parquet file, a folder of them (see folders.py), a hub id (see
    hub.py), or a part of the laboratory's world, `world(…)`; `split` is that of a folder or hub
    dataset.

    Raises:
      UserError: nothing readable there.
    """
    part = world.parse(path)
    if part is not None:
        return Source(
            Row(f"world[{number}]", value) for number, value in enumerate(world.rows(**part))
        )
    place = Path(path)
    if place.is_file():
        if place.suffix not in _READERS:
            raise errors.UserError(
                f"data file {path}: unknown ending {place.suffix!r}; known: {', '.join(_READERS)}"
            )
        return Source(_READERS[place.suffix](place, place.name))
    if place.is_dir():
        return Source(_read_folder(place, config.subset, split), hub.commit_of(place))
    if is_path(path):
        raise errors.UserError(
            f"data file {path!r} does not exist (looked from {Path.cwd()}); correct the path"
        )
    return _open_hub(hub.id_of(path, "data file"), config, split)


def is_path(path: str) -> bool:
    """Whether it can be no dataset of the hub."""
    if path.startswith(hub.PREFIX):
        return False
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).suffix in _READERS


def is_hub_id(path: str) -> bool:
    """Whether rows of `path` would be fetched from the hub."""
    is_world = path.lstrip().startswith("world(")
    return not is_world and not Path(path).exists() and not is_path(path)


def _read_folder(folder: Path, subset: str, split: str) -> Iterator[Row]:
    """What the files give one by one: no type of one file is that of another's."""
    for file in folders.data_files(folder, subset, split):
        yield from _READERS[file.suffix](file, file.relative_to(folder).as_posix())


def _read_jsonl(file: Path, name: str) -> Iterator[Row]:
    """`name` is what the rows' places begin with."""
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield Row(f"{name}:{number}", _object(line))


def _object(line: bytes) -> dict[str, Any] | str:
    """The JSON object of a line, or what is wrong with it."""
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=errors.unique_keys)
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start}; re-save the file as UTF-8"
    except json.JSONDecodeError as error:
        if line.startswith(codecs.BOM_UTF8):  # of a second file, joined to the first
            return "begins with a byte order mark (BOM); remove these three bytes"
        cut = "" if line.endswith(b"\n") else ", and the line has no end: was the file cut off?"
        return f"not JSON at column {error.colno} ({error.msg}){cut}; mend or remove the line"
    except errors.DuplicateKey as error:
        return str(error)
    except (ValueError, RecursionError) as error:  # a number of 5000 digits, brackets 10000 deep
        return f"not JSON that Python reads ({error}); mend or remove the line"
    found = type(value).__name__
    return (
        value
        if found == "dict"
        else f"expected a JSON object, found {found}; write one object per line"
    )


def _read_json(file: Path, name: str) -> Iterator[Row]:
    content = file.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        rows = json.loads(content.decode("utf-8"), object_pairs_hook=errors.unique_keys)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise errors.UserError(f"{name}:{line}: not UTF-8; re-save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        remedy = (
            "if each line is an object, name the file .jsonl"
            if error.msg == "Extra data"
            else "mend it"
        )
        what = f"not JSON ({error.msg} at column {error.colno})"
        raise errors.UserError(f"{name}:{error.lineno}: {what}; {remedy}") from error
    # a key twice, a number of 5000 digits, brackets 10000 deep
    except (ValueError, RecursionError) as error:
        raise errors.UserError(f"{name}: not readable as JSON ({error}); mend the file") from error
    if not isinstance(rows, list):
        found = type(rows).__name__
        raise errors.UserError(
            f"{name}:1: expected a list of objects, found {found}; put the rows into [ ]"
        )
    for number, value in enumerate(rows):
        is_object = isinstance(value, dict)
        yield Row(
            f"{name}[{number}]", value if is_object else "expected a JSON object; mend or remove it"
        )


def _read_table(file: Path, name: str) -> Iterator[Row]:
    from pyarrow import parquet

    # of many types
    damaged = errors.user_errors(
        f"{name}: not a readable parquet file", "write it again", (Exception,)
    )
    with damaged, parquet.ParquetFile(file) as table:
        columns = table.schema_arrow.names
        twice = [column for column in columns if columns.count(column) > 1]
        if twice:
            raise errors.UserError(f"{name}: column {twice[0]!r} is there twice; keep one")
        values = (value for batch in table.iter_batches() for value in batch.to_pylist())
        for number, value in enumerate(values):
            yield Row(f"{name}[{number}]", value)


def _open_hub(path: str, config: ConfigDict, split: str) -> Source:
    import datasets

    datasets.logging.set_verbosity(logging.CRITICAL)  # it would log errors that are reported below
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(
            path, config.subset or None, split=split, revision=config.revision or None
        )
    except Exception as error:  # offline, unknown, gated, no such split: many types
        why = errors.first_line(error)[:160]
        raise errors.UserError(
            f"dataset {path!r} (subset {config.subset!r}, split {split!r}) could not be loaded: {why};"
            f" {_hub_remedy(path, why)}"
        ) from error
    rows = (Row(f"{path}[{number}]", value) for number, value in enumerate(table))
    return Source(rows, _commit_of(table))


def _commit_of(table: Any) -> str | None:
    """The commit that a dataset was loaded at: `datasets` names the folder of its arrow files by
    it.
    """
    folders = {Path(file["filename"]).parent.name for file in table.cache_files}
    commits = {name for name in folders if re.fullmatch("[0-9a-f]{40}", name)}
    return commits.pop() if len(commits) == 1 else None


def _hub_remedy(path: str, why: str) -> str:
    """`why` is what `datasets` says."""
    if "split" in why:
        return "set data.split or data.heldout_split"
    if "Config" in why:
        return "set data.subset"
    fetch = f"hf download --repo-type dataset {path} --local-dir FOLDER"
    login = " (after `hf auth login`)" if "gated" in why else ""
    return f"give a local file, or fetch it where there is a network{login}: {fetch}, and give that folder"


_READERS = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_table}
