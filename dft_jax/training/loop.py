"""Training: `run` reads top to bottom; `make_train_step` is the pure function it repeats."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from dft_jax import config as config_lib, sharding
from dft_jax.data import account, batches as loader, order
from dft_jax.evals.scheduled import Benchmarks
from dft_jax.losses import fused as losses, objectives
from dft_jax.models import model as models
from dft_jax.models.hf import checkpoint as hf
from dft_jax.models.model import Model, matmul_precision
from dft_jax.runtime import distributed, errors, interrupts
from dft_jax.training import (
    identity as run_directory,
    metrics,
    metrics_log as writer,
    optimizer as optimizer_lib,
)
from dft_jax.training.reporter import Reporter
from dft_jax.types import Batch, Hyperparameters, Params, TrainState


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run in memory: what export and analysis start from."""

    workdir: Path
    config: ConfigDict
    source: Path  # the checkpoint it began from
    model: Model
    state: TrainState
    identity: dict[str, Any]  # what its checkpoints say of it: run_id, base, fingerprint, changes


def run(config: ConfigDict, workdir: str | Path) -> Run:
    """Fine-tunes as `config` says, in `workdir`; resumes when a checkpoint of the same run is there.

    Raises:
      UserError: anything wrong with config, checkpoint, data or workdir, before compilation; a save that failed.
      Stopped: a signal asked for it (see interrupts.py); the state is saved.
    """
    workdir = run_directory.local_folder(str(workdir))
    job = prepare(config, workdir)
    config, steps, model, optimizer = job.config, job.steps, job.model, job.optimizer
    with run_directory.locked(workdir), matmul_precision(config.model.compute_dtype), contextlib.ExitStack() as stack:
        opened = run_directory.open_workdir(workdir, config, job.fingerprint, job.source, job.train)
        checkpoints, restart, identity = opened
        stack.enter_context(checkpoints)
        abstract = abstract_state(model, optimizer)
        with distributed.together("room"):  # process 0 writes and looks
            run_directory.describe_run(workdir, config, model, job.account, identity)
            if restart != steps:
                checkpoints.require_room(abstract)
        tell_account(job)
        is_new, start = restart is None, restart or 0
        state = init_state(config, job.source, model, optimizer) if is_new else checkpoints.restore(restart, abstract)
        reference = init_params(config, job.source, model) if _needs_reference(job.objective) else None
        distributed.meet("state")  # devices meet for the first time, as soon as an array is on all of them
        given = make_hyperparameters(config, steps, model.mesh)
        train_step = make_train_step(model, job.objective, optimizer, given, config, reference)
        evaluate = make_evaluate(model, job.objective, job.heldout, config, reference)
        job.benchmarks.begin(steps, start, job.train.report["sha256"], identity)
        log = writer.Writer(workdir, config, resume_from=restart, run_id=identity.get("run_id"))
        reporter = stack.enter_context(contextlib.closing(Reporter(config, model, log, job.train, steps, start)))

        def save() -> None:
            reporter.sync()  # a step that must not be saved stops the run here
            checkpoints.save(int(jax.device_get(state.step)), state, identity)

        def evaluate_if_due(step: int) -> None:
            """After the save, which matters most; a run that is taken up again does what is still missing there."""
            is_due = step in (0, steps) or (config.eval.every and step % config.eval.every == 0)
            if is_due and not log.has(step, "heldout/"):
                reporter.evaluate(step, lambda: evaluate(state.params))
            if step in job.benchmarks.steps and not log.has(step, "eval/"):
                save()  # it may take hours
                reporter.evaluate(step, lambda: job.benchmarks.run(step, state.params))

        try:
            interrupts.check()
            if start < steps:
                train_step = compile_ahead(train_step, abstract, model.mesh, job.packed.packer)
            evaluate_if_due(start)
            checkpoints.start_clock()
            for step, packed_step in zip(
                range(start + 1, steps + 1), reporter.waited(job.packed.iterate(start)), strict=False
            ):
                batch = sharding.device_batch(packed_step.batch, model.mesh, packed_step.n_rows)
                is_long = interrupts.steps_are_long()
                with reporter.watched(step):
                    state, sums = train_step(state, batch)
                    reporter.add(step, sums, packed_step)
                if is_long:
                    reporter.wait()  # a signal that comes meanwhile is answered before the next step
                is_due = checkpoints.is_due(config.checkpoint.every_minutes)
                is_time = interrupts.check(save_is_due=is_due, at_once=is_long)
                if is_time or step == steps or step % config.checkpoint.every == 0:
                    save()
                evaluate_if_due(step)
        except errors.Stopped:
            save()
            checkpoints.wait()  # before anything else is closed, which may fail
            raise
    return Run(workdir, config, job.source, model, state, identity)


