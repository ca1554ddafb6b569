"""Compilations after the first step of a run: 50 packed steps of the tiny model, held-out
evaluation every ten.

python -m experiments.performance.contenders.compilations --workdir=FOLDER

Prints {"after_first_step": n, "before": m, "programs": {…}, "row_counts": […]}; the last are the
sizes of the steps. A compilation is jax's monitoring event
`/jax/core/compile/backend_compile_duration`; the first step is over when the log of `dft_jax` names
the second. Saving and the end of the run count too.
"""

import argparse
import collections
import json
import logging
from pathlib import Path

import jax

from dft_jax import assets, config as config_lib
from dft_jax.api import train as run

_EVENT = "/jax/core/compile/backend_compile_duration"


class Counter(logging.Handler):
    """Counts compilations, apart for those before and after the line that begins step 2."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.is_after, self.before, self.after = False, 0, collections.Counter()
        jax.monitoring.register_event_duration_secs_listener(self.compiled)

    def emit(self, record: logging.LogRecord) -> None:
        self.is_after |= record.getMessage() == "step 2"

    def compiled(self, event: str, seconds: float, **about) -> None:
        if event == _EVENT and self.is_after:
            self.after[str(about.get("fun_name", "?"))] += 1
        elif event == _EVENT:
            self.before += 1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    arguments = parser.parse_args()
    config = config_lib.get_default()
    config.update_from_flattened_dict(
        {
            "model.path": str(assets.TINY),
            "model.init": "random",
            "model.compute_dtype": "float32",
            "data.train": str(assets.TINY / "train.jsonl"),
            "data.heldout": str(assets.TINY / "heldout.jsonl"),
            "data.rows": "gsm8k",
            "data.max_length": 384,
            "train.global_batch": 16,
            "train.steps": 50,
            "eval.every": 10,
            "checkpoint.every": 25,
            "log.tensorboard": False,
        }
    )
    counter = Counter()
    log = logging.getLogger("dft_jax")
    log.setLevel(logging.DEBUG)
    log.addHandler(counter)
    log.propagate = False
    run(config, arguments.workdir)
    assert counter.is_after, (
        "the log of dft_jax.training.loop does not say when a step begins any more"
    )
    total = sum(counter.after.values())
    lines = (Path(arguments.workdir) / "metrics.jsonl").read_text().splitlines()
    row_counts = sorted({row["data/rows"] for row in map(json.loads, lines) if "data/rows" in row})
    about = {"before": counter.before, "programs": counter.after, "row_counts": row_counts}
    print(json.dumps({"after_first_step": total} | about))


if __name__ == "__main__":
    main()
