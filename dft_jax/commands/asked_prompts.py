"""What the flags of a command ask to be completed: a prompt, or those of a file."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dft_jax.data import formats
from dft_jax.data.columns import says_nothing
from dft_jax.data.messages import Message
from dft_jax.data.sources import files, locate
from dft_jax.data.sources.rows import BadRow, has_half_pair, require_text
from dft_jax.runtime import errors
from dft_jax.runtime.files import named
from dft_jax.sampling.image_prompts import asked, file_at

_ROLES = ("system", "user", "assistant")
# Fields of a row that would be part of its prompt, and have no place in what is asked.
_BESIDE_PROMPT = (*formats.NOT_TEXT, *"system tools functions documents".split())


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A conversation to be completed; what names it in the output."""

    id: str
    messages: tuple[Message, ...]


def not_utf8(flag: str, texts: Sequence[str]) -> list[str]:
    """A line for each of a flag's texts that a command line has in another encoding."""
    return [f"--{flag}={text!r} is not UTF-8; write it so" for text in texts if has_half_pair(text)]


def absent(file: str) -> list[str]:
    """A line for a --file that is not there."""
    if named(file).is_file():
        return []
    return [f"--file={file}: no such file (looked from {Path.cwd()}); correct the path"]


def read_prompts(
    prompt: str | None, file: str | None, system: str, images: Sequence[str] = ()
) -> list[Prompt]:
    """The prompts that the flags give, each after the message `system`, if that says anything.

    Args:
      images: paths of those that are shown before `prompt`.

    Raises:
      UserError: a file that cannot be read, or rows that are no prompts.
    """
    if prompt is not None:
        shown = [file_at(image) for image in images]
        return [Prompt("prompt", _after(system, [asked(prompt, shown)]))]
    assert file is not None
    path = named(file)
    if path.suffix not in files.ENDINGS:
        remedy = "give a text in UTF-8, or JSON lines"
        kinds = (OSError, UnicodeDecodeError)
        with errors.user_errors(f"--file={file} cannot be read", remedy, kinds):
            # Without the mark that some editors put before all.
            text = path.read_text(encoding="utf-8-sig")
        if not text.strip():
            raise errors.UserError(f"--file={file} is empty; write the prompt there")
        return [Prompt(path.name, _after(system, [{"role": "user", "content": text}]))]
    found: list[Prompt] = []
    mistakes = []
    for row in locate.read_rows(str(path), ConfigDict(), split=""):
        try:
            found.append(_prompt(row.value, row.origin, system))
        except BadRow as error:
            mistakes.append(f"{row.origin}: {error}")
    errors.raise_if_any(mistakes)
    if not found:
        raise errors.UserError(f"--file={file} has no rows; write one prompt per line")
    return found


def _prompt(row: dict[str, Any], origin: str, system: str) -> Prompt:
    """The prompt of a row; BadRow where there is none."""
    name = row.get("id", origin)
    if isinstance(name, bool) or not isinstance(name, (str, int)):
        raise BadRow(f"field 'id' should be text or a number, not {name!r}")
    has_both = "prompt" in row and "messages" in row
    if has_both or not ("prompt" in row or "messages" in row):
        has = ", ".join(repr(field) for field in sorted(row)) or "no fields"
        raise BadRow(f"a row has either 'prompt' or 'messages'; this one has {has}")
    for field in _BESIDE_PROMPT:
        if not says_nothing(field, row.get(field)):
            raise BadRow(
                f"field {field!r} is not read, and without it the prompt is another; remove it"
                " (--image shows pictures before --prompt; a system's text is one of 'messages')"
            )
    if "messages" in row:
        return Prompt(str(name), _after(system, _conversation(row["messages"])))
    text = row["prompt"]
    if not isinstance(text, str) or not text:
        raise BadRow("field 'prompt' should be text that says something")
    require_text(text, "field 'prompt'")
    return Prompt(str(name), _after(system, [{"role": "user", "content": text}]))


def _conversation(messages: Any) -> list[Message]:
    """Messages that end with the user's."""
    if not isinstance(messages, list) or not messages:
        raise BadRow("field 'messages' should be a list of messages")
    found: list[Message] = []
    for number, message in enumerate(messages):
        what = f"message {number} should be"
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise BadRow(f"{what} an object with role and content, and nothing else")
        if message["role"] not in _ROLES:
            raise BadRow(f"{what} of {', '.join(_ROLES)}, not {message['role']!r}")
        if not isinstance(message["content"], str):
            raise BadRow(f"{what} text, not {type(message['content']).__name__}")
        require_text(message["content"], f"message {number}")
        found.append({"role": message["role"], "content": message["content"]})
    if found[-1]["role"] != "user":
        raise BadRow("the last message should be the user's: the model writes what follows")
    return found


def _after(system: str, messages: list[Message]) -> tuple[Message, ...]:
    """The messages after the system's text, if there is one, and they have none of their own."""
    if not system or messages[0]["role"] == "system":
        return tuple(messages)
    return ({"role": "system", "content": system}, *messages)
