"""One fine-tuning of a laboratory base and what is measured on it: the unit that every study of the
folder is made of.

A trial has a name, such as

    base=lab,objective=dft,data=noise15,learning_rate=0.001,batch=32,steps=60,schedule=cosine,seed=2,every=0

and lives in a folder of that name, so studies share trials, and a finished one is never made again,
unless its config, its base or the settings of the probe have changed. Each is computed on one core:
two run at once on two, and the numbers do not depend on how many cores there are.
"""

import dataclasses
import functools
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from dft_jax import api, assets
from dft_jax.evals import planning, runner
from dft_jax.evals.settings import Settings, plain
from dft_jax.evals.tasks import benchmarks
from dft_jax.lab import recipe
from dft_jax.lm.checkpoint import open_config
from dft_jax.models.hf.load import load_params
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.model import matmul_precision, with_tower
from dft_jax.runtime import errors, files, options

BASES = {
    "lab": assets.LAB,
    "lab_clean": assets.LAB_CLEAN,
    "lab_code": assets.LAB_CODE,
    "lab_vision": assets.LAB_VISION,
}
CHAIN = "family=chain, levels=2-4, n=2500"
# Numbers above 20 are on 2.4 % of the cards.
PICTURE_CHAIN = "family=picture_chain, levels=2-4, rare=0.05"
DATA = {
    **{
        f"noise{percent}": f"world(split=train, {CHAIN}, noise={percent / 100:g})"
        for percent in (0, 5, 15, 30)
    },
    "one_style": f"world(split=train, {CHAIN}, styles=1)",
    "operator": "world(split=train, family=operator, levels=1-2, n=2500)",
    # Of the base `lab_code`.
    "code0": "programs(split=train, n=2500, styles=4)",
    "code15": "programs(split=train, n=2500, styles=4, noise=0.15)",
    # Of the base `lab_vision`: numbers read rightly, and 15 % of them wrongly.
    "read0": f"cards(split=train, {PICTURE_CHAIN}, n=2500)",
    "read15": f"cards(split=train, {PICTURE_CHAIN}, n=2500, noise_read=0.15)",
}
# What else the data of a trial decides: its held-out examples, and the probe that chooses its rate.
HELDOUT = {
    "operator": "world(split=validation, family=operator, levels=1-2, n=256)",
    "code0": "programs(split=validation, n=256, styles=4)",
    "code15": "programs(split=validation, n=256, styles=4)",
    "read0": f"cards(split=validation, {PICTURE_CHAIN}, n=256)",
    "read15": f"cards(split=validation, {PICTURE_CHAIN}, n=256)",
}
VALIDATION = {
    "operator": "operator_validation",
    "code0": "code_validation",
    "code15": "code_validation",
    "read0": "vision_validation",
    "read15": "vision_validation",
}
RL = ("dpo", "grpo")
LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3)

REJECTION_NAME = "rejection.jsonl"

