r"""A mixture: NuminaMath-CoT and GSM8K, three to one by examples drawn, with metrics of each.

    python -m dft_jax.main --config=configs/mixture.py:objective=dft \
        --config.model.path=FOLDER --workdir=runs/mixture

Arguments: objective (dft). Both come from the hub; local copies are
`--config.data.train="[{'path': 'numina.jsonl', 'rows': 'numina', 'weight': 3}, …]"`. Of the first
100,000 rows of NuminaMath-CoT and the 7,473 of GSM8K an epoch of 107,473 examples draws 80,605 and
26,868: GSM8K comes around 3.6 times, each time in another order, and 0.8 of the other are seen.
Hardware as for configs/gsm8k.py; 420 steps. Expect heldout/gsm8k/nll and the other source's apart
from heldout/nll, which is of both. Not measured here.
"""

from dft_jax import config as config_lib


def get_config(argument: str = ""):
    chosen = config_lib.parse_argument(argument, objective="dft")
    config = config_lib.get_default()
    config.objective = chosen["objective"]
    gsm8k = {"path": "openai/gsm8k", "subset": "main", "rows": "gsm8k_boxed"}
    numina = {"path": "AI-MO/NuminaMath-CoT", "rows": "numina", "max_rows": 100_000}
    config.data.train = [numina | {"weight": 3}, gsm8k | {"weight": 1}]
    config.data.heldout = [numina | {"max_rows": 0}, gsm8k]
    config.data.template = "qwen25-math-cot"
    config.train.global_batch = 256
    config.eval.every = 40
    return config
