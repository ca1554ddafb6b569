"""Runs of a model with experts: on a mesh with `expert` as without, and restored on another."""

import json
import shutil

import jax
import numpy as np
import pytest

from dft_jax import api, assets
from dft_jax.checkpoints.manager import Checkpoints
from dft_jax.models.hf.locate import read_config
from dft_jax.models.model import build
from dft_jax.runtime import files
from dft_jax.training import optimizer as optimizer_lib
from dft_jax.training.state import abstract_state
from tests.conftest import make_mesh
from tests.tiny_trainer import tiny_config

STEPS = 4


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The embedded model as a Mixtral of four experts, random."""
    folder = tmp_path_factory.mktemp("mixtral")
    raw = files.read_json(assets.TINY / "config.json")
    raw |= {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "intermediate_size": 32,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": None,
    }
    del raw["use_sliding_window"]
    files.write_json(folder / "config.json", raw)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(assets.TINY / name, folder)
    return folder


def config(source, **overrides):
    fixed = {
        "model.path": str(source),
        "train.steps": STEPS,
        "train.balance_weight": 0.02,
        "checkpoint.every": 2,
    }
    return tiny_config(**fixed | overrides)


def curve(folder):
    """[steps, metrics] of a run."""
    names = ("train/loss", "train/nll", "optimizer/gradient_norm", "experts/balance")
    names += ("experts/busiest_load", "experts/idle_share")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return np.array([[row[name] for name in names] for row in rows if "train/loss" in row])


@pytest.mark.slow
def test_a_run_is_that_without_the_axis(source, tmp_path):
    """Its curve; and its checkpoint, on other meshes, bit for bit."""
    api.train(config(source), tmp_path / "plain")
    sizes = {"mesh.data": 1, "mesh.fsdp": 2, "mesh.expert": 4}
    run = api.train(config(source, **sizes), tmp_path / "cut")
    plain, cut = curve(tmp_path / "plain"), curve(tmp_path / "cut")
    assert plain.shape == (STEPS, 6) and (plain[:, 3] > 1).all()
    np.testing.assert_allclose(cut, plain, rtol=2e-4)
    optimizer, bits = optimizer_lib.make_optimizer(run.config.optimizer), []
    for sizes in ((1, 2, 1, 1, 4), (1, 1, 1), (2, 1, 2, 1, 2)):
        model = build(read_config(source), make_mesh(*sizes))
        abstract = abstract_state(model, optimizer)
        state = Checkpoints(tmp_path / "cut/checkpoints").restore(STEPS, abstract)
        bits.append([np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)])
    assert bits[0] == bits[1] == bits[2]
