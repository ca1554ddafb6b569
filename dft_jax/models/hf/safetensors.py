"""The weights of a checkpoint: safetensors files, with or without an index, and nothing else."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from dft_jax.runtime import errors
from dft_jax.runtime.files import FETCH, begins, check_file, read_json

SINGLE_NAME, INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
REMEDY = "fetch config.json and the weights of one and the same model"
# What is sometimes found under the name of a safetensors file, by its first bytes. A header's
# length, which a whole one begins with, has zeros in bytes 4 to 7.
_MISTAKEN = {
    rb"(?s)\x80[\x02-\x05](?!..\0{4})|PK\x03\x04": (
        "it is a pickle, which is never opened: convert it to safetensors"
    ),
    rb"(?i)\s*<(?:!doctype|html|\?xml)": (
        "it is a web page, such as a login or an error: fetch the file again"
    ),
}

# Models with images have two spellings. That of the hub's files and of exports by transformers is
# ours; here is how tensors begin in the other, which transformers has in memory, and in ours.
_OTHER_SPELLING = {"model.language_model.": "model.", "model.visual.": "visual."}

# Of a tensor, its shape and the name of its type in the file.
Header = tuple[tuple[int, ...], str]


class Checkpoint:
    """The safetensors of a folder, without reading data: names, shapes and dtypes.

    `read` gives one tensor at a time. Names are those of the families' tables (models/families);
    `spelled` says how the files have them.

    Raises:
      UserError: files that are missing, damaged, or not what the index says.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        listed = _weight_map(folder)
        self.file_of: dict[str, str] = {}
        self.headers: dict[str, Header] = {}
        for file_name in sorted(set(listed.values())) or [SINGLE_NAME]:
            for name, header in read_headers(folder / file_name).items():
                if listed and listed.get(name) != file_name:
                    raise errors.UserError(
                        f"{folder / file_name}: {INDEX_NAME} does not list tensor {name} there;"
                        " fetch both again"
                    )
                self.file_of[name] = file_name
                self.headers[name] = header
        self._refuse_absent(listed)
        self._spelling = self._respell()

    def _respell(self) -> dict[str, str]:
        """Names in the other spelling become ours; returns ours -> that in the files.

        Raises:
          UserError: some tensors are in one spelling and some in the other.
        """
        spelling = {}
        for name in self.headers:
            for other, ours in _OTHER_SPELLING.items():
                if name.startswith(other):
                    spelling[ours + name.removeprefix(other)] = name
        ours = [name for name in self.headers if name.startswith(tuple(_OTHER_SPELLING.values()))]
        mixed = sorted(set(ours) - set(spelling.values()))
        if spelling and mixed:
            raise errors.UserError(
                f"{self.folder}: some tensors are named as {min(spelling.values())}, others as"
                f" {mixed[0]}: those are two spellings of a model with images; {REMEDY}"
            )
        for name, spelled in spelling.items():
            self.headers[name] = self.headers.pop(spelled)
            self.file_of[name] = self.file_of.pop(spelled)
        return spelling

    @property
    def is_respelled(self) -> bool:
        """Whether the files have the spelling that only models with images have."""
        return bool(self._spelling)

    def spelled(self, name: str) -> str:
        """The name of a tensor as the files have it."""
        return self._spelling.get(name, name)

    def _refuse_absent(self, listed: dict[str, str]) -> None:
        absent = []
        for name, file in sorted(listed.items()):
            if name not in self.headers:
                absent.append(f"{name} (in {file})")
        if absent:
            raise errors.UserError(
                f"{self.folder / INDEX_NAME} lists {len(absent)} tensors that are not where it"
                f" says: {', '.join(absent)}; fetch it and the shards again"
            )

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """A tensor, or these rows of it; no others are read from the file."""
        with open_tensors(self.folder / self.file_of[name]) as tensors:
            if rows is not None:
                return tensors.get_slice(self.spelled(name))[rows]
            return tensors.get_tensor(self.spelled(name))

    def view(self, name: str) -> Any:
        """The library's view of a tensor: `view[3:5]` reads these rows and no others.

        Its file stays open for as long as the view is there.
        """
        return open_tensors(self.folder / self.file_of[name]).get_slice(self.spelled(name))

    @property
    def files(self) -> set[Path]:
        return {self.folder / name for name in self.file_of.values()}

    @property
    def dtype(self) -> str:
        """The dtype of the embedding table, taken as that of the checkpoint."""
        _, dtype = self.headers.get(EMBEDDING, (None, "missing"))
        if dtype not in DTYPES:
            known = ", ".join(DTYPES)
            raise errors.UserError(
                f"{self.folder}: {EMBEDDING} is {dtype}; it should be there as one of {known}"
            )
        return DTYPES[dtype]


