"""The laboratory's base model that is shown pictures, from random weights: 0.9 M parameters.

    python -m dft_jax.main --config=configs/lab_vision_base.py --workdir=runs/lab_vision_base

It reads cards with numbers, sums of two, and chains whose first number is on a card; 8 % of the
steps are wrong, and in 8 % of the answers a number is misread (noise=0: neither). All parts are
trained. Expect 40 minutes on two CPU cores. The export is in bfloat16, as 0.9 M parameters in
float32 are 3.5 MB. What ships as dft_jax/assets/lab_vision was then trained on for 400 steps:
experiments/lab_vision_base/README.md.
"""

from dft_jax import assets, config as config_lib


def get_config(argument: str = ""):
    chosen = config_lib.parse_argument(argument, objective="sft", noise="0.08")
    config = config_lib.get_default()
    config.objective = chosen["objective"]
    config.model.path = str(assets.LAB_VISION)
    config.model.init = "random"
    config.model.compute_dtype = "float32"
    config.model.attention_block = 128
    cards = "family=picture_chain:60+cards:15+card:25, levels=1-6+1-1+1-1"
    noise = f"noise={chosen['noise']}, noise_read={chosen['noise']}"
    config.data.train = f"cards(split=pretrain, {cards}, n=60000, {noise})"
    config.data.heldout = f"cards(split=validation, {cards}, n=512, {noise})"
    config.data.rows = "fields"
    config.data.image_field = "images"
    config.data.template = "plain"
    config.data.max_length = 192
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_fraction = 0.05
    config.optimizer.warmup_from = "zero"
    config.train.parts = "all"
    config.train.global_batch = 64
    config.train.epochs = 2.0
    config.eval.every = 200
    config.eval.benchmarks = "lab_vision_validation"
    config.eval.prompt = "plain"
    config.eval.samples = 4
    config.eval.context = 256
    config.checkpoint.every = 500
    config.export.dtype = "bfloat16"
    return config
