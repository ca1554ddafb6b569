"""Writes tests/golden/curves.json: loss, nll and gradient norm of the first steps of the embedded
model.

python -m tests.make_curves        # after a change that is meant to change what training computes; say why
"""

import json

import numpy as np

from tests.conftest import GOLDEN, make_mesh
from tests.tiny_trainer import Trainer

FILE = GOLDEN / "curves.json"
STEPS = 6
# Name -> overrides of the tiny config. What has a warm-up from zero is as of runs from before there
# was a choice.
CASES = {
    "sft": {"objective": "sft"},
    "dft": {"objective": "dft"},
    "sft_from_zero": {"objective": "sft", "optimizer.warmup_from": "zero"},
    "dft_from_zero": {"objective": "dft", "optimizer.warmup_from": "zero"},
}


def curve(trainer: Trainer) -> np.ndarray:
    """[steps, (loss, nll, gradient norm)], the first two in nats per supervised token."""
    sums = [trainer.take(n) for n in range(STEPS)]
    return np.array(
        [[s["loss"] / s["tokens"], s["nll"] / s["tokens"], s["gradient_norm"]] for s in sums]
    )


def main() -> None:
    curves = {name: curve(Trainer(make_mesh(), **case)).tolist() for name, case in CASES.items()}
    FILE.write_text(json.dumps(curves, indent=1) + "\n")


if __name__ == "__main__":
    main()
