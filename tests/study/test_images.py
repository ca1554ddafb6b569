"""A study whose rows have images: arms are trained and measured with the model's tower."""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import load_file

import dft_jax as dft
from dft_jax.runtime import errors
from dft_jax.study import laboratory, records as records_lib, report, run
from dft_jax.study.clock import Clock
from dft_jax.study.spec import Arm, Phase, Spec, Text
from tests.image_checkpoint import image_checkpoint
from tests.tiny_trainer import tiny_config

CARDS = "cards(split={}, family=card, n=8)"
ARMS = (Arm("sft", 1e-2, 0), Arm("dft", 1e-2, 0))


def spec_of(base, **changes):
    values = {
        "model.path": str(base),
        "model.init": "checkpoint",
        "data.train": CARDS.format("train"),
        "data.rows": "fields",
        "data.image_field": "images",
        "data.template": "plain",
        "train.parts": "text+merger",
        # All examples are in each step.
        "train.global_batch": 8,
        "train.steps": 2,
        # As they were trained: the checkpoint's bfloat16 would round them.
        "export.dtype": "float32",
    }
    return Spec(
        name="cards",
        config=tiny_config(**values | changes),
        arms=ARMS,
        texts=(Text("validation", CARDS.format("validation"), "fields"),),
        measured_at=(2,),
        keep="parameters",
    )


def nll(model, split):
    """That of each token, by another path than a study's: `dft.score` of a folder."""
    scores = dft.score(
        dft.load(model),
        CARDS.format(split),
        template="plain",
        max_length=160,
        image_field="images",
        show_progress=False,
    )
    return scores.nll


@pytest.mark.slow
def test_arms_see_the_images_where_they_are_trained_and_measured(tmp_path):
    base = image_checkpoint(tmp_path / "base")
    spec = spec_of(base)
    run.Study(laboratory.open_laboratory(spec), tmp_path / "study", Clock()).run()
    records = records_lib.Records(tmp_path / "study", spec)
    first, _ = records.read(Phase(ARMS[0], "train", 2)).results["steps"]
    assert first["nll"] == pytest.approx(nll(base, "train"), abs=2e-4)
    kept = tmp_path / "study" / "exports" / ARMS[1].name
    measured = records.read(Phase(ARMS[1], "heldout", 2)).results["validation"]
    assert measured["nll"] == pytest.approx(nll(kept, "validation"), abs=2e-4)
    # The merger has moved, and the rest of the tower has not.
    before, after = load_file(base / "model.safetensors"), load_file(kept / "model.safetensors")
    for name, value in before.items():
        is_frozen = name.startswith(("visual.blocks", "visual.patch_embed"))
        assert np.array_equal(value.astype(np.float32), after[name]) == is_frozen, name
    text = report.write(records, tmp_path)
    for arm in ARMS:
        assert f"| {arm.objective} | 0.01 |" in text


def test_parts_of_a_tower_that_no_row_shows_anything_are_refused(tmp_path):
    base = image_checkpoint(tmp_path / "base")
    texts = "world(split={}, family=chain, levels=2-2, n=8)"
    changes = {"data.train": texts.format("train"), "data.rows": "gsm8k", "data.image_field": ""}
    text = Text("text", texts.format("validation"), "gsm8k")
    spec = dataclasses.replace(spec_of(base, **changes), texts=(text,))
    with pytest.raises(errors.UserError, match="train.parts='text\\+merger': no row has an image"):
        laboratory.open_laboratory(spec)
