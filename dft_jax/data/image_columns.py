"""The images that a row holds: in parts of its messages, or in a column and marks in its text.

An image is a path, bytes, {"bytes", "path"} as `datasets` has it (of which the bytes count), or
base64: under the key `base64` of a part, or as `data:image/png;base64,…`. Nothing is fetched.
"""

import re
from typing import Any

from dft_jax.data import images
from dft_jax.data.image_files import ImageFile
from dft_jax.data.messages import IMAGE, Message, Part, content_of, parts_of, text_part
from dft_jax.data.sources.rows import BadRow
from dft_jax.runtime.options import Config

COLUMN = "images"  # of conversations
WITH_FIELD = ("fields", "alpaca")  # row formats whose images are under data.image_field
# What stands in the text of a conversation for an image of the column, as in LLaMA-Factory's rows.
MARK = "<image>"
_MARKED = re.compile(f"({re.escape(MARK)})")
_BASE64 = re.compile(r"data:image/[\w.+-]+;base64,")
# Keys of an image part under which the image itself may stand.
_KEYS = ("image", "path", "url", "bytes", "base64")
_MOST_OF_A_PATH = 1000  # characters
_SHOULD = "a path, bytes, or an object with bytes and path"


def column_of(config: Config) -> str:
    """The column that the row format takes images from; empty where it reads none.

    `config` is `config.data`.
    """
    if config.rows in ("messages", "sharegpt"):
        return COLUMN
    if config.rows in WITH_FIELD:
        # Runs that are older than a key have none.
        return config.get("image_field", "")
    return ""


def in_column(row: dict[str, Any], column: str) -> list[ImageFile]:
    """The images of a column, which holds one or a list of them, or nothing.

    Raises:
      BadRow: something there is no image.
    """
    value = row.get(column)
    if value is None or value in ("", "[]"):
        return []
    if not isinstance(value, list):
        return [_image(value, column)]
    return [_image(one, f"{column}[{number}]") for number, one in enumerate(value)]


def part(given: dict[str, Any], says: set[str], number: int) -> Part:
    """A part of type `image` or `image_url` of message `number`; one without an image stands for
    the next one of the column.

    Args:
      says: the keys of the part that say something.

    Raises:
      BadRow: more than one image, something that is none, or a key that would be lost.
    """
    name = f"the image of message {number}"
    says = says - {"type"}
    if given["type"] == "image_url":
        address = given.get("image_url")
        if isinstance(address, dict) and address.keys() == {"url"}:
            address = address["url"]
        if says != {"image_url"} or not isinstance(address, str):
            raise BadRow(
                f"{name} should be {{'type': 'image_url', 'image_url': {{'url': …}}}}, and has"
                f" {', '.join(sorted(says)) or 'nothing'}; remove what is more"
            )
        return {"type": "image", "image": _image(address, name)}
    if not says:
        return IMAGE
    [key, *more] = sorted(says, key=lambda key: key not in _KEYS)
    if more or key not in _KEYS:
        raise BadRow(
            f"{name} has {', '.join(sorted(says))}; one of {', '.join(_KEYS)} is read, and what is"
            " more would be lost; remove it"
        )
    if key == "base64":
        if not isinstance(given[key], str):
            raise BadRow(f"{name} has {type(given[key]).__name__} under 'base64', not text; fix it")
        return {"type": "image", "image": ImageFile(name, images.from_base64(given[key]))}
    return {"type": "image", "image": _image(given[key], name)}


def refuse_of_others(role: str, parts: list[Part], number: int) -> None:
    """BadRow where message `number` has an image and is not the user's."""
    if role != "user" and any(one["type"] == "image" for one in parts):
        raise BadRow(
            f"message {number} (of the {role}) has an image, and only users show some; remove it,"
            " or the row"
        )


def before_question(pair: list[Message], files: list[ImageFile]) -> list[Message]:
    """A question and its answer with the images before the question, or where its marks are."""
    asked, answer = pair
    if files and MARK not in asked["content"]:
        asked = asked | {"content": [*[IMAGE] * len(files), text_part(asked["content"])]}
    return placed([asked, answer], files)


def placed(conversation: list[Message], files: list[ImageFile]) -> list[Message]:
    """The conversation with the images of its column where they belong.

    Those places are parts without an image of their own and, where the column holds something,
    marks in the text: else a mark is text like any other.

    Raises:
      BadRow: not as many places as images, or an image in a turn that is not the user's.
    """
    n_places = 0
    found = []
    for number, message in enumerate(conversation):
        parts = parts_of(message)
        if files:
            parts = _split_at_marks(parts)
        filled = []
        for one in parts:
            if one == IMAGE:
                # Counted to the end, so that the message has both numbers.
                if n_places < len(files):
                    one = IMAGE | {"image": files[n_places]}
                n_places += 1
            filled.append(one)
        refuse_of_others(message["role"], filled, number)
        found.append(message | {"content": content_of(filled)})
    if n_places != len(files):
        raise BadRow(
            f"{n_places} places for images ({MARK} in a text, or parts of type image that hold"
            f" none), but the row has {len(files)} to put there; fix one of them"
        )
    return found


def _split_at_marks(parts: list[Part]) -> list[Part]:
    """The parts with their texts cut at each mark, which becomes a place for an image."""
    found = []
    for one in parts:
        if one["type"] != "text":
            found.append(one)
            continue
        for piece in _MARKED.split(one["text"]):
            if piece == MARK:
                found.append(IMAGE)
            elif piece:
                found.append(text_part(piece))
    return found or [text_part("")]


def _image(value: Any, name: str) -> ImageFile:
    """An image in any of its spellings; `name` is what messages call one without a path."""
    if isinstance(value, bytes):
        return ImageFile(name, value)
    if isinstance(value, str) and value:
        return _of_text(value, name)
    if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:
        content, path = value.get("bytes"), value.get("path")
        if isinstance(content, bytes):
            return ImageFile(path or name, content)
        if content is None and isinstance(path, str) and path:
            return _of_text(path, name)
    raise BadRow(f"{name} is {type(value).__name__} without an image; it should be {_SHOULD}")


def _of_text(text: str, name: str) -> ImageFile:
    """A path, or base64 that says that it is some."""
    base64 = _BASE64.match(text)
    if base64 is not None:
        return ImageFile(name, images.from_base64(text[base64.end() :]))
    images.refuse_address(text)
    if len(text) > _MOST_OF_A_PATH:
        raise BadRow(
            f"{name} is a text of {len(text):,} characters, too long for a path; base64 stands"
            " under 'base64' of a part, or after 'data:image/png;base64,'"
        )
    return ImageFile(text)
