"""One process for all arms of a study: model, tokenizer and data are loaded once, and each program
compiled once.

Rates and seed of an arm are arguments of the programs (train.make_train_step), and the seed decides
which examples a step holds. A study that was stopped or
killed continues with the same command: phases with a done-file are skipped, and an arm in progress
resumes from its checkpoint, or is trained again up to where it was.
"""

import dataclasses
import functools
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from dft_jax import config as config_lib, sharding
from dft_jax.checkpoints.manager import Checkpoints
from dft_jax.data import account, batches, order
from dft_jax.data.templates import Template
from dft_jax.evals import planning, runner
from dft_jax.lm import open_config
from dft_jax.losses import objectives
from dft_jax.models.hf.export import export
from dft_jax.models.hf.locate import tokenizer_files
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.model import Model, matmul_precision, with_attention
from dft_jax.runtime import errors, files
from dft_jax.study import measures, records as records_lib, spec as spec_lib
from dft_jax.study.clock import Clock
from dft_jax.study.spec import Arm, Phase, Spec
from dft_jax.training import optimizer as optimizer_lib
from dft_jax.training.inputs import load_data
from dft_jax.training.state import abstract_state, init_params
from dft_jax.training.step import StepOptions, make_hyperparameters, make_train_step
from dft_jax.types import Batch, Frozen, Hyperparameters, Params, TrainState


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """A text as it is measured. `answers` are the places of each example's answer; None where
    nobody asks."""

    packed: measures.PackedText
    answers: list[range] | None
    examples: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Laboratory:
    """All that arms share. `contents` are digests of what was read."""

    spec: Spec
    source: Path
    model: Model
    base: Params
    examples: batches.Examples
    packer: batches.Packer
    texts: dict[str, HeldOut]
    plan: planning.Plan | None
    contents: dict[str, Any]
    version: int  # of data/order.py
    programs: dict[str, Callable] = dataclasses.field(default_factory=dict)  # by objective

    @functools.cached_property
    def optimizer(self):
        return optimizer_lib.make_optimizer(self.spec.config.optimizer)

    def hyperparameters(self, arm: Arm) -> Hyperparameters:
        config = spec_lib.config_of(self.spec, arm)
        return make_hyperparameters(config, self.spec.steps, self.model.mesh)

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        return abstract_state(self.model, self.optimizer)

    @functools.cached_property
    def measure(self) -> Callable:
        return measures.make_measure(self.model)

    def initial_state(self) -> TrainState:
        """The model as it is, copied: a step writes over its state."""
        layouts = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        params = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=layouts.params)(
            self.base
        )
        opt_state = jax.jit(self.optimizer.init, out_shardings=layouts.opt_state)(params)
        return TrainState(jax.device_put(jnp.int32(0), layouts.step), params, opt_state)

    def step_numbers(self, seed: int) -> Any:
        """`[n]` are the examples of step n, from 0."""
        batch = self.spec.config.train.global_batch
        return order.batches(
            len(self.examples), global_batch=batch, seed=seed, version=self.version
        )


def open_laboratory(spec: Spec, version: int = order.VERSION) -> Laboratory:
    """Reads and checks everything; nothing is compiled yet. `version` is that of data/order.py.

    Raises:
      UserError: anything wrong with config, checkpoint, texts or evaluation.
    """
    config = spec.config
    errors.raise_if_any(config_lib.validate_on(config, jax.device_count()))
    source, model, tokenizer = open_config(config)
    refuse_undated(spec, tokenizer)
    examples, _ = load_data(config, tokenizer, model)
    report = examples.report
    errors.raise_if_any(account.refusals("data.train", report, config.data.max_lost_fraction))
    account.tell("data.train", report)
    texts = {text.name: read_text(text, spec, tokenizer, model) for text in spec.texts}
    plan = None
    if spec.evaluation:
        date, trained = config.data.date, config.data.template
        plan = planning.plan(
            spec.evaluation, tokenizer, model, "evaluation.", date=date, trained=trained
        )
    contents = {
        "contents.weights_sha256": weights_digest(config, source),
        "contents.tokenizer_sha256": files.digest(tokenizer_files(source)),
        "contents.train_sha256": examples.report["sha256"],
    }
    contents |= {f"contents.{key}": value for key, value in order.as_fingerprint(version).items()}
    contents |= {f"contents.{name}_sha256": text.sha256 for name, text in texts.items()}
    if plan:
        contents["contents.problems_sha256"] = plan.digest()
    model = with_attention(model, config.model.attention)
    base = init_params(config, source, model)
    # Steps of all seeds are padded to the same row counts, so that they share a program.
    ahead = []
    for seed in sorted({arm.seed for arm in spec.arms}):
        batch = config.train.global_batch
        numbers = order.batches(len(examples), global_batch=batch, seed=seed, version=version)
        ahead += [numbers[n] for n in range(spec.steps)]
    packer = batches.Packer(
        examples,
        model.mesh,
        ahead,
        accumulation=config.train.accumulation,
        row_length=batches.row_length(config.data),
        by_examples=config.train.loss_normalization == "official",
    )
    return Laboratory(spec, source, model, base, examples, packer, texts, plan, contents, version)


