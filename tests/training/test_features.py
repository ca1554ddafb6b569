"""Features of a frozen tower that are kept: against steps that have the tower in them."""

import dataclasses
import functools
import json
import os
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dft_jax import config as config_lib, main
from dft_jax.data import batches, packing
from dft_jax.losses import objectives
from dft_jax.models.hf.load import load_params, tower_digest
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.model import build, with_tower
from dft_jax.runtime import errors
from dft_jax.training import features
from dft_jax.training.step import make_loss
from tests import vision_folder
from tests.commands import TINY, run_command
from tests.conftest import make_mesh
from tests.image_examples import FOLDER, SPEC, image_examples

ROW_LENGTH = 128
ROWS = [[0, 1, 3], [2, 4], [5, 6, 7]]
N_IMAGES = 7


@functools.cache
def examples():
    return image_examples()


def model_on(mesh, dtype="float32"):
    text = build(SPEC, mesh, param_dtype=dtype, compute_dtype=dtype, attention_block=16)
    return with_tower(text)


def named(folder, model, source=FOLDER):
    return features.named(examples(), features.place_in(str(folder), model, source), model)


def files_of(folder):
    """Name -> bytes of all files below it."""
    return {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@functools.cache
def loss_on(dtype):
    """(lowered, loss and gradient of what is trained) of a batch."""
    model = model_on(make_mesh(), dtype)
    trained, base = model.divide(load_params(Checkpoint(FOLDER), model))
    loss = make_loss(model, objectives.make_objective("dft"), 64)

    @jax.jit
    def of(trained, base, batch):
        return jax.value_and_grad(lambda part: loss(model.join(part, base), batch, 32.0)[0])(
            trained
        )

    return lambda batch: (
        of.lower(trained, base, batch).as_text(),
        jax.device_get(of(trained, base, batch)),
    )


def batch_of(some, dtype=""):
    return packing.fill_rows(
        some.examples,
        ROWS,
        ROW_LENGTH,
        vision=SPEC.vision,
        n_patches=384,
        features_dtype=dtype,
    )


@pytest.mark.slow
def test_loss_and_gradient_are_those_of_a_step_with_the_tower(tmp_path):
    """In float64, windows whole and cut off; and the program has no product of the tower's."""
    with jax.enable_x64(True):
        model = model_on(make_mesh(), "float64")
        kept = named(tmp_path, model)
        assert features.make(model, FOLDER, kept, None) == N_IMAGES
        text_with, (loss_with, gradient_with) = loss_on("float64")(batch_of(examples()))
        batch = batch_of(kept, "float64")
        assert batch.images.features_BJD.dtype == np.float64
        text, (loss, gradient) = loss_on("float64")(batch)
    np.testing.assert_allclose(loss, loss_with, rtol=1e-12)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient_with))
    for leaf, expected in zip(*map(jax.tree.leaves, (gradient, gradient_with)), strict=True):
        np.testing.assert_allclose(leaf, expected, atol=1e-12 * largest)
    # Only the merger has erf, and patches alone are bytes.
    for sign in ("erf", "ui8"):
        assert sign in text_with and sign not in text
    # As many products as of rows of text alone.
    with jax.enable_x64(True):
        without, _ = loss_on("float64")(dataclasses.replace(batch, images=None))
    n_products, n_without, n_with = (one.count("dot_general") for one in (text, without, text_with))
    assert n_products == n_without < n_with


