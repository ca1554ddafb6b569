"""What the arms of a study share: model, data, texts and evaluation are read and checked once."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from dft_jax import config as config_lib
from dft_jax.data import account, order
from dft_jax.evals import planning
from dft_jax.models.model import Model, with_attention
from dft_jax.runtime import errors
from dft_jax.study.contents import contents_of
from dft_jax.study.programs import Programs
from dft_jax.study.spec import Spec
from dft_jax.study.texts import HeldOut, read_text, refuse_undated
from dft_jax.training import adapters, inputs


@dataclasses.dataclass(frozen=True)
class Laboratory:
    """All that arms share. `contents` are digests of what was read."""

    spec: Spec
    source: Path
    model: Model
    programs: Programs
    texts: dict[str, HeldOut]
    plan: planning.Plan | None
    contents: dict[str, Any]


def open_laboratory(spec: Spec, version: int = order.VERSION) -> Laboratory:
    """Reads and checks everything; nothing is compiled yet. `version` is that of data/order.py.

    Raises:
      UserError: anything wrong with config, checkpoint, texts or evaluation.
    """
    config = spec.config
    errors.raise_if_any(config_lib.validate_on(config, jax.device_count()))
    source, model, tokenizer = inputs.open_model(config)
    refuse_undated(spec, tokenizer)

    # What arms are trained on, with the account of what was lost of it.
    examples, _ = inputs.load_data(config, source, tokenizer, model)
    lost = account.refusals("data.train", examples.report, config.data.max_lost_fraction)
    errors.raise_if_any(lost)
    account.tell("data.train", examples.report)

    # What they are measured on.
    texts = {text.name: read_text(text, spec, source, tokenizer, model) for text in spec.texts}
    have_images = examples.have_images or any(text.have_images for text in texts.values())
    model = adapters.with_images(config, model, have_images)
    plan = None
    if spec.evaluation:
        plan = planning.plan(
            spec.evaluation,
            tokenizer,
            model,
            "evaluation.",
            date=config.data.date,
            trained=config.data.template,
            # Arms of a model without its tower have none to be shown images with.
            source=source if model.tower is not None else None,
        )
    contents = contents_of(config, source, examples.report["sha256"], version, texts, plan)

    # Weights last: all that may be refused was looked at before the largest file is read.
    model = with_attention(model, config.model.attention)
    programs = Programs(spec, source, model, examples, version)
    return Laboratory(spec, source, model, programs, texts, plan, contents)
