"""The public API: `import dft_jax as dft`, then `dft.load`, `dft.finetune`, …

    base = dft.load("Qwen/Qwen2.5-Math-1.5B", mesh={"fsdp": -1})
    config = dft.recipe("configs/gsm8k.py", objective="dft", **{"train.steps": 200})
    run = dft.finetune(base, config, workdir="runs/gsm8k")
    scores = dft.evaluate(run.lm, ["math500"], samples=16, temperature=1.0)
    dft.export(run.lm, "exports/gsm8k-dft")

Commands, laboratory and notebooks call these.
"""

import contextlib
import dataclasses
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dft_jax import config as config_lib
from dft_jax.analysis import comparison, comparison_report, reading, token_scores
from dft_jax.config import get_default
from dft_jax.data.stops import find_stops
from dft_jax.data.templates import AUTO, Template, today
from dft_jax.evals import evaluation, prompts as prompts_lib, settings as eval_settings
from dft_jax.evals.scheduled import BenchmarkEvaluator
from dft_jax.lm.language_model import LM
from dft_jax.lm.opening import open_lm
from dft_jax.lm.run import open_run
from dft_jax.models.hf import export as export_lib
from dft_jax.models.hf.rounding import Rounding
from dft_jax.models.model import Model, matmul_precision
from dft_jax.runtime import distributed, errors, folders, interrupts, options, progress
from dft_jax.runtime.options import Config
from dft_jax.runtime.python_files import call_file
from dft_jax.sampling.sampler import Request, Sampler
from dft_jax.training import origin
from dft_jax.training.evaluators import Evaluator
from dft_jax.training.run import Run, fine_tune

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


def load(
    path: str | Path,
    *,
    revision: str = "main",
    mesh: Mapping[str, int] | None = None,
    compute_dtype: str | None = None,
) -> LM:
    """Opens a language model. Its parameters are read when they are first used.

    Args:
      path: a Hugging Face folder, a hub id, or the directory of a run (its newest checkpoint).
      revision: of a hub id: branch, tag or commit.
      mesh: sizes by axis ("data", "fsdp", "tensor"), one of which may be -1 for what is left; by
        default every device has a copy of the model.
      compute_dtype: of matrix products; by default float32 on CPUs, else bfloat16.

    Raises:
      UserError: nothing is there, or it is not supported, or does not fit the devices.

    >>> base = load("Qwen/Qwen2.5-Math-1.5B", mesh={"fsdp": -1})
    """
    return open_lm(str(path), revision=revision, mesh=mesh, compute_dtype=compute_dtype)


def recipe(file: str | Path, /, *arguments: str, **settings: Any) -> Config:
    """The config of a recipe file, with changes.

    Args:
      file: a Python file with `get_config`, such as configs/gsm8k.py.
      arguments: of `get_config`, as text: "objective=dft".
      settings: an argument of the recipe (objective="dft") or a key of the config
        (**{"train.steps": 200}); what is a key of the config, and no argument, is set afterwards.

    Raises:
      UserError: no such file, an argument or key that it does not have, or a value of another
      type.

    >>> config = recipe("configs/gsm8k.py", objective="dft", **{"train.steps": 200})
    """
    known = config_lib.all_options()
    given, changes = list(arguments), {}
    for name, value in settings.items():
        if "." in name:
            changes[name] = value
        else:
            given.append(f"{name}={value}")
    path = str(file)
    if given:
        path = f"{path}:{','.join(given)}"
    config = call_file(
        path, "recipe", "get_config", "config", "configs/tiny.py", "mend the config file"
    )
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        raise errors.UserError(f"{file}: get_config() should return a ConfigDict, not {kind}")
    problems = []
    for name, value in changes.items():
        if name not in known:
            problems.append(config_lib.unknown_key(name))
        elif mistake := known[name].mistake(f"config.{name}", value):
            problems.append(mistake)
    errors.raise_if_any(problems)
    config.update_from_flattened_dict(changes)
    return config.lock()


