"""Shows what a config trains on: the account of the data and a few packed rows, trained tokens
highlighted.

python -m dft_jax.analysis.inspect_data --config=configs/tiny.py --rows=2
"""

import json
import os

from dft_jax.data import batches

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing here needs an accelerator that may be busy

import jax
import numpy as np
from absl import flags

from dft_jax import config as config_lib
from dft_jax.commands import cli
from dft_jax.data import account, formats
from dft_jax.lm import open_config
from dft_jax.runtime import errors
from dft_jax.training.inputs import length_of, load_data
from dft_jax.types import Batch

_CONFIG = cli.define_config()
_ROWS = flags.DEFINE_integer("rows", 2, "Packed rows to show.", lower_bound=1)

_TRAINED, _PLAIN, _DIM = "\033[30;42m", "\033[0m", "\033[2m"


def row_as_text(batch: Batch, row: int, tokenizer) -> str:
    """One packed row for a terminal: a heading per example, its trained targets on green.

    A token is shown where it is a target; the first of each example is only read.
    """
    tokens_L, targets_L, mask_L, segments_L = (
        np.asarray(x)[row]
        for x in (batch.tokens_BL, batch.targets_BL, batch.mask_BL, batch.segments_BL)
    )
    lines = []
    for segment in range(1, segments_L.max() + 1):
        here = segments_L == segment
        ids = np.concatenate([tokens_L[here][:1], targets_L[here]])
        trained = np.concatenate([[False], mask_L[here]])
        changes = np.flatnonzero(np.diff(trained)) + 1
        runs = zip(np.split(ids, changes), np.split(trained, changes), strict=True)
        text = "".join(
            f"{_TRAINED}{tokenizer.decode(run)}{_PLAIN}"
            if flags_of_run[0]
            else tokenizer.decode(run)
            for run, flags_of_run in runs
        )
        lines.append(
            f"{_DIM}── example {segment}: {here.sum()} positions, {trained.sum()} trained{_PLAIN}\n{text}"
        )
    padding = int((segments_L == 0).sum())
    return "\n".join(
        [*lines, f"{_DIM}── padding: {padding} of {len(segments_L)} positions{_PLAIN}"]
    )


def main() -> None:
    cli.parse(required=["config"])
    config = _CONFIG.value
    config.mesh.update(data=-1, fsdp=1, tensor=1)
    config.model.init = "random"  # the rows do not depend on the weights, so they need not be here
    errors.raise_if_any(config_lib.validate_on(config, jax.device_count()))
    _, model, tokenizer = open_config(config)
    examples, heldout = load_data(config, tokenizer, model)
    settings = dict(global_batch=config.train.global_batch, seed=config.train.seed)
    settings |= dict(row_length=batches.row_length(config.data))
    step = batches.TrainBatches(examples, model.mesh, steps=1, accumulation=1, **settings)[0]
    reports = {"train": examples.report} | ({"heldout": heldout.report} if heldout else {})
    print(json.dumps(examples.report, indent=2))
    marks = formats.calculator_marks(config.data)
    if marks:
        print(marks)
    for name, report in reports.items():
        account.tell(f"data.{name}", report)
    length = length_of(config, len(examples))
    refused = account.refusals("data.train", examples.report, config.data.max_lost_fraction)
    refused = [f"training refuses this: {line}" for line in refused]
    account.announce([length.line()], length.warnings() + refused)
    print(
        f"\nstep 0 packs {config.train.global_batch} examples into {step.n_rows} rows, {step.efficiency:.1%} full"
    )
    batch = Batch(*(getattr(step.batch, name)[0] for name in Batch.__dataclass_fields__))
    for row in range(min(_ROWS.value, step.n_rows)):
        print(f"\n{_DIM}══ row {row}{_PLAIN}\n{row_as_text(batch, row, tokenizer)}")


if __name__ == "__main__":
    errors.exit_on_user_error(main)()
