"""The embedded default: an untrained 0.1 M-parameter Qwen2 on word problems that ship with it.

    python -m dft_jax.main --config=configs/tiny.py --workdir=runs/tiny
    python -m dft_jax.main --config=configs/tiny.py:objective=sft --workdir=runs/tiny_sft

Any machine, no network; about half a minute on two CPU cores. Expect train/nll to fall from 5.5 to
0.6 nats with sft. It shows that everything works, not that DFT wins: from random weights p is about
1/264 everywhere, so DFT's weight makes its gradients hundreds of times smaller. (DFT fine-tunes a
model that already gives its targets some probability.)
"""

from dft_jax import assets, config as config_lib


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
