r"""GSM8K with any supported checkpoint: one epoch over its 7,473 training problems.

    python -m dft_jax.main --config=configs/gsm8k.py:objective=dft \
        --config.model.path=FOLDER --workdir=runs/gsm8k

Arguments: objective (dft). Data comes from the hub (openai/gsm8k, train and test); local copies are
`--config.data.train=gsm8k_train.jsonl --config.data.heldout=gsm8k_test.jsonl --config.data.subset=`
(files have no subsets). Hardware: a 1.5B model in float32 with Adam takes about 23 GiB plus
activations, so one 80 GB GPU, or a TPU v5e-8 with `--config.mesh.data=1 --config.mesh.fsdp=8`. 117
steps of 64 problems. Expect train/nll to fall under sft and to rise under dft, while train/mean_p
rises under both. Not measured here on a pretrained model; see experiments/ for what was.
"""

from dft_jax import config as config_lib


def get_config(argument: str = ""):
    chosen = config_lib.parse_argument(argument, objective="dft")
    config = config_lib.get_default()
    config.objective = chosen["objective"]
    config.data.train = "openai/gsm8k"
    config.data.heldout = "openai/gsm8k"
    config.data.subset = "main"
    config.data.rows = "gsm8k"
    config.data.max_length = 1024
    config.train.global_batch = 64
    config.eval.every = 20
    return config
