"""nll, p and entropy of demonstrations under one model, and how they are printed."""

import itertools
from typing import Any

from dft_jax.data.batches import row_length
from dft_jax.data.examples import Examples
from dft_jax.lm.language_model import LM
from dft_jax.losses import objectives
from dft_jax.models.model import matmul_precision, with_attention
from dft_jax.runtime.options import Config
from dft_jax.training import metrics
from dft_jax.training.heldout import HeldOut

# Characters of the bar of a share of 1.
_BAR = 60


def measure(lm: LM, examples: Examples, config: Config) -> dict[str, Any]:
    """The held-out metrics of a run, by name, as metrics.jsonl has them; losses in nats.

    `config` is what the examples were read by. Their images are seen, where they have some.
    """
    if examples.have_images:
        lm = lm.with_images()
    # SFT's loss is the nll, whatever the model was trained with.
    with matmul_precision(str(lm.model.module.compute_dtype)):
        model = with_attention(lm.model, config.model.attention)
        sft, length = objectives.make_objective("sft"), row_length(config.data)
        heldout = HeldOut.of(config.train, length, model, sft, examples)
        return heldout.measure(lm.params)


def show(values: dict[str, Any]) -> None:
    """Prints each number, and the histogram of p as bars."""
    for name, value in values.items():
        if not isinstance(value, list):
            print(f"{name:32s} {value:.6g}")
    bins = itertools.pairwise(metrics.P_BIN_EDGES)
    for (low, high), share in zip(bins, values["heldout/p_histogram"], strict=True):
        print(f"  p in {low:6g} to {high:6g} {share:7.2%}  {'█' * round(_BAR * share)}")
