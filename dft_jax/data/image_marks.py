"""What stands for an image in the text of a prompt, before its token is repeated."""

from dft_jax.data.sources.rows import BadRow
from dft_jax.models.hf.tokenizer import Tokenizer
from dft_jax.models.spec import VisionSpec
from dft_jax.runtime import errors

NO_TOWER = (
    "the row has an image, and nothing here reads one: give a model with images, or remove the row"
)


def mark_of(tokenizer: Tokenizer, vision: VisionSpec | None) -> str:
    """The text of three tokens: one image, between those that begin and end it.

    Raises:
      BadRow: the model reads no images.
      UserError: the tokenizer has no text that is these tokens.
    """
    if vision is None:
        raise BadRow(NO_TOWER)
    ids = [vision.start_token, vision.image_token, vision.end_token]
    text = tokenizer.decode(ids)
    if tokenizer.encode(text) != ids:
        raise errors.UserError(
            f"the tokenizer has no text for the tokens {ids}, which begin, are and end an image by"
            " config.json; copy the model's own tokenizer files"
        )
    return text