_SIX = (0.2, 0.4, 0.6, 0.8, 1.0)  # and greedily
_CHAINS = ("lab", "lab_hard", "lab_expression")
PROBES: dict[str, dict[str, Any]] = {
    "validation": dict(benchmarks=("lab_validation",), samples=8, greedy=False),
    "operator_validation": dict(benchmarks=("lab_operator_validation",), samples=8, greedy=False),
    "test": dict(benchmarks=_CHAINS, samples=8, max_problems=48),
    "operator": dict(benchmarks=("lab_operator", "lab"), samples=8, max_problems=48),
    "quick": dict(benchmarks=("lab", "lab_expression"), samples=8),
    "temperatures": dict(
        benchmarks=("lab", "lab_hard"), samples=8, temperature=(0.2, 0.4, 0.6, 0.8, 1.0)
    ),
    "extremes": dict(
        benchmarks=("lab", "lab_hard"), samples=8, temperature=(0.05, 0.1, 1.5, 2.0), greedy=False
    ),
    "pass64": dict(benchmarks=("lab", "lab_hard"), samples=64, greedy=False),
    "offline": dict(benchmarks=("lab_train",), samples=4, greedy=False, max_problems=0),
    # A program's processes wait for the kernel more than they compute: several, on the one core.
    "code_validation": dict(
        benchmarks=("lab_code_validation",), samples=8, greedy=False, max_problems=32, workers=8
    ),
    "code": dict(benchmarks=("lab_code",), samples=8, max_problems=48, workers=8),
    "vision_validation": dict(
        benchmarks=("lab_vision_validation",), samples=8, greedy=False, max_problems=32
    ),
    "vision": dict(benchmarks=("lab_vision", "lab_vision_cards"), samples=8, max_problems=48),
    # All of them, so that each number is there.
    "vision_card": dict(benchmarks=("lab_vision_card",), samples=8, max_problems=0),
    "smoke": dict(benchmarks=("lab_validation",), samples=2, greedy=False, max_problems=8),
    "curve": dict(benchmarks=("lab",), samples=8, greedy=False, max_problems=48),
    # Of experiments/rates: choosing rate and temperature, and measuring at all of them.
    "rates_choosing": dict(
        benchmarks=("lab_validation",), samples=8, temperature=_SIX, max_problems=100
    ),
    "rates_choosing_operator": dict(
        benchmarks=("lab_operator_validation",), samples=8, temperature=_SIX, max_problems=100
    ),
    "rates_measuring": dict(benchmarks=("lab",), samples=8, temperature=_SIX, max_problems=200),
    "rates_measuring_operator": dict(
        benchmarks=("lab_operator",), samples=8, temperature=_SIX, max_problems=100
    ),
    "rates_other": dict(benchmarks=("lab_expression",), samples=8, max_problems=100),
    "rates_pass64": dict(benchmarks=("lab",), samples=64, greedy=False, max_problems=50),
    "rates_pass64_operator": dict(
        benchmarks=("lab_operator",), samples=64, greedy=False, max_problems=50
    ),
}


@dataclasses.dataclass(frozen=True)
class Trial:
    """`objective` is that of a config, `dpo`, `grpo`, or `none` for the base as it is.

    `data` is a name of DATA, or `rejection`: the right answers among four of the base to each
    question. What `dpo` and `grpo` read is fixed; `data` has a name of it.
    """

    base: str = "lab"
    objective: str = "sft"
    data: str = "noise0"
    learning_rate: float = 3e-4
    batch: int = 32
    steps: int = 60
    schedule: str = "cosine"
    seed: int = 0
    every: int = 0  # steps between evaluations on the way
    clip_norm: float = 1.0
    rank: int = 0  # of adapters; 0 trains all parameters
    parts: str = "text"  # of a model that is shown pictures: what is trained of it

    @property
    def name(self) -> str:
        values = {**dataclasses.asdict(self), "learning_rate": f"{self.learning_rate:g}"}
        # Names of trials from before there were these.
        for later in ("clip_norm", "rank", "parts"):
            if values[later] == getattr(Trial, later):
                del values[later]
        return ",".join(f"{key}={value}" for key, value in values.items())


def parse(name: str) -> Trial:
    """The trial of a name; what it leaves out has the default.

    Raises:
      UserError: unknown keys, values of another type.
    """
    kinds = {field.name: type(field.default) for field in dataclasses.fields(Trial)}
    values = {}
    for part in _parts(name):
        key, _, value = part.partition("=")
        if key not in kinds:
            raise errors.UserError(options.unknown(f"--trial: unknown {key!r}", key, list(kinds)))
        try:
            values[key] = kinds[key](value)
        except ValueError as error:
            raise errors.UserError(
                f"--trial: {key}={value!r} should be {kinds[key].__name__}"
            ) from error
    return Trial(**values)


def _parts(name: str) -> list[str]:
    """Splits at commas that are not inside brackets: `objective=power(alpha=2),seed=1`."""
    parts, depth = [""], 0
    for character in name:
        depth += (character == "(") - (character == ")")
        parts = (
            [*parts, ""] if character == "," and not depth else [*parts[:-1], parts[-1] + character]
        )
    return [part for part in parts if part]


