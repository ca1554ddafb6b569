"""One command from a checkpoint and a file of problems to a fine-tuned checkpoint.

python -m dft_jax.main --config=configs/tiny.py --workdir=runs/tiny
python -m dft_jax.main --config=configs/gsm8k.py:objective=dft --config.model.path=FOLDER --workdir=runs/gsm8k
"""

import os

import jax
from absl import flags

from dft_jax import cli, errors, train
from dft_jax.export import export

_CONFIG = cli.define_config()
if "workdir" not in flags.FLAGS:  # defined by dft_jax.export as well
    flags.DEFINE_string("workdir", None, "Directory of the run; an interrupted run there is resumed.")


def main() -> None:
    cli.parse(required=["config", "workdir"])
    initialize_processes()
    run = train.run(_CONFIG.value, flags.FLAGS.workdir)
    settings = run.config.export
    if settings.enabled:
        out = run.workdir / "export"
        export(run.state.params, run.model, run.source, out, dtype=settings.dtype, max_shard_gb=settings.max_shard_gb)
        if jax.process_index() == 0:
            print(f"done: {run.workdir}/metrics.jsonl has the curves, {out} loads in transformers")


def initialize_processes() -> None:
    """Joins the processes of one job, when there are several.

    They are found by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or by Slurm, or on a TPU pod.
    """
    environment = os.environ
    if "JAX_COORDINATOR_ADDRESS" in environment:
        try:
            count, index = int(environment["JAX_NUM_PROCESSES"]), int(environment["JAX_PROCESS_ID"])
        except (KeyError, ValueError) as error:
            raise errors.UserError(
                f"JAX_COORDINATOR_ADDRESS is set, so JAX_NUM_PROCESSES and JAX_PROCESS_ID should be numbers ({error})"
            ) from error
        jax.distributed.initialize(environment["JAX_COORDINATOR_ADDRESS"], count, index)
    elif int(environment.get("SLURM_NTASKS", "1")) > 1 or "," in environment.get("TPU_WORKER_HOSTNAMES", ""):
        jax.distributed.initialize()


if __name__ == "__main__":
    errors.exit_on_user_error(main)()
