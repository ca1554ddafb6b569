"""One command from a checkpoint and a file of problems to a fine-tuned checkpoint.

python -m dft_jax.main --config=configs/tiny.py --workdir=runs/tiny
python -m dft_jax.main --config=configs/gsm8k.py:objective=dft --config.model.path=FOLDER --workdir=runs/gsm8k
"""

import jax
from absl import flags

from dft_jax import cli, errors, train
from dft_jax.export import export

_CONFIG = cli.define_config()
if "workdir" not in flags.FLAGS:  # defined by dft_jax.export as well
    flags.DEFINE_string("workdir", None, "Directory of the run; an interrupted run there is resumed.")


def main() -> None:
    cli.parse(required=["config", "workdir"])
    cli.join_processes()
    run = train.run(_CONFIG.value, flags.FLAGS.workdir)
    settings, exported = run.config.export, ""
    if settings.enabled:
        out = run.workdir / "export"
        export(run.state.params, run.model, run.source, out, dtype=settings.dtype, max_shard_gb=settings.max_shard_gb)
        exported = f", {out} loads in transformers"
    if jax.process_index() == 0:
        print(f"done: {run.workdir}/metrics.jsonl has the curves{exported}")


if __name__ == "__main__":
    errors.exit_on_user_error(main)()
