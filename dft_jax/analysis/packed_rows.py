"""Packed rows as text for a terminal, with what is trained in them highlighted."""

import numpy as np

from dft_jax.models.hf.tokenizer import Tokenizer
from dft_jax.types import Batch

# What a terminal obeys: black on green, plain again, and dim.
_TRAINED = "\033[30;42m"
PLAIN = "\033[0m"
DIM = "\033[2m"


def row_as_text(batch: Batch, row: int, tokenizer: Tokenizer, image_token: int = -1) -> str:
    """One packed row for a terminal: a heading per example, its trained targets on green.

    The tokens of an image, which are `image_token`, are shown as their number.

    A token is shown where it is a target; the first of each example is only read, so never green:

        tokens    a b | d
        targets   b c | e
        shown     a b c, d e
    """
    tokens_L = np.asarray(batch.tokens_BL)[row]
    targets_L = np.asarray(batch.targets_BL)[row]
    mask_L = np.asarray(batch.mask_BL)[row]
    segments_L = np.asarray(batch.segments_BL)[row]
    lines = []
    for segment in range(1, segments_L.max() + 1):
        is_here = segments_L == segment
        ids = np.concatenate([tokens_L[is_here][:1], targets_L[is_here]])
        trained = np.concatenate([[False], mask_L[is_here]])
        counts = f"{is_here.sum()} positions, {trained.sum()} trained"
        lines.append(f"{DIM}── example {segment}: {counts}{PLAIN}")
        lines.append(_highlighted(ids, trained, tokenizer, image_token))
    padding = int((segments_L == 0).sum())
    lines.append(f"{DIM}── padding: {padding} of {len(segments_L)} positions{PLAIN}")
    return "\n".join(lines)


def _highlighted(
    ids: np.ndarray, trained: np.ndarray, tokenizer: Tokenizer, image_token: int
) -> str:
    """The text of the ids, the trained ones on green.

    Runs of tokens are decoded together, so that characters of several tokens are whole.
    """
    # Tokens of an image are never trained, so these differ where either begins or ends.
    kinds = trained + 2 * (ids == image_token)
    changes = np.flatnonzero(np.diff(kinds)) + 1
    parts = []
    runs = zip(np.split(ids, changes), np.split(trained, changes), strict=True)
    for ids_of_run, trained_of_run in runs:
        text = tokenizer.decode(ids_of_run)
        if ids_of_run[0] == image_token:
            text = f"{DIM}[image: {len(ids_of_run):,} tokens]{PLAIN}"
        if trained_of_run[0]:
            text = f"{_TRAINED}{text}{PLAIN}"
        parts.append(text)
    return "".join(parts)
