"""Samples a model on benchmarks and grades it; or grades completions of any other engine; or reads
held-out text.

python -m dft_jax.evaluate --model=FOLDER_OR_RUN --benchmarks=math500,aime24 --prompt=qwen-boxed --out=scores
python -m dft_jax.evaluate --grade=predictions.jsonl --benchmark_data=FOLDER --out=scores
python -m dft_jax.evaluate --model=FOLDER_OR_RUN --heldout=test.jsonl --rows=gsm8k --out=scores

--model is a Hugging Face folder, a hub id, or a run directory, of which the newest checkpoint is
taken. An evaluation that was killed goes on with the same command.

Each line of predictions.jsonl is one completion:

    {"benchmark": "aime24", "id": "60", "sample": 0, "completion": "… \\boxed{204}"}

and may have "reference" (the right answer; else that of the benchmark), "temperature", "truncated"
(true where the length limit cut it) and "tokens" (its length). An id is what `evals/benchmarks.py`
says: a field of the benchmark's rows, or the number of the row, from 0.
"""

import dataclasses
import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from dft_jax import config as config_lib
from dft_jax.checkpoints.manager import Gone
from dft_jax.commands import cli
from dft_jax.data import account, batches, formats, templates
from dft_jax.data.templates import Template, today
from dft_jax.evals import grading, prompts, records, report, runner
from dft_jax.export import open_run
from dft_jax.losses import objectives
from dft_jax.models.hf.export import provenance
from dft_jax.models.hf.load import load_params
from dft_jax.models.hf.locate import tokenizer_files
from dft_jax.models.hf.safetensors import Checkpoint, weights_sample
from dft_jax.models.model import Model, with_attention
from dft_jax.runtime import (
    compilation_cache,
    distributed,
    environment,
    errors,
    files,
    folders,
    interrupts,
)
from dft_jax.training import identity, metrics
from dft_jax.training.job import load_model
from dft_jax.training.loop import matmul_precision
from dft_jax.training.step import make_evaluate
from dft_jax.types import Params

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
flags.DEFINE_string("rows", "fields", "What a row of --heldout means: data/formats.py.")
flags.DEFINE_string("prompt_field", "prompt", "Of --heldout with --rows=fields.")
flags.DEFINE_string("completion_field", "completion", "Of --heldout with --rows=fields.")
# dft_jax.export has the flag too, and one process may import both.
_OUT = flags.DEFINE_string("out", None, "Folder to write.", allow_override=True)

GRADED_NAME, HELDOUT_NAME = "predictions.graded.jsonl", "heldout.json"


def _define_settings() -> None:
    """A flag for each field of runner.Settings."""
    define = {
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        bool: flags.DEFINE_bool,
        str: flags.DEFINE_string,
    }
    for field in dataclasses.fields(runner.Settings):
        text = field.metadata["help"]
        if isinstance(field.default, tuple):
            flags.DEFINE_string(field.name, ",".join(map(str, field.default)), text)
        else:
            define[type(field.default)](field.name, field.default, text)


_define_settings()


def settings() -> runner.Settings:
    """What the flags say."""
    values = {
        field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(runner.Settings)
    }
    return runner.Settings.read(values, "--")


