"""The public API: `import dft_jax as dft`, then `dft.load`, `dft.finetune`, …

    base = dft.load("Qwen/Qwen2.5-Math-1.5B", mesh={"fsdp": -1})
    config = dft.recipe("configs/gsm8k.py", objective="dft", **{"train.steps": 200})
    run = dft.finetune(base, config, workdir="runs/gsm8k")
    scores = dft.evaluate(run.lm, ["math500"], samples=16, temperature=1.0)
    dft.export(run.lm, "exports/gsm8k-dft")

Commands, laboratory and notebooks call these.
"""

from dft_jax.api.evaluation import Comparison, Evaluation, compare, evaluate
from dft_jax.api.models import export, load
from dft_jax.api.recipes import recipe
from dft_jax.api.sampling import sample
from dft_jax.api.scoring import TokenScores, score
from dft_jax.api.training import finetune, train
from dft_jax.config import get_default
from dft_jax.lm.language_model import LM
from dft_jax.training.run import Run

__all__ = [
    "LM",
    "Comparison",
    "Evaluation",
    "Run",
    "TokenScores",
    "compare",
    "evaluate",
    "export",
    "finetune",
    "get_default",
    "load",
    "recipe",
    "sample",
    "score",
    "train",
]
