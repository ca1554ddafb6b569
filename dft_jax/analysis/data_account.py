"""What a run would say of its data before it begins, for a command that begins none."""

from dft_jax.data import account, formats
from dft_jax.data.examples import Examples
from dft_jax.runtime.options import Config
from dft_jax.training.inputs import length_of


def tell(config: Config, examples: Examples, heldout: Examples | None) -> None:
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
