"""A conversation as a model reads it: its tokens and its pictures, or what is wrong with it."""

import dataclasses
from collections.abc import Sequence

from dft_jax.data.image_files import Picture, look_at_all
from dft_jax.data.messages import Message, images_of, text_of
from dft_jax.data.sources.rows import BadRow, has_half_pair
from dft_jax.data.templates import Template
from dft_jax.lm.language_model import LM
from dft_jax.runtime import errors
from dft_jax.sampling import image_prompts

_SHOWN = 40  # characters of a question in a message


@dataclasses.dataclass(frozen=True)
class PromptTokens:
    """A prompt as a model reads it: ids with one for each unit of an image, and the images."""

    ids: tuple[int, ...]
    images: tuple[Picture, ...] = ()


def prompt_tokens(
    lm: LM, template: Template, messages: Sequence[Message], max_length: int
) -> PromptTokens:
    """A conversation as a prompt that leaves room for an answer.

    Args:
      lm: with its tower, where messages have images.
      template: made for `lm`, its tower included.

    Raises:
      UserError: the template cannot render it, or the model cannot read it, or it is too long; an
      image that cannot be read.
    """
    question = text_of(messages[-1])
    shown = repr(question)
    if len(question) > _SHOWN:
        shown = f"{question[:_SHOWN]!r}…"
    vision = lm.model.config.vision
    if any(has_half_pair(text_of(message)) for message in messages):
        what = "it holds half a surrogate pair, which is not text"
        raise errors.UserError(f"the prompt {shown}: {what}; write it in UTF-8")
    try:
        pictures = _looked_at(lm, messages)
        text = template.conversation(messages)
        short = (*template.first_ids, *lm.tokenizer.encode(text))
        ids = image_prompts.expanded(short, pictures, vision)
    except BadRow as error:
        raise errors.UserError(f"the prompt {shown}: {error}") from error
    vocab_size = lm.model.config.vocab_size
    if not ids:
        raise errors.UserError(f"the prompt {shown} has no tokens; give one that says something")
    if max(ids) >= vocab_size:
        what = f"token id {max(ids)} is beyond the model's {vocab_size} embeddings"
        remedy = "the tokenizer is not this model's; copy the model's own tokenizer files"
        raise errors.UserError(f"the prompt {shown}: {what}: {remedy}")
    if len(ids) >= max_length:
        what = f"a prompt of {len(ids)} tokens leaves no room within {max_length}"
        if pictures:
            n_tokens = len(ids) - len(short) + len(pictures)
            raise errors.UserError(
                f"{what}: {shown}; {n_tokens} are of its images: scale them down, or give a larger"
                " context"
            )
        raise errors.UserError(f"{what}: {shown}; shorten it")
    return PromptTokens(ids, pictures)


def _looked_at(lm: LM, messages: Sequence[Message]) -> tuple[Picture, ...]:
    """The images of a conversation, scaled as the checkpoint says; BadRow for the first bad one."""
    shown = images_of(list(messages))
    if not shown:
        return ()
    vision = lm.model.config.vision
    assert vision is not None, "messages with images are for models with a tower"
    geometry = image_prompts.geometry_of(lm.source, vision)
    return image_prompts.readable(look_at_all(shown, geometry))
