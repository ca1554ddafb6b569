r"""The paper's main table: 100,000 rows of NuminaMath-CoT, one epoch of 390 steps.

Source: arXiv 2508.05629, section 4.

    python -m dft_jax.main --config=configs/numina_qwen25_math.py:objective=dft,size=1.5b \
        --workdir=runs/numina_dft

Arguments: objective (dft); size: 1.5b, 7b (Qwen2.5-Math), llama3b (Llama-3.2-3B), llama8b
(Llama-3.1-8B), deepseek7b; lora (0): the rank of adapters that are trained in place of the model,
as in lora=8. Hardware: 1.5b on one 80 GB GPU or v5e-8; 7b and 8b on eight 80 GB GPUs
or v5p-8, parameters sharded (mesh.fsdp=-1). Expect (the paper's avg@16 at T = 1, mean of five
benchmarks, base / SFT / DFT): 1.5b 15.9 / 18.0 / 31.6, 7b 21.3 / 23.6 / 37.2, llama3b 1.2 / 3.2 /
4.7, llama8b 1.0 / 6.3 / 11.0, deepseek7b 2.6 / 9.8 / 18.2. Not re-run here.

The first 100,000 rows are taken, as the authors' code does. Their run kept parameters and moments
in bf16 (`--config.model.param_dtype=bfloat16 --config.optimizer.rounding=nearest`), summed the
means of eight micro-batches (`--config.train.loss_normalization=official`), and made a first update
of rate 0 (`--config.optimizer.warmup_from=zero`); here masters are float32, the mean is over the
global batch's tokens, and the warm-up begins a step above 0. They train on the tokenizer's chat
template; the Llama and DeepSeek base tokenizers may have none, so those sizes train on the prompt
that the paper evaluates with. DeepSeekMath's hub repository may hold pickles only: convert it
first.

With lora=8 it is the paper's table 9: rank 8, alpha 16. Which matrices had adapters and at which
rate is not published: here all of them, at ten times the rate of full fine-tuning, and the frozen
base in the checkpoint's bfloat16. The batch stays that of the table, though LoRA is known to bear
large ones less well.
"""

from dft_jax import config as config_lib
from dft_jax.runtime import errors

_SIZES = {
    "1.5b": ("Qwen/Qwen2.5-Math-1.5B", 5e-5),
    "7b": ("Qwen/Qwen2.5-Math-7B", 5e-5),
    "llama3b": ("meta-llama/Llama-3.2-3B", 5e-5),
    "llama8b": ("meta-llama/Llama-3.1-8B", 2e-5),
    "deepseek7b": ("deepseek-ai/deepseek-math-7b-base", 5e-5),
}


def get_config(argument: str = ""):
    chosen = config_lib.parse_argument(argument, objective="dft", size="1.5b", lora="0")
    if chosen["size"] not in _SIZES:
        raise errors.UserError(
            f"--config=…:size={chosen['size']}: unknown size; known: {', '.join(_SIZES)}"
        )
    path, learning_rate = _SIZES[chosen["size"]]
    config = config_lib.get_default()
    config.objective = chosen["objective"]
    config.model.path = path
    config.model.remat = "dots"
    config.data.train = "AI-MO/NuminaMath-CoT"
    config.data.rows = "numina"
    config.data.max_rows = 100_000
    config.data.bad_rows = "drop"
    if chosen["size"].startswith("llama") or chosen["size"].startswith("deepseek"):
        config.data.template = (
            "deepseek-math" if chosen["size"].startswith("deepseek") else "llama-base-boxed"
        )
    config.optimizer.learning_rate = learning_rate
    if not chosen["lora"].isdecimal():
        raise errors.UserError(f"--config=…:lora={chosen['lora']}: should be a rank, such as 8")
    if int(chosen["lora"]):
        config.lora.rank = int(chosen["lora"])
        config.lora.alpha = 16.0
        config.model.param_dtype = "bfloat16"
        config.optimizer.learning_rate = 10 * learning_rate
    config.train.global_batch = 256
    config.train.steps = 390
    config.train.accumulation = 8
    config.mesh.data, config.mesh.fsdp = 1, -1
    return config
