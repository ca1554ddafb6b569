"""A run that an old version began is finished by this one, as the old one finished it."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dft_jax.lm.run import open_run
from tests.commands import ROOT
from tests.conftest import GOLDEN

OLD = GOLDEN / "run_8af6753"


@pytest.mark.slow
def test_a_run_of_an_old_version_resumes_to_its_end(tmp_path):
    """On the machine that made the file it is the same to the last bit; elsewhere to rounding.

    By the command in the file's README, on one device as then.
    """
    workdir = shutil.copytree(OLD / "run", tmp_path / "run")
    given = (OLD / "README.md").read_text().split("python -m dft_jax.main")[1].replace("\\\n", " ")
    options = [option for option in given.split() if option.startswith("--config")]
    command = [sys.executable, "-m", "dft_jax.main", *options, f"--workdir={workdir}"]
    command.append(f"--config.model.path={OLD / 'model'}")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("XLA_FLAGS", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"resuming {workdir} from step 4 of 8" in done.stderr
    final = dict(np.load(OLD / "final.npz"))
    saved = open_run(pathlib.Path(workdir), {"mesh.data": -1, "mesh.fsdp": 1})
    params = saved.params()
    assert saved.step == 8
    for name, expected in final.items():
        found = params
        for part in name.split("/"):
            found = found[part]
        np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-4, atol=1e-6, err_msg=name)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/nll" in row] == [1, 2, 3, 4, 5, 6, 7, 8]
    # It has no id: it began before there were any.
    assert json.loads((workdir / "env.json").read_text())["run_id"] is None