@pytest.mark.slow
def test_each_image_is_seen_once_whatever_happens(tmp_path, mesh1, monkeypatch):
    """Killed between files and within one, again, a second run, and damaged files."""
    model, folder = model_on(mesh1), tmp_path / "new" / "features"
    kept = named(folder, model)
    replace, n_left = os.replace, 4

    def killed(source, target):
        nonlocal n_left
        n_left -= str(target).startswith(str(folder))
        if n_left < 0:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        features.make(model, FOLDER, kept)
    monkeypatch.undo()
    whole = {name for name in files_of(folder) if not name.endswith(".tmp")}
    assert len(whole) == 4
    assert features.make(model, FOLDER, kept) == N_IMAGES - 4
    made = {name: of for name, of in files_of(folder).items() if not name.endswith(".tmp")}
    assert len(made) == N_IMAGES and whole < made.keys()
    # A second run reads no weights of the tower and makes nothing.
    with monkeypatch.context() as patch:
        patch.setattr(features, "_Tower", None)
        assert features.make(model, FOLDER, named(folder, model), named(folder, model)) == 0
    cut, flipped, gone = [p.features.path for p in kept.pictures][:3]
    cut.write_bytes(made[cut.name][:-1])
    flipped.write_bytes(made[flipped.name][:-1] + bytes([made[flipped.name][-1] ^ 1]))
    gone.unlink()
    packer = batches.Packer(
        kept, mesh1, [list(range(8))], accumulation=1, row_length=ROW_LENGTH, vision=SPEC.vision
    )
    with pytest.raises(errors.UserError, match="damaged or gone; the same command makes them"):
        packer.pack(list(range(8)))
    assert features.make(model, FOLDER, kept) == 3
    again = {name: of for name, of in files_of(folder).items() if not name.endswith(".tmp")}
    assert again.keys() == made.keys()
    # Three images are in other blocks than seven.
    for picture in kept.pictures:
        path = picture.features.path
        path.write_bytes(made[path.name])
        before = picture.features.read()
        path.write_bytes(again[path.name])
        np.testing.assert_allclose(picture.features.read(), before, atol=1e-5)
    # What is packed has the shapes for which programs are compiled.
    packed = packer.pack(list(range(8))).batch
    shapes = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), packed)
    [(count, n_patches)] = packer.shapes
    foreseen = packer.abstract_batch(count, n_patches, packed.most_segments)
    assert jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), foreseen) == shapes
    assert packer.n_patches(packed) == n_patches


@pytest.mark.slow
def test_eight_devices_keep_what_the_tower_of_a_step_gives(tmp_path, mesh1, mesh8):
    """In bfloat16, in which it is kept; and each unit is where its token looks for it."""
    model = model_on(mesh8, "bfloat16")
    kept = named(tmp_path, model)
    assert features.make(model, FOLDER, kept) == N_IMAGES
    found = batch_of(kept, "bfloat16").images
    one = model_on(mesh1, "bfloat16")
    batch = batch_of(examples()).images
    params = load_params(Checkpoint(FOLDER), one)["vision"]
    features_BJD = jax.device_get(jax.jit(one.tower.apply)(params, batch))
    assert found.features_BJD.dtype == features_BJD.dtype
    np.testing.assert_array_equal(found.units_BL > 0, batch.units_BL > 0)
    for b in range(len(ROWS)):
        is_image_L = found.units_BL[b] > 0
        ours = found.features_BJD[b, found.units_BL[b, is_image_L] - 1].astype(np.float32)
        theirs = features_BJD[b, batch.units_BL[b, is_image_L] - 1].astype(np.float32)
        # Two steps of bfloat16 at the largest values: the order of sums is another one.
        np.testing.assert_allclose(ours, theirs, atol=2**-6 * np.abs(theirs).max())


def other_checkpoint(folder, tensor):
    """The golden one, with another value in this tensor."""
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("*.npz"))
    tensors = load_file(folder / "model.safetensors")
    tensors[tensor] = tensors[tensor] * 1.01
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_features_are_those_of_one_tower(tmp_path, mesh1):
    """Of other weights, and of another dtype, but not of another text; and not of other pixels."""
    model = model_on(mesh1)
    same = tower_digest(Checkpoint(FOLDER), model)
    merger = other_checkpoint(tmp_path / "merger", "visual.merger.mlp.2.bias")
    text = other_checkpoint(tmp_path / "text", "model.norm.weight")
    assert tower_digest(Checkpoint(text), model) == same
    others = {same, tower_digest(Checkpoint(merger), model)}
    others.add(tower_digest(Checkpoint(FOLDER), model_on(mesh1, "bfloat16")))
    assert len(others) == 3
    names = {picture.features.path for picture in named(tmp_path / "kept", model).pictures}
    of_merger = named(tmp_path / "kept", model, merger)
    assert len(names) == N_IMAGES
    assert not names & {picture.features.path for picture in of_merger.pictures}
    # What a run is does not change: its data have the same hash.
    before = [picture.identity() for picture in examples().pictures]
    assert [picture.identity() for picture in of_merger.pictures] == before