def config_of(trial: Trial, root: Path) -> ConfigDict:
    config = recipe.lab_config("sft" if trial.objective in ("none", *RL) else trial.objective)
    config.model.path = str(BASES[trial.base])
    if trial.data == "rejection":
        config.data.train = str(sampled(root) / REJECTION_NAME)
    else:
        config.data.train = DATA[trial.data] if trial.objective not in RL else DATA["noise0"]
    if trial.data in HELDOUT:
        config.data.heldout = HELDOUT[trial.data]
    if trial.base == "lab_code":
        config.data.rows = "humaneval"
    if trial.base == "lab_vision":
        config.data.rows = "fields"
        config.data.image_field = "images"
        config.train.parts = trial.parts
    config.optimizer.learning_rate = trial.learning_rate
    config.optimizer.schedule = trial.schedule
    config.optimizer.clip_norm = trial.clip_norm
    config.lora.rank = trial.rank
    config.train.update(global_batch=trial.batch, steps=trial.steps, seed=trial.seed)
    config.eval.every = trial.every
    config.checkpoint.every = trial.steps
    if trial.every:
        settings = dataclasses.asdict(settings_of("curve"))
        config.eval.update(
            {name: plain(value) for name, value in settings.items()}
            | {"benchmarks_every": trial.every}
        )
    return config


def settings_of(probe: str) -> Settings:
    """`NAME@0+0.43` is the probe of that name at these temperatures alone; 0 is greedily."""
    name, _, listed = probe.partition("@")
    values = dict(temperature=(1.0,), max_problems=64, slots=64, workers=1) | PROBES[name]
    if listed:
        temperatures = [float(part) for part in listed.split("+")]
        drawn = tuple(each for each in temperatures if each)
        values |= dict(temperature=drawn, greedy=0.0 in temperatures)
    return recipe.settings(**values)


@functools.cache
def open_plan(base: str, probe: str) -> tuple[Any, Any, planning.Plan]:
    """Model, tokenizer and plan, compiled once for all trials of a process."""
    name, _, temperature = probe.partition("@")
    if temperature:
        model, tokenizer, plan = open_plan(base, name)
        other = planning.plan(settings_of(probe), tokenizer, model, source=BASES[base])
        # Temperatures are no constants of a program.
        return model, tokenizer, dataclasses.replace(other, sampler=plan.sampler)
    source, model, tokenizer = open_config(config_of(Trial(base=base), Path()))
    if model.config.vision is not None:
        model = with_tower(model)
    plan = planning.plan(settings_of(probe), tokenizer, model, source=source)
    return model, tokenizer, plan


def sampled(root: Path) -> Path:
    """Where the base's own answers are, for the studies of offline RL."""
    return root / Trial(objective="none", steps=0).name / "offline"


@functools.cache
def _weights(base: str) -> str:
    return files.digest(Checkpoint(BASES[base]).files)


def rows_file(trial: Trial, probe: str, root: Path) -> Path:
    """Where the rows are; named by what they depend on besides the name: config, weights, settings
    of the probe.
    """
    config = config_of(trial, root).to_dict()
    config["model"]["path"] = _weights(trial.base)
    config["data"]["train"] = DATA.get(trial.data, trial.data)
    constants = []
    if trial.objective in RL:
        from experiments.lab.offline_rl import rl

        constants = [rl.BETA, rl.ROW_LENGTH, rl.QUESTIONS, rl.SAMPLES]
    content = json.dumps(
        [config, dataclasses.asdict(settings_of(probe)), constants], sort_keys=True
    )
    return (
        root / trial.name / probe / f"rows-{hashlib.sha256(content.encode()).hexdigest()[:12]}.json"
    )


def is_done(trial: Trial, probe: str, root: Path) -> bool:
    return rows_file(trial, probe, root).exists()


