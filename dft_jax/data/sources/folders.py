"""Which files of a folder are the rows of a split, in their order.

A folder fetched with `hf download --repo-type dataset NAME --local-dir FOLDER` is read by what its
card says: README.md lists the files of each subset and split. Without such a list all .jsonl, .json
and .parquet files below the folder count, in the order of their paths, and their names say which
split they are of (`train.jsonl`, `dev/part1.parquet`, `data/train_sft-00000-of-00002.parquet`);
where none does, all are `train`.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dft_jax.runtime import errors

ENDINGS = (".jsonl", ".json", ".parquet")
# Rows that nobody reads here: better refused than left out in silence.
_UNREAD = (
    ".arrow .avro .bz2 .csv .feather .gz .lz4 .msgpack .ndjson .npy .npz .orc .tar .tgz .tsv .xz"
    " .zip .zst"
).split()
# What `datasets` and the hub put beside the rows.
_NO_ROWS = "dataset_infos.json dataset_info.json dataset_dict.json state.json".split()
_SPLIT_OF_WORD = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
# A file of a split in several: `train_sft-00000-of-00002.parquet` is of `train_sft`.
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}.*")


def data_files(folder: Path, subset: str, split: str) -> list[Path]:
    """The files of a split in order.

    Args:
      subset: one that the card lists, or a folder inside; empty for none.

    Raises:
      UserError: no such subset or split, no rows, or files that are not read or whose split is
        unclear.
    """
    patterns_of = _listed_on_card(folder, subset)
    if patterns_of:
        _require_split(folder, split, patterns_of)
        return _matching(folder, patterns_of[split])
    files_of = _splits_of_names(_inside(folder, subset))
    _require_split(folder, split, files_of)
    return files_of[split]


def _require_split(folder: Path, split: str, splits: Iterable[str]) -> None:
    known = sorted(splits)
    if split not in known:
        raise errors.UserError(
            f"{folder} has no split {split!r}, only {', '.join(known)};"
            " set data.split or data.heldout_split, or name a file"
        )


def split_of(name: str) -> str:
    """The split that a path inside a folder names, its file first; empty where it names none.

    Raises:
      UserError: a name that says two, as in train_test.jsonl.
    """
    *inner_folders, file = name.split("/")
    # The hub's own naming, in which the split is a word of its owner's choice.
    shard = _SHARD.fullmatch(file)
    if shard and inner_folders[-1:] == ["data"]:
        return shard[1]
    for part in (file, *reversed(inner_folders)):
        words = re.split(r"[-._ 0-9]+", part.lower())
        found = {_SPLIT_OF_WORD[word] for word in words if word in _SPLIT_OF_WORD}
        if len(found) > 1:
            raise errors.UserError(
                f"{name} names two splits, {' and '.join(sorted(found))}; rename it, or name a file"
            )
        if found:
            return found.pop()
    return ""


def _splits_of_names(folder: Path) -> dict[str, list[Path]]:
    """The files of each split, by what their names say."""
    names = _names_below(folder)
    if not names:
        raise errors.UserError(
            f"{folder} has no rows; put {' or '.join(ENDINGS)} files there, or name one"
        )
    splits: dict[str, list[Path]] = {}
    for name in names:
        splits.setdefault(split_of(name), []).append(folder / name)
    if set(splits) == {""}:
        return {"train": splits[""]}
    if "" in splits:
        unclear = splits[""][0].relative_to(folder)
        remedy = "rename or remove it, or name a file"
        raise errors.UserError(f"{folder}: {unclear} names no split, others there do; {remedy}")
    return splits


def _names_below(folder: Path) -> list[str]:
    """Paths of the files with rows inside a folder, sorted.

    Hidden ones, such as a download's cache, do not count, nor does what a link leads back to.

    Raises:
      UserError: a folder inside cannot be looked into, or rows are of a kind that is not read.
    """
    paths = []
    for parent, inner_folders, file_names in os.walk(
        folder, onerror=_refuse_unseen, followlinks=True
    ):
        below = [name for name in inner_folders if _has_rows_of_its_own(Path(parent, name))]
        # os.walk descends into what is left in its list.
        inner_folders[:] = below
        for file_name in file_names:
            if not file_name.startswith("."):
                paths.append(Path(parent, file_name))
    names = []
    for path in sorted(paths, key=lambda path: path.relative_to(folder).as_posix()):
        name = path.relative_to(folder).as_posix()
        ending = path.suffix
        if ending in ENDINGS:
            if path.name not in _NO_ROWS:
                names.append(name)
        elif ending.lower() in (*ENDINGS, *_UNREAD):
            remedy = f"make it one of {', '.join(ENDINGS)}, or remove it"
            raise errors.UserError(
                f"{folder}: {name}: rows in a {ending} file are not read; {remedy}"
            )
    return names


def _refuse_unseen(error: OSError) -> None:
    """What os.walk would pass over in silence."""
    raise errors.UserError(
        f"{error.filename}: cannot be looked into for rows ({error.strerror}); make it readable, or"
        " remove it"
    )


def _has_rows_of_its_own(path: Path) -> bool:
    """Whether rows are looked for in a folder inside."""
    if path.name.startswith((".", "__")):
        return False
    # A link to a folder that it lies in would be gone into again and again, some forty times.
    return os.path.realpath(path) not in map(os.path.realpath, path.parents)


def _inside(folder: Path, subset: str) -> Path:
    """The folder of a subset; the folder itself for none."""
    if not subset:
        return folder
    inner = folder / subset
    if not inner.is_dir() or ".." in Path(subset).parts or Path(subset).is_absolute():
        raise errors.UserError(
            f"{folder} has no subset {subset!r}, neither on its card nor as a folder;"
            " set data.subset"
        )
    return inner


def _listed_on_card(folder: Path, subset: str) -> dict[str, list[str]]:
    """Split -> patterns of files, as README.md's header lists them for the subset; perhaps none."""
    card = folder / "README.md"
    if not card.is_file():
        return {}
    from huggingface_hub import metadata_load

    listed: dict[str, dict[str, list[str]]] = {}
    defaults = []
    # The exceptions of YAML, and of a header of another shape, are of many types.
    with errors.user_errors(f"{card}: its header cannot be read", "fix or remove it", (Exception,)):
        header = metadata_load(card) or {}
        for config in header.get("configs") or []:
            # Names such as 2024 are numbers in YAML.
            name = str(config["config_name"])
            if "data_files" in config:
                listed[name] = _patterns(config["data_files"])
            if config.get("default"):
                defaults.append(name)
    if not listed:
        return {}
    name = subset or [*defaults, *listed][0]
    if name not in listed or (not subset and not defaults and len(listed) > 1):
        raise errors.UserError(
            f"{card} lists the subsets {', '.join(listed)}; set data.subset to one of them"
        )
    return listed[name]


