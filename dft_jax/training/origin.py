"""Where an export of a run comes from, as its dft_jax.json says."""

import sys
from pathlib import Path
from typing import Any

from dft_jax.lm.run import template_file
from dft_jax.models.hf.provenance import Origin
from dft_jax.runtime.options import Config


def of_run(workdir: Path, config: Config, step: int, run: dict[str, Any]) -> Origin:
    """What an export of a run should say of it; `run` is what its checkpoints say."""
    template, text = config.data.template, None
    if template.endswith(".jinja"):
        file = template_file(workdir)
        if file is None:
            what = f"{template}, which the run was trained with, is not in {workdir}"
            kept = "the export keeps the checkpoint's own chat template"
            print(f"warning: {what}: {kept}", file=sys.stderr)
            template = "tokenizer"
        else:
            text = file.read_text(encoding="utf-8")
    return Origin(
        objective=config.objective,
        step=step,
        template=template,
        template_text=text,
        date=config.data.get("date", ""),
        path=config.model.path,
        revision=config.model.revision,
        init=config.model.init,
        run=run,
    )