def grade(file: Path, out: Path, data: str, **grader: Any) -> dict[str, Any]:
    """Grades the completions in `file`; writes them with verdicts, and their scores, to `out`;
    returns the scores.

    `data` is a benchmark's file, a folder of them, or empty for the hub; `grader` are the settings
    of `grading.Grader`. Nothing is written before all is graded, and each file appears at once and
    whole.

    Raises:
      UserError: anything wrong with the completions, the benchmarks or `out`, before the first is
      graded.
    """
    predictions = records.read_predictions(file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    problems = records.load_problems(predictions, data)
    predictions = records.with_references(predictions, problems)
    _make_writable(out, file)
    with folders.locked(out, "--out"):
        rows, summary = grading.grade(predictions, problems, **grader)
        summary["predictions"] = {"file": file.name, "sha256": digest, "rows": len(predictions)}
        with errors.user_errors(
            f"--out={out}: cannot be written", "make room, or give another folder"
        ):
            files.write_text(out / GRADED_NAME, "".join(json.dumps(row) + "\n" for row in rows))
            files.write_json(out / runner.SCORES_NAME, summary)
    return summary


def _make_writable(out: Path, file: Path) -> None:
    """The folder `out`, made if need be; refused before the work where its files could not be
    written at the end.
    """
    if (out / GRADED_NAME).exists() and (out / GRADED_NAME).samefile(file):
        raise errors.UserError(
            f"--out={out}: {file.name} there would be overwritten by itself; give another folder"
        )
    with errors.user_errors(f"--out={out}: cannot be made", "give another folder"):
        out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK | os.X_OK):
        raise errors.UserError(f"--out={out}: no permission to write there; give another folder")
    if (out / runner.EVALUATION_NAME).exists():
        raise errors.UserError(
            f"--out={out}: the scores of an evaluation are there; give another folder"
        )
    for name in (GRADED_NAME, runner.SCORES_NAME):
        if (out / name).is_dir():
            raise errors.UserError(
                f"--out={out}: {name} there is a folder; give another folder, or remove it"
            )


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model that can be evaluated. `identify` says in plain values which one it is, `load` gives
    its parameters.

    What it says under `origin` is for a reader: which run or hub commit these weights are of, and
    what that began with. `what` says for a reader which weights these are: those of a run, or those
    of an export, which may be rounded.
    """

    model: Model
    tokenizer: Any
    identify: Callable[[], dict[str, Any]]
    load: Callable[[], Params]
    what: str = ""
    # of a Hugging Face folder, which each host may have on its own disk
    weights_sha256_of_sample: str = ""
    date: str = ""  # YYYY-MM-DD, of a run, or its export, whose template writes the date
    trained: str = ""  # the prompt that it was trained with; empty where nobody says


def open_model(path: str, revision: str, tensor: int, compute_dtype: str | None) -> Opened:
    """The model of a Hugging Face checkpoint, or of a run's newest checkpoint, on all devices;
    nothing is loaded yet.

    Raises:
      UserError: neither is there, or what is there is not supported, or does not fit the devices.
    """
    dtype = compute_dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    changes = {"mesh.data": -1, "mesh.fsdp": 1, "mesh.tensor": tensor, "model.compute_dtype": dtype}
    folder = Path(path).expanduser()
    if (folder / "checkpoints").is_dir():
        run_config, _, model, tokenizer, checkpoints, step = open_run(folder, **changes)
        masters = model.module.param_dtype
        what = f"{folder.name}, step {step}: its {masters} weights, computed in {dtype}"

        run, sha256 = checkpoints.run_of(step), checkpoints.digest(step)

        def identify():
            origin = {name: run.get(name) for name in ("run_id", "base", "data")}
            return {"name": folder.name, "step": step, "sha256": sha256, "origin": origin}

        def load():
            return checkpoints.restore_params(step, model.abstract_params)

        trained, date = _trained_template(run_config, folder), run_config.data.get("date", "")
        return Opened(model, tokenizer, identify, load, what, date=date, trained=trained)
    config = config_lib.get_default()
    values = {"model.path": str(folder) if folder.is_dir() else path, "model.revision": revision}
    config.update_from_flattened_dict(
        changes | values | {"model.param_dtype": dtype, "data.max_length": 2}
    )
    source, model, tokenizer = load_model(config)

    def identify_checkpoint():
        weights = Checkpoint(source).files
        hashes = files.sha256_of({source / "config.json", *weights, *tokenizer_files(source)})
        base = identity.base_of(
            config, source, files.joined_digest({file: hashes[file] for file in weights})
        )
        origin = _exported_from(source) or {"base": base}
        return {
            "name": folder.absolute().name,
            "sha256": files.joined_digest(hashes),
            "origin": origin,
        }

    exported = provenance(source) or {}
    what = f"{folder.absolute().name}: {Checkpoint(source).dtype} weights, computed in {dtype}"
    return Opened(
        model,
        tokenizer,
        identify_checkpoint,
        lambda: load_params(Checkpoint(source), model),
        what,
        weights_sample(source),
        date=exported.get("date", ""),
        trained=exported.get("template", ""),
    )


def _exported_from(source: Path) -> dict[str, Any]:
    """The run, step and base that an export says it is of; empty of any other folder, and where no
    base is named.
    """
    exported = provenance(source) or {}
    is_named = bool(report.base_of({"origin": exported}).get("path"))
    return {name: exported.get(name) for name in ("run_id", "step", "base")} if is_named else {}


def refuse_idle_revision(paths: list[str], revision: str) -> None:
    """UserError for a --revision where no model is of the hub."""
    folders = [path for path in paths if Path(path).expanduser().is_dir()]
    if revision != "main" and len(folders) == len(paths):
        raise errors.UserError(
            f"--revision={revision} has no effect: {folders[0]} is a folder; remove it"
        )


def _trained_template(config: ConfigDict, workdir: Path) -> str:
    """What a run was trained with, as a value of --prompt. Of a .jinja file its folder has a copy."""
    name = config.data.template
    return str(identity.template_file(workdir) or name) if name.endswith(".jinja") else name


def agree(opened: Opened, asked: runner.Settings) -> None:
    """UserError where the processes of one evaluation have not all been given the same."""
    facts = environment.process_facts()
    facts |= {"model": opened.what, "weights_sha256_of_sample": opened.weights_sha256_of_sample}
    facts |= {f"settings.{name}": value for name, value in dataclasses.asdict(asked).items()}
    distributed.agree("evaluation", facts)


def sample(opened: Opened, asked: runner.Settings, out: Path) -> None:
    """Evaluates on the benchmarks asked for, and prints the table."""
    with distributed.together("date"):
        date = runner.recorded_date(out) or opened.date or today()
    date = distributed.decided("date", date, lambda dates: dates[0])
    with distributed.together("plan"):
        if asked.prompt == prompts.AUTO:  # an evaluation that was begun goes on as it was
            asked = dataclasses.replace(
                asked, prompt=prompts.recorded(out / runner.EVALUATION_NAME) or prompts.AUTO
            )
        plan = runner.plan(asked, opened.tokenizer, opened.model, date=date, trained=opened.trained)
    texts = json.dumps(sorted([*key, text] for key, text in plan.prompts.items()))
    prompts_sha256 = hashlib.sha256(texts.encode()).hexdigest()
    _announce(plan.choice)
    distributed.agree("plan", {"problems_sha256": plan.digest(), "prompts_sha256": prompts_sha256})
    with folders.locked(out, "--out"):
        of = opened.identify() | {"evaluated": opened.what} if jax.process_index() == 0 else {}
        summary = runner.evaluate(plan, opened.model, opened.load, out, of)
    if jax.process_index() == 0:
        _print(
            summary,
            f"{len(plan.requests)} completions: {out / runner.SCORES_NAME}, {runner.PREDICTIONS_NAME}",
        )


def _announce(choice: prompts.Choice) -> None:
    if jax.process_index() == 0:
        print(f"prompt: {choice.name} ({choice.why})", file=sys.stderr)
        if choice.warning:
            print(f"warning: {choice.warning}", file=sys.stderr)


def reading_config(opened: dict[str, Opened]) -> ConfigDict:
    """The config by which the flags ask to read demonstrations, as far as all these models can
    read.
    """
    given, config = flags.FLAGS, config_lib.get_default()
    if given.rows not in formats.ROW_FORMATS:
        hint, known = (
            errors.did_you_mean(given.rows, list(formats.ROW_FORMATS)),
            ", ".join(formats.ROW_FORMATS),
        )
        raise errors.UserError(f"--rows={given.rows} is unknown{hint}; known: {known}")
    if given.instruction:
        remedy = "give --prompt=tokenizer-boxed, or a .jinja file"
        raise errors.UserError(
            f"--instruction is of sampled questions only, not of demonstrations; {remedy}"
        )
    max_length = min(given.context, *(each.model.config.max_length for each in opened.values()))
    fields = {"prompt_field": given.prompt_field, "completion_field": given.completion_field}
    config.data.update(
        rows=given.rows, template=_reading_prompt(opened), max_length=max_length, **fields
    )
    config.data.date = reading_date(opened, config.data.template)
    config.train.global_batch = max(64, jax.device_count())
    return config


def _reading_prompt(opened: dict[str, Opened]) -> str:
    """The prompt for demonstrations that all these models read, announced."""
    asked, trained = flags.FLAGS.prompt, {name: each.trained for name, each in opened.items()}
    tokenizer = next(iter(opened.values())).tokenizer
    if asked == prompts.AUTO:
        choice = prompts.choose(asked, prompts.shared(trained), tokenizer)
        _announce(choice)
        return choice.name
    errors.raise_if_any(templates.name_problems("--prompt", asked))
    for name, own in trained.items():
        choice = prompts.choose(asked, own, tokenizer)
        if choice.warning and jax.process_index() == 0:
            print(f"warning: {name}: {choice.warning}", file=sys.stderr)
    return asked


def reading_date(opened: dict[str, Opened], prompt: str) -> str:
    """The day that a dated prompt is given for all these models: the first that one was trained
    with, else today.

    Empty where the prompt writes no date.
    """
    first, *_ = opened.values()
    if not Template(prompt, first.tokenizer, setting="--prompt").is_dated:
        return ""
    known = {name: each.date for name, each in opened.items() if each.date}
    date = distributed.decided(
        "date", next(iter(known.values()), "") or today(), lambda dates: dates[0]
    )
    for name, own in known.items():
        if own != date and jax.process_index() == 0:
            print(
                f"warning: {name} was trained with the date {own} in its prompt, and reads {date}",
                file=sys.stderr,
            )
    return date


def read_heldout(opened: Opened, out: Path) -> None:
    """Metrics of the completions in --heldout, token by token: nll, p and its histogram, entropy;
    as heldout.json.
    """
    model, config = opened.model, reading_config({"model": opened})
    vocab_size = model.config.vocab_size
    with distributed.together("held out"):
        examples = batches.load_examples(
            _HELDOUT.value, config.data, opened.tokenizer, vocab_size, split="test"
        )
    distributed.agree("held out", {"heldout_data_sha256": examples.report["sha256"]})
    with folders.locked(out, "--out"):
        account.tell("--heldout", examples.report, "--context")
        _write_heldout(opened, with_attention(model, config.model.attention), examples, config, out)


def _write_heldout(
    opened: Opened, model: Model, examples: batches.Examples, config: ConfigDict, out: Path
) -> None:
    values = make_evaluate(model, objectives.make_objective("sft"), examples, config)(opened.load())
    prompt = config.data.template
    report_ = {
        "model": opened.identify(),
        "evaluated": opened.what,
        "prompt": prompt,
        "date": config.data.date,
        "trained_with": opened.trained,
        "metrics": values,
        "p_bin_edges": metrics.P_BIN_EDGES,
    }
    report_ |= {"data": examples.report, "environment": environment.describe()}
    if jax.process_index() == 0:
        out.mkdir(parents=True, exist_ok=True)
        files.write_json(out / HELDOUT_NAME, report_)
        for name, value in values.items():
            if not isinstance(value, list):
                print(f"{name:32s} {value:.6g}")
        for low, high, share in zip(
            metrics.P_BIN_EDGES[:-1],
            metrics.P_BIN_EDGES[1:],
            values["heldout/p_histogram"],
            strict=True,
        ):
            print(f"  p in {low:6g} to {high:6g} {share:7.2%}  {'█' * round(60 * share)}")


def _print(summary: dict[str, Any], done: str) -> None:
    for line in summary["warnings"]:
        print(f"warning: {line}", file=sys.stderr)
    print(report.table(summary["results"]))
    if origin := report.origin_text(summary.get("model")):
        print(origin)
    print(done)


def evaluate_newest(asked: runner.Settings, out: Path) -> None:
    """What the flags ask of --model; of a run that trains on, of the checkpoint that is the newest
    when it is read.
    """
    try:
        _evaluate(asked, out)
    except Gone as gone:
        # Several processes may not have met this alike: they end, and say what to do.
        if jax.process_count() > 1:
            raise
        print(
            f"note: {gone.problems[0].partition(';')[0]}; the newest one is taken", file=sys.stderr
        )
        _evaluate(asked, out)


def _evaluate(asked: runner.Settings, out: Path) -> None:
    """What the flags ask of --model, as it is now."""
    opened = open_model(_MODEL.value, _REVISION.value, _TENSOR.value, _COMPUTE.value)
    opened = dataclasses.replace(opened, load=functools.cache(opened.load))  # for both parts
    agree(opened, asked)
    if jax.process_index() == 0:
        print(f"evaluating {opened.what}", file=sys.stderr)
    with matmul_precision(str(opened.model.module.compute_dtype)):
        if asked.benchmarks:
            with interrupts.Interrupts():
                sample(opened, asked, out)
        if _HELDOUT.value:
            read_heldout(opened, out)


def main() -> None:
    cli.parse(required=[])
    asked = settings()
    if _GRADE.value:
        # a grader needs no accelerator, and should not occupy one
        jax.config.update("jax_platforms", "cpu")
        file = Path(_GRADE.value).expanduser()
        out = Path(_OUT.value).expanduser() if _OUT.value else file.parent
        names = ("mode", "last_number", "answer_markers", "workers")
        grader = {name: getattr(asked, name) for name in names}
        own = tuple(f"--{name}=" for name in names)
        errors.raise_if_any([line for line in asked.mistakes("--") if line.startswith(own)])
        summary = grade(file, out, asked.benchmark_data, **grader)
        rows = summary["predictions"]["rows"]
        return _print(
            summary, f"graded {rows} completions: {out / runner.SCORES_NAME}, {out / GRADED_NAME}"
        )
    if not _MODEL.value or not (asked.benchmarks or _HELDOUT.value):
        ways = "--model with --benchmarks to sample, --model with --heldout to score a file, or --grade=FILE"
        raise errors.UserError(f"nothing to evaluate: give {ways} (--help lists the options)")
    if not _OUT.value:
        raise errors.UserError("--out is required: the folder to write")
    if asked.benchmarks:
        errors.raise_if_any(asked.mistakes("--"))
    cli.join_processes()
    compilation_cache.keep_compilations()
    refuse_idle_revision([_MODEL.value], _REVISION.value)
    evaluate_newest(asked, folders.local_folder(_OUT.value, "--out"))


if __name__ == "__main__":
    errors.exit_on_user_error(main)()
