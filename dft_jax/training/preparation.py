"""From a config to a job: everything is read and checked, by every process, then compared."""

from pathlib import Path

from dft_jax.data import order
from dft_jax.losses import objectives
from dft_jax.runtime import distributed
from dft_jax.runtime.options import Config
from dft_jax.training import (
    adapters,
    earlier,
    identity,
    inputs,
    metrics_log,
    optimizer as optimizer_lib,
)
from dft_jax.training.evaluators import MakeEvaluators, no_evaluators
from dft_jax.training.job import Job


def prepare(config: Config, workdir: Path, make_evaluators: MakeEvaluators = no_evaluators) -> Job:
    """Reads and checks everything; every process by itself, then compared.

    `config` has been validated.

    Raises:
      UserError: anything wrong with config, checkpoint or data, on any process; processes that
      differ.
    """
    held = earlier.held_fingerprint(workdir)
    config = earlier.with_first_rounding(config, workdir)
    config = given = earlier.with_first_warmup(config, workdir, held)
    date = earlier.first_date(config, workdir)
    version = order.version_of(held)
    # A mistake on one host ends all of them alike, instead of leaving the others to wait.
    with distributed.together("preparation"):
        metrics_log.require_boards(config.log)
        earlier.refuse_moved(config, workdir)
        source, model, tokenizer = inputs.open_model(config)
        config = adapters.settled(earlier.with_date(config, date, tokenizer), model)
        model, train, heldout = inputs.load(config, source, tokenizer, model)
        evaluators = make_evaluators(config, tokenizer, model, workdir)
        if held is None:  # a run that began before this was looked at is finished as it is
            inputs.refuse_lost(config, train)
        length = inputs.length_of(config, train, version)
        objective = objectives.make_objective(config.objective)
        packed = inputs.make_steps(config, train, model, version)
        fingerprint = identity.fingerprint(config, source, model, tokenizer, train, length.steps)
        fingerprint |= order.as_fingerprint(version)
        # As given: process 0's date must not take the place of another that was asked for.
        facts = identity.run_facts(given, fingerprint, packed.packer.row_counts, heldout)
        facts["benchmarks_sha256"] = "".join(evaluator.digest() for evaluator in evaluators)
    distributed.agree("run", facts)
    # Now that all are known to have the same files, each hashes a share of them.
    fingerprint |= identity.fingerprint_of_weights(config, source, objective.needs_reference)
    return Job(
        config=config,
        source=source,
        model=model,
        tokenizer=tokenizer,
        train=train,
        heldout=heldout,
        batches=packed,
        length=length,
        optimizer=optimizer_lib.make_optimizer(config.optimizer),
        objective=objective,
        evaluators=evaluators,
        fingerprint=fingerprint,
    )
