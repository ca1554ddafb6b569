"""From a config to a job: everything is read and checked, by every process, then compared."""

from pathlib import Path

from dft_jax.data import account, order
from dft_jax.lm import open_config
from dft_jax.losses import objectives
from dft_jax.models.attention import select
from dft_jax.runtime import distributed, errors
from dft_jax.runtime.options import Config
from dft_jax.training import identity, metrics_log, optimizer as optimizer_lib
from dft_jax.training.evaluators import MakeEvaluators, no_evaluators
from dft_jax.training.inputs import length_of, load_data, make_steps
from dft_jax.training.job import Job


def prepare(config: Config, workdir: Path, make_evaluators: MakeEvaluators = no_evaluators) -> Job:
    """Reads and checks everything; every process by itself, then compared.

    `config` has been validated.

    Raises:
      UserError: anything wrong with config, checkpoint or data, on any process; processes that
      differ.
    """
    config = given = identity.with_first_rounding(config, workdir)
    date = identity.first_date(config, workdir)
    held = identity.held_fingerprint(workdir)
    version = order.version_of(held)
    # A mistake on one host ends all of them alike, instead of leaving the others to wait.
    with distributed.together("preparation"):
        metrics_log.require_boards(config.log)
        identity.refuse_moved(config, workdir)
        source, model, tokenizer = open_config(config)
        attention, compute_dtype = config.model.attention, config.model.compute_dtype
        errors.raise_if_any(select.problems(attention, model.config, model.mesh, compute_dtype))
        config = identity.with_date(config, date, tokenizer)
        evaluators = make_evaluators(config, tokenizer, model, workdir)
        train, heldout = load_data(config, tokenizer, model)
        if held is None:  # a run that began before this was looked at is finished as it is
            most = config.data.max_lost_fraction
            errors.raise_if_any(account.refusals("data.train", train.report, most))
        length = length_of(config, len(train), version)
        objective = objectives.make_objective(config.objective)
        packed = make_steps(config, train, model, version)
        with_reference = objectives.REFERENCE in objective.needs
        fingerprint = identity.fingerprint(
            config, source, model, tokenizer, train, length.steps, with_reference
        )
        fingerprint |= order.as_fingerprint(version)
        # As given: process 0's date must not take the place of another that was asked for.
        facts = identity.run_facts(given, fingerprint, packed.packer.row_counts, heldout)
        facts["benchmarks_sha256"] = "".join(evaluator.digest() for evaluator in evaluators)
    distributed.agree("run", facts)
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


def announce_account(job: Job) -> None:
    """Says what is trained and what is not, before anything compiles."""
    reports = {"data.train": job.train.report}
    if job.heldout:
        reports["data.heldout"] = job.heldout.report
    lines, warnings = [], []
    for name, report in reports.items():
        lines += account.lines(name, report)
        warnings += account.warnings(name, report)
    account.announce([*lines, job.length.line()], warnings + job.length.warnings())
