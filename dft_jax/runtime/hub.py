"""Which names are the hub's, which are paths, and which neither.

A missing folder never becomes a repository, and a bucket's address never a folder called `gs:`.
"""

import os
from pathlib import Path

from dft_jax.runtime import errors

PREFIX = "hf://"  # may stand before a hub id, to say that it is one


def address_problems(path: str, setting: str) -> list[str]:
    """What is wrong with `path` where it is the address of a bucket, or of anything but the hub's.

    Args:
      setting: what the user calls it, as in config.data.train.
    """
    if "://" not in path or path.startswith(PREFIX):
        return []
    remedy = "mount the bucket (gcsfuse, mount-s3) or copy what is there, and give that local path"
    return [f"{setting}={path!r}: only files and folders of this machine are read; {remedy}"]


def refuse_address(path: str, setting: str) -> None:
    """UserError for what `address_problems` finds."""
    errors.raise_if_any(address_problems(path, setting))


def id_of(path: str, setting: str) -> str:
    """The hub id that `path` is, where neither file nor folder of this name is here.

    `runs/base` could be an id as well as a path. Where `runs` is a folder here it is taken as a
    path, because whoever owns the name on the hub would supply the weights or the data;
    `hf://runs/base` is always the hub's.

    Raises:
      UserError: it is a path; `setting` is what the user calls it.
    """
    refuse_address(path, setting)
    hub_id = path.removeprefix(PREFIX)
    if hub_id == path and "/" in path and Path(path).parent.is_dir():
        raise errors.UserError(
            f"{setting}={path!r}: no such file or folder"
            f" (looked from {os.getcwd()}, where {Path(path).parent} is a folder);"
            f" correct the path, or give {PREFIX}{path} for the hub's"
        )
    return hub_id


def id_of_snapshot(folder: Path) -> str | None:
    """The hub id whose snapshot in the hub's cache a folder is; None of any other."""
    if commit_of(folder) is None:
        return None
    # models--Qwen--Qwen2.5-Math-1.5B, as the hub's own library names it.
    return "/".join(folder.absolute().parents[1].name.split("--")[1:])


def commit_of(folder: Path) -> str | None:
    """The commit of a snapshot in the hub's cache, which names its folder; None of any other."""
    folder = folder.absolute()
    if folder.parent.name != "snapshots":
        return None
    if not folder.parents[1].name.startswith(("models--", "datasets--")):
        return None
    return folder.name
