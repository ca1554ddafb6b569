"""Demonstrations scored token by token under one model, as heldout.json has it."""

from pathlib import Path

from dft_jax.analysis import heldout_metrics, reading
from dft_jax.analysis.asked import Reading
from dft_jax.data import account
from dft_jax.lm.language_model import LM
from dft_jax.runtime import distributed, environment, files, folders, processes
from dft_jax.training import metrics

NAME = "heldout.json"


def write(lm: LM, data: str, asked: Reading, out: Path) -> None:
    """Writes nll, p and entropy of the completions in `data` to `out`, and prints them.

    Raises:
      UserError: data that cannot be read, or a folder that cannot be written.
    """
    config = reading.config_for({"model": lm}, asked)
    # A process that cannot read the file ends all of them, instead of leaving them to wait.
    with distributed.together("held out"):
        examples = reading.read(data, lm, config, split="test")
    distributed.agree("held out", {"heldout_data_sha256": examples.report["sha256"]})
    with folders.locked(out, "--out"):
        account.tell("--heldout", examples.report, "--context")
        values = heldout_metrics.measure(lm, examples, config)
        report = {
            "model": lm.identify(),
            "evaluated": lm.what,
            "prompt": config.data.template,
            "date": config.data.date,
            "trained_with": lm.trained,
            "metrics": values,
            "p_bin_edges": metrics.P_BIN_EDGES,
            "data": examples.report,
            "environment": environment.describe(),
        }
        files.write_json(out / NAME, report)
    if processes.is_first():
        heldout_metrics.show(values)
