"""Which files of a folder are its rows: those of one split, in order, each read by itself (see
sources.py).

A folder fetched with `hf download --repo-type dataset NAME --local-dir FOLDER` is read by what its
card says: README.md lists the files of each subset and split. Without such a list all .jsonl, .json
and .parquet files below the folder count, in the order of their paths, and their names say which
split they are of (`train.jsonl`, `dev/part1.parquet`, `data/train_sft-00000-of-00002.parquet`);
where none does, all are `train`.
"""

import os
import re
from pathlib import Path
from typing import Any

from dft_jax.runtime import errors

ENDINGS = (".jsonl", ".json", ".parquet")
# Rows that nobody reads here: better refused than left out in silence.
_UNREAD = frozenset(
    ".arrow .avro .bz2 .csv .feather .gz .lz4 .msgpack .ndjson .npy .npz .orc .tar .tgz .tsv .xz .zip .zst".split()
)
_NO_ROWS = frozenset("dataset_infos.json dataset_info.json dataset_dict.json state.json".split())
_SPLIT_OF_WORD = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}.*")


def data_files(folder: Path, subset: str, split: str) -> list[Path]:
    """The files of a split in order; `subset` names one of the card, or a folder inside, empty for
    none.

    Raises:
      UserError: no such subset or split, no rows, or files that are not read or whose split is
      unclear.
    """
    listed = _listed_on_card(folder, subset)
    splits = listed or _splits_of_names(_inside(folder, subset))
    if split not in splits:
        known = ", ".join(sorted(splits))
        remedy = "set data.split or data.heldout_split, or name a file"
        raise errors.UserError(f"{folder} has no split {split!r}, only {known}; {remedy}")
    return _matching(folder, listed[split]) if listed else splits[split]


def split_of(name: str) -> str:
    """The split that a path inside a folder names; empty where it names none. The file's name says
    it first.

    Raises:
      UserError: a name that says two, as in train_test.jsonl.
    """
    *folders, file = name.split("/")
    shard = _SHARD.fullmatch(file)
    if shard and folders[-1:] == ["data"]:
        return shard[1]
    for part in (file, *reversed(folders)):
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
    """Paths of the files with rows inside a folder, sorted; hidden ones, such as a download's
    cache, do not count.
    """
    names = []
    for place, inner, files in os.walk(folder, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith((".", "__"))]
        names += [
            Path(place, file).relative_to(folder).as_posix()
            for file in files
            if not file.startswith(".")
        ]
    for name in sorted(names):
        ending = Path(name).suffix
        if ending not in ENDINGS and ending.lower() in (*ENDINGS, *_UNREAD):
            remedy = f"make it one of {', '.join(ENDINGS)}, or remove it"
            raise errors.UserError(
                f"{folder}: {name}: rows in a {ending} file are not read; {remedy}"
            )
    return sorted(
        name for name in names if Path(name).suffix in ENDINGS and Path(name).name not in _NO_ROWS
    )


def _inside(folder: Path, subset: str) -> Path:
    if not subset:
        return folder
    inner = folder / subset
    if not inner.is_dir() or ".." in Path(subset).parts or Path(subset).is_absolute():
        raise errors.UserError(
            f"{folder} has no subset {subset!r}, neither on its card nor as a folder; set data.subset"
        )
    return inner


def _listed_on_card(folder: Path, subset: str) -> dict[str, list[str]]:
    """Split -> patterns of files, as the header of README.md lists them for the subset; empty where
    it lists none.
    """
    card = folder / "README.md"
    if not card.is_file():
        return {}
    from huggingface_hub import metadata_load

    # yaml has many types
    with errors.user_errors(
        f"{card}: its header cannot be read", "mend or remove it", (Exception,)
    ):
        configs = (metadata_load(card) or {}).get("configs") or []
        listed = {
            config["config_name"]: _patterns(config["data_files"])
            for config in configs
            if "data_files" in config
        }
        defaults = [config["config_name"] for config in configs if config.get("default")]
    if not listed:
        return {}
    name = subset or [*defaults, *listed][0]
    if name not in listed or (not subset and not defaults and len(listed) > 1):
        raise errors.UserError(
            f"{card} lists the subsets {', '.join(listed)}; set data.subset to one of them"
        )
    return listed[name]


def _patterns(listed: Any) -> dict[str, list[str]]:
    """Split -> patterns, of `data_files` in any of its forms: a pattern, a list, or a list of
    {split, path}.
    """
    patterns: dict[str, list[str]] = {}
    for entry in listed if isinstance(listed, list) else [listed]:
        split, path = (
            (entry["split"], entry["path"]) if isinstance(entry, dict) else ("train", entry)
        )
        patterns.setdefault(split, []).extend(path if isinstance(path, list) else [path])
    return patterns


def _matching(folder: Path, patterns: list[str]) -> list[Path]:
    files: dict[Path, None] = {}  # in order, each once
    for pattern in patterns:
        if ".." in Path(pattern).parts or Path(pattern).is_absolute():
            raise errors.UserError(
                f"{folder}: its README.md names files outside, {pattern!r}; mend or remove it"
            )
        found = sorted(file for file in folder.glob(pattern) if file.is_file())
        unread = [file.name for file in found if file.suffix not in ENDINGS]
        if unread or not found:
            what = f"{unread[0]} is not read here" if unread else "there are none"
            remedy = f"fetch them again, as {', '.join(ENDINGS)}"
            raise errors.UserError(
                f"{folder}: of the files {pattern!r} on its README.md {what}; {remedy}"
            )
        files |= dict.fromkeys(found)
    return list(files)
