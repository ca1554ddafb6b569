"""Fine-tuning of the laboratory's base model, as the quick start does it.

    python -m dft_jax.main --config=configs/lab.py:objective=dft --workdir=runs/lab

Argument: objective (dft). Any machine, no network: 0.6 M parameters, 2,500 generated word problems
of 2 to 4 steps, about a minute on two CPU cores. Expect train/nll to rise under dft and to stay
where it is under sft, while train/mean_p rises under both.
"""

from dft_jax import config as config_lib
from dft_jax.lab import recipe


def get_config(argument: str = ""):
    chosen = config_lib.parse_argument(argument, objective="dft")
    return recipe.lab_config(chosen["objective"])
