"""Shows what a config trains on: the account of the data, and packed rows with trained tokens.

python -m dft_jax.analysis.inspect_data --config=configs/tiny.py --rows=2
"""

import json
import os

# Before JAX is imported: nothing here needs an accelerator, which may be busy.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from absl import flags

from dft_jax import config as config_lib
from dft_jax.commands import cli
from dft_jax.data import account, batches, formats
from dft_jax.data.examples import Examples
from dft_jax.lm.checkpoint import open_config
from dft_jax.models.hf.tokenizer import Tokenizer
from dft_jax.runtime import errors
from dft_jax.runtime.options import Config
from dft_jax.training.inputs import length_of, load_data
from dft_jax.types import Batch

_CONFIG = cli.define_config()
_ROWS = flags.DEFINE_integer("rows", 2, "Packed rows to show.", lower_bound=1)

# What a terminal obeys: black on green, plain again, and dim.
_TRAINED = "\033[30;42m"
_PLAIN = "\033[0m"
_DIM = "\033[2m"


def row_as_text(batch: Batch, row: int, tokenizer: Tokenizer) -> str:
    """One packed row for a terminal: a heading per example, its trained targets on green.

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
        lines.append(f"{_DIM}── example {segment}: {counts}{_PLAIN}")
        lines.append(_highlighted(ids, trained, tokenizer))
    padding = int((segments_L == 0).sum())
    lines.append(f"{_DIM}── padding: {padding} of {len(segments_L)} positions{_PLAIN}")
    return "\n".join(lines)


def _highlighted(ids: np.ndarray, trained: np.ndarray, tokenizer: Tokenizer) -> str:
    """The text of the ids, the trained ones on green.

    Runs of tokens are decoded together, so that characters of several tokens are whole.
    """
    changes = np.flatnonzero(np.diff(trained)) + 1
    parts = []
    runs = zip(np.split(ids, changes), np.split(trained, changes), strict=True)
    for ids_of_run, trained_of_run in runs:
        text = tokenizer.decode(ids_of_run)
        if trained_of_run[0]:
            text = f"{_TRAINED}{text}{_PLAIN}"
        parts.append(text)
    return "".join(parts)


def main() -> None:
    cli.parse(required=["config"])
    config: Config = _CONFIG.value
    config.mesh.update(data=-1, fsdp=1, tensor=1)
    # The rows do not depend on the weights, so they need not be here.
    config.model.init = "random"
    errors.raise_if_any(config_lib.validate_on(config, jax.device_count()))
    _, model, tokenizer = open_config(config)
    examples, heldout = load_data(config, tokenizer, model)
    step = batches.TrainBatches(
        examples,
        model.mesh,
        steps=1,
        accumulation=1,
        global_batch=config.train.global_batch,
        seed=config.train.seed,
        row_length=batches.row_length(config.data),
    )[0]
    print(json.dumps(examples.report, indent=2))
    _print_report(config, examples, heldout)
    print(
        f"\nstep 0 packs {config.train.global_batch} examples into {step.n_rows} rows,"
        f" {step.efficiency:.1%} full"
    )
    # The one micro-batch of the step.
    batch = jax.tree.map(lambda x_ABL: x_ABL[0], step.batch)
    for row in range(min(_ROWS.value, step.n_rows)):
        print(f"\n{_DIM}══ row {row}{_PLAIN}\n{row_as_text(batch, row, tokenizer)}")


def _print_report(config: Config, examples: Examples, heldout: Examples | None) -> None:
    """What a run would say of its data, and whether it would refuse it."""
    marks = formats.calculator_marks(config.data)
    if marks:
        print(marks)
    account.tell("data.train", examples.report)
    if heldout:
        account.tell("data.heldout", heldout.report)
    length = length_of(config, examples)
    warnings = length.warnings()
    for line in account.refusals("data.train", examples.report, config.data.max_lost_fraction):
        warnings.append(f"training refuses this: {line}")
    account.announce([length.line()], warnings)


if __name__ == "__main__":
    errors.exit_on_user_error(main)()