@dataclasses.dataclass(frozen=True)
class Job:
    """All that a run needs before anything is compiled or allocated, checked, and the same on all processes."""

    config: ConfigDict  # with the run's date, where its template writes one
    source: Path
    model: Model
    train: loader.Examples
    heldout: loader.Examples | None
    packed: loader.Steps
    length: order.Length
    optimizer: optax.GradientTransformationExtraArgs
    objective: objectives.Objective
    benchmarks: Benchmarks
    fingerprint: dict[str, Any]

    @property
    def steps(self) -> int:
        return self.length.steps

    @property
    def account(self) -> dict[str, Any]:
        """What data_report.json holds."""
        reports = {"train": self.train.report, "length": self.length.report()}
        return reports | ({"heldout": self.heldout.report} if self.heldout else {})


def prepare(config: ConfigDict, workdir: Path) -> Job:
    """Reads and checks everything; every process by itself, then compared.

    Raises:
      UserError: anything wrong with config, checkpoint or data, on any process; processes that differ.
    """
    config = given = run_directory.with_first_rounding(config, workdir)
    date = run_directory.first_date(config, workdir)
    held = run_directory.held_fingerprint(workdir)
    version = order.version_of(held)
    with distributed.together("preparation"):
        errors.raise_if_any(config_lib.validate_on(config, jax.device_count()))
        writer.require_boards(config)
        run_directory.refuse_moved(config, workdir)
        source, model, tokenizer = load_model(config)
        config = run_directory.with_date(config, date, tokenizer)
        benchmarks = Benchmarks(config, tokenizer, model, workdir)
        train, heldout = load_data(config, tokenizer, model)
        if held is None:  # a run that began before this was looked at is finished as it is
            errors.raise_if_any(account.refusals("data.train", train.report, config.data.max_lost_fraction))
        length = length_of(config, len(train), version)
        optimizer = optimizer_lib.make_optimizer(config.optimizer)
        objective = objectives.make_objective(config.objective)
        packed = make_steps(config, train, model, version)
        with_reference = _needs_reference(objective)
        fingerprint = run_directory.fingerprint(config, source, model, tokenizer, train, length.steps, with_reference)
        fingerprint |= order.as_fingerprint(version)
        row_counts = packed.packer.row_counts
        # As given: process 0's date must not take the place of another that was asked for.
        facts = run_directory.run_facts(given, fingerprint, row_counts, heldout, benchmarks.digest())
    distributed.agree("run", facts)
    # The choice of a kernel compiles a small program, with collectives on some meshes: not before all agree.
    with distributed.together("attention"):
        model = models.with_attention(model, config.model.attention)
    distributed.agree("attention", {"attention": model.module.backend})
    read = (config, source, model, train, heldout)
    return Job(*read, packed, length, optimizer, objective, benchmarks, fingerprint)


def _needs_reference(objective: objectives.Objective) -> bool:
    return objectives.REFERENCE in objective.needs


def load_model(config: ConfigDict) -> tuple[Path, Model, Any]:
    """The checkpoint's folder, the model on its mesh (nothing allocated) and the tokenizer, all checked.

    Of the config only `model`, `mesh` and `data.max_length` matter.
    """
    errors.raise_if_any(config_lib.mesh_problems(config, jax.device_count()))
    source = hf.resolve(config.model.path, config.model.revision)
    architecture = hf.read_config(source)
    errors.raise_if_any(config_lib.validate_architecture(config, architecture, jax.device_count()))
    options = {name: config.model[name] for name in models.OPTIONS}
    model = models.build(architecture, sharding.make_mesh(**config.mesh), **options)
    if config.model.init == "checkpoint":
        hf.check_tensors(hf.Checkpoint(source), model)
    else:
        hf.source_dtype(source)  # nothing else looks at it before the export, which should not be what refuses it
    return source, model, hf.load_tokenizer(source)


def tell_account(job: Job) -> None:
    """Says what is trained and what is not, before anything compiles."""
    told, warned = account.lines("data.train", job.train.report), account.warnings("data.train", job.train.report)
    if job.heldout:
        told += account.lines("data.heldout", job.heldout.report)
        warned += account.warnings("data.heldout", job.heldout.report)
    account.announce([*told, job.length.line()], warned + job.length.warnings())


