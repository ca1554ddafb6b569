"""Shows what a config trains on: the account of the data, and packed rows with trained tokens.

python -m dft_jax.analysis.inspect_data --config=configs/tiny.py --rows=2

With --contamination=NAME,… also which rows share text with the problems of these benchmarks.
"""

import json
import os

# Before JAX is imported: nothing here needs an accelerator, which may be busy.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from absl import flags

from dft_jax import config as config_lib
from dft_jax.analysis import contamination, packed_rows
from dft_jax.commands import cli
from dft_jax.data import account, batches, formats
from dft_jax.data.examples import Examples
from dft_jax.lm.checkpoint import open_config
from dft_jax.runtime import errors
from dft_jax.runtime.options import Config
from dft_jax.training.inputs import length_of, load_data

_CONFIG = cli.define_config()
_ROWS = flags.DEFINE_integer("rows", 2, "Packed rows to show.", lower_bound=1)
_CONTAMINATION = flags.DEFINE_list(
    "contamination",
    [],
    "Benchmarks, separated by commas: which rows share text with their problems.",
)
# dft_jax.evaluate has the flag too, and one process may import both.
_BENCHMARK_DATA = flags.DEFINE_string(
    "benchmark_data",
    "",
    "The benchmark's file, or a folder of them; by default the hub.",
    allow_override=True,
)


def main() -> None:
    cli.parse(required=["config"])
    problems = contamination.load(_CONTAMINATION.value, _BENCHMARK_DATA.value)
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
    overlaps = []
    for name, asked in problems.items():
        overlaps.append(contamination.overlap(name, asked, examples, tokenizer))
    report = examples.report
    if overlaps:
        report = report | {"contamination": [one.report() for one in overlaps]}
    print(json.dumps(report, indent=2))
    _print_report(config, examples, heldout)
    for one in overlaps:
        print("\n".join(one.lines()))
    print(
        f"\nstep 0 packs {config.train.global_batch} examples into {step.n_rows} rows,"
        f" {step.efficiency:.1%} full"
    )
    # The one micro-batch of the step.
    batch = jax.tree.map(lambda x_ABL: x_ABL[0], step.batch)
    for row in range(min(_ROWS.value, step.n_rows)):
        heading = f"{packed_rows.DIM}══ row {row}{packed_rows.PLAIN}"
        print(f"\n{heading}\n{packed_rows.row_as_text(batch, row, tokenizer)}")


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
