"""An evaluation of an opened model on benchmarks, in a folder of its own."""

import dataclasses
import hashlib
import sys
from pathlib import Path
from typing import Any

from dft_jax.data.templates import AUTO, today
from dft_jax.evals import planning, prompts, report, runner
from dft_jax.evals.settings import Settings
from dft_jax.lm.language_model import LM
from dft_jax.models.model import matmul_precision
from dft_jax.runtime import distributed, environment, folders, processes


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The content of scores.json (empty on processes other than 0), and how many completions the
    evaluation has.
    """

    summary: dict[str, Any]
    n_completions: int


def agree(lm: LM, settings: Settings) -> None:
    """UserError where the processes of one evaluation have not all been given the same."""
    facts = environment.process_facts()
    facts["model"] = lm.what
    facts["weights_sha256_of_sample"] = lm.weights_sha256_of_sample
    for name, value in dataclasses.asdict(settings).items():
        facts[f"settings.{name}"] = value
    distributed.agree("evaluation", facts)


def sample(lm: LM, settings: Settings, out: Path) -> Outcome:
    """Samples, grades, and writes predictions and scores to `out`; continues what was begun there.

    Raises:
      UserError: unknown benchmarks or settings, prompts that leave no room, or a folder that holds
      another evaluation.
    """
    date = _date(lm, out)
    with distributed.together("plan"):
        if settings.prompt == AUTO:  # an evaluation that was begun continues as it was
            begun = prompts.recorded(out / runner.EVALUATION_NAME)
            settings = dataclasses.replace(settings, prompt=begun or AUTO)
        plan = planning.plan(
            settings,
            lm.tokenizer,
            lm.model,
            date=date,
            trained=lm.trained,
            source=lm.source,
        )
    if plan.images:
        lm = lm.with_images()
    announce(plan.choice)
    prompts_sha256 = hashlib.sha256(plan.prompts_json().encode()).hexdigest()
    distributed.agree("plan", {"problems_sha256": plan.digest(), "prompts_sha256": prompts_sha256})
    with folders.locked(out, "--out"), matmul_precision(str(lm.model.module.compute_dtype)):
        identity = {}
        if processes.is_first():
            identity = lm.identify() | {"evaluated": lm.what}
        summary = runner.evaluate(plan, lm.model, lambda: lm.params, out, identity)
    return Outcome(summary, len(plan.requests))


def _date(lm: LM, out: Path) -> str:
    """The day that dated prompts are given: of the evaluation that was begun, or of the run."""
    with distributed.together("date"):
        date = runner.recorded_date(out) or lm.date or today()
    return distributed.decided("date", date, lambda dates: dates[0])


def announce(choice: prompts.Choice) -> None:
    """Says on stderr which prompt is used, and what a user should know of it."""
    if processes.is_first():
        print(f"prompt: {choice.name} ({choice.why})", file=sys.stderr)
        if choice.warning:
            print(f"warning: {choice.warning}", file=sys.stderr)


def table(summary: dict[str, Any]) -> str:
    """The table of a scores.json, and the line that says which run, step and base it is of."""
    lines = [report.table(summary["results"])]
    origin = report.origin_text(summary.get("model"))
    if origin:
        lines.append(origin)
    return "\n".join(lines)
