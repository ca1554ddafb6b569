"""The laboratory of vision: its base, and a study that is registered."""

import importlib.util
import math
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import dft_jax as dft
from dft_jax import assets, sharding
from dft_jax.data import images
from dft_jax.data.sources import cards
from dft_jax.evals.tasks import benchmarks
from dft_jax.models import vision
from dft_jax.models.hf.locate import load_tokenizer, read_config
from dft_jax.models.model import build
from dft_jax.runtime.files import read_json
from experiments.lab import trials
from experiments.lab.vision import study
from experiments.lab_vision_base import make_files
from tests import xla
from tests.commands import ROOT
from tests.marks import slow_but


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_the_base_is_as_large_as_its_card_says():
    spec = read_config(assets.LAB_VISION)
    mesh = sharding.abstract_mesh((1, 1, 1))
    text = count(build(spec, mesh).abstract_params)
    tower = count(vision.build_tower(spec.vision, mesh).abstract_params)
    assert (text, tower) == (624_256, 257_344)
    readme = (ROOT / "experiments/lab_vision_base/README.md").read_text()
    assert f"{text:,}" in readme and f"{tower:,}" in readme
    # The text is that of the other bases.
    other = read_config(assets.LAB)
    assert (spec.hidden_size, spec.num_layers) == (other.hidden_size, other.num_layers)


@pytest.mark.slow
def test_the_base_reads_cards():
    """The shipped weights read what the study's README says they do, and do not read all of it."""
    asked = {"prompt": "plain", "temperature": 0.0, "max_problems": 40, "context": 256}
    base = dft.load(assets.LAB_VISION)
    [greedy] = dft.evaluate(base, "lab_vision_card", show_progress=False, **asked).results
    assert greedy["truncation_rate"] == 0 and 0.5 <= greedy["avg_at_k"]["mean"] < 1


def test_tokens_of_images_are_those_of_the_config():
    spec = read_config(assets.LAB_VISION)
    tokenizer = load_tokenizer(assets.LAB_VISION)
    ids = tokenizer.encode("<|vision_start|><|image_pad|><|vision_end|>Which number is shown?\n")
    tower = spec.vision
    assert ids[:3] == [tower.start_token, tower.image_token, tower.end_token]
    assert max(ids) < spec.vocab_size and not set(ids[:3]) & set(ids[3:])
    with pytest.raises(ValueError, match="no chat template"):
        tokenizer.get_chat_template()


def test_pictures_are_whole_units_within_the_limits_of_the_processor():
    processor = read_json(assets.LAB_VISION / "preprocessor_config.json")
    least, most = processor["min_pixels"], processor["max_pixels"]
    geometry = images.Geometry(min_pixels=least, max_pixels=most)
    for family, tokens in (("card", 4), ("cards", 6), ("picture_chain", 4)):
        [row] = cards.Excerpt("test", family, n=1).rows()
        picture = images.decode(row["images"][0]["bytes"])
        assert images.scaled_size(*picture.shape[:2], geometry) == picture.shape[:2]
        assert len(images.patches_of(picture, geometry)) == 4 * tokens


@pytest.mark.slow
def test_the_files_can_be_made_again(tmp_path):
    make_files.write(tmp_path)
    made = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    shipped = {file.name: file.read_bytes() for file in assets.LAB_VISION.iterdir()}
    del shipped["README.md"], shipped["model.safetensors"]
    assert made == shipped


def tasks():
    return study.measurements(lambda trial: trial)


def test_trials_are_about_pictures():
    """Rates are chosen with a seed and on problems that nothing is measured with."""
    for trial, probe in study.candidates():
        assert trial.seed not in study.SEEDS and trial.parts == "text"
        asked = trials.settings_of(probe).benchmarks
        assert all(benchmarks.find(name).source.startswith("cards(split=val") for name in asked)
    measured = {trial for trial, _ in tasks() if trial.objective != "none"}
    assert {trial.seed for trial in measured} == set(range(5))
    arms = {(trial.objective, trial.data, trial.parts) for trial in measured}
    assert len(arms) == 8 and len(measured) == 40 and len(study.candidates()) == 16
    for _, probe in tasks():
        asked = trials.settings_of(probe).benchmarks
        assert all(benchmarks.find(name).source.startswith("cards(split=test") for name in asked)


def test_demonstrations_differ_in_reading_alone():
    right, wrong = (cards.parse(trials.DATA[data]) for data in study.DATA)
    assert (right.noise_read, wrong.noise_read) == (0.0, 0.15)
    assert (right.split, right.noise, right.rare, right.n) == ("train", 0.0, 0.05, 2500)
    assert {**vars(right), "noise_read": 0.15} == vars(wrong)


def test_only_other_parts_are_in_a_name():
    """Names of trials from before there were parts are what they were."""
    assert "parts" not in trials.Trial().name
    trial = trials.Trial("lab_vision", data="read0", parts="all")
    assert trial.name.endswith(",parts=all") and trials.parse(trial.name) == trial


def test_distance_of_trees():
    ours = {"a": np.array([3.0, 0.0]), "b": {"c": np.array([[1.0]])}}
    theirs = {"a": np.array([0.0, 0.0]), "b": {"c": np.array([[-3.0]])}}
    assert study.distance(ours, theirs) == pytest.approx(5.0)


def test_the_recipe_reads_what_the_base_is_for():
    """Its text names the problems of pretraining, and none of a benchmark."""
    file = ROOT / "configs/lab_vision_base.py"
    spec = importlib.util.spec_from_file_location("lab_vision_base", file)
    config = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(config)
    made = config.get_config("noise=0.1")
    train, heldout = (cards.parse(path) for path in (made.data.train, made.data.heldout))
    assert (train.split, heldout.split, train.n) == ("pretrain", "validation", 60_000)
    assert train.noise == train.noise_read == 0.1 and train.rare == 1.0


@pytest.mark.parametrize("parts", slow_but([], ["text", "all"], slow=["text"]))
def test_a_trial_is_trained_and_shown_pictures(parts, tmp_path):
    """Whatever is trained is evaluated with a tower: of the text alone, the base's."""
    trial = trials.Trial("lab_vision", data="read0", steps=1, batch=8, parts=parts)
    command = [sys.executable, "-m", "experiments.lab.run", "trial"]
    command += [f"--trial={trial.name}", "--probe=vision_validation", f"--root={tmp_path}"]
    environment = os.environ | {"XLA_FLAGS": xla.flags(devices=1)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    [row] = trials.measure(trial, "vision_validation", tmp_path)
    assert (row["benchmark"], row["step"]) == ("lab_vision_validation", 1)
    # 32 problems, eight samples of each; the base solves a third of all samples.
    right = [int(count) for count in row["correct"].split()]
    assert len(right) == 32 and 0.2 * 32 * 8 < sum(right) < 0.6 * 32 * 8
