"""One command from a checkpoint and a file of problems to a fine-tuned checkpoint.

python -m dft_jax.main --config=configs/tiny.py --workdir=runs/tiny
python -m dft_jax.main --config=configs/gsm8k.py:objective=dft \\
    --config.model.path=FOLDER --workdir=runs/gsm8k

Exit codes: 0 done; 2 something given is wrong, and the message says what; 42 stopped by SIGTERM or
SIGINT with all of it saved, the same command goes on; anything else is a fault.
"""

from absl import flags

from dft_jax import api
from dft_jax.commands import cli
from dft_jax.runtime import compilation_cache, errors, folders, interrupts, processes
from dft_jax.training.exporting import export_run

_CONFIG = cli.define_config()
flags.DEFINE_string(
    "workdir",
    None,
    "Directory of the run, or gs://BUCKET/RUN; an interrupted run there is resumed.",
    allow_override=True,
)


def main() -> None:
    cli.parse(required=["config", "workdir"])
    cli.join_processes()
    compilation_cache.keep_compilations()
    exported = ""
    with interrupts.Interrupts():
        run = api.train(_CONFIG.value, flags.FLAGS.workdir)
        shown = folders.shown(run.workdir)
        settings = run.config.export
        if settings.enabled:
            out = run.workdir / "export"
            with folders.locked(run.workdir):
                export_run(run.lm, run.config, run.step, run.identity, out)
            loads_in = "PEFT" if settings.what == "adapter" else "transformers"
            exported = f", {shown}/export loads in {loads_in}"
    if processes.is_first():
        print(f"done: {shown}/metrics.jsonl has the curves{exported}")


if __name__ == "__main__":
    errors.exit_on_user_error(main)()
