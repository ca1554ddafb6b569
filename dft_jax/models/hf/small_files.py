"""What lies beside the weights of an exported folder: config, tokenizer and chat templates."""

import shutil
import sys
from pathlib import Path

from dft_jax.models.hf import tokenizer as tokenizer_lib
from dft_jax.models.hf.locate import (
    ADDITIONAL_TEMPLATES,
    additional_templates,
    carried_files,
    load_tokenizer,
    tokenizer_files,
)
from dft_jax.runtime import files
from dft_jax.runtime.files import write_json


def write_small_files(source: Path, to: Path, dtype: str | None, template: str | None) -> None:
    """Everything of the folder `source` but its weights, into the folder `to`.

    Args:
      dtype: what config.json is to say of the weights; None where it stays as it is.
      template: the text that becomes the folder's own chat template, if there is one.
    """
    _copy_config(source, to, dtype)
    if template is not None:
        _set_template(to, template)
    _warn_of_tokenizer(to)


def _copy_config(source: Path, to: Path, dtype: str | None) -> None:
    """Config, generation config, tokenizer and templates as they are, but for another `dtype`."""
    raw = files.read_json(source / "config.json")
    keys = [key for key in ("dtype", "torch_dtype") if key in raw]
    # which older readers know too
    keys = keys or ["torch_dtype"]
    if dtype is None or all(raw.get(key) == dtype for key in keys):
        shutil.copyfile(source / "config.json", to / "config.json")
    else:
        changed = raw | dict.fromkeys(keys, dtype)
        text = raw.get("text_config")
        if isinstance(text, dict):
            # Of a model with images it is said there as well.
            changed["text_config"] = text | {key: dtype for key in keys if key in text}
        write_json(to / "config.json", changed)
    for file in [*tokenizer_files(source), *carried_files(source)]:
        shutil.copyfile(file, to / file.name)
    for file in additional_templates(source):
        (to / file.parent.name).mkdir(exist_ok=True)
        shutil.copyfile(file, to / file.parent.name / file.name)


def _warn_of_tokenizer(folder: Path) -> None:
    """Says where transformers will read the folder's tokenizer otherwise than the run did."""
    if not (folder / tokenizer_lib.FILE_NAME).exists():
        return
    difference = tokenizer_lib.differs_in_transformers(folder, load_tokenizer(folder))
    if difference:
        print(f"note: {difference}", file=sys.stderr)


def _set_template(folder: Path, text: str) -> None:
    """Makes `text` the chat template of an exported tokenizer, in every place where one is read.

    Readers differ in which place comes first, so none may keep the old one. That goes to
    additional_chat_templates, where transformers offers it by the name "source", with those that
    tokenizer_config.json had by other names.
    """
    file = folder / "chat_template.jinja"
    settings_file = folder / "tokenizer_config.json"
    settings = files.read_json(settings_file) if settings_file.exists() else {}
    held = settings.get("chat_template")
    for name, template in _held_templates(held, file).items():
        additional = folder / ADDITIONAL_TEMPLATES / f"{Path(name).name}.jinja"
        if template != text and not additional.exists():
            additional.parent.mkdir(exist_ok=True)
            additional.write_text(template, encoding="utf-8")
    file.write_text(text, encoding="utf-8")
    if held is not None:
        write_json(settings_file, settings | {"chat_template": text})


def _held_templates(held: str | list[dict[str, str]] | None, file: Path) -> dict[str, str]:
    """Name -> template, of those in the settings and in the file; the default one is `source`."""
    templates = {}
    if isinstance(held, str):
        templates["source"] = held
    elif isinstance(held, list):
        for entry in held:
            name = entry["name"]
            if name == "default":
                name = "source"
            templates[name] = entry["template"]
    if file.exists():
        templates["source"] = file.read_text(encoding="utf-8")
    return templates