def _patterns(listed: Any) -> dict[str, list[str]]:
    """Split -> patterns, of `data_files`: a pattern, a list, or a list of {split, path}."""
    patterns: dict[str, list[str]] = {}
    for entry in _as_list(listed):
        split = "train"
        path = entry
        if isinstance(entry, dict):
            split = str(entry["split"])
            path = entry["path"]
        for pattern in _as_list(path):
            if not isinstance(pattern, str) or not pattern:
                raise ValueError(f"a path of data_files is {pattern!r}")
            patterns.setdefault(split, []).append(pattern)
    return patterns


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    return [value]


def _matching(folder: Path, patterns: list[str]) -> list[Path]:
    """The files that the patterns of a card name."""
    files: dict[Path, None] = {}  # in order, each once
    for pattern in patterns:
        if ".." in Path(pattern).parts or Path(pattern).is_absolute():
            raise errors.UserError(
                f"{folder}: its README.md names files outside, {pattern!r}; fix or remove it"
            )
        # What pathlib makes of these depends on its version.
        if any("**" in part and part != "**" for part in Path(pattern).parts):
            raise errors.UserError(
                f"{folder}: ** is no whole part of the path {pattern!r} on its README.md; make it"
                " **/*"
            )
        everything = f"{pattern}/*" if pattern.endswith("**") else pattern
        # A pattern such as data/* may name folders as well.
        found = sorted(file for file in folder.glob(everything) if file.is_file())
        problem = ""
        if not found:
            problem = "there are none"
        for file in found:
            if file.suffix not in ENDINGS:
                problem = f"{file.name} is not read here"
                break
        if problem:
            raise errors.UserError(
                f"{folder}: of the files {pattern!r} on its README.md {problem};"
                f" fetch them again, as {', '.join(ENDINGS)}"
            )
        files |= dict.fromkeys(found)
    return list(files)
