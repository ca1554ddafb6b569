"""Rows from a file, a folder or the hub, and what a row means as a conversation.

A new dataset is one function under `@row_format`: it turns a row into messages, or raises BadRow.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dft_jax import errors

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
ROLES = ("system", "user", "assistant")


class BadRow(ValueError):
    """A row that cannot be trained on; the text says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One row and where it stands: `train.jsonl:12`, or `numina[12]` for tables without lines."""

    where: str
    value: dict[str, Any]


ROW_FORMATS: dict[str, Callable[[dict, ConfigDict], list[Message]]] = {}


def row_format(function):
    ROW_FORMATS[function.__name__] = function
    return function


@row_format
def fields(row: dict, config: ConfigDict) -> list[Message]:
    """A prompt and a completion under the names in `data.prompt_field` and `data.completion_field`."""
    return _pair(row, config.prompt_field, config.completion_field)


@row_format
def gsm8k(row: dict, config: ConfigDict) -> list[Message]:
    """openai/gsm8k: `question`, and `answer` with its steps and `#### 42`."""
    return _pair(row, "question", "answer")


@row_format
def numina(row: dict, config: ConfigDict) -> list[Message]:
    """AI-MO/NuminaMath-CoT: `problem`, `solution`."""
    return _pair(row, "problem", "solution")


@row_format
def math(row: dict, config: ConfigDict) -> list[Message]:
    """MATH: `problem`, `solution` with the answer in \\boxed{}."""
    return _pair(row, "problem", "solution")


@row_format
def messages(row: dict, config: ConfigDict) -> list[Message]:
    """A conversation under `data.messages_field`: a list of {role, content}; only assistant turns are trained."""
    conversation = row.get(config.messages_field)
    if not isinstance(conversation, list) or not conversation:
        raise BadRow(f"field {config.messages_field!r} should be a list of messages {_has(row)}")
    result = []
    for number, message in enumerate(conversation):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise BadRow(f"message {number} should have a role out of {', '.join(ROLES)}")
        empty_is_fine = message["role"] != "assistant"
        result.append({"role": message["role"], "content": _text(message, "content", empty_is_fine=empty_is_fine)})
    if result[-1]["role"] != "assistant":
        raise BadRow("the last message should be the assistant's: there is nothing to train on after it")
    return result


def _pair(row: dict, prompt_field: str, completion_field: str) -> list[Message]:
    return [
        {"role": "user", "content": _text(row, prompt_field)},
        {"role": "assistant", "content": _text(row, completion_field)},
    ]


def _text(row: dict, field: str, empty_is_fine: bool = False) -> str:
    if field not in row or row[field] is None:
        raise BadRow(f"field {field!r} is missing {_has(row)}; set data.rows or the field names")
    if not isinstance(row[field], str):
        raise BadRow(f"field {field!r} should be text, not {type(row[field]).__name__}")
    if not row[field].strip() and not empty_is_fine:
        raise BadRow(f"field {field!r} is empty; remove the row or set data.bad_rows='drop'")
    return row[field]


def _has(row: dict) -> str:
    return f"(the row has {', '.join(map(repr, sorted(row))) or 'no fields'})"


def read_rows(path: str, config: ConfigDict) -> Iterator[Row | tuple[str, str]]:
    """Rows of `path` in order; a malformed line gives (where, problem) instead of a Row.

    `path` is a .jsonl, .json or .parquet file, a folder that `datasets` can load, or a hub id.

    Raises:
      UserError: nothing readable there.
    """
    file = Path(path)
    if file.is_file():
        readers = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_table}
        if file.suffix not in readers:
            raise errors.UserError(f"data file {path}: unknown ending {file.suffix!r}; known: {', '.join(readers)}")
        return readers[file.suffix](file)
    return _read_datasets(path, config)


def _unique_keys(pairs):
    keys = [key for key, _ in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise BadRow(f"key {twice[0]!r} appears twice in the object; keep one")
    return dict(pairs)


def _read_jsonl(file: Path) -> Iterator[Row | tuple[str, str]]:
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file.name}:{number}"
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode("utf-8"), object_pairs_hook=_unique_keys)
                if not isinstance(value, dict):
                    raise BadRow(f"expected a JSON object, found {type(value).__name__}")
                yield Row(where, value)
            except UnicodeDecodeError as error:
                yield where, f"not UTF-8 at byte {error.start}; re-save the file as UTF-8"
            except json.JSONDecodeError as error:
                cut = "" if line.endswith(b"\n") else ", and the line has no end: was the file cut off?"
                yield where, f"not JSON at column {error.colno} ({error.msg}){cut}; mend or remove the line"
            except BadRow as error:
                yield where, str(error)


def _read_json(file: Path) -> Iterator[Row | tuple[str, str]]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_unique_keys)
    except (UnicodeDecodeError, json.JSONDecodeError, BadRow) as error:
        line = getattr(error, "lineno", 1)
        raise errors.UserError(f"{file.name}:{line}: not readable as JSON ({error}); mend the file") from error
    if not isinstance(rows, list):
        raise errors.UserError(f"{file.name}:1: expected a JSON list of objects, found {type(rows).__name__}")
    for number, value in enumerate(rows):
        where = f"{file.name}[{number}]"
        yield Row(where, value) if isinstance(value, dict) else (where, "expected a JSON object")


def _read_table(file: Path) -> Iterator[Row]:
    import datasets

    try:
        table = datasets.Dataset.from_parquet(str(file), keep_in_memory=True)
    except Exception as error:  # pyarrow and datasets raise many types for a damaged file
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise errors.UserError(f"{file.name}: not a readable parquet file ({first}); write it again") from error
    for number, value in enumerate(table):
        yield Row(f"{file.name}[{number}]", value)


def _read_datasets(path: str, config: ConfigDict) -> Iterator[Row]:
    import datasets

    if not Path(path).is_dir() and (path.startswith((".", "/", "~")) or path.count("/") > 1 or "." in Path(path).suffix):
        raise errors.UserError(f"data file {path!r} does not exist (looked from {Path.cwd()})")
    try:
        table = datasets.load_dataset(
            path, config.subset or None, split=config.split, revision=config.revision or None
        )
    except Exception as error:  # offline, unknown, gated, no such split: many types, one remedy
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise errors.UserError(
            f"dataset {path!r} (subset {config.subset!r}, split {config.split!r}) could not be loaded:"
            f" {first[:160]}; give a local file, or fetch it where there is a network: hf download --repo-type dataset {path}"
        ) from error
    for number, value in enumerate(table):
        yield Row(f"{path}[{number}]", value)
