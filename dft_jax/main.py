"""One command from a checkpoint and a file of problems to a fine-tuned checkpoint.

python -m dft_jax.main --config=configs/tiny.py --workdir=runs/tiny
python -m dft_jax.main --config=configs/gsm8k.py:objective=dft --config.model.path=FOLDER --workdir=runs/gsm8k

Exit codes: 0 done; 2 something given is wrong, and the message says what; 42 stopped by SIGTERM or
SIGINT with all of it saved, the same command goes on; anything else is a fault.
"""

import jax
from absl import flags

from dft_jax.commands import cli
from dft_jax.export import origin_of
from dft_jax.models.hf.export import export
from dft_jax.runtime import compilation_cache, errors, folders, interrupts
from dft_jax.training import loop

_CONFIG = cli.define_config()


def main() -> None:
    cli.parse(required=["config", "workdir"])
    cli.join_processes()
    compilation_cache.keep_compilations()
    with interrupts.Interrupts():
        run = loop.run(_CONFIG.value, flags.FLAGS.workdir)  # a flag of dft_jax.export
        settings, exported = run.config.export, ""
        if settings.enabled:
            out, options = (
                run.workdir / "export",
                dict(dtype=settings.dtype, max_shard_gb=settings.max_shard_gb),
            )
            origin = origin_of(run.workdir, run.config, int(run.state.step), run.identity)
            with folders.locked(run.workdir):
                export(run.state.params, run.model, run.source, out, origin=origin, **options)
            exported = f", {out} loads in transformers"
    if jax.process_index() == 0:
        print(f"done: {run.workdir}/metrics.jsonl has the curves{exported}")


if __name__ == "__main__":
    errors.exit_on_user_error(main)()
