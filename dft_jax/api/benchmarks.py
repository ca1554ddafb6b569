"""Where training meets evaluation: the benchmarks that a run measures at some of its steps.

Neither of the two rooms knows the other; this makes of one what the other asks for.
"""

from pathlib import Path
from typing import Any

from dft_jax.data import source_list
from dft_jax.evals import settings as eval_settings
from dft_jax.evals.scheduled import BenchmarkEvaluator
from dft_jax.models.hf.locate import resolve
from dft_jax.models.model import Model
from dft_jax.runtime.options import Config
from dft_jax.training.evaluators import Evaluator


def benchmark_evaluators(
    config: Config, tokenizer: Any, model: Model, workdir: Path
) -> tuple[Evaluator, ...]:
    """The evaluator of `config.eval.benchmarks`; none where it names no benchmark."""
    if not config.eval.benchmarks:
        return ()
    # Without a tower the weights of a run have none: its rows are text alone.
    source = None
    if model.tower is not None:
        source = resolve(config.model.path, config.model.revision)
    evaluator = BenchmarkEvaluator(
        eval_settings.of_config(config.eval),
        config.eval.benchmarks_every,
        tokenizer,
        model,
        workdir,
        date=config.data.date,
        trained=source_list.trained_template(config.data),
        source=source,
    )
    return (evaluator,)
