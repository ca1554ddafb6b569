"""The laboratory's base model, from random weights: 0.6 M parameters, for small word problems.

    python -m dft_jax.main --config=configs/lab_base.py --workdir=runs/lab_base
    python -m dft_jax.main --config=configs/lab_base.py:noise=0 --workdir=runs/lab_base_clean

It reads chains, expressions and facts, of which 8 % of the steps are wrong (noise=0: none, for the
control). Two CPU cores, about 20 minutes; expect a held-out nll near the entropy of style and
noise. runs/lab_base/export is what ships as dft_jax/assets/lab.
"""

from dft_jax import assets, config as config_lib


def get_config(argument: str = ""):
    chosen = config_lib.parse_argument(argument, objective="sft", noise="0.08")
    config = config_lib.get_default()
    config.objective = chosen["objective"]
    config.model.path = str(assets.LAB)
    config.model.init = "random"
    config.model.compute_dtype = "float32"
    config.model.attention_block = 128
    world = "family=chain:60+expression:15+fact:25, levels=1-6+2-5+1-1"
    config.data.train = f"world(split=pretrain, {world}, n=60000, noise={chosen['noise']})"
    config.data.heldout = f"world(split=validation, {world}, n=512, noise={chosen['noise']})"
    config.data.rows = "gsm8k"
    config.data.template = "plain"
    config.data.max_length = 192
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_fraction = 0.05
    config.optimizer.warmup_from = "zero"  # as when it was made
    config.train.global_batch = 64
    config.train.epochs = 2.0
    config.eval.every = 200
    config.eval.benchmarks = "lab,lab_expression"
    config.eval.prompt = "plain"
    config.eval.samples = 4
    config.eval.context = 256
    config.checkpoint.every = 500
    return config
