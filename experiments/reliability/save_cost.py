"""What the manifest costs: the time of its SHA-256 against that of the save itself, in the
background and at restart.

python -m experiments.reliability.save_cost --gb=1.5 --rounds=7
"""

import logging
import os
import pathlib
import shutil
import statistics
import tempfile
import time

from dft_jax.checkpoints import manager

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp

from dft_jax.checkpoints import manifest
from dft_jax.runtime import files
from dft_jax.types import TrainState
from experiments import common

OUT = pathlib.Path(__file__).with_name("save_cost.csv")


class Phases(logging.Handler):
    """When each phase of a save was logged."""

    def __init__(self):
        super().__init__()
        self.at: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.at[record.getMessage()] = time.perf_counter()


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--gb", type=float, default=1.5)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    side = int((options.gb * 1e9 / 4 / 12) ** 0.5)
    keys = jax.random.split(jax.random.key(0), 12)
    params = {
        f"layer{n}": jax.random.normal(key, (side, side)) for n, key in enumerate(keys)
    }  # noise: nothing to compress
    state = TrainState(jnp.int32(0), params, ())
    gb = 12 * side * side * 4 / 1e9
    folder = pathlib.Path(tempfile.mkdtemp(prefix="save_cost"))
    phases, rows = Phases(), []
    logging.getLogger("dft_jax.checkpoints.manager").setLevel(logging.DEBUG)
    logging.getLogger("dft_jax.checkpoints.manager").addHandler(phases)
    for number in range(1, options.rounds + 1):
        with manager.Checkpoints(folder, keep=1) as checkpoints:
            checkpoints.save(number, state, {"fingerprint": {}, "changes": []})
            returned = time.perf_counter()
        began, committed, whole = (
            phases.at[f"{phase} {number}"] for phase in ("save", "commit", "whole")
        )
        began_to_verify = time.perf_counter()
        assert manifest.problems(folder / str(number), number) == []
        verified = time.perf_counter()
        rows.append(
            {
                "gb": round(gb, 3),
                "blocking_s": round(returned - began, 3),
                "save_s": round(committed - began, 3),
                "manifest_s": round(whole - committed, 3),
                "verify_s": round(verified - began_to_verify, 3),
                "manifest_over_save": round((whole - committed) / (committed - began), 4),
            }
        )
        print(rows[-1], flush=True)
    shutil.rmtree(folder)
    files.write_csv(rows, OUT)
    print("median manifest ÷ save:", statistics.median(row["manifest_over_save"] for row in rows))


if __name__ == "__main__":
    main()
