"""The command `python -m dft_jax.evaluate`: its flags, and the calls that they ask for."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
from absl import flags

from dft_jax.analysis import heldout
from dft_jax.analysis.reading import Reading
from dft_jax.checkpoints.manager import Gone
from dft_jax.commands import cli
from dft_jax.evals import evaluation, journal, regrade, runner
from dft_jax.evals.settings import Settings
from dft_jax.lm.opening import open_lm
from dft_jax.runtime import compilation_cache, errors, folders, interrupts

_MODEL = flags.DEFINE_string("model", None, "Hugging Face folder, hub id, or run directory.")
_REVISION = flags.DEFINE_string("revision", "main", "Of a hub id.")
_GRADE = flags.DEFINE_string("grade", None, "File of completions to grade (.jsonl).")
_TENSOR = flags.DEFINE_integer(
    "tensor", 1, "Devices that share each copy of the model; 1 where it fits on one.", 1
)
_COMPUTE = flags.DEFINE_enum(
    "compute_dtype",
    None,
    ["float32", "bfloat16"],
    "Of matrix products; by default float32 on CPUs, else bfloat16.",
)
_HELDOUT = flags.DEFINE_string(
    "heldout", None, "File whose completions are scored token by token, without sampling."
)
_ROWS = flags.DEFINE_string("rows", "fields", "What a row of --heldout means: data/formats.py.")
_PROMPT_FIELD = flags.DEFINE_string("prompt_field", "prompt", "Of --heldout with --rows=fields.")
_COMPLETION_FIELD = flags.DEFINE_string(
    "completion_field", "completion", "Of --heldout with --rows=fields."
)
# dft_jax.export has the flag too, and one process may import both.
_OUT = flags.DEFINE_string("out", None, "Folder to write.", allow_override=True)

_OF_GRADER = ("mode", "last_number", "answer_markers", "workers")


def _define_settings() -> None:
    """A flag for each field of evals.settings.Settings."""
    define = {
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        bool: flags.DEFINE_bool,
        str: flags.DEFINE_string,
    }
    for field in dataclasses.fields(Settings):
        text = field.metadata["help"]
        if isinstance(field.default, tuple):
            flags.DEFINE_string(field.name, ",".join(map(str, field.default)), text)
        else:
            define[type(field.default)](field.name, field.default, text)


_define_settings()


def settings() -> Settings:
    """What the flags say."""
    values = {}
    for field in dataclasses.fields(Settings):
        values[field.name] = flags.FLAGS[field.name].value
    return Settings.read(values, "--")


def reading() -> Reading:
    """What the flags say of demonstrations.

    Raises:
      UserError: --instruction, which is of sampled questions only.
    """
    if flags.FLAGS.instruction:
        what = "--instruction is of sampled questions only, not of demonstrations"
        raise errors.UserError(f"{what}; give --prompt=tokenizer-boxed, or a .jinja file")
    return Reading(
        rows=flags.FLAGS.rows,
        prompt=flags.FLAGS.prompt,
        prompt_field=flags.FLAGS.prompt_field,
        completion_field=flags.FLAGS.completion_field,
        context=flags.FLAGS.context,
    )


def refuse_idle_revision(paths: list[str], revision: str) -> None:
    """UserError for a --revision where no model is of the hub."""
    local = [path for path in paths if Path(path).expanduser().is_dir()]
    if revision != "main" and len(local) == len(paths):
        what = f"--revision={revision} has no effect: {local[0]} is a folder"
        raise errors.UserError(f"{what}; remove it")


def mesh_of(tensor: int) -> dict[str, int]:
    """The mesh on which so many devices share each copy of the model."""
    return {"data": -1, "fsdp": 1, "tensor": tensor}


def _print(summary: dict[str, Any], done: str) -> None:
    for line in summary["warnings"]:
        print(f"warning: {line}", file=sys.stderr)
    print(evaluation.table(summary))
    print(done)


def _evaluate_newest(asked: Settings, out: Path) -> None:
    """What the flags ask of --model; of a run that trains on, of the checkpoint that is the newest
    when it is read.
    """
    try:
        _evaluate(asked, out)
    except Gone as gone:
        # Several processes may not have met this alike: they end, and say what to do.
        if jax.process_count() > 1:
            raise
        what = gone.problems[0].partition(";")[0]
        print(f"note: {what}; the newest one is taken", file=sys.stderr)
        _evaluate(asked, out)


def _evaluate(asked: Settings, out: Path) -> None:
    """What the flags ask of --model, as it is now."""
    lm = open_lm(
        str(_MODEL.value),
        revision=_REVISION.value,
        mesh=mesh_of(_TENSOR.value),
        compute_dtype=_COMPUTE.value,
    )
    evaluation.agree(lm, asked)
    is_first = jax.process_index() == 0
    if is_first:
        print(f"evaluating {lm.what}", file=sys.stderr)
    if asked.benchmarks:
        with interrupts.Interrupts():
            outcome = evaluation.sample(lm, asked, out)
        if is_first:
            n, scores = outcome.n_completions, out / runner.SCORES_NAME
            _print(outcome.summary, f"{n} completions: {scores}, {journal.PREDICTIONS_NAME}")
    if _HELDOUT.value:
        heldout.write(lm, _HELDOUT.value, reading(), out)


def _grade(asked: Settings) -> None:
    # A grader needs no accelerator, and should not occupy one.
    jax.config.update("jax_platforms", "cpu")
    file = folders.local_file(str(_GRADE.value), "--grade")
    out = file.parent
    if _OUT.value:
        out = folders.local_folder(_OUT.value, "--out")
    of_grader = tuple(f"--{name}=" for name in _OF_GRADER)
    errors.raise_if_any([line for line in asked.mistakes("--") if line.startswith(of_grader)])
    summary = regrade.grade(
        file,
        out,
        asked.benchmark_data,
        mode=asked.mode,
        last_number=asked.last_number,
        answer_markers=asked.answer_markers,
        workers=asked.workers,
    )
    n = summary["predictions"]["rows"]
    _print(
        summary,
        f"graded {n} completions: {out / runner.SCORES_NAME}, {out / regrade.GRADED_NAME}",
    )


def main() -> None:
    cli.parse(required=[])
    asked = settings()
    if _GRADE.value:
        _grade(asked)
        return
    if not _MODEL.value or not (asked.benchmarks or _HELDOUT.value):
        ways = (
            "--model with --benchmarks to sample, --model with --heldout to score a file, or"
            " --grade=FILE"
        )
        raise errors.UserError(f"nothing to evaluate: give {ways} (--help lists the options)")
    if not _OUT.value:
        raise errors.UserError("--out is required: the folder to write")
    if asked.benchmarks:
        errors.raise_if_any(asked.mistakes("--"))
    cli.join_processes()
    compilation_cache.keep_compilations()
    refuse_idle_revision([_MODEL.value], _REVISION.value)
    _evaluate_newest(asked, folders.local_folder(_OUT.value, "--out"))
