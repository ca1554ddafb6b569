"""The laboratory's base model that writes programs, from random weights: 0.6 M parameters.

    python -m dft_jax.main --config=configs/lab_code_base.py --workdir=runs/lab_code_base

It reads functions with a docstring and their bodies, of which 8 % of the steps are wrong (noise=0:
none). About 12 minutes of processor time on two CPU cores; expect a held-out nll of 0.17, and two
in three functions greedily. runs/lab_code_base/export is what ships as dft_jax/assets/lab_code.
"""

from dft_jax import assets, config as config_lib


def get_config(argument: str = ""):
    chosen = config_lib.parse_argument(argument, objective="sft", noise="0.08")
    config = config_lib.get_default()
    config.objective = chosen["objective"]
    config.model.path = str(assets.LAB_CODE)
    config.model.init = "random"
    config.model.compute_dtype = "float32"
    config.model.attention_block = 128
    mixture = "family=chain:60+expression:30+fact:10, levels=2-5+2-5+1-1, styles=4"
    config.data.train = f"programs(split=pretrain, {mixture}, n=48000, noise={chosen['noise']})"
    config.data.heldout = f"programs(split=validation, {mixture}, n=512, noise={chosen['noise']})"
    config.data.rows = "humaneval"
    config.data.template = "plain"
    config.data.max_length = 192
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_fraction = 0.05
    config.optimizer.warmup_from = "zero"
    config.train.global_batch = 32
    config.train.epochs = 1.0
    config.eval.every = 100
    config.eval.benchmarks = "lab_code_validation"
    config.eval.benchmarks_every = 500
    config.eval.prompt = "plain"
    config.eval.samples = 4
    config.eval.max_problems = 24
    config.eval.context = 256
    config.checkpoint.every = 500
    return config
