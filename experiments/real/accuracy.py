"""Qwen2.5-Coder-0.5B-Instruct on GSM8K: base, SFT and DFT, sampled and graded. Not run yet.

    python -m dft_jax.study --spec=experiments/real/accuracy.py:model=FOLDER,data=FOLDER \\
        --out=STUDY --minutes=170

One rate, one seed, 200 problems greedy and at T = 1 with 512 new tokens: on two cores about seven
hours, over as many evenings as it takes. It sees differences of 9 points and more, and says nothing
of smaller ones.
"""

from pathlib import Path

from dft_jax import config as config_lib
from dft_jax.evals.settings import Settings
from dft_jax.study.spec import Arm, Spec, Text

PROMPT = "qwen-boxed"


def get_spec(argument: str = "") -> Spec:
    given = config_lib.parse_argument(argument, model="FOLDER", data="FOLDER")
    config, folder = config_lib.get_default(), Path(given["data"])
    config.model.update(path=given["model"], compute_dtype="float32", remat="full")
    config.data.update(
        train=str(folder / "gsm8k_train.jsonl"), rows="gsm8k_boxed", template=PROMPT, max_rows=256
    )
    config.data.update(max_length=512, row_length=512)
    config.train.update(steps=32, global_batch=8, accumulation=4, loss_chunk_tokens=256)
    evaluation = Settings(
        benchmarks=("gsm8k",),
        benchmark_data=str(folder / "gsm8k_test.jsonl"),
        prompt=PROMPT,
        samples=1,
        temperature=(1.0,),
        context=1024,
        max_new_tokens=512,
        max_problems=200,
        slots=16,
    )
    texts = (
        Text(
            "gsm8k",
            str(folder / "gsm8k_test.jsonl"),
            "gsm8k_boxed",
            max_examples=64,
            answer_mark="\\boxed{",
        ),
    )
    arms = (Arm("sft", 2e-5, 0), Arm("dft", 2e-5, 0))
    return Spec(
        "accuracy",
        config,
        arms,
        texts,
        (16, 32),
        rows_at_once=2,
        evaluation=evaluation,
        keep="parameters",
    )
