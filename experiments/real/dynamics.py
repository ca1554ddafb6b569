"""SFT and DFT on SmolLM2-135M-Instruct, step by step: README.md says what is asked, and why it is
this small.

    python -m dft_jax.study --spec=experiments/real/dynamics.py:model=FOLDER,data=FOLDER \\
        --out=STUDY --minutes=170

Arguments: model, a folder with the checkpoint; data, one with gsm8k_train.jsonl, gsm8k_test.jsonl
and math500.jsonl (neither is needed for --status and --report); arms, `first` (12) or `all` (36).
"""

from pathlib import Path

from dft_jax import config as config_lib
from dft_jax.study.spec import Arm, Spec, Text

SEEDS = (0, 1, 2)
# What comes first in each seed is what this evening is for; `all` adds what the other evenings are
# for.
FIRST = [(rate, objective) for rate in (2e-5, 5e-5) for objective in ("sft", "dft")]
MORE = [(rate, objective) for rate in (2e-5, 5e-5) for objective in ("power(alpha=0.5)", "eaft")]
MORE += [(5e-6, objective) for objective in ("sft", "dft", "power(alpha=0.5)", "eaft")]


def get_spec(argument: str = "") -> Spec:
    given = config_lib.parse_argument(argument, model="FOLDER", data="FOLDER", arms="first")
    config = config_lib.get_default()
    folder = Path(given["data"])
    config.model.update(path=given["model"], compute_dtype="float32")
    config.data.update(
        train=str(folder / "gsm8k_train.jsonl"),
        rows="gsm8k_boxed",
        template="qwen-boxed",
        max_rows=512,
    )
    config.data.update(max_length=512, row_length=512)
    config.optimizer.warmup_from = "zero"  # as when the study began
    config.train.update(steps=8, global_batch=8, accumulation=4, loss_chunk_tokens=256)
    settings = FIRST if given["arms"] == "first" else FIRST + MORE
    arms = [Arm(objective, rate, seed) for seed in SEEDS for rate, objective in settings]
    texts = (
        Text(
            "gsm8k",
            str(folder / "gsm8k_test.jsonl"),
            "gsm8k_boxed",
            max_examples=48,
            answer_mark="\\boxed{",
        ),
        Text("math500", str(folder / "math500.jsonl"), "math", max_examples=8, max_length=400),
    )
    return Spec("dynamics", config, tuple(arms), texts, measured_at=(4, 8))