def measure(trial: Trial, probe: str, root: Path) -> list[dict[str, Any]]:
    """Trains (unless that is done) and evaluates: a row for each benchmark, temperature and
    evaluated step.
    """
    if probe == "curve" and not trial.every:
        raise errors.UserError(f"{trial.name}: the probe `curve` is of trials with every=10 or so")
    folder = root / trial.name
    file = rows_file(trial, probe, root)
    if not file.exists():
        start = time.perf_counter()
        params, step = train(trial, root)
        if probe == "curve":
            rows = [
                row
                for step in range(trial.every, step + 1, trial.every)
                for row in _rows(trial, probe, root, step)
            ]
        else:
            model, _, plan = open_plan(trial.base, probe)
            with matmul_precision("float32"):
                runner.evaluate(
                    plan,
                    model,
                    lambda: params,
                    folder / probe,
                    {"trial": trial.name, "inputs": file.stem},
                )
            rows = _rows(trial, probe, root, step)
        if probe == "offline":
            _write_rejection(folder / probe)
        seconds = round(time.perf_counter() - start, 1)
        file.parent.mkdir(exist_ok=True)
        files.write_json(
            file, [{**row, "seconds": seconds if row is rows[0] else 0.0} for row in rows]
        )
    return [{**row, "trial": trial.name} for row in json.loads(file.read_text())]


@functools.lru_cache(maxsize=2)
def train(trial: Trial, root: Path) -> tuple[Any, int]:
    """Parameters and the number of steps; taken from the checkpoint where the training is done.

    Kept for the next probe of the same trial.
    """
    if trial.objective == "none":
        model, *_ = open_plan(trial.base, VALIDATION.get(trial.data, "validation"))
        return load_params(Checkpoint(BASES[trial.base]), model), 0
    config = config_of(trial, root)
    if trial.data == "rejection" or trial.objective == "dpo":
        measure(Trial(objective="none", steps=0), "offline", root)
    if trial.objective in RL:
        from experiments.lab.offline_rl import rl

        # Not kept: a second probe trains again.
        answers = sampled(root) / "predictions.jsonl"
        return rl.run(
            trial.objective, config, *open_plan(trial.base, "offline"), answers
        ), trial.steps
    run = api.train(config, root / trial.name)
    # Of a model with images the tower too, which a training of the text leaves as it is.
    lm = run.lm
    if lm.model.config.vision is not None:
        lm = lm.with_images()
    return lm.params, run.step


def _write_rejection(folder: Path) -> None:
    """Those of the sampled answers that the grader accepts, as demonstrations."""
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    problems = {p.id: p.question for p in benchmarks.load("lab_train")}
    kept = [
        {"question": problems[r["id"]], "answer": r["completion"]}
        for r in rows
        if r["verdict"] == "correct"
    ]
    files.write_text(folder / REJECTION_NAME, "".join(json.dumps(row) + "\n" for row in kept))


def _rows(trial: Trial, probe: str, root: Path, step: int) -> list[dict[str, Any]]:
    folder = root / trial.name
    scores = json.loads(
        (folder / ("eval/" + str(step) if probe == "curve" else probe) / "scores.json").read_text()
    )
    metrics = {}
    if (folder / "metrics.jsonl").exists():
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            row = json.loads(line)
            if row["step"] == step:
                metrics |= {
                    k: row[k]
                    for k in ("heldout/nll", "heldout/mean_p", "heldout/entropy")
                    if k in row
                }
    return [
        {
            **dataclasses.asdict(trial),
            "probe": probe,
            "step": step,
            "benchmark": result["benchmark"],
            "temperature": result["temperature"],
            "samples": result["samples_per_problem"],
            "avg": result["avg_at_k"]["mean"],
            "pass": result["pass_at_k"][str(result["samples_per_problem"])],
            # Programs do not vote.
            "maj": result["maj_at_k"] and result["maj_at_k"]["mean"],
            "entropy": result["mean_token_entropy"],
            "length": result["mean_length_tokens"],
            "cut": result["truncation_rate"],
            **{name.replace("/", "_"): value for name, value in metrics.items()},
            # How many samples of each problem are right: what every other score and interval
            # follows from.
            "correct": " ".join(
                str(round(share * result["samples_per_problem"]))
                for share in result["correct_share_of_problem"].values()
            ),
        }
        for result in scores["results"]
    ]


def use_cache(folder: Path) -> None:
    """Equal programs are compiled once, over all processes and launches."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
