"""Tokens of demonstrations scored, for the public API."""

import dataclasses
from pathlib import Path

import numpy as np

from dft_jax.analysis import asked, reading, token_scores, trained_tokens
from dft_jax.api import given
from dft_jax.data import options as data_options
from dft_jax.data.templates import AUTO
from dft_jax.lm.language_model import LM
from dft_jax.runtime import progress


@dataclasses.dataclass(frozen=True)
class TokenScores:
    """The T trained tokens of some demonstrations under one model, in the order of the data."""

    ids_T: np.ndarray  # of the tokens
    example_T: np.ndarray  # the number of the example that each is of
    p_T: np.ndarray  # probability of each token
    entropy_T: np.ndarray  # of the distribution it was drawn from, in nats
    loss_T: np.ndarray  # -log p, in nats
    texts: list[str]  # of the tokens

    @property
    def nll(self) -> float:
        """Mean loss of a token, in nats."""
        return float(np.mean(self.loss_T, dtype=np.float64))

    def __repr__(self) -> str:
        mean_p = float(np.mean(self.p_T, dtype=np.float64))
        return f"TokenScores({len(self.p_T)} tokens, nll {self.nll:.4f}, mean p {mean_p:.4f})"


def score(
    lm: LM,
    data: str | Path,
    *,
    rows: str = "fields",
    template: str = AUTO,
    max_length: int = 4096,
    max_rows: int = 0,
    image_field: str = "",
    image_folder: str | Path = "",
    image_max_pixels: int = 0,
    show_progress: bool = True,
) -> TokenScores:
    """Probability, entropy and loss of every trained token of some demonstrations.

    Args:
      data: a file, a folder, a hub dataset, or world(…).
      rows: what a row means (data/formats.py).
      template: as in `sample`.
      max_length: tokens of an example, at most; longer ones are cut.
      max_rows: the first rows; 0 for all.
      image_field: the column of images before a prompt, of rows "fields" and "alpaca".
      image_folder: that paths of images are relative to; by default the folder of the data.
      image_max_pixels: larger images are scaled down; 0 for what training has by default.

    Raises:
      UserError: data that cannot be read, or no trained token in it.

    >>> scores = score(run.lm, "heldout.jsonl", rows="gsm8k")
    """
    how = asked.Reading(
        rows=rows,
        prompt=template,
        context=given.checked("max_length", max_length, data_options.SECTION["max_length"]),
        max_rows=given.checked("max_rows", max_rows, data_options.SECTION["max_rows"]),
        image_field=image_field,
        image_folder=str(image_folder),
        image_max_pixels=image_max_pixels,
    )
    config = reading.config_for({"model": lm}, how)
    examples = reading.read(str(data), lm, config)
    with progress.silent(not show_progress):
        found = token_scores.score(lm, examples, config, lm.name)
    tokens = trained_tokens.tokens(examples)
    texts = [lm.tokenizer.decode([int(id_)]) for id_ in tokens.id_T]
    return TokenScores(
        tokens.id_T, tokens.example_T, found.p_T, found.entropy_T, -found.logp_T, texts
    )