def sample(
    lm: LM,
    prompts: str | Sequence[str],
    *,
    template: str = AUTO,
    n: int = 1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    max_new_tokens: int = 512,
    seed: int = 0,
    show_progress: bool = True,
) -> list[str] | list[list[str]]:
    """Completions of questions.

    Args:
      prompts: one question, or several.
      template: how a question is put: "auto" (as the model was trained, else its own chat
        template), a name of data/templates.py, or a .jinja file.
      n: completions of each.
      temperature: 0 is greedy, and needs n=1.
      top_k: sample from the k most probable tokens; 0 for all.
      top_p: sample from the fewest tokens that hold this share of the probability.
      max_new_tokens: the longest completion.
      seed: a completion depends on this, its question and its number alone.

    Returns:
      The n texts of one question; of several, a list of them for each.

    >>> sample(base, "What is 17 * 23?", template="qwen25-math-cot", n=2, temperature=0.7)
    """
    questions = [prompts] if isinstance(prompts, str) else list(prompts)
    if n < 1 or (temperature == 0 and n > 1):
        raise errors.UserError(f"n={n}: at least 1, and greedily (temperature=0) just 1")
    choice = prompts_lib.choose(template, lm.trained, lm.tokenizer, setting="template")
    asked = Template(choice.name, lm.tokenizer, setting="template", date=lm.date or today())
    requests, longest = [], lm.model.config.max_length
    for question in questions:
        ids = tuple(asked.prompt_ids(question))
        room = longest - len(ids)
        if room < 1:
            what = f"a prompt of {len(ids)} tokens leaves no room within {longest}"
            raise errors.UserError(f"{what}: {question[:40]!r}…; shorten it")
        for number in range(n):
            limit = min(room, max_new_tokens)
            requests.append(Request(question, number, ids, temperature, limit))
    # Where a completion ends: whatever the tokenizer, the template or the checkpoint says.
    stops = find_stops(asked)
    sampler = Sampler(
        lm.model,
        stop_ids=stops.ids,
        max_length=max(len(request.prompt_ids) + request.max_new_tokens for request in requests),
        slots=min(64, len(requests)),
        seed=seed,
        top_k=top_k,
        top_p=top_p,
        vocab_size=max({*lm.tokenizer.get_vocab().values(), *stops.ids}) + 1,
    )
    texts = {}
    with progress.silent(not show_progress), matmul_precision(str(lm.model.module.compute_dtype)):
        for completion in sampler.sample(lm.params, requests):
            text = lm.tokenizer.decode(list(completion.ids), skip_special_tokens=True)
            texts[completion.request] = text
    # Completions come in the order in which they were finished.
    found = []
    for start in range(0, len(requests), n):
        found.append([texts[request] for request in requests[start : start + n]])
    return found[0] if isinstance(prompts, str) else found


def train(config: Config, workdir: str | Path) -> Run:
    """Fine-tunes as `config` says, in `workdir`; resumes when a checkpoint of the same run is
    there. `finetune` is the same for notebooks.

    Raises:
      UserError: anything wrong with config, checkpoint, data or workdir, before compilation; a save
      that failed.
      Stopped: a signal asked for it (runtime/interrupts.py); the state is saved.
    """
    place = folders.local_folder(str(workdir))
    with distributed.together("config"):
        errors.raise_if_any(config_lib.validate_on(config, jax.device_count()))
    return fine_tune(config, place, benchmark_evaluators)


def benchmark_evaluators(
    config: Config, tokenizer: Any, model: Model, workdir: Path
) -> tuple[Evaluator, ...]:
    """The evaluator of `config.eval.benchmarks`; none where it names no benchmark."""
    if not config.eval.benchmarks:
        return ()
    evaluator = BenchmarkEvaluator(
        eval_settings.of_config(config.eval),
        config.eval.benchmarks_every,
        tokenizer,
        model,
        workdir,
        date=config.data.date,
        trained=config.data.template,
    )
    return (evaluator,)


