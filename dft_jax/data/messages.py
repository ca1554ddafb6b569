"""The messages of a conversation, as row formats make them and templates render them."""

from typing import Any

from dft_jax.data.image_files import ImageFile

# {"role": "system" | "user" | "assistant", "content": text}, and ONLY_READ: True in an answer that
# the model reads as context of later turns and is not trained on. Of a message with images the
# content is a list of parts in their order: {"type": "text", "text": text} and {"type": "image",
# "image": ImageFile}. Templates get these parts without the files: {"type": "image"}.
Message = dict[str, Any]
Part = dict[str, Any]
ONLY_READ = "only_read"
IMAGE: Part = {"type": "image"}


def text_part(text: str) -> Part:
    """A part of a message's content that is text."""
    return {"type": "text", "text": text}


def content_of(parts: list[Part]) -> str | list[Part]:
    """Parts as the content of a message: one text where there is no image."""
    if any(part["type"] == "image" for part in parts):
        return parts
    return "".join(part["text"] for part in parts)


def parts_of(message: Message) -> list[Part]:
    """The content of a message as parts; one of text, where it is text."""
    content = message["content"]
    if isinstance(content, str):
        return [text_part(content)]
    return content


def texts_of(message: Message) -> list[str]:
    """The texts of a message, in order: more than one only where images stand between."""
    return [part["text"] for part in parts_of(message) if part["type"] == "text"]


def text_of(message: Message) -> str:
    """The text of a message, without its images."""
    return "".join(texts_of(message))


def images_of(messages: list[Message]) -> list[ImageFile]:
    """The images of a conversation, in order."""
    found = []
    for message in messages:
        found += [part["image"] for part in parts_of(message) if part["type"] == "image"]
    return found


def n_images(message: Message) -> int:
    """How many images a message has, whether or not it holds their files."""
    return sum(part["type"] == "image" for part in parts_of(message))


def question(text: str, images: int = 0) -> Message:
    """One question after so many images."""
    return {"role": "user", "content": content_of([*[IMAGE] * images, text_part(text)])}


def as_shown(message: Message) -> Message:
    """What a template sees of a message: its role and its content, without the files of images."""
    parts = []
    for part in parts_of(message):
        parts.append(IMAGE if part["type"] == "image" else part)
    return {"role": message["role"], "content": content_of(parts)}


def with_line(message: Message, line: str) -> Message:
    """The message with a line more at the end of its text."""
    parts = parts_of(message)
    if parts[-1]["type"] == "image":
        parts = [*parts, text_part("")]
    *earlier, last = parts
    last = text_part(f"{last['text']}\n{line}")
    return message | {"content": content_of([*earlier, last])}


def is_only_read(message: Message) -> bool:
    """Whether an answer is there for those after it, and not trained."""
    return message.get(ONLY_READ, False)
