"""What a run says, or ends with, when its updates do not do what they should."""

import sys
from typing import Any

from dft_jax.runtime import errors, processes
from dft_jax.runtime.options import Config
from dft_jax.training import optimizer


class RoundingWarning:
    """Says once that most bfloat16 parameters stayed as they were: at the first step of the full
    rate.

    `config` is `config.optimizer`. Below that rate, while it warms up, it is no wonder.
    """

    _FEW = 0.5  # of the weights

    def __init__(self, config: Config):
        self.full_rate, self.rounding = 0.99 * config.learning_rate, optimizer.rounding_of(config)
        self.is_over = False

    def say(self, step: int, values: dict[str, Any]) -> None:
        """Prints the warning, if it is time for it; process 0 alone."""
        warning = self.after(step, values)
        if warning and processes.is_first():
            print(f"warning: {warning}", file=sys.stderr)

    def after(self, step: int, values: dict[str, Any]) -> str:
        """The warning, if it is time for it; `values` are a row of metrics.jsonl."""
        share = values.get("optimizer/moved_share")
        if self.is_over or share is None or values["optimizer/learning_rate"] < self.full_rate:
            return ""
        self.is_over = True
        if share >= self._FEW:
            return ""
        what = f"step {step}: {share:.1%} of the bfloat16 weights moved"
        if self.rounding == "nearest":
            lost = f"{values['optimizer/update_lost']:.1%} of the update was rounded away"
            remedy = "config.optimizer.rounding='stochastic' keeps it on average"
            return f"{what} and {lost}; {remedy}, config.model.param_dtype='float32' exactly"
        how = "the others' updates are less than a step of bfloat16, and come by chance"
        return f"{what}; {how}: right on average, with noise that float32 parameters do not have"


class SkipGuard:
    """Counts updates skipped for non-finite numbers; too many in a row end the run."""

    def __init__(self, most_in_a_row: int):
        self.most, self.in_a_row = most_in_a_row, 0

    def count(self, step: int, is_finite: bool, where: tuple[str, ...]) -> None:
        """`where`: file and line of the step's examples."""
        self.in_a_row = 0 if is_finite else self.in_a_row + 1
        if self.in_a_row >= self.most:
            shown = ", ".join(where[:16]) + (", …" if len(where) > 16 else "")
            raise errors.UserError(
                [
                    f"step {step}: {self.most} non-finite updates in a row, none of them applied;"
                    " look at the data of these steps, or start again in a new --workdir with a"
                    " lower config.optimizer.learning_rate",
                    f"the {len(where)} examples of step {step}: {shown}",
                ]
            )
