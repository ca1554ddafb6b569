"""Demonstrations scored token by token under one model, as heldout.json has it."""

import itertools
from pathlib import Path
from typing import Any

from dft_jax.analysis import reading
from dft_jax.data import account
from dft_jax.data.batches import row_length
from dft_jax.data.examples import Examples
from dft_jax.lm.language_model import LM
from dft_jax.losses import objectives
from dft_jax.models.model import matmul_precision, with_attention
from dft_jax.runtime import distributed, environment, files, folders, processes
from dft_jax.runtime.options import Config
from dft_jax.training import metrics
from dft_jax.training.heldout import HeldOut

NAME = "heldout.json"
# Characters of the bar of a share of 1.
_BAR = 60


def write(lm: LM, data: str, asked: reading.Reading, out: Path) -> None:
    """Writes nll, p and entropy of the completions in `data` to `out`, and prints them.

    Raises:
      UserError: data that cannot be read, or a folder that cannot be written.
    """
    config = reading.config_for({"model": lm}, asked)
    # A process that cannot read the file ends all of them, instead of leaving them to wait.
    with distributed.together("held out"):
        examples = reading.read(data, lm, config, split="test")
    distributed.agree("held out", {"heldout_data_sha256": examples.report["sha256"]})
    with folders.locked(out, "--out"):
        account.tell("--heldout", examples.report, "--context")
        values = _measure(lm, examples, config)
        report = {
            "model": lm.identify(),
            "evaluated": lm.what,
            "prompt": config.data.template,
            "date": config.data.date,
            "trained_with": lm.trained,
            "metrics": values,
            "p_bin_edges": metrics.P_BIN_EDGES,
            "data": examples.report,
            "environment": environment.describe(),
        }
        files.write_json(out / NAME, report)
    if processes.is_first():
        _print(values)


def _measure(lm: LM, examples: Examples, config: Config) -> dict[str, Any]:
    # SFT's loss is the nll, whatever the model was trained with.
    with matmul_precision(str(lm.model.module.compute_dtype)):
        model = with_attention(lm.model, config.model.attention)
        sft, length = objectives.make_objective("sft"), row_length(config.data)
        heldout = HeldOut.of(config.train, length, model, sft, examples)
        return heldout.measure(lm.params)


def _print(values: dict[str, Any]) -> None:
    for name, value in values.items():
        if not isinstance(value, list):
            print(f"{name:32s} {value:.6g}")
    bins = itertools.pairwise(metrics.P_BIN_EDGES)
    for (low, high), share in zip(bins, values["heldout/p_histogram"], strict=True):
        print(f"  p in {low:6g} to {high:6g} {share:7.2%}  {'█' * round(_BAR * share)}")