def finetune(
    base: LM | None, config: Config, workdir: str | Path, *, show_progress: bool = True
) -> Run:
    """Fine-tunes, and resumes if it was stopped: the same call then continues.

    Args:
      base: the model to begin with, opened from a Hugging Face folder or hub id; its mesh is used.
        None where `config.model.path` names it.
      config: see `recipe` and `get_default`.
      workdir: the run's folder: checkpoints, metrics.jsonl, config.json.

    Returns:
      The finished run: `run.lm` is the trained model, `run.plot()` draws its curve.

    Raises:
      UserError: something given is wrong; nothing was trained.
      KeyboardInterrupt: it was stopped; all of it is saved.

    >>> run = finetune(base, config, "runs/gsm8k")
    """
    if base is not None:
        config = _on_base(base, config)
    stopped = None
    with progress.silent(not show_progress), _interruptible():
        try:
            return train(config, workdir)
        except errors.Stopped as error:
            stopped = error
    # Raised outside, where signals are handled as before.
    raise KeyboardInterrupt(f"stopped by {stopped}; all is saved, the same call continues")


def _on_base(base: LM, config: Config) -> Config:
    """The config with the path and mesh of an opened model."""
    if (Path(base.path) / "checkpoints").is_dir():
        what = f"{base.path} is a run"
        raise errors.UserError(f"{what}: export it first, and load the export to train it further")
    named = config.model.path
    if named and Path(named).absolute() != Path(base.path).absolute() and named != base.path:
        what = f"config.model.path={named!r}, but the model given is {base.path!r}"
        raise errors.UserError(f"{what}; leave the path empty, or give None for the model")
    config = config.copy_and_resolve_references()
    config.model.path = base.path
    config.model.revision = base.revision
    config.mesh.update(base.mesh)
    return config.lock()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Signals are answered by saving, where they can be caught: in the main thread, and once."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or interrupts.are_caught():
        yield
        return
    with interrupts.Interrupts():
        yield


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of one model on benchmarks. Printed, it is their table."""

    results: list[dict[str, Any]]  # as in scores.json, one for each benchmark and temperature
    summary: dict[str, Any]  # the content of scores.json
    folder: Path | None  # with predictions.jsonl; None where none was asked to be kept

    def __str__(self) -> str:
        return evaluation.table(self.summary)

    __repr__ = __str__


def evaluate(
    lm: LM,
    benchmarks: Sequence[str],
    *,
    out: str | Path | None = None,
    temperature: float | Sequence[float] = 1.0,
    show_progress: bool = True,
    **settings: Any,
) -> Evaluation:
    """Samples and grades a model on benchmarks.

    Args:
      benchmarks: names of evals/tasks.
      out: a folder for predictions and scores, in which an evaluation that was stopped continues;
        without it nothing is kept but what is returned.
      temperature: one, or several; 0 is greedy.
      settings: fields of `evals.settings.Settings`: samples=16, greedy=False, max_problems=50, …

    Raises:
      UserError: an unknown benchmark or setting, or a folder that holds another evaluation.

    >>> scores = evaluate(run.lm, ["math500"], samples=16, temperature=1.0)
    """
    if isinstance(benchmarks, str):
        benchmarks = [benchmarks]
    temperatures = (temperature,) if isinstance(temperature, (int, float)) else tuple(temperature)
    asked = _settings(benchmarks=tuple(benchmarks), temperature=temperatures, **settings)
    errors.raise_if_any(asked.mistakes(""))
    with progress.silent(not show_progress), contextlib.ExitStack() as stack:
        folder = None
        # The runner keeps a journal in any case: it is what resumes.
        if out is None:
            kept = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = kept = folders.local_folder(str(out), "out")
        summary = evaluation.sample(lm, asked, kept).summary
    return Evaluation(summary.get("results", []), summary, folder)


def _settings(**values: Any) -> eval_settings.Settings:
    known = [field.name for field in dataclasses.fields(eval_settings.Settings)]
    for name in values:
        if name not in known:
            raise errors.UserError(options.unknown(f"{name}= is no setting", name, known))
    return eval_settings.Settings(**values)


@dataclasses.dataclass(frozen=True)
class TokenScores:
    """The T trained tokens of some demonstrations under one model, in the order of the data."""

    ids_T: np.ndarray  # of the tokens
    example_T: np.ndarray  # the number of the example that each is of
    p_T: np.ndarray  # probability of each token
    entropy_T: np.ndarray  # of the distribution it was drawn from, in nats
    loss_T: np.ndarray  # -log p, in nats
    texts: list[str]  # of the tokens

    @property
    def nll(self) -> float:
        """Mean loss of a token, in nats."""
        return float(np.mean(self.loss_T, dtype=np.float64))

    def __repr__(self) -> str:
        mean_p = float(np.mean(self.p_T, dtype=np.float64))
        return f"TokenScores({len(self.p_T)} tokens, nll {self.nll:.4f}, mean p {mean_p:.4f})"


def score(
    lm: LM,
    data: str | Path,
    *,
    rows: str = "fields",
    template: str = AUTO,
    max_length: int = 4096,
    max_rows: int = 0,
    show_progress: bool = True,
) -> TokenScores:
    """Probability, entropy and loss of every trained token of some demonstrations.

    Args:
      data: a file, a folder, a hub dataset, or world(…).
      rows: what a row means (data/formats.py).
      template: as in `sample`.
      max_length: tokens of an example, at most; longer ones are cut.
      max_rows: the first rows; 0 for all.

    Raises:
      UserError: data that cannot be read, or no trained token in it.

    >>> scores = score(run.lm, "heldout.jsonl", rows="gsm8k")
    """
    how = reading.Reading(rows=rows, prompt=template, context=max_length, max_rows=max_rows)
    config = reading.config_for({"model": lm}, how)
    examples = reading.read(str(data), lm, config)
    with progress.silent(not show_progress):
        found = token_scores.score(lm, examples, config, lm.name)
    tokens = token_scores.tokens(examples)
    texts = [lm.tokenizer.decode([int(id_)]) for id_ in tokens.id_T]
    return TokenScores(
        tokens.id_T, tokens.example_T, found.p_T, found.entropy_T, -found.logp_T, texts
    )


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Evaluations side by side, with paired differences to the first. Printed, it is the tables."""

    rows: list[dict[str, Any]]  # a row for each benchmark, temperature and model
    warnings: list[str]
    text: str

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__

    def plot(self, file: str | Path) -> None:
        """Draws the bars with their intervals."""
        comparison_report.plot(self.rows, Path(file))


