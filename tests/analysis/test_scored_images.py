"""Demonstrations with images, scored token by token: each equals the model on that row alone."""

import json
import types

import jax
import numpy as np
import pytest

import dft_jax as dft
from dft_jax import config as config_lib
from dft_jax.analysis import tokens
from dft_jax.commands import evaluate
from dft_jax.data import packing
from dft_jax.data.examples import load_examples
from dft_jax.models.model import head
from tests.commands import assert_refused, run_command
from tests.image_checkpoint import image_checkpoint
from tests.image_examples import png_of

# (height, width) in pixels of the pictures of each row; the last has none.
SIZES = (((56, 84),), ((28, 28), (140, 112)), ((84, 56),), ())
READ = ["--rows=fields", "--image_field=images", "--prompt=plain", "--context=160"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a checkpoint `base`, and rows with pictures in files."""
    folder = tmp_path_factory.mktemp("scored")
    image_checkpoint(folder / "base")
    rows = []
    for number, sizes in enumerate(SIZES):
        names = []
        for place, size in enumerate(sizes):
            names.append(f"{number}-{place}.png")
            (folder / names[-1]).write_bytes(png_of(*size, seed=10 * number + place))
        rows.append({"prompt": f"How many? {number}", "completion": "12 " * number + "7"})
        rows[-1]["images"] = names or None
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def expected(folder):
    """log p of each trained token and the entropy before it, each example alone in a row."""
    base = dft.load(folder / "base").with_images()
    vision = base.model.config.vision
    config = config_lib.get_default().data
    config.update(rows="fields", image_field="images", template="plain", max_length=160)
    examples = load_examples(
        str(folder / "rows.jsonl"), config, base.tokenizer, 300, vision=vision, source=base.source
    ).examples
    assert [len(example.images) for example in examples] == [1, 2, 1, 0]
    # Every device has a row of each batch, all of them the same.
    n_rows = jax.device_count()
    read = jax.jit(base.model.apply)
    logp, entropy = [], []
    for number, example in enumerate(examples):
        batch = packing.fill_rows(
            examples,
            [[number]] * n_rows,
            160,
            vision=vision,
            n_patches=128 if example.images else 0,
        )
        hidden_LD = np.asarray(read(base.params, batch)[0], np.float64)
        logits_LV = hidden_LD @ np.asarray(head(base.params), np.float64).T
        logits_LV -= logits_LV.max(axis=1, keepdims=True)
        logp_LV = logits_LV - np.log(np.exp(logits_LV).sum(axis=1, keepdims=True))
        for place in np.flatnonzero(example.trained):
            logp.append(logp_LV[place - 1, example.ids[place]])
            entropy.append(-(np.exp(logp_LV[place - 1]) * logp_LV[place - 1]).sum())
    return types.SimpleNamespace(logp_T=np.array(logp), entropy_T=np.array(entropy))


@pytest.mark.slow
def test_tokens_are_those_of_each_row_by_itself(folder, expected, capfd, monkeypatch):
    arguments = [f"--models=base={folder / 'base'}", f"--data={folder / 'rows.jsonl'}", *READ]
    arguments += ["--compute_dtype=float32", f"--out={folder / 'tokens'}"]
    outcome = run_command(tokens.main, arguments, capfd, monkeypatch)
    assert outcome.code == 0, outcome.stderr
    arrays = np.load(folder / "tokens" / "tokens.npz")
    np.testing.assert_allclose(arrays["p_base"], np.exp(expected.logp_T), rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(arrays["entropy_base"], expected.entropy_T, rtol=1e-3, atol=2e-5)
    summary = json.loads((folder / "tokens" / "summary.json").read_text())
    assert summary["data"]["images"]["read"] == 4
    page = (folder / "tokens" / "tokens.html").read_text()
    # An image is one token on the page, however many units it has.
    assert page.count("&lt;|image_pad|&gt;") == 4
    # So does the public function.
    scores = dft.score(
        dft.load(folder / "base"),
        folder / "rows.jsonl",
        template="plain",
        max_length=160,
        image_field="images",
        show_progress=False,
    )
    np.testing.assert_allclose(scores.p_T, arrays["p_base"], rtol=1e-3)


@pytest.mark.slow
def test_held_out_metrics_see_the_images(folder, expected, capfd, monkeypatch):
    arguments = [f"--model={folder / 'base'}", f"--heldout={folder / 'rows.jsonl'}", *READ]
    arguments += ["--compute_dtype=float32", f"--out={folder / 'heldout'}"]
    outcome = run_command(evaluate.main, arguments, capfd, monkeypatch)
    assert outcome.code == 0, outcome.stderr
    metrics = json.loads((folder / "heldout" / "heldout.json").read_text())["metrics"]
    assert metrics["heldout/nll"] == pytest.approx(-expected.logp_T.mean(), rel=1e-4)
    assert metrics["heldout/entropy"] == pytest.approx(expected.entropy_T.mean(), rel=1e-4)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--rows=gsm8k"], ["--image_field=images has no effect", "--rows=fields and alpaca"]),
        (["--image_folder=none"], ["--image_folder=none: no such folder"]),
        (["--image_min_pixels=900000"], ["--image_min_pixels=900000 is above the most, 589824"]),
        (["--image_field="], ["rows.jsonl:1", "images"]),
    ],
)
def test_what_no_image_is_read_by_is_refused(folder, more, words, capfd, monkeypatch):
    arguments = [f"--model={folder / 'base'}", f"--heldout={folder / 'rows.jsonl'}", *READ, *more]
    outcome = run_command(evaluate.main, [*arguments, f"--out={folder / 'o'}"], capfd, monkeypatch)
    assert_refused(outcome, *words)
