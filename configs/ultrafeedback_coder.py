r"""The paper's table of code: 10,000 prompts of UltraFeedback, one epoch of 625 steps.

Source: arXiv 2508.05629, the section on code generation.

    python -m dft_jax.main --config=configs/ultrafeedback_coder.py:objective=dft,size=coder-3b \
        --workdir=runs/ultrafeedback_dft

Arguments: objective (dft); size: coder-3b, coder-7b (Qwen2.5-Coder), 3b (Qwen2.5). The answer to a
prompt is the completion with the best mean of its aspects' ratings (data/ratings.py); rows without
one are left out. Of the rest 10,000 are drawn by `data.sample_seed`, since which ones the authors
took is not published. A copy on disk: `--config.data.train=ultrafeedback.jsonl`. The binarized set
(HuggingFaceH4/ultrafeedback_binarized) chooses by another rule, the overall score: it is read with
`--config.data.rows=messages --config.data.messages_field=chosen`, and is another experiment.

Hardware: a 3B model on one 141 GB GPU or two of 80 GB, 7B on eight, parameters sharded
(mesh.fsdp=-1). Expect (the paper's greedy pass@1 of base completion on HumanEval / HumanEval+, base
→ SFT → DFT): 3b 43.3/36.0 → 41.5/34.8 → 45.7/39.0, coder-3b 52.4/42.7 → 51.8/43.9 → 56.7/50.0,
coder-7b 62.2/53.0 → 54.9/48.8 → 67.7/59.8. One problem of 164 is 0.6 points, and the 95 % interval
of one cell about ±7.6: compare two models on the same problems. Not re-run here.

Some of its prompts ask for programs; which of them share text with a benchmark's problems:
`python -m dft_jax.analysis.inspect_data --config=… --contamination=humaneval`.
"""

from dft_jax import config as config_lib
from dft_jax.runtime import errors

_MODELS = {
    "coder-3b": "Qwen/Qwen2.5-Coder-3B",
    "coder-7b": "Qwen/Qwen2.5-Coder-7B",
    "3b": "Qwen/Qwen2.5-3B",
}


def get_config(argument: str = ""):
    chosen = config_lib.parse_argument(argument, objective="dft", size="coder-3b")
    if chosen["size"] not in _MODELS:
        raise errors.UserError(
            f"--config=…:size={chosen['size']}: unknown size; known: {', '.join(_MODELS)}"
        )
    config = config_lib.get_default()
    config.objective = chosen["objective"]
    config.model.path = _MODELS[chosen["size"]]
    config.model.remat = "dots"
    config.data.train = "openbmb/UltraFeedback"
    config.data.rows = "ultrafeedback"
    config.data.sample_rows = 10_000
    config.data.bad_rows = "drop"
    config.optimizer.learning_rate = 5e-5
    config.optimizer.warmup_fraction = 0.05
    config.train.global_batch = 16
    config.mesh.data, config.mesh.fsdp = 1, -1
    return config
