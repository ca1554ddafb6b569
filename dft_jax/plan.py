"""What a config's training step takes of each device's memory, and what fits.

No weights, data or accelerator are needed:

python -m dft_jax.plan --config=configs/numina_qwen25_math.py:size=7b --device=h100 --devices=8

Parameters, moments and gradients have the shapes and shardings that training gives them. The rest
is found by walking the step that training would run, as JAX traces it for one device's share of
rows, heads and vocabulary (planner/memory.py), under each rematerialisation policy and for more
and more rows per micro-batch. The last line has the settings to use, or the choice that would make
it fit. How far this is from XLA's own account: experiments/planner.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing here needs an accelerator that may be busy

from absl import flags

from dft_jax.commands import cli
from dft_jax.planner import devices, report
from dft_jax.runtime import errors

_CONFIG = cli.define_config()
_DEVICE = flags.DEFINE_enum("device", None, list(devices.DEVICES_GIB), "What it is to run on.")
_DEVICES = flags.DEFINE_integer("devices", 1, "How many of them.", lower_bound=1)
_STEP_ROWS = flags.DEFINE_integer(
    "step_rows",
    None,
    "Packed rows of a step (data/rows in metrics.jsonl); by default one for each example.",
    lower_bound=1,
)


def main() -> None:
    cli.parse(required=["config", "device"])
    device = str(_DEVICE.value)
    for line in report.plan(_CONFIG.value, device, _DEVICES.value, _STEP_ROWS.value):
        print(line, flush=True)


if __name__ == "__main__":
    errors.exit_on_user_error(main)()