def load_data(config: ConfigDict, tokenizer, model: Model) -> tuple[loader.Examples, loader.Examples | None]:
    """Training examples, and held-out ones where the config names a file."""
    data, how = config.data, (config.data, tokenizer, model.config.vocab_size)
    train = loader.load_examples(data.train, *how, split=data.split, max_rows=data.max_rows)
    if not data.heldout:
        return train, None
    most = config.eval.max_examples
    heldout = loader.load_examples(data.heldout, *how, split=data.heldout_split, max_rows=most)
    heldout.report["also_trained"] = account.also_trained(heldout.where, heldout.examples, train.where, train.examples)
    return train, heldout


def make_steps(
    config: ConfigDict, examples: loader.Examples, model: Model, version: int = order.VERSION
) -> loader.Steps:
    """The packed steps of the run; `version` is that of data/order.py."""
    t = config.train
    return loader.Steps(
        examples,
        model.mesh,
        steps=length_of(config, len(examples), version).steps,
        global_batch=t.global_batch,
        seed=t.seed,
        version=version,
        accumulation=t.accumulation,
        row_length=loader.row_length(config.data),
        by_examples=t.loss_normalization == "official",
    )


def length_of(config: ConfigDict, n_examples: int, version: int = order.VERSION) -> order.Length:
    """`train.steps`, or what `train.epochs` passes over the data take; `version` is that of data/order.py."""
    t = config.train
    return order.length(
        steps=t.steps, epochs=t.epochs, global_batch=t.global_batch, n_examples=n_examples, version=version
    )


def abstract_state(model: Model, optimizer: optax.GradientTransformation) -> TrainState:
    """Shapes, dtypes and shardings of the state; moments lie where their parameters do."""
    replicated = sharding.named(model.mesh)

    def like(leaf, layout):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout)

    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda leaf, param: like(leaf, param.sharding),
        jax.eval_shape(optimizer.init, model.abstract_params),
        model.abstract_params,
        transform_non_params=lambda leaf: like(leaf, replicated),
    )
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
    return TrainState(step, model.abstract_params, opt_state)


def init_params(config: ConfigDict, source: Path, model: Model) -> Params:
    """The checkpoint's parameters, or random ones from the seed."""
    if config.model.init == "random":
        return model.init(jax.random.key(config.train.seed))
    return hf.load_params(hf.Checkpoint(source), model)


def init_state(config: ConfigDict, source: Path, model: Model, optimizer) -> TrainState:
    """The state before the first step."""
    params = init_params(config, source, model)
    layouts = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, optimizer))
    opt_state = jax.jit(optimizer.init, out_shardings=layouts.opt_state)(params)
    return TrainState(jax.device_put(jnp.int32(0), layouts.step), params, opt_state)


def make_loss(model: Model, objective: objectives.Objective, config: ConfigDict) -> Callable:
    """Returns loss(params, batch [B, L], denominator, reference) -> (Σ loss / denominator, sums over trained tokens).

    `reference` are the parameters that the objective compares with, None for the others.
    """

    def loss(params, batch: Batch, denominator, reference=None):
        total, stats = losses.loss_and_stats(
            model.apply(params, batch),
            models.head(params),
            batch.targets_BL,
            batch.mask_BL,
            batch.segments_BL,
            None if reference is None else (model.apply(reference, batch), models.head(reference)),
            objective=objective,
            chunk_tokens=config.train.loss_chunk_tokens,
            mesh=model.mesh,
        )
        return total / denominator, metrics.token_sums(stats, total, batch.mask_BL)

    return loss


def make_hyperparameters(config: ConfigDict, steps: int, mesh: Mesh) -> Hyperparameters:
    """Those of a run of `steps` updates, on the devices of `mesh`."""
    values = Hyperparameters(optimizer_lib.rates(config.optimizer, steps), np.uint32(config.train.seed))
    return jax.device_put(values, sharding.named(mesh))


def make_train_step(
    model: Model,
    objective: objectives.Objective,
    optimizer,
    hyperparameters: Hyperparameters,
    config: ConfigDict,
    reference: Params = None,
) -> Callable:
    """Returns the jitted step(state, batch [A, B, L]) -> (state, sums over the step's trained tokens).

    The update is the gradient of Σ loss / N with N the trained tokens of the whole global batch, whatever the
    number of micro-batches (A) and devices. With `loss_normalization="official"` each micro-batch is divided
    by its own count instead, and the means are added, as the authors' code does. A step with a non-finite
    loss or gradient changes nothing but `state.step`. `reference` are parameters for objectives that compare.

    Rate, schedule and seed are arguments of the program (`hyperparameters`, arrays or their shapes), not part of it: a
    sweep over them compiles once.
    """
    layouts = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, optimizer))
    replicated = sharding.named(model.mesh)
    compiled = jax.jit(
        make_update(model, objective, optimizer, config),
        in_shardings=(
            None if reference is None else layouts.params,
            replicated,
            layouts,
            sharding.batch_sharding(model.mesh),
        ),
        out_shardings=(layouts, replicated),
        donate_argnums=2,
    )
    return functools.partial(compiled, reference, hyperparameters)


