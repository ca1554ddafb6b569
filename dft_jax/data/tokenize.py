"""Conversations to token ids and a loss mask: the whole text is tokenised at once.

Part by part the ids would be others than those that a model reads: SentencePiece puts a space
before every part (an answer "Yes" becomes " Yes"), and "." at the end of an answer and "\\n" after
it are one token in many vocabularies. So the mask comes from where each trained part begins and
ends in the whole:

- It *begins* after the tokens of all text before it, tokenised by itself: that is the prompt as
  it is sampled from. If the whole does not begin with these very tokens (the prompt's last "\\n"
  and the answer's first are one token), then the model would be trained on a prompt that it never
  gets, and the row is refused.
- It *ends* with the last token that begins in it: a token "." + "\\n" is what has to be written to
  end an answer there.

In the text an image is one token; its copies, one for each unit, are made of the ids.
"""

import bisect
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from dft_jax.data.image_files import Picture
from dft_jax.data.image_rows import Grid, expand
from dft_jax.data.sources.rows import BadRow
from dft_jax.data.templates import Example, Part
from dft_jax.models.hf.tokenizer import Tokenizer
from dft_jax.models.spec import VisionSpec

_SHOWN = 40  # characters of an answer in a message


def tokenize(
    conversations: Sequence[list[Part]],
    tokenizer: Tokenizer,
    first_ids: list[int],
    max_length: int,
    pictures: Sequence[Sequence[Picture]] = (),
    vision: VisionSpec | None = None,
) -> list[Example | BadRow]:
    """An example of each conversation, or what is wrong with it.

    Args:
      first_ids: stand before every text, untrained: BOS, or nothing.
      max_length: tokens of an example. One that is cut gets no EOS: its answer does not end there.
      pictures: the images of each conversation, for a model that reads some.
      vision: of such a model.
    """
    texts = []
    spans = []
    prompts = []  # the text before each trained part
    for parts in conversations:
        text = "".join(part.text for part in parts)
        text_spans = _trained_spans(parts)
        texts.append(text)
        spans.append(text_spans)
        for start, _ in text_spans:
            prompts.append(text[:start])
    # All of them at once, because the tokenizer has threads.
    encodings = tokenizer.encode_batch([*texts, *prompts])
    text_encodings = encodings[: len(texts)]
    prompt_encodings = iter(encodings[len(texts) :])
    examples: list[Example | BadRow] = []
    for number, (text, encoding) in enumerate(zip(texts, text_encodings, strict=True)):
        prompt_ids = [next(prompt_encodings).ids for _ in spans[number]]
        try:
            trained = _mask(text, encoding, spans[number], prompt_ids, tokenizer)
            ids = np.array(first_ids + encoding.ids, np.int32)
            trained = np.concatenate([np.zeros(len(first_ids), bool), trained])
            if vision is not None:
                grids = [picture.grid for picture in pictures[number]]
                ids, trained = _with_units(ids, trained, grids, vision)
        except BadRow as error:
            examples.append(error)
            continue
        # Cut on the right: the prompt is what the answer's first tokens are sampled from.
        cut = max(0, len(ids) - max_length)
        lost = tokenizer.without_token(text, encoding.ids)
        example = Example(ids[:max_length], trained[:max_length], cut, len(text), lost)
        if vision is not None:
            example = dataclasses.replace(
                example, images=tuple(pictures[number]), image_token=vision.image_token
            )
        examples.append(example)
    return examples


def _with_units(
    ids: np.ndarray, trained: np.ndarray, grids: list[Grid], vision: VisionSpec
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask with the token of each image once for each of its units.

    Raises:
      BadRow: as `image_rows.expand`; or an answer holds such a token, which is never written.
    """
    expanded = expand(ids, grids, vision)
    is_image = ids == vision.image_token
    if trained[is_image].any():
        raise BadRow(
            "an answer holds the token that stands for an image, which a model reads and never"
            " writes; take it out of the text"
        )
    mask = np.zeros(len(expanded), bool)
    mask[expanded != vision.image_token] = trained[~is_image]
    return expanded, mask


def _trained_spans(parts: list[Part]) -> list[tuple[int, int]]:
    """(start, end) in characters of each trained part."""
    spans = []
    start = 0
    for part in parts:
        end = start + len(part.text)
        if part.trained:
            spans.append((start, end))
        start = end
    return spans


def _mask(
    text: str,
    encoding: Any,
    spans: list[tuple[int, int]],
    prompts: list[list[int]],
    tokenizer: Tokenizer,
) -> np.ndarray:
    """Which tokens of a text are trained, [n] of bool.

    Args:
      encoding: the whole text's, with `ids` and `offsets` in characters.
      spans: (start, end) in characters of each trained part.
      prompts: the ids of the text before each span, tokenised by itself.
    """
    ids = encoding.ids
    trained = np.zeros(len(ids), bool)
    for (start, end), prompt_ids in zip(spans, prompts, strict=True):
        n_prompt = len(prompt_ids)
        if ids[:n_prompt] != prompt_ids:
            raise BadRow(_merged(ids, prompt_ids, tokenizer))
        last = len(ids)
        if end < len(text):
            # Tokens lie in the order of their text: the first that begins behind the part.
            last = bisect.bisect_left(encoding.offsets, end, key=lambda offsets: offsets[0])
        _require_readable(text[start:end], ids[n_prompt:last], tokenizer)
        trained[n_prompt:last] = True
    return trained


def _require_readable(answer: str, ids: list[int], tokenizer: Tokenizer) -> None:
    """BadRow where the tokenizer has no token for anything that an answer says.

    What is left of it then is the end of the turn, a token of its own, and the model would learn to
    say nothing.
    """
    lost = tokenizer.without_token(answer, ids)
    if not lost:
        return
    left = tokenizer.decode(id_ for id_ in ids if id_ not in tokenizer.added_ids)
    if not left.strip():
        shown = lost
        if len(lost) > _SHOWN:
            shown = f"{lost[: _SHOWN - 1]}…"
        raise BadRow(
            f"the tokenizer has no token for anything in the answer ({shown!r}); remove the row,"
            " set data.bad_rows='drop', or take a model whose tokenizer reads such text"
        )


def _merged(ids: list[int], prompt_ids: list[int], tokenizer: Tokenizer) -> str:
    """What is wrong where the ids of a whole text do not begin with those of its prompt."""
    differ = 0
    while differ < min(len(ids), len(prompt_ids)) and ids[differ] == prompt_ids[differ]:
        differ += 1
    alone = tokenizer.decode(prompt_ids[differ:])
    before_answer = tokenizer.decode(ids[differ : differ + 1])
    return (
        f"the prompt ends in the token {alone!r} by itself, but before this answer in"
        f" {before_answer!r}: the model would not be trained on the prompt that it is sampled from;"
        " begin the answer otherwise (without white space, say), or give a template that ends"
        " otherwise"
    )
