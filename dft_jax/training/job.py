"""All that a run needs, read and checked before anything is compiled or allocated."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from dft_jax import config as config_lib, sharding
from dft_jax.data import account, batches, order
from dft_jax.evals.scheduled import Benchmarks
from dft_jax.losses import objectives
from dft_jax.models.hf.load import check_tensors
from dft_jax.models.hf.locate import load_tokenizer, read_config, resolve
from dft_jax.models.hf.safetensors import Checkpoint, weights_dtype
from dft_jax.models.model import OPTIONS, Model, build, with_attention
from dft_jax.runtime import distributed, errors
from dft_jax.training import identity, metrics_log, optimizer as optimizer_lib


@dataclasses.dataclass(frozen=True)
class Job:
    """All that a run needs before anything is compiled or allocated, checked, and the same on all
    processes.
    """

    config: ConfigDict  # with the run's date, where its template writes one
    source: Path
    model: Model
    train: batches.Examples
    heldout: batches.Examples | None
    packed: batches.TrainBatches
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
      UserError: anything wrong with config, checkpoint or data, on any process; processes that
      differ.
    """
    config = given = identity.with_first_rounding(config, workdir)
    date = identity.first_date(config, workdir)
    held = identity.held_fingerprint(workdir)
    version = order.version_of(held)
    with distributed.together("preparation"):
        errors.raise_if_any(config_lib.validate_on(config, jax.device_count()))
        metrics_log.require_boards(config)
        identity.refuse_moved(config, workdir)
        source, model, tokenizer = load_model(config)
        config = identity.with_date(config, date, tokenizer)
        benchmarks = Benchmarks(config, tokenizer, model, workdir)
        train, heldout = load_data(config, tokenizer, model)
        if held is None:  # a run that began before this was looked at is finished as it is
            errors.raise_if_any(
                account.refusals("data.train", train.report, config.data.max_lost_fraction)
            )
        length = length_of(config, len(train), version)
        optimizer = optimizer_lib.make_optimizer(config.optimizer)
        objective = objectives.make_objective(config.objective)
        packed = make_steps(config, train, model, version)
        with_reference = needs_reference(objective)
        fingerprint = identity.fingerprint(
            config, source, model, tokenizer, train, length.steps, with_reference
        )
        fingerprint |= order.as_fingerprint(version)
        row_counts = packed.packer.row_counts
        # As given: process 0's date must not take the place of another that was asked for.
        facts = identity.run_facts(given, fingerprint, row_counts, heldout, benchmarks.digest())
    distributed.agree("run", facts)
    # The choice of a kernel compiles a small program, with collectives on some meshes: not before
    # all agree.
    with distributed.together("attention"):
        model = with_attention(model, config.model.attention)
    distributed.agree("attention", {"attention": model.module.backend})
    read = (config, source, model, train, heldout)
    return Job(*read, packed, length, optimizer, objective, benchmarks, fingerprint)


def needs_reference(objective: objectives.Objective) -> bool:
    return objectives.REFERENCE in objective.needs


def load_model(config: ConfigDict) -> tuple[Path, Model, Any]:
    """The checkpoint's folder, the model on its mesh (nothing allocated) and the tokenizer, all
    checked.

    Of the config only `model`, `mesh` and `data.max_length` matter.
    """
    errors.raise_if_any(config_lib.mesh_problems(config, jax.device_count()))
    source = resolve(config.model.path, config.model.revision)
    architecture = read_config(source)
    errors.raise_if_any(config_lib.validate_architecture(config, architecture, jax.device_count()))
    options = {name: config.model[name] for name in OPTIONS}
    model = build(architecture, sharding.make_mesh(**config.mesh), **options)
    if config.model.init == "checkpoint":
        check_tensors(Checkpoint(source), model)
    else:
        # nothing else looks at it before the export, which should not be what refuses it
        weights_dtype(source)
    return source, model, load_tokenizer(source)


def tell_account(job: Job) -> None:
    """Says what is trained and what is not, before anything compiles."""
    told, warned = (
        account.lines("data.train", job.train.report),
        account.warnings("data.train", job.train.report),
    )
    if job.heldout:
        told += account.lines("data.heldout", job.heldout.report)
        warned += account.warnings("data.heldout", job.heldout.report)
    account.announce([*told, job.length.line()], warned + job.length.warnings())


def load_data(
    config: ConfigDict, tokenizer, model: Model
) -> tuple[batches.Examples, batches.Examples | None]:
    """Training examples, and held-out ones where the config names a file."""
    data, how = config.data, (config.data, tokenizer, model.config.vocab_size)
    train = batches.load_examples(data.train, *how, split=data.split, max_rows=data.max_rows)
    if not data.heldout:
        return train, None
    most = config.eval.max_examples
    heldout = batches.load_examples(data.heldout, *how, split=data.heldout_split, max_rows=most)
    heldout.report["also_trained"] = account.also_trained(
        heldout.origins, heldout.examples, train.origins, train.examples
    )
    return train, heldout


def make_steps(
    config: ConfigDict, examples: batches.Examples, model: Model, version: int = order.VERSION
) -> batches.TrainBatches:
    """The packed steps of the run; `version` is that of data/order.py."""
    t = config.train
    return batches.TrainBatches(
        examples,
        model.mesh,
        steps=length_of(config, len(examples), version).steps,
        global_batch=t.global_batch,
        seed=t.seed,
        version=version,
        accumulation=t.accumulation,
        row_length=batches.row_length(config.data),
        by_examples=t.loss_normalization == "official",
    )


def length_of(config: ConfigDict, n_examples: int, version: int = order.VERSION) -> order.Length:
    """`train.steps`, or what `train.epochs` passes over the data take; `version` is that of
    data/order.py.
    """
    t = config.train
    return order.length(
        steps=t.steps,
        epochs=t.epochs,
        global_batch=t.global_batch,
        n_examples=n_examples,
        version=version,
    )