def open_tensors(file: Path) -> Any:
    """The library's reader of a file, with our messages for what is not one."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise errors.UserError(
            f"{file} is missing, though the index names it; fetch the checkpoint again"
        )
    try:
        return safe_open(file, framework="np")
    except (SafetensorError, OSError) as error:
        raise errors.UserError(
            f"{file}: not a whole safetensors file ({error}); {_remedy_for(file)}"
        ) from error


def _remedy_for(file: Path) -> str:
    """What to do about a file that is no safetensors file, by its first bytes."""
    first_bytes = begins(file)
    for pattern, remedy in _MISTAKEN.items():
        if re.match(pattern, first_bytes):
            return remedy
    return "fetch it again"


def read_headers(file: Path) -> dict[str, Header]:
    """The header of each tensor of a file, by name."""
    check_file(file)
    # The library checks everything but that names differ: of two equal ones it takes the last.
    with open_tensors(file), open(file, "rb") as handle:
        header = handle.read(int.from_bytes(handle.read(8), "little"))
    with errors.user_errors(f"{file}: in its header", "fetch it again", (ValueError,)):
        entries = json.loads(header, object_pairs_hook=errors.unique_keys)
    entries.pop("__metadata__", None)
    return {name: (tuple(entry["shape"]), entry["dtype"]) for name, entry in entries.items()}


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor name -> plain file name, as the index says; empty where all is in one file."""
    index, single = folder / INDEX_NAME, folder / SINGLE_NAME
    if index.exists() and single.exists():
        raise errors.UserError(
            f"{folder} holds both {SINGLE_NAME} and {INDEX_NAME}; remove what is not of this model"
        )
    if index.exists():
        return _read_index(index)
    if single.exists():
        return {}
    names = [file.name for pattern in ("*.bin", "*.pt*") for file in sorted(folder.glob(pattern))]
    found = ""
    if names:
        found = f" ({', '.join(names[:3])}: pickles are never opened; convert to safetensors)"
    raise errors.UserError(
        f"{folder}: no {SINGLE_NAME} and no {INDEX_NAME}{found};"
        " fetch them, or set model.init='random'"
    )


def _read_index(index: Path) -> dict[str, str]:
    """The weight map of an index, after what it says has been checked; no shard is opened."""
    raw = read_json(index)
    weight_map = raw.get("weight_map")
    metadata = raw.get("metadata") or {}
    if not isinstance(metadata, dict) or type(metadata.get("total_size", 0)) not in (int, float):
        raise errors.UserError(
            f"{index}: metadata={metadata!r} should have a number as total_size; {FETCH}"
        )
    if not isinstance(weight_map, dict) or not weight_map:
        raise errors.UserError(
            f"{index}: 'weight_map' should map tensor names to file names; {FETCH}"
        )
    for name, file in weight_map.items():
        if not _is_plain_name(file):
            raise errors.UserError(
                f"{index}: {name} -> {file!r} should be the plain name of a .safetensors file here"
            )
    shards = {file.name for file in index.parent.glob("model-*-of-*.safetensors")}
    strays = shards - set(weight_map.values())
    if strays:
        raise errors.UserError(
            f"{index} does not name {', '.join(sorted(strays))}, which is there; {REMEDY}"
        )
    return weight_map


def _is_plain_name(file: Any) -> bool:
    """Whether it names a safetensors file beside the index, on every system."""
    if not isinstance(file, str) or not file.endswith(".safetensors"):
        return False
    return Path(file).name == file and not set(file) & set("\\:\0")


def weights_dtype(folder: Path) -> str:
    """The dtype of a checkpoint's weights; of a bare config.json what it names, else float32."""
    if (folder / INDEX_NAME).exists() or (folder / SINGLE_NAME).exists():
        return Checkpoint(folder).dtype
    raw = read_json(folder / "config.json")
    dtype = raw.get("dtype") or raw.get("torch_dtype") or "float32"
    if dtype not in DTYPES.values():
        known = ", ".join(DTYPES.values())
        raise errors.UserError(
            f"{folder / 'config.json'}: dtype={dtype!r}: cannot export as that; use one of {known}"
        )
    return dtype


def other_dtypes(folder: Path) -> dict[str, str]:
    """Name -> dtype of tensors with another than most: some checkpoints keep norms in float32.

    Empty for a bare config.json.
    """
    if not (folder / INDEX_NAME).exists() and not (folder / SINGLE_NAME).exists():
        return {}
    checkpoint = Checkpoint(folder)
    others = {}
    for name, (_, header_dtype) in checkpoint.headers.items():
        dtype = DTYPES.get(header_dtype, checkpoint.dtype)
        if dtype != checkpoint.dtype:
            others[name] = dtype
    return others
