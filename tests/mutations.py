"""What is done to a checkpoint to damage it: each returns mutate(folder)."""

import json
import shutil

from safetensors.numpy import load_file, save_file

from dft_jax import assets
from tests.conftest import GOLDEN

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 988097824\n"


def edit(name="config.json", **changes):
    """Sets keys of a JSON file of the checkpoint, removes those given as None."""

    def mutate(folder):
        raw = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(
            json.dumps({key: value for key, value in raw.items() if value is not None})
        )

    return mutate


def replaced(name, old, new):
    """Replaces text of a file, which has to be there."""

    def mutate(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return mutate


def tensors(change, name=SINGLE):
    """change(dictionary of tensors)."""

    def mutate(folder):
        arrays = load_file(folder / name)
        change(arrays)
        save_file(arrays, folder / name)

    return mutate


def header(change, name=SINGLE):
    """change(header of a safetensors file as a dictionary), the data left as they are; it may
    return other bytes.
    """

    def mutate(folder):
        content = (folder / name).read_bytes()
        length = int.from_bytes(content[:8], "little")
        raw = json.loads(content[8 : 8 + length])
        text = change(raw) or json.dumps(raw).encode()
        (folder / name).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])

    return mutate


def bytes_of(name, change):
    """Replaces a file's content by change(content); None removes the file."""

    def mutate(folder):
        content = change((folder / name).read_bytes())
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)

    return mutate


def without(*names):
    def mutate(folder):
        for name in names:
            (folder / name).unlink()

    return mutate


def written(name, content):
    def mutate(folder):
        (folder / name).write_bytes(content)

    return mutate


def a_folder(name):
    """A folder stands where the file should be."""

    def mutate(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return mutate


def linked(name, to):
    """The file is moved to `to`, seen from the folder, and a link put in its place."""

    def mutate(folder):
        (folder / to).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).rename(folder / to)
        (folder / name).symlink_to(to)

    return mutate


def moved(tensor, origin, to):
    """A tensor goes from one shard to another; the index is not told."""

    def mutate(folder):
        source, target = load_file(folder / origin), load_file(folder / to)
        target[tensor] = source.pop(tensor)
        save_file(source, folder / origin)
        save_file(target, folder / to)

    return mutate


def weight_map(change):
    """change(the index's map of tensors to files)."""

    def mutate(folder):
        raw = json.loads((folder / INDEX).read_text())
        change(raw["weight_map"])
        (folder / INDEX).write_text(json.dumps(raw))

    return mutate


def both(*mutations):
    def mutate(folder):
        for one in mutations:
            one(folder)

    return mutate


def cases_of(**groups):
    """{"group: name": case} of tables of cases."""
    return {
        f"{group}: {name}": case for group, cases in groups.items() for name, case in cases.items()
    }


def overrides_for(source, mutate, folder, **config):
    """The overrides of a command that would train from `folder/model`, a mutated copy of a
    checkpoint.

    `source` is a name under tests/golden, or "tiny" for the one with a tokenizer and no weights.
    """
    is_bare = source == "tiny"
    shutil.copytree(assets.TINY if is_bare else GOLDEN / source, folder / "model")
    mutate(folder / "model")
    (folder / "a.jsonl").write_text('{"prompt": "1+1?", "completion": "2"}\n')
    config = {
        "data.train": folder / "a.jsonl",
        "data.max_length": 32,
        "model.path": folder / "model",
        "model.init": "random" if is_bare else "checkpoint",
    } | config
    return [f"--config.{key}={value}" for key, value in config.items()]
