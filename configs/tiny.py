"""The embedded default: an untrained 0.1 M-parameter Qwen2 on word problems that ship with the package.

    python -m dft_jax.main --config=configs/tiny.py --workdir=runs/tiny
    python -m dft_jax.main --config=configs/tiny.py:objective=sft --workdir=runs/tiny_sft

Any machine; about half a minute on two CPU cores, no network. It shows that everything works, not that DFT
wins: from random weights p is about 1/264 everywhere, so DFT's weight all but stops learning, while SFT's nll
falls. (DFT is a method for fine-tuning a model that already gives its targets some probability.) To see it
move, start from `floored_dft(floor=0.1)` or `mixed(alpha=0.7)`.
"""

from dft_jax import assets
from dft_jax import config as config_lib


def get_config(argument: str = ""):
    chosen = config_lib.parse_argument(argument, objective="sft")
    config = config_lib.get_default()
    config.objective = chosen["objective"]
    config.model.path = str(assets.TINY)
    config.model.init = "random"
    config.model.compute_dtype = "float32"
    config.data.train = str(assets.TINY / "train.jsonl")
    config.data.heldout = str(assets.TINY / "heldout.jsonl")
    config.data.rows = "gsm8k"
    config.data.max_length = 384
    config.optimizer.learning_rate = 1e-2
    config.train.global_batch = 16
    config.train.steps = 60
    config.eval.every = 20
    config.checkpoint.every = 20
    return config
