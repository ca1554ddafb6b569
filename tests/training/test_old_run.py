"""A run that an old version began is finished by this one, as the old one finished it."""

import json
import shutil

import jax
import numpy as np
import pytest

from dft_jax import api, assets
from tests.conftest import GOLDEN
from tests.tiny_trainer import tiny_config

OLD = GOLDEN / "run_8af6753"


@pytest.mark.slow
def test_a_run_of_an_old_version_resumes_to_its_end(tmp_path, capfd):
    """On the machine that made the file it is the same to the last bit; elsewhere to rounding."""
    workdir = shutil.copytree(OLD / "run", tmp_path / "run")
    config = tiny_config(
        **{
            "objective": "dft",
            "model.path": str(OLD / "model"),
            "data.max_rows": 32,
            "data.max_length": 160,
            "data.heldout": str(assets.TINY / "heldout.jsonl"),
            "train.steps": 8,
            "train.global_batch": 4,
            "checkpoint.every": 4,
            "checkpoint.keep": 2,
            "eval.every": 4,
            "eval.max_examples": 8,
            "export.enabled": False,
        }
    )
    run = api.train(config, workdir)
    assert f"resuming {workdir} from step 4 of 8" in capfd.readouterr().err
    final = dict(np.load(OLD / "final.npz"))
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(run.state.params):
        found[jax.tree_util.keystr(path, simple=True, separator="/")] = np.asarray(leaf)
    assert found.keys() == final.keys()
    for name, expected in final.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-6, err_msg=name)
    steps = [row["step"] for row in run.metrics if "train/nll" in row]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    # What it says of itself has no id: it began before there were any.
    assert json.loads((workdir / "env.json").read_text())["run_id"] is None