def refuse_undated(spec: Spec, tokenizer) -> None:
    """UserError where a template writes the date and the spec has none: a study goes over several
    days.
    """
    names = [spec.config.data.template, *([spec.evaluation.prompt] if spec.evaluation else [])]
    for name in names:
        if Template(name, tokenizer).is_dated and not spec.config.data.date:
            raise errors.UserError(
                f"the template {name!r} writes the date, which differs between the days of a study; give"
                " one in the spec, as in config.data.date = '2026-07-26'"
            )


def weights_digest(config, source: Path) -> str:
    """Of the checkpoint's weights; of random ones the seed says all."""
    if config.model.init == "random":
        return f"random, seed {config.train.seed}"
    return files.digest(Checkpoint(source).files)


def read_text(text: spec_lib.Text, spec: Spec, tokenizer, model: Model) -> HeldOut:
    """The first examples that are short enough, packed.

    Raises:
      UserError: none is.
    """
    config = spec.config.data.copy_and_resolve_references().unlock()
    config.rows = text.rows
    read = batches.load_examples(
        text.path, config, tokenizer, model.config.vocab_size, split="test"
    )
    longest = text.max_length or config.max_length
    whole = [e for e in read.examples if not e.cut_tokens and len(e.ids) <= longest]
    whole = whole[: text.max_examples or None]
    if len(whole) < text.max_examples or not whole:
        what = (
            f"texts: {text.name}: {len(whole)} examples of at most {longest} tokens in {text.path}"
        )
        raise errors.UserError(f"{what}; ask for fewer, or for longer ones")
    answers = None
    if text.answer_mark:
        answers = [
            measures.answer_places(example, tokenizer, text.answer_mark) for example in whole
        ]
        if not any(answers):
            raise errors.UserError(
                f"texts: {text.name}: no example has {text.answer_mark!r}; correct answer_mark"
            )
    shards = sharding.batch_shards(model.mesh)
    rows = -(-spec.rows_at_once // shards) * shards
    packed = measures.pack(whole, batches.row_length(config), rows)
    return HeldOut(packed, answers, len(whole), account.digest(whole))


class Study:
    """Carries a spec out in `folder`."""

    def __init__(self, lab: Laboratory, folder: Path, clock: Clock):
        self.lab, self.folder, self.clock = lab, folder, clock
        self.records = records_lib.Records(folder, lab.spec)
        self.made_by = records_lib.made_by()
        learn_speeds(clock, self.records)

    def run(self) -> None:
        """Does what is not done.

        Raises:
          Stopped: a signal, or the time is over; what is done so far is saved.
        """
        with matmul_precision(self.lab.spec.config.model.compute_dtype):
            self._run_base()
            for arm in self.lab.spec.arms:
                if not self.records.is_complete(arm):
                    self._run_arm(arm)

    def _run_base(self) -> None:
        self.records.open_arm(None, self.lab.contents)
        for phase in spec_lib.phases_of(self.lab.spec, None):
            if not self.records.is_done(phase):
                work = (
                    {"heldout": 1}
                    if phase.kind == "heldout"
                    else {"evaluate": len(self.lab.plan.requests)}
                )
                self.clock.require(str(phase), work)
                do = self._heldout if phase.kind == "heldout" else self._evaluate
                do(phase, self.lab.base)

    def _run_arm(self, arm: Arm) -> None:
        self.records.open_arm(arm, self.lab.contents)
        training = Training(self, arm)
        *work, prune = spec_lib.phases_of(self.lab.spec, arm)
        left = [phase for phase in work if not self.records.is_done(phase)]
        if left or self.lab.spec.keep == "parameters":
            with training:
                for step in self.lab.spec.measured_at:
                    training.to(step)
                if self.lab.spec.evaluation or self.lab.spec.keep == "parameters":
                    training.save()
                for phase in left:
                    if phase.kind == "evaluate":
                        self.clock.require(str(phase), {"evaluate": len(self.lab.plan.requests)})
                        self._evaluate(phase, training.state.params)
                params = training.state.params
                if self.lab.spec.keep == "parameters":
                    self._keep(arm, params)
        shutil.rmtree(self._checkpoints(arm), ignore_errors=True)
        self.records.write(prune, 0.0, 0, self.made_by, {"kept": self.lab.spec.keep})

    def _checkpoints(self, arm: Arm) -> Path:
        return self.folder / "checkpoints" / arm.name

    def _keep(self, arm: Arm, params: Params) -> None:
        out, settings = self.folder / "exports" / arm.name, self.lab.spec.config.export
        out.parent.mkdir(parents=True, exist_ok=True)
        options = dict(dtype=settings.dtype, max_shard_gb=settings.max_shard_gb)
        export(params, self.lab.model, self.lab.source, out, **options)

    def _heldout(self, phase: Phase, params: Params) -> None:
        begin, results = time.monotonic(), {}
        for name, text in self.lab.texts.items():
            found = measures.measure_text(
                self.lab.measure,
                params,
                text.packed,
                text.answers,
                self.lab.model.mesh,
                self.clock.check,
            )
            results[name] = measures.to_json(found)
            shown = f"nll {found.nll:.4f}, p {found.mean_p:.4f}, entropy {found.entropy:.4f}"
            print(f"{phase}: {name}: {shown}", flush=True)
        seconds = time.monotonic() - begin
        self.clock.learn("heldout", seconds, 1)
        self.records.write(phase, seconds, 1, self.made_by, results)

    def _evaluate(self, phase: Phase, params: Params) -> None:
        begin, out = time.monotonic(), self.folder / "evaluations" / phase.arm_name
        inputs = spec_lib.inputs_of(self.lab.spec, phase.arm) | self.lab.contents
        of = {"study": self.lab.spec.name, "inputs_sha256": spec_lib.digest(inputs, "evaluate")}
        summary = runner.evaluate(self.lab.plan, self.lab.model, lambda: params, out, of)
        seconds, work = time.monotonic() - begin, len(self.lab.plan.requests)
        self.clock.learn("evaluate", seconds, work)
        self.records.write(phase, seconds, work, self.made_by, {"results": summary["results"]})

    def program(self, objective: str) -> Callable:
        """step(hyperparameters, state, batch) -> (state, sums) of an objective, compiled for every
        row count."""
        programs = self.lab.programs
        if objective not in programs:
            programs[objective] = self._compile(objective)
        return programs[objective]

    def _compile(self, objective: str) -> Callable:
        lab, made = self.lab, objectives.make_objective(objective)
        reference = lab.base if objectives.REFERENCE in made.needs else None
        # Of any arm: rates and seed are arguments of the program.
        frozen = Frozen(lab.hyperparameters(lab.spec.arms[0]), reference)
        options = StepOptions.of(lab.spec.config)
        step = make_train_step(lab.model, made, lab.optimizer, options)
        compiled = {}
        for count in tqdm(
            lab.packer.row_counts, desc=f"compile {objective}", unit="shape", leave=False
        ):
            self.clock.check()
            n_rows = count // lab.packer.accumulation
            shape = (lab.packer.accumulation, n_rows, lab.packer.row_length)
            batch = sharding.abstract_batch(shape, lab.model.mesh)
            compiled[n_rows] = step.lower(frozen, lab.abstract_state, batch).compile()

        def run(hyperparameters: Hyperparameters, state: TrainState, batch: Batch):
            frozen = Frozen(hyperparameters, reference)
            return compiled[batch.tokens_BL.shape[1]](frozen, state, batch)

        return run


class Training:
    """The training of one arm: a state that moves from one measured step to the next. Enter it, to
    have it saved."""

    def __init__(self, study: Study, arm: Arm):
        self.study, self.arm, self.lab, self.clock = study, arm, study.lab, study.clock
        self.state: TrainState | None = None
        self.step = 0
        self.rows: list[dict[str, Any]] = []  # of the steps since the last measured one

    def __enter__(self) -> "Training":
        """Begins, or resumes from the newest checkpoint."""
        folder = self.study._checkpoints(self.arm)
        folder.mkdir(parents=True, exist_ok=True)
        self.checkpoints = Checkpoints(folder, keep=1, verify="sizes")
        self.program = self.study.program(self.arm.objective)
        self.numbers = self.lab.step_numbers(self.arm.seed)
        step = self.checkpoints.newest(repair=True)
        if step is not None and self._is_usable(step):
            self.state = self.checkpoints.restore(step, self.lab.abstract_state)
            self.step, self.rows = step, self.checkpoints.run_of(step)["rows"]
            print(f"{self.arm.name}: resuming from step {step}", flush=True)
        else:
            self.state = self.lab.initial_state()
        self.checkpoints.start_clock()
        return self

    def _is_usable(self, step: int) -> bool:
        """Whether nothing before `step` is missing: a done-file may have been removed, to have it
        made again."""
        before = [
            phase for phase in spec_lib.phases_of(self.lab.spec, self.arm) if phase.step <= step
        ]
        needed = [p for p in before if p.kind == "train" or (p.kind == "heldout" and p.step < step)]
        return all(self.study.records.is_done(phase) for phase in needed)

    def to(self, last: int) -> None:
        """Trains up to step `last`, and measures there, as far as that is not done."""
        if self.step > last:
            return
        records = self.study.records
        train_phase, heldout = Phase(self.arm, "train", last), Phase(self.arm, "heldout", last)
        is_measured = records.is_done(heldout)
        work = {"train": last - self.step, "heldout": 0 if is_measured else 1, "save": 1}
        self.clock.require(f"{self.arm.name} from step {self.step} to {last}", work)
        if self.step < last:
            begin, first = time.monotonic(), self.step
            self._train(last)
            seconds = time.monotonic() - begin
            self.clock.learn("train", seconds, last - first)
            if not records.is_done(train_phase):
                records.write(
                    train_phase, seconds, last - first, self.study.made_by, {"steps": self.rows}
                )
        self.rows = []
        if not is_measured:
            self.study._heldout(heldout, self.state.params)

    def _train(self, last: int) -> None:
        mesh = self.lab.model.mesh
        hyperparameters = self.lab.hyperparameters(self.arm)
        bar = tqdm(total=last, initial=self.step, desc=self.arm.name, unit="step", leave=False)
        with bar:
            while self.step < last:
                self.clock.check()
                packed = self.lab.packer.pack(self.numbers[self.step])
                batch = sharding.device_batch(packed.batch, mesh, packed.n_rows)
                self.state, sums = self.program(hyperparameters, self.state, batch)
                self.step += 1
                self.rows.append(self._row(jax.device_get(sums)))
                bar.update()
                if self.checkpoints.is_due(self.lab.spec.config.checkpoint.every_minutes):
                    self.save()

    def _row(self, sums: dict[str, Any]) -> dict[str, Any]:
        """What is kept of a step."""
        n = max(float(sums["tokens"]), 1.0)
        names = {"loss": "loss", "nll": "nll", "mean_p": "p", "entropy": "entropy"}
        row: dict[str, Any] = {name: round(float(sums[key]) / n, 6) for name, key in names.items()}
        norm = float(sums["gradient_norm"])
        row |= {"step": self.step, "tokens": int(n), "is_finite": bool(sums["is_finite"])}
        row |= {
            "learning_rate": float(f"{float(sums['learning_rate']):.6g}"),
            "gradient_norm": round(norm, 6),
        }
        return row | {"is_clipped": norm > self.lab.spec.config.optimizer.clip_norm}

    def save(self) -> None:
        with self.clock.timed("save"):
            self.checkpoints.save(self.step, self.state, {"rows": self.rows})
            self.checkpoints.wait()

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        """Saves what was trained since the last checkpoint where the study was stopped."""
        try:
            if kind is errors.Stopped and self.step > 0:
                self.save()
        finally:
            self.checkpoints.close()


def learn_speeds(clock: Clock, records: records_lib.Records) -> None:
    """From done-files, the newest last."""
    found = []
    for phase in spec_lib.phases(records.spec):
        done = records.read(phase)
        if done:
            found.append((done.finished_at, phase.kind, done.seconds, done.work))
    for _, kind, seconds, work in sorted(found):
        clock.learn(kind, seconds, work)
