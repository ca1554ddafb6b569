"""A Qwen2.5-VL checkpoint through the commands: text is trained, the tower comes along."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import dft_jax as dft
from dft_jax import assets, main
from dft_jax.runtime import errors
from tests.commands import TINY, assert_refused, run_command
from tests.conftest import GOLDEN

SETTINGS = {
    "model.init": "checkpoint",
    "data.max_length": 192,
    "data.max_rows": 32,
    "train.steps": 3,
    "train.global_batch": 8,
    "eval.every": 3,
    "eval.max_examples": 8,
    "log.tensorboard": "false",
}


def arguments_of(checkpoint, workdir, **changes):
    settings = SETTINGS | {"model.path": checkpoint} | changes
    overrides = [f"--config.{key}={value}" for key, value in settings.items()]
    return [TINY, f"--workdir={workdir}", *overrides]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The golden weights with the tokenizer of assets/tiny, and files of a processor."""
    folder = tmp_path_factory.mktemp("vl") / "base"
    shutil.copytree(GOLDEN / "qwen2_5_vl", folder, ignore=shutil.ignore_patterns("*.npz"))
    for file in assets.TINY.glob("tokenizer*"):
        shutil.copy(file, folder)
    (folder / "preprocessor_config.json").write_text('{"min_pixels": 3136}\n')
    return folder


@pytest.mark.slow
def test_text_is_trained_and_the_tower_is_carried_along(checkpoint, tmp_path, capfd, monkeypatch):
    workdir = tmp_path / "run"
    outcome = run_command(main.main, arguments_of(checkpoint, workdir), capfd, monkeypatch)
    assert outcome.code == 0, outcome.stderr
    trained = dft.load(workdir)
    assert len(dft.sample(trained, "1 + 1 =", template="plain", n=2, max_new_tokens=8)) == 2
    asked = {"max_problems": 2, "context": 192, "samples": 1, "greedy": False}
    evaluation = dft.evaluate(trained, ["lab"], prompt="plain", show_progress=False, **asked)
    assert evaluation.results[0]["samples_per_problem"] == 1
    export = workdir / "export"
    before, after = load_file(checkpoint / "model.safetensors"), {}
    for file in export.glob("*.safetensors"):
        after |= load_file(file)
    assert before.keys() == after.keys()
    for name, value in before.items():
        is_equal = value.tobytes() == after[name].tobytes()
        # Every tensor of the text has moved, and none of the tower.
        assert is_equal == name.startswith("visual."), name
    assert (export / "preprocessor_config.json").read_text() == '{"min_pixels": 3136}\n'
    again = dft.load(export)
    # The tower is that of the base, beside the text that was trained.
    norm = before["visual.merger.ln_q.weight"].astype(np.float32)
    for lm in (trained, again):
        params = lm.with_images().params
        np.testing.assert_array_equal(params["vision"]["merger"]["norm"]["scale"], norm)
        assert params["embed"] is lm.params["embed"]
    scored = [
        dft.score(lm, assets.TINY / "heldout.jsonl", rows="gsm8k", max_rows=2, max_length=192)
        for lm in (trained, again)
    ]
    np.testing.assert_allclose(scored[0].p_T, scored[1].p_T, atol=2e-3)


@pytest.mark.slow
def test_a_run_is_not_exported_with_the_tower_of_another_model(
    checkpoint, tmp_path, capfd, monkeypatch
):
    base = shutil.copytree(checkpoint, tmp_path / "base")
    changes = {"export.enabled": "false", "data.heldout": ""}
    arguments = arguments_of(base, tmp_path / "run", **changes)
    outcome = run_command(main.main, arguments, capfd, monkeypatch)
    assert outcome.code == 0, outcome.stderr
    dft.export(dft.load(tmp_path / "run"), tmp_path / "out")
    tensors = load_file(base / "model.safetensors")
    tensors["visual.merger.mlp.2.bias"] = tensors["visual.merger.mlp.2.bias"] * 2
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(errors.UserError, match="other weights than the run began with"):
        dft.export(dft.load(tmp_path / "run"), tmp_path / "out")


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("model.init", "random", ["model.init='random'", "tower", "init='checkpoint'"]),
        # No row has an image.
        ("train.parts", "all", ["train.parts='all'", "no row has an image", "train.parts='text'"]),
    ],
)
def test_what_such_a_model_cannot_do_is_refused(
    key, value, words, checkpoint, tmp_path, capfd, monkeypatch
):
    arguments = arguments_of(checkpoint, tmp_path / "run", **{key: value})
    outcome = run_command(main.main, arguments, capfd, monkeypatch)
    assert_refused(outcome, *words)
    assert not outcome.compiled


def test_a_row_with_an_image_that_its_format_does_not_read_is_refused_by_name(
    checkpoint, tmp_path, capfd, monkeypatch
):
    data = tmp_path / "train.jsonl"
    data.write_text('{"question": "1 + 1", "answer": "2", "images": ["a.png"]}\n')
    arguments = arguments_of(checkpoint, tmp_path / "run", **{"data.train": data})
    outcome = run_command(main.main, arguments, capfd, monkeypatch)
    assert_refused(outcome, "train.jsonl:1", "field 'images'", "data.rows='gsm8k' reads no images")
    assert not outcome.compiled
