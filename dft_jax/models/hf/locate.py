"""Finds a checkpoint, a folder or a snapshot of the hub, and reads which model it is of."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

from dft_jax.models.families import FAMILIES
from dft_jax.models.hf.config_reader import ConfigReader
from dft_jax.models.hf.tokenizer import Tokenizer, read_tokenizer
from dft_jax.models.spec import DecoderSpec
from dft_jax.runtime import errors, hub, processes
from dft_jax.runtime.files import check_file, read_json, refuse_code

# What says how images (and videos) are prepared; exports have these as they are.
PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
# Downloaded and carried along; nothing else is looked at: no pickles, no code.
CHECKPOINT_PATTERNS = [
    "model*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    # of images
    *PROCESSOR_FILES,
    # an adapter, which is no model by itself
    "adapter_config.json",
    "adapter_model.safetensors",
    "base.json",
    "dft_jax.json",
]
TOKENIZER_PATTERNS = [
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
]
# Templates besides the default one, by their names; a folder of the checkpoint's.
ADDITIONAL_TEMPLATES = "additional_chat_templates"


def resolve(path: str, revision: str, setting: str = "model.path") -> Path:
    """The folder of a checkpoint: `path` itself, or the hub's snapshot, from its cache or fetched.

    It is absolute: its weights are read later, maybe from another working directory, where a
    relative path may lead to another model.

    A hub id is said to be one on stderr, with the commit that `revision` stands for now.

    Args:
      setting: what messages call the path.

    Raises:
      UserError: neither; the message says what to fetch.
    """
    # Not that of Path, which raises where a name is too long.
    if os.path.isdir(path):
        return Path(path).absolute()
    hub.refuse_address(path, setting)
    if path.startswith((".", "/", "~")) or path.removeprefix(hub.PREFIX).count("/") != 1:
        raise errors.UserError(
            f"{setting}={path!r} is not a folder, nor a hub id such as 'Qwen/Qwen2.5-Math-1.5B'"
        )
    hub_id = hub.id_of(path, setting)
    import huggingface_hub

    patterns = [*CHECKPOINT_PATTERNS, *TOKENIZER_PATTERNS, f"{ADDITIONAL_TEMPLATES}/*.jinja"]
    try:
        folder = Path(
            huggingface_hub.snapshot_download(hub_id, revision=revision, allow_patterns=patterns)
        )
    except Exception as error:  # offline, unknown, gated: many types, one remedy
        raise errors.UserError(
            f"{setting}={path!r} (revision {revision!r}) is neither a folder here nor in the hub's"
            f" cache, and fetching failed ({type(error).__name__}); where there is a network:"
            f" hf download {hub_id} --revision {revision}"
        ) from error
    if processes.is_first():
        print(
            f"note: model {hub_id} is the hub's, {revision} is commit {hub.commit_of(folder)}",
            file=sys.stderr,
        )
    return folder


def read_config(folder: Path) -> DecoderSpec:
    """The architecture from `config.json`, every key accounted for (see hf/config_reader.py).

    Raises:
      UserError: what no family here reads, and each key that is wrong or unknown, by name.
    """
    adapter = folder / "adapter_config.json"
    if adapter.exists():
        raise errors.UserError(
            f"{adapter}: the folder holds an adapter (LoRA), which would not be applied;"
            " merge it into its base model, or remove the file to train the base alone;"
            " to evaluate an adapter give its own folder to --model"
        )
    file = folder / "config.json"
    raw = read_json(file)
    for carried in carried_files(folder):
        # An export carries it along, hours later; it should not be what fails there.
        read_json(carried)
    family = raw.pop("model_type", None)
    if not isinstance(family, str) or family not in FAMILIES:
        raise errors.UserError(
            f"{file}: model_type={family!r} is not supported; known: {', '.join(sorted(FAMILIES))}"
        )
    if _is_replaced_code(family, raw.get("auto_map")):
        del raw["auto_map"]
    refuse_code(raw, file)
    if raw.get("quantization_config") is not None:
        raise errors.UserError(
            f"{file}: 'quantization_config': cannot fine-tune quantised weights; use the original"
        )
    reader = ConfigReader(raw, str(file))
    spec = reader.finish(FAMILIES[family].read(reader))
    return dataclasses.replace(spec, family=family)


def _is_replaced_code(family: str, named: Any) -> bool:
    """Whether an `auto_map` names only code that its family was published with, and that
    transformers has classes of its own in place of.
    """
    replaced = getattr(FAMILIES[family], "REPLACED_CODE", {})
    if not isinstance(named, dict):
        return False
    for key, code in named.items():
        # transformers puts the hub id of the code before its name: ID--file.Class
        if not isinstance(code, str) or code.rpartition("--")[2] != replaced.get(key):
            return False
    return True


def carried_files(folder: Path) -> list[Path]:
    """Files of settings beside config.json and the tokenizer's, which exports have as they are."""
    names = ("generation_config.json", *PROCESSOR_FILES)
    return [folder / name for name in names if (folder / name).exists()]


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that make the checkpoint's tokenizer."""
    found = {file for pattern in TOKENIZER_PATTERNS for file in folder.glob(pattern)}
    return sorted(file for file in found if file.is_file())


def additional_templates(folder: Path) -> list[Path]:
    """Chat templates besides the default one: exports have them, a run's identity does not."""
    return sorted(folder.glob(f"{ADDITIONAL_TEMPLATES}/*.jinja"))


def load_tokenizer(folder: Path) -> Tokenizer:
    """The checkpoint's tokenizer, as its tokenizer.json says; no code from the checkpoint is run.

    Raises:
      UserError: none that can be used, or files of it that contradict each other
      (hf/tokenizer.py).
    """
    files = tokenizer_files(folder)
    for file in [*additional_templates(folder), *files]:
        check_file(file)
    return read_tokenizer(folder, files)
