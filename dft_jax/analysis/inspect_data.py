"""Shows what a config trains on: the account of the data, and packed rows with trained tokens.

python -m dft_jax.analysis.inspect_data --config=configs/tiny.py --rows=2

With --html=FILE also a page of the first examples of step 0, with their images.
With --contamination=NAME,… also which rows share text with the problems of these benchmarks.
"""

import json
import os
from pathlib import Path

# Before JAX is imported: nothing here needs an accelerator, which may be busy.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from absl import flags

from dft_jax import config as config_lib, sharding
from dft_jax.analysis import contamination, data_account, data_page, packed_rows
from dft_jax.commands import cli
from dft_jax.lm.checkpoint import open_config
from dft_jax.runtime import errors
from dft_jax.runtime.options import Config
from dft_jax.training.inputs import load_data, make_steps

_MOST_SHOWN = 64  # examples of step 0
_CONFIG = cli.define_config()
_ROWS = flags.DEFINE_integer("rows", 2, "Packed rows to show.", lower_bound=1)
_HTML = flags.DEFINE_string(
    "html", "", "A file to write: a page of the first examples of step 0, with their images."
)
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
    # On the devices that there are, whatever axes the run's own mesh has.
    config.mesh.update(sharding.Sizes(data=-1)._asdict())
    # The rows do not depend on the weights, so they need not be here; random ones are for models
    # all of whose parts are trained. These have no features that could be kept.
    config.model.init = "random"
    config.train.parts = "all"
    config.data.image_features = ""
    errors.raise_if_any(config_lib.validate_on(config, jax.device_count()))
    source, model, tokenizer = open_config(config)
    examples, heldout = load_data(config, source, tokenizer, model)
    first = config.copy_and_resolve_references()
    first.train.update(steps=1, accumulation=1)
    step = make_steps(first, examples, model)[0]
    overlaps = []
    if problems:
        overlaps = contamination.overlaps(problems, examples, tokenizer)
    report = examples.report
    if overlaps:
        report = report | {"contamination": [one.report() for one in overlaps]}
    print(json.dumps(report, indent=2))
    data_account.tell(config, examples, heldout)
    for one in overlaps:
        print("\n".join(one.lines()))
    print(
        f"\nstep 0 packs {config.train.global_batch} examples into {step.n_rows} rows,"
        f" {step.efficiency:.1%} full"
    )
    # The one micro-batch of the step.
    batch = jax.tree.map(lambda x_ABL: x_ABL[0], step.batch)
    image_token = model.config.vision.image_token if model.config.vision else -1
    for row in range(min(_ROWS.value, step.n_rows)):
        heading = f"{packed_rows.DIM}══ row {row}{packed_rows.PLAIN}"
        print(f"\n{heading}\n{packed_rows.row_as_text(batch, row, tokenizer, image_token)}")
    # The first examples of the step, with their images.
    place_of = {origin: place for place, origin in enumerate(examples.origins)}
    origins = step.origins[:_MOST_SHOWN]
    first = [examples.examples[place_of[origin]] for origin in origins]
    title = f"The first {len(first)} examples of step 0"
    images = data_page.lines(origins, first)
    if images:
        print("\n".join([f"\n{title}: images", *images]))
    if _HTML.value:
        data_page.write(Path(_HTML.value), title, origins, first, tokenizer)
        print(f"\n{title}: {_HTML.value}")


if __name__ == "__main__":
    errors.exit_on_user_error(main)()
