"""Qwen2.5-Coder-0.5B-Instruct on all of GSM8K, three seeds, for whoever has a GPU and the weights.
Not run yet.

    python -m dft_jax.study --spec=experiments/real/gpu.py:model=FOLDER,data=FOLDER,part=rates \\
        --out=RATES
    python -m dft_jax.study \\
        --spec=experiments/real/gpu.py:model=FOLDER,data=FOLDER,sft=2e-5,dft=2e-5 --out=STUDY

An epoch of some 112 steps of 64, then 1,319 problems greedy and at T = 0.5 and 1 with 512 new
tokens: by FLOPs 75 s an arm on an H100, ten minutes in all. `rates` is the first part: SFT and DFT
at 5e-6, 2e-5 and 5e-5, seed 0, on 300 problems set apart from the end of the training split
(`gsm8k_apart.jsonl`; `gsm8k_rest.jsonl` are the others, see README.md); the rates with the best
greedy accuracy there are the arguments of the second. Three seeds on 1,319 problems see 3.7 points
at 80 % power.

Stated before: a difference within 2 points, with an interval inside 3, is "no difference of use".
"""

from pathlib import Path

from dft_jax import config as config_lib
from dft_jax.evals.settings import Settings
from dft_jax.study.spec import Arm, Spec, Text

PROMPT = "qwen-boxed"


def get_spec(argument: str = "") -> Spec:
    given = config_lib.parse_argument(
        argument, model="FOLDER", data="FOLDER", part="main", sft="2e-5", dft="2e-5"
    )
    config, folder = config_lib.get_default(), Path(given["data"])
    config.model.update(path=given["model"], compute_dtype="bfloat16")
    config.data.update(train=str(folder / "gsm8k_rest.jsonl"), rows="gsm8k_boxed", template=PROMPT)
    config.data.update(max_length=768, row_length=2048)
    config.train.update(steps=112, global_batch=64)
    is_first = given["part"] == "rates"
    problems = folder / ("gsm8k_apart.jsonl" if is_first else "gsm8k_test.jsonl")
    evaluation = Settings(
        benchmarks=("gsm8k",),
        benchmark_data=str(problems),
        prompt=PROMPT,
        samples=1 if is_first else 4,
        temperature=(1.0,) if is_first else (0.5, 1.0),
        context=1024,
        max_new_tokens=512,
        slots=512,
        workers=8,
    )
    if is_first:
        arms = [
            Arm(objective, rate, 0) for rate in (5e-6, 2e-5, 5e-5) for objective in ("sft", "dft")
        ]
    else:
        rates = {"sft": float(given["sft"]), "dft": float(given["dft"])}
        arms = [
            Arm(objective, rate, seed) for seed in (0, 1, 2) for objective, rate in rates.items()
        ]
    texts = (
        Text("gsm8k", str(problems), "gsm8k_boxed", max_examples=256, answer_mark="\\boxed{"),
        Text("math500", str(folder / "math500.jsonl"), "math", max_examples=100, max_length=768),
    )
    name = "gpu_rates" if is_first else "gpu"
    return Spec(
        name,
        config,
        tuple(arms),
        texts,
        (8, 16, 32, 64, 112),
        rows_at_once=16,
        evaluation=evaluation,
    )
