"""The command `python -m dft_jax.evaluate`: its flags, and the calls that they ask for."""

from absl import flags

from dft_jax.commands import cli, model_flags
from dft_jax.commands.evaluate_model import evaluate_newest
from dft_jax.commands.grade import grade
from dft_jax.lm.run import NEWEST, require_step
from dft_jax.runtime import compilation_cache, errors, folders

_MODEL = flags.DEFINE_string(
    "model", None, "Hugging Face folder, hub id, PEFT adapter, or run directory."
)
_GRADE = flags.DEFINE_string("grade", None, "File of completions to grade (.jsonl).")
_HELDOUT = flags.DEFINE_string(
    "heldout", None, "File whose completions are scored token by token, without sampling."
)
# dft_jax.export has these flags too, and one process may import both.
_STEP = flags.DEFINE_string(
    "step",
    NEWEST,
    "Of a run: newest, best (by its checkpoint.best), or a number.",
    allow_override=True,
)
_OUT = flags.DEFINE_string("out", None, "Folder to write.", allow_override=True)


def main() -> None:
    cli.parse(required=[])
    asked = model_flags.settings()
    if _GRADE.value:
        ways = {
            "--model": _MODEL.value,
            "--heldout": _HELDOUT.value,
            "--step": _STEP.value != NEWEST,
        }
        others = [name for name, value in ways.items() if value]
        if others:
            what = f"--grade and {' and '.join(others)} both say what is evaluated"
            raise errors.UserError(f"{what}; give one of them")
        file = folders.local_file(_GRADE.value, "--grade")
        out = file.parent
        if _OUT.value:
            out = folders.local_folder(_OUT.value, "--out")
        grade(file, out, asked)
        return
    if not _MODEL.value or not (asked.benchmarks or _HELDOUT.value):
        ways = (
            "--model with --benchmarks to sample, --model with --heldout to score a file, or"
            " --grade=FILE"
        )
        raise errors.UserError(f"nothing to evaluate: give {ways} (--help lists the options)")
    if not _OUT.value:
        raise errors.UserError("--out is required: the folder to write")
    if _HELDOUT.value:
        model_flags.require_context()
    if asked.benchmarks:
        errors.raise_if_any(asked.mistakes("--"))
        # Demonstrations may have images of their own, which these are the limits of too.
        if not _HELDOUT.value:
            errors.raise_if_any(asked.idle("--"))
    require_step(_STEP.value)
    cli.join_processes()
    compilation_cache.keep_compilations()
    model_flags.refuse_idle_revision([_MODEL.value], flags.FLAGS.revision)
    out = folders.local_folder(_OUT.value, "--out")
    evaluate_newest(_MODEL.value, asked, _HELDOUT.value, out, _STEP.value)
