"""What a data path names: a file, a folder, a dataset of the hub, or a part of the lab's world."""

import os
from collections.abc import Iterator
from pathlib import Path

from dft_jax.data.sources import cards, excerpts, files, hub as hub_datasets, programs, world
from dft_jax.data.sources.rows import Row, Source
from dft_jax.runtime import errors, hub
from dft_jax.runtime.options import Config

_MADE = (world, programs, cards)  # modules of rows that are made, each with NAME and parse


def open_rows(path: str, config: Config, split: str) -> Source:
    """Rows of `path` in order; the `value` of a malformed line raises BadRow.

    Args:
      path: a .jsonl, .json or .parquet file, a folder of them (see folders.py), a hub id (see
        runtime/hub.py), or a part of the laboratory's world: `world(…)`, `programs(…)`, `cards(…)`.
      config: `config.data`, for the subset and the revision.
      split: of a folder or a hub dataset.

    Raises:
      UserError: nothing readable there.
    """
    hub.refuse_address(path, "data file")
    for made in _MADE:
        excerpt = made.parse(path)
        if excerpt is not None:
            return Source(excerpts.numbered_rows(made.NAME, excerpt))
    place = Path(path)
    # Not those of Path, which raise where a folder is closed or a name too long.
    if os.path.isfile(place):
        return Source(files.read_file(place))
    if os.path.isdir(place):
        return Source(files.read_folder(place, config.subset, split), hub.commit_of(place))
    if is_path(path):
        raise errors.UserError(
            f"data file {path!r} does not exist (looked from {Path.cwd()}); correct the path"
        )
    hub_id = hub.id_of(path, "data file")
    return hub_datasets.open_dataset(hub_id, config.subset, split, config.revision)


def read_rows(path: str, config: Config, split: str) -> Iterator[Row]:
    """The rows of `open_rows` alone."""
    return open_rows(path, config, split).rows


def is_path(path: str) -> bool:
    """Whether `path` can be no dataset of the hub."""
    if path.startswith(hub.PREFIX):
        return False
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        return True
    return Path(path).suffix in files.ENDINGS


def is_hub_id(path: str) -> bool:
    """Whether rows of `path` would be fetched from the hub."""
    return not is_made(path) and not os.path.exists(path) and not is_path(path)


def is_made(path: str) -> bool:
    """Whether rows of `path` are made by the laboratory, the same ones each time."""
    return path.lstrip().startswith(tuple(f"{made.NAME}(" for made in _MADE))
