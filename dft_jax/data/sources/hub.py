"""Rows of a dataset on the hub, or of its copy in the hub's cache."""

import itertools
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dft_jax.data.sources.rows import Row, Source
from dft_jax.runtime import errors

_SHOWN = 160  # characters of what the library says
_ROWS_WITH_MEDIA = 64  # at once, of which each may be megabytes


def open_dataset(hub_id: str, subset: str, split: str, revision: str) -> Source:
    """Loads a split of a dataset; an empty `subset` or `revision` is the dataset's default.

    Raises:
      UserError: offline and not in the cache, unknown, gated, or no such split or subset.
    """
    import datasets

    # It would log errors that are reported below.
    datasets.logging.set_verbosity(logging.CRITICAL)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(
            hub_id, subset or None, split=split, revision=revision or None
        )
    # Many types, of `datasets`, `huggingface_hub`, `requests` and `pyarrow`.
    except Exception as error:
        said = errors.first_line(error)[:_SHOWN]
        raise errors.UserError(
            f"dataset {hub_id!r} (subset {subset!r}, split {split!r}) could not be loaded: {said};"
            f" {_remedy(hub_id, said)}"
        ) from error
    return Source(_rows(hub_id, table), _commit_of(table))


def _rows(hub_id: str, table: Any) -> Iterator[Row]:
    media = [name for name, kind in (table.features or {}).items() if _is_decoded(kind)]
    if not media:
        for number, value in enumerate(table):
            yield Row(f"{hub_id}[{number}]", value)
        return
    # `datasets` would decode these with whatever Pillow reads: take bytes and paths as they are.
    stored = table.select_columns(media).with_format("arrow").iter(_ROWS_WITH_MEDIA)
    as_stored = itertools.chain.from_iterable(rows.to_pylist() for rows in stored)
    others = table.remove_columns(media)
    for number, (value, more) in enumerate(zip(others, as_stored, strict=True)):
        yield Row(f"{hub_id}[{number}]", {**value, **more})


def _is_decoded(kind: Any) -> bool:
    """Whether a feature of `datasets` is one that it decodes, or holds one."""
    import datasets

    if isinstance(kind, dict):
        return any(map(_is_decoded, kind.values()))
    if isinstance(kind, list):
        return any(map(_is_decoded, kind))
    if hasattr(kind, "feature"):
        return _is_decoded(kind.feature)
    return isinstance(kind, (datasets.Image, datasets.Audio, datasets.Video))


def _commit_of(table: Any) -> str | None:
    """The commit that a dataset was loaded at, None where its files do not agree on one.

    `datasets` names the folder of its arrow files by the commit.
    """
    commits = set()
    for file in table.cache_files:
        folder = Path(file["filename"]).parent.name
        if re.fullmatch("[0-9a-f]{40}", folder):
            commits.add(folder)
    if len(commits) != 1:
        return None
    return commits.pop()


def _remedy(hub_id: str, said: str) -> str:
    """What the user can do, by what `datasets` said."""
    if "split" in said:
        return "set data.split or data.heldout_split"
    if "Config" in said:
        return "set data.subset"
    login = ""
    if "gated" in said:
        login = " (after `hf auth login`)"
    fetch = f"hf download --repo-type dataset {hub_id} --local-dir FOLDER"
    return (
        f"give a local file, or fetch it where there is a network{login}: {fetch},"
        " and give that folder"
    )
