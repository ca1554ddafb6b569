"""What a run says before the minutes of compilation: what is trained, and what is not."""

import sys
from pathlib import Path
from typing import Any

from dft_jax.data import account, mixture, order
from dft_jax.data.examples import Examples
from dft_jax.models.model import Model
from dft_jax.runtime.options import Config
from dft_jax.training import adapters


def announce(
    train: Examples, heldout: Examples | None, length: order.Length, drawn: dict[str, Any]
) -> None:
    """Says what is trained and what is not, and for how many steps.

    `drawn` is what a mixture's run draws of each source, as TrainBatches reports it.
    """
    reports = {"data.train": train.report}
    if heldout:
        reports["data.heldout"] = heldout.report
    lines, warnings = [], []
    for name, report in reports.items():
        lines += account.lines(name, report)
        warnings += account.warnings(name, report)
    lines += [length.line(), *mixture.run_lines(drawn)]
    account.announce(lines, warnings + length.warnings())


def announce_model(config: Config, model: Model, source: Path) -> None:
    """Says which adapters are trained, where these are."""
    for line in adapters.lines(config, model, source):
        print(line, file=sys.stderr)