def compare(scores: Mapping[str, Evaluation | str | Path]) -> Comparison:
    """Compares evaluations; differences are to the first.

    Args:
      scores: by name: what `evaluate` returned, or the folder of an evaluation or run.

    Raises:
      UserError: no evaluation there, or scores that are not whole.

    >>> print(compare({"base": base_scores, "dft": dft_scores}))
    """
    if not scores:
        raise errors.UserError("compare({}): give evaluations by name")
    read = []
    for name, one in scores.items():
        if isinstance(one, Evaluation):
            read.append(comparison.of_summary(name, one.summary))
        else:
            read.append(comparison.read(f"{name}={one}"))
    made = comparison.compare(read)
    return Comparison(made.rows, made.warnings, comparison_report.text(made))


def export(lm: LM, out: str | Path, *, dtype: str = "auto", max_shard_gb: float = 5.0) -> Rounding:
    """Writes a model as a Hugging Face folder that `transformers` loads.

    Args:
      lm: a trained model (`run.lm`, or a run that was loaded), or any other.
      out: a new folder, or an earlier export, which is replaced once the new one is complete.
      dtype: of the weights: "auto" (that of the base, or float32 where rounding to it would lose a
        tenth of what was trained), "source", "float32", "bfloat16".

    Returns:
      What rounding to the files' type loses.

    >>> export(run.lm, "exports/gsm8k-dft")
    """
    workdir = Path(lm.path)
    about = None
    if (workdir / "checkpoints").is_dir():
        saved = open_run(workdir)
        about = origin.of_run(workdir, saved.config, lm.identify()["step"], saved.identity)
    place = folders.local_folder(str(out), "out")
    return export_lib.export(
        lm.params,
        lm.model,
        lm.source,
        place,
        dtype=dtype,
        max_shard_gb=max_shard_gb,
        origin=about,
    )
