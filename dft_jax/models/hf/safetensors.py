"""The weights of a checkpoint: safetensors files, with or without an index; nothing else is ever
opened.
"""

import hashlib
import json
import re
from pathlib import Path

import numpy as np

from dft_jax.runtime import errors
from dft_jax.runtime.files import FETCH, begins, check_file, read_json

# What is sometimes found under the name of a safetensors file, by its first bytes. A header's
# length, which a whole one begins with, has zeros in bytes 4 to 7.
_MISTAKEN = {
    rb"(?s)\x80[\x02-\x05](?!..\0{4})|PK\x03\x04": "it is a pickle, which is never opened: convert it to safetensors",
    rb"(?i)\s*<(?:!doctype|html|\?xml)": "it is a web page, such as a login or an error: fetch the file again",
}


class Checkpoint:
    """The safetensors of a folder: names, shapes and dtypes without reading data, and one tensor at
    a time.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        listed = _weight_map(folder)
        self.file_of: dict[str, str] = {}
        self.headers: dict[str, tuple[tuple[int, ...], str]] = {}
        for file_name in sorted(set(listed.values())) or [SINGLE_NAME]:
            for name, header in _headers(folder / file_name).items():
                if listed and listed.get(name) != file_name:
                    raise errors.UserError(
                        f"{folder / file_name}: {INDEX_NAME} does not list tensor {name} there; fetch both again"
                    )
                self.file_of[name], self.headers[name] = file_name, header
        absent = [
            f"{name} (in {file})"
            for name, file in sorted(listed.items())
            if name not in self.headers
        ]
        if absent:
            what = f"lists {len(absent)} tensors that are not where it says: {', '.join(absent)}"
            raise errors.UserError(f"{folder / INDEX_NAME} {what}; fetch it and the shards again")

    def read(self, name: str) -> np.ndarray:
        with _open(self.folder / self.file_of[name]) as tensors:
            return tensors.get_tensor(name)

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


def _open(file: Path):
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise errors.UserError(
            f"{file} is missing, though the index names it; fetch the checkpoint again"
        )
    try:
        return safe_open(file, framework="np")
    except (SafetensorError, OSError) as error:
        first = begins(file)
        remedy = next(
            (text for start, text in _MISTAKEN.items() if re.match(start, first)), "fetch it again"
        )
        raise errors.UserError(
            f"{file}: not a whole safetensors file ({error}); {remedy}"
        ) from error


def _headers(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Tensor name -> shape, dtype."""
    check_file(file)
    # the library checks all, but of two equal names it takes the last
    with _open(file), open(file, "rb") as handle:
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
        raw = read_json(index)
        weight_map, metadata = raw.get("weight_map"), raw.get("metadata") or {}
        if not isinstance(metadata, dict) or type(metadata.get("total_size", 0)) not in (
            int,
            float,
        ):
            raise errors.UserError(
                f"{index}: metadata={metadata!r} should have a number as total_size; {FETCH}"
            )
        if not isinstance(weight_map, dict) or not weight_map:
            raise errors.UserError(
                f"{index}: 'weight_map' should map tensor names to file names; {FETCH}"
            )
        for name, file in weight_map.items():
            is_plain = (
                isinstance(file, str) and Path(file).name == file and not set(file) & set("\\:\0")
            )
            if not is_plain or not file.endswith(".safetensors"):
                raise errors.UserError(
                    f"{index}: {name} -> {file!r} should be the plain name of a .safetensors file here"
                )
        strays = {file.name for file in folder.glob("model-*-of-*.safetensors")} - set(
            weight_map.values()
        )
        if strays:
            raise errors.UserError(
                f"{index} does not name {', '.join(sorted(strays))}, which is there; {REMEDY}"
            )
        return weight_map
    if single.exists():
        return {}
    pickles = sorted(file.name for file in folder.glob("*.bin")) + sorted(
        file.name for file in folder.glob("*.pt*")
    )
    found = (
        f" ({', '.join(pickles[:3])}: pickles are never opened; convert to safetensors)"
        if pickles
        else ""
    )
    remedy = "fetch them, or set model.init='random'"
    raise errors.UserError(f"{folder}: no {SINGLE_NAME} and no {INDEX_NAME}{found}; {remedy}")


SINGLE_NAME, INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
REMEDY = "fetch config.json and the weights of one and the same model"
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def weights_dtype(folder: Path) -> str:
    """The dtype of a checkpoint's weights; of a bare config.json, the one it names, else float32."""
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
    """Name -> dtype of a checkpoint's tensors that have another than `source_dtype`: norms are kept
    in float32 by some.

    Empty for a bare config.json.
    """
    if not (folder / INDEX_NAME).exists() and not (folder / SINGLE_NAME).exists():
        return {}
    checkpoint = Checkpoint(folder)
    dtypes = {
        name: DTYPES[dtype] for name, (_, dtype) in checkpoint.headers.items() if dtype in DTYPES
    }
    return {name: dtype for name, dtype in dtypes.items() if dtype != checkpoint.dtype}


# Of each tensor, this many blocks of this many bytes stand for all of it when hosts compare their
# weights.
_SAMPLED_BLOCKS, _BLOCK_BYTES = 4, 4096


def weights_sample(source: Path) -> str:
    """SHA-256 of the headers of a checkpoint's weights and of four blocks of 4 KiB of each tensor.

    Two fine-tunes of one model differ in nearly every block, so this tells them apart in
    milliseconds, where a whole hash of 7B weights takes a minute. What it cannot see is a change of
    a few bytes elsewhere, as by a broken disk.
    """
    total = hashlib.sha256()
    for file in sorted(Checkpoint(source).files):
        with open(file, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = handle.read(length)
            total.update(f"{file.name} {file.stat().st_size}\n".encode() + header)
            for name, entry in sorted(json.loads(header).items()):
                if name != "__metadata__":
                    begin, end = entry["data_offsets"]
                    for offset in _sampled(begin, end):
                        handle.seek(8 + length + offset)
                        total.update(handle.read(min(_BLOCK_BYTES, end - offset)))
    return total.hexdigest()


def _sampled(begin: int, end: int) -> list[int]:
    """Where the sampled blocks of the bytes from `begin` to `end` start: at the first, the last,
    and between.
    """
    last = max(begin, end - _BLOCK_BYTES)
    return [begin + (last - begin) * i // (_SAMPLED_BLOCKS - 1) for i in range(_SAMPLED_BLOCKS)]