def make_update(model: Model, objective: objectives.Objective, optimizer, config: ConfigDict) -> Callable:
    """Returns update(reference, hyperparameters, state, batch [A, B, L]) -> (state, sums), not jitted: see
    make_train_step."""
    is_random = config.model.param_dtype == "bfloat16" and optimizer_lib.rounding_of(config.optimizer) == "stochastic"
    loss = make_loss(model, objective, config)
    layouts = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, optimizer))

    def gradients(reference, params, batch: Batch):
        n_tokens_A = batch.mask_BL.sum(axis=(1, 2))
        n_tokens = n_tokens_A.sum() if config.train.loss_normalization == "global" else n_tokens_A

        def accumulate(total, micro):
            micro_batch, denominator = micro
            (_, sums), grads = jax.value_and_grad(loss, has_aux=True)(params, micro_batch, denominator, reference)
            total = jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, grads)
            return jax.lax.with_sharding_constraint(total, layouts.params), sums

        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), params)
        denominators_A = jnp.broadcast_to(jnp.maximum(n_tokens, 1), n_tokens_A.shape)
        grads, sums_A = jax.lax.scan(accumulate, zeros, (batch, denominators_A))
        return grads, jax.tree.map(lambda x: x.sum(axis=0), sums_A)

    def train_step(reference, hyperparameters: Hyperparameters, state: TrainState, batch: Batch):
        grads, sums = gradients(reference, state.params, batch)
        gradient_norm = optax.tree.norm(grads)
        is_finite = jnp.isfinite(gradient_norm) & jnp.isfinite(sums["loss"])
        rate = hyperparameters.rates_U[optimizer_lib.update_count(state.opt_state)]
        key = jax.random.fold_in(jax.random.key(hyperparameters.seed), state.step) if is_random else None
        params, opt_state, moved = optimizer_lib.apply(
            optimizer, grads, state.opt_state, state.params, is_finite, rate, key
        )
        sums |= moved
        sums |= {
            "skipped": state.step + 1 - optimizer_lib.update_count(opt_state),
            "gradient_norm": gradient_norm,
            "is_finite": is_finite,
            "learning_rate": rate,
        }
        return TrainState(state.step + 1, params, opt_state), sums

    return train_step


def compile_ahead(train_step: Callable, state: TrainState, mesh: Mesh, packer: loader.Packer) -> Callable:
    """As `train_step`, compiled for every row count that its steps have, so that nothing compiles while training.

    Args:
      state: arrays, or their shapes.
    """
    jitted, first_arguments = train_step.func, train_step.args

    @functools.cache
    def compiled(n_rows: int):
        interrupts.check()
        shape = (packer.accumulation, n_rows, packer.row_length)
        return jitted.lower(*first_arguments, state, sharding.abstract_batch(shape, mesh)).compile()

    counts = [count // packer.accumulation for count in packer.row_counts]
    for n_rows in tqdm(counts, desc="compile", unit="shape", leave=False, disable=jax.process_index() > 0):
        compiled(n_rows)
    distributed.meet("compiled")
    return lambda state, batch: compiled(batch.tokens_BL.shape[1])(*first_arguments, state, batch)


def make_evaluate(
    model: Model,
    objective: objectives.Objective,
    heldout: loader.Examples | None,
    config: ConfigDict,
    reference: Params = None,
) -> Callable:
    """Returns evaluate(params) -> held-out metrics (no entries without held-out data)."""
    if heldout is None:
        return lambda params: {}
    loss = make_loss(model, objective, config)
    sizes = dict(global_batch=config.train.global_batch, row_length=loader.row_length(config.data))
    steps = loader.OnePass(heldout, model.mesh, **sizes)

    @functools.partial(jax.jit, out_shardings=sharding.named(model.mesh))
    def eval_step(reference, params, batch: Batch):
        return loss(params, jax.tree.map(lambda x_ABL: x_ABL[0], batch), 1.0, reference)[1]

    def evaluate(params) -> dict[str, Any]:
        total = None
        for step in tqdm(steps, desc="held out", leave=False, disable=jax.process_index() > 0):
            interrupts.check()
            sums = eval_step(reference, params, sharding.device_batch(step.batch, model.mesh, step.n_rows))
            sums = jax.tree.map(np.float64, jax.device_get(sums))  # float32 could not count beyond 2**24 tokens
            total = sums if total is None else jax.tree.map(lambda a, b: a + b, total, sums)
        return metrics.per_token(total, "heldout")

    return evaluate