def test_what_makes_no_sense_is_refused_by_name(tmp_path, mesh1):
    config = config_lib.get_default()
    config.data.image_features, config.train.parts = "kept", "text+merger"
    [problem] = [one for one in config_lib.validate(config) if "image_features" in one]
    assert "config.data.image_features='kept' with config.train.parts='text+merger'" in problem
    assert "train.parts='text'" in problem
    (tmp_path / "file").write_text("")
    text, blind = build(SPEC, mesh1), build(dataclasses.replace(SPEC, vision=None), mesh1)
    for model, folder, words in (
        (text, tmp_path / "kept", "has no effect: no row has an image"),
        (blind, tmp_path / "kept", "has no effect: the model has no tower"),
        (with_tower(text), tmp_path / "file" / "kept", "cannot be written"),
        (with_tower(text), tmp_path / "file", "cannot be written"),
    ):
        with pytest.raises(errors.UserError, match="config.data.image_features=.*" + words):
            features.place_in(str(folder), model, FOLDER)
    assert not (tmp_path / "kept").exists()


def rows_of(file, folder, numbers):
    """Questions about pictures of noise, and one of text alone."""
    rows = [{"prompt": "1 + 1 =", "completion": " 2", "image": None}]
    for number in numbers:
        (folder / f"{number}.png").write_bytes(vision_folder.png(60 + 28 * number, 90, number))
        rows.append({"prompt": "Which?", "completion": f" {number}", "image": f"{number}.png"})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.slow
def test_a_run_reads_them_and_stays_the_run_it_is(tmp_path, capfd, monkeypatch):
    """Metrics of training and of held-out rows, and the folder of one goes on as the other."""
    base = vision_folder.write(tmp_path / "base")
    settings = {
        "model.path": base,
        "model.init": "checkpoint",
        "data.rows": "fields",
        "data.image_field": "image",
        "data.template": "tokenizer",
        "data.train": rows_of(tmp_path / "train.jsonl", tmp_path, range(9)),
        "data.heldout": rows_of(tmp_path / "heldout.jsonl", tmp_path, range(8, 10)),
        "data.max_length": 128,
        "train.steps": 2,
        "train.global_batch": 8,
        "log.tensorboard": "false",
        "export.enabled": "false",
    }

    def run(name, **changes):
        overrides = [f"--config.{key}={value}" for key, value in (settings | changes).items()]
        arguments = [TINY, f"--workdir={tmp_path / name}", *overrides]
        outcome = run_command(main.main, arguments, capfd, monkeypatch)
        assert outcome.code == 0, outcome.stderr
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return outcome.stderr, [json.loads(line) for line in lines]

    kept = {"data.image_features": tmp_path / "kept"}
    said, expected = run("with_tower")
    assert "features of images" not in said
    said, found = run("kept", **kept)
    # One picture is in both files, and the tower sees it once.
    assert "features of images: 10 of 10 are made now" in said
    assert len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        same = {"step", "train/nll", "optimizer/gradient_norm", "heldout/nll"} & other.keys()
        assert len(same) >= 2
        for name in same:
            assert row[name] == pytest.approx(other[name], rel=1e-5), name
    assert any("heldout/nll" in row for row in found)
    said, _ = run("with_tower", **kept)
    assert "features of images: 0 of 10 are made now" in said and "resuming" in said
