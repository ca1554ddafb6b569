"""Scores as the commands print them."""

import sys
from typing import Any

from dft_jax.evals import evaluation


def show(summary: dict[str, Any], done: str) -> None:
    """Prints the warnings and the table of a scores.json, and the line `done`: what is where."""
    for line in summary["warnings"]:
        print(f"warning: {line}", file=sys.stderr)
    print(evaluation.table(summary))
    print(done)
