"""Hashes of a checkpoint's weights, by which runs know their base again."""

import collections
import functools
import hashlib
import json
from pathlib import Path

import jax

from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.runtime import distributed, files

# Of each tensor, this many blocks of this many bytes stand for all of it when hosts compare their
# weights.
_SAMPLED_BLOCKS, _BLOCK_BYTES = 4, 4096


def weights_hashes(source: Path) -> dict[Path, str]:
    """SHA-256 of each file of a checkpoint's weights, which this process reads whole."""
    return _hashes(sorted(Checkpoint(source).files))


def weights_digest(source: Path) -> str:
    """One SHA-256 of all weights of a checkpoint and the names of their files."""
    return files.joined_digest(weights_hashes(source))


def weights_digest_by_all(source: Path) -> str:
    """`weights_digest`, for which each process of the job reads its share of the files.

    All of them call it. 70B are 140 GB, which no process should read whole when it holds a share.
    """
    paths = sorted(Checkpoint(source).files)
    mine = _hashes(paths[jax.process_index() :: jax.process_count()])
    shares = {file.name: sha256 for file, sha256 in mine.items()}

    def merged(everyone: list[dict[str, str]]) -> dict[str, str]:
        return dict(collections.ChainMap(*everyone))

    by_name = distributed.decided("weights", shares, merged)
    # A host's own copy may have other files, which whoever compares the hosts will say.
    hashes = _hashes([file for file in paths if file.name not in by_name])
    hashes |= {file: by_name[file.name] for file in paths if file.name in by_name}
    return files.joined_digest(hashes)


def _hashes(paths: list[Path]) -> dict[Path, str]:
    """SHA-256 of each file.

    A process hashes a file once, and again where it was written since: 7B take a minute, and a
    run with adapters asks for their base's as an identity, as what it began with and as a
    reference.
    """
    written = []
    for file in paths:
        about = file.stat()
        written.append((file, about.st_size, about.st_mtime_ns, about.st_ino))
    return dict(_hashes_of(tuple(written)))


@functools.lru_cache(maxsize=8)
def _hashes_of(written: tuple[tuple[Path, int, int, int], ...]) -> dict[Path, str]:
    return files.sha256_of(file for file, *_ in written)


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
            entries = json.loads(header)
            entries.pop("__metadata__", None)
            for _, entry in sorted(entries.items()):
                begin, end = entry["data_offsets"]
                for offset in _sampled(begin, end):
                    handle.seek(8 + length + offset)
                    total.update(handle.read(min(_BLOCK_BYTES, end - offset)))
    return total.hexdigest()


def _sampled(begin: int, end: int) -> list[int]:
    """Where the sampled blocks of bytes `begin` to `end` start: first, last, and between."""
    last = max(begin, end - _BLOCK_BYTES)
    return [begin + (last - begin) * i // (_SAMPLED_BLOCKS - 1) for i in range(_SAMPLED_BLOCKS)]
