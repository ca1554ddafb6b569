"""The best step of a run by a held-out metric, of those whose checkpoints are there.

Nothing is written for it: metrics.jsonl says what each step came to, and the folder which
checkpoints are complete. So a kill can leave nothing behind that contradicts them.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

from dft_jax.runtime import files
from dft_jax.runtime.options import Option, unknown

ROWS_NAME = "metrics.jsonl"
# Metrics by which one step is better than another, of those that training/metrics.py makes of
# data.heldout. Entropy is none: neither more nor less of it is better.
LOWER = ("heldout/loss", "heldout/nll", "heldout/share_of_p_below_0.01")
HIGHER = ("heldout/mean_p", "heldout/token_accuracy")
OPTION = Option(
    "",
    "held-out metric whose best step stays besides the newest; empty: none. One of "
    + ", ".join(LOWER + HIGHER),
)


def problems(metric: str, heldout: str | list | tuple, every: int) -> list[str]:
    """What is wrong with config.checkpoint.best.

    Args:
      heldout: data.heldout.
      every: eval.every, the steps between measurements.
    """
    key = f"config.checkpoint.best={metric!r}"
    if not metric:
        return []
    if metric not in LOWER + HIGHER:
        return [unknown(f"{key} is no metric to choose by", metric, LOWER + HIGHER)]
    if not heldout:
        return [f"{key}: nothing is held out; give config.data.heldout, or leave it empty"]
    if every == 0:
        what = "only the last step is measured, so there is none to choose from"
        return [f"{key}: {what}; give config.eval.every, or leave it empty"]
    return []


@dataclasses.dataclass
class Best:
    """The best value so far: `step` had `value`; both are None before there is one."""

    metric: str  # empty where nobody asks for a best step
    step: int | None = None
    value: float | None = None
    before_training: float | None = None

    def improves(self, step: int, values: dict[str, Any]) -> bool:
        """Takes what was measured at a step; whether the step is now the best.

        Of equals the first stays. What is not finite, which metrics.jsonl has as null, is never the
        best, and neither is step 0, which is the base.
        """
        value = values.get(self.metric)
        if not self.metric or value is None or not math.isfinite(value):
            return False
        if step == 0:
            self.before_training = value
            return False
        if self.value is not None and not self._is_better(value, self.value):
            return False
        self.step, self.value = step, value
        return True

    def _is_better(self, value: float, than: float) -> bool:
        if self.metric in LOWER:
            return value < than
        return value > than

    def summary(self) -> str:
        """A line for whoever started the run; empty where nothing was measured."""
        if self.value is None:
            return ""
        line = f"best: step {self.step}, {self.metric} {self.value:.4g}"
        before = self.before_training
        if before is not None and not self._is_better(self.value, before):
            return f"{line}; before training it was {before:.4g}, which no step has improved"
        return line


def of_rows(file: Path, metric: str, steps: list[int]) -> Best:
    """The best of `steps` by what metrics.jsonl says; a row that a kill has cut is left out.

    `steps` are those of complete checkpoints, in any order.
    """
    found = Best(metric)
    if not metric:
        return found
    # Most rows are of training, and need no parsing.
    for row in files.json_lines(file, containing=f'"{metric}"'):
        if row["step"] in steps or row["step"] == 0:
            found.improves(row["step"], row)
    return found
