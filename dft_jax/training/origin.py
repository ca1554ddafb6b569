"""Where an export of a run comes from, as its dft_jax.json says."""

import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Any

from dft_jax.data import source_list
from dft_jax.data.templates import SEVERAL
from dft_jax.lm.language_model import LM
from dft_jax.lm.run import template_file
from dft_jax.losses import objectives
from dft_jax.models.hf.card import Account
from dft_jax.models.hf.provenance import Origin
from dft_jax.runtime import files
from dft_jax.runtime.options import Config, flatten


def of_run(workdir: Path, config: Config, step: int, run: dict[str, Any]) -> Origin:
    """What an export of a run should say of it; `run` is what its checkpoints say."""
    about = of_config(config, step, workdir)
    return dataclasses.replace(about, run=run, account=account_of(workdir, config, step))


def of_config(config: Config, step: int, workdir: Path | None = None) -> Origin:
    """What an export after `step` steps of training by a config should say of it.

    Args:
      workdir: of a run, which has a copy of its template where that is a file.
    """
    template, text = source_list.trained_template(config.data), None
    kept = "the export keeps the checkpoint's own chat template"
    if template.startswith(SEVERAL):
        what = f"the run was trained with several templates ({template.removeprefix(SEVERAL)})"
        print(f"warning: {what}: {kept}", file=sys.stderr)
    if template.endswith(".jinja"):
        jinja = Path(template) if workdir is None else template_file(workdir)
        if jinja is None or not jinja.is_file():
            what = f"{template}, which the run was trained with, is not in {workdir or 'its place'}"
            print(f"warning: {what}: {kept}", file=sys.stderr)
            template = "tokenizer"
        else:
            text = jinja.read_text(encoding="utf-8")
    return Origin(
        objective=config.objective,
        step=step,
        template=template,
        template_text=text,
        date=config.data.get("date", ""),
        path=config.model.path,
        revision=config.model.revision,
        init=config.model.init,
    )


def of_lm(lm: LM) -> Origin:
    """What an export of a model that is no run's should say of it: what it says of itself, as far
    as that decides how it is prompted.
    """
    text, file = None, Path(lm.trained)
    if file.suffix == ".jinja" and file.is_file():
        text = file.read_text(encoding="utf-8")
    return Origin(template=lm.trained, template_text=text, date=lm.date)


# The sections of a config that say what was computed.
_RECIPE = ("model.", "lora.", "data.", "optimizer.", "train.")


def account_of(workdir: Path, config: Config, step: int) -> Account:
    """What the run's folder has for the model card of one of its steps."""
    settings = {k: v for k, v in flatten(config).items() if k.startswith(_RECIPE)}
    heldout = _heldout_rows(workdir)
    # Where benchmarks were evaluated in training; an evaluation elsewhere is of whoever made it.
    scores = _content(workdir / "eval" / str(step) / "scores.json")
    return Account(
        objective=_objective(config.objective),
        settings=settings,
        data=_content(workdir / "data_report.json"),
        environment=_content(workdir / "env.json"),
        before=heldout.get(0, {}),
        after=heldout.get(step, {}),
        results=tuple(scores.get("results", ())),
    )


def _objective(spec: str) -> str:
    """An objective with all its parameters, the defaults too, of which a later version may have
    others.
    """
    name = spec.partition("(")[0]
    loss = objectives.make_objective(spec).loss
    values = []
    for parameter in inspect.signature(loss).parameters.values():
        if parameter.default is not inspect.Parameter.empty:
            values.append(f"{parameter.name}={parameter.default}")
    return f"{name}({', '.join(values)})" if values else name


def _content(file: Path) -> dict[str, Any]:
    """Of a JSON file; empty where it is not there, as in the folder of an older run."""
    return files.read_json(file) if file.exists() else {}


def _heldout_rows(workdir: Path) -> dict[int, dict[str, Any]]:
    """The held-out metrics in metrics.jsonl, by step."""
    rows = files.json_lines(workdir / "metrics.jsonl", containing='"heldout/nll"')
    return {row["step"]: row for row in rows}
