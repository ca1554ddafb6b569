"""The real command, in real processes: one or two, on one device or eight. test_faults.py hurts
them.
"""

import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from dft_jax import config as config_lib
from dft_jax.commands import export
from tests.commands import ROOT, run_command
from tests.faults import images, launch


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def curve(workdir):
    """(step, loss, gradient norm) of the training rows."""
    return [
        (r["step"], r["train/loss"], r["optimizer/gradient_norm"])
        for r in rows(workdir)
        if "train/loss" in r
    ]


def test_a_run_explains_itself_and_exports(whole):
    names = {file.name for file in whole.iterdir()}
    assert names == {
        "config.json",
        "env.json",
        "data_report.json",
        "metrics.jsonl",
        "checkpoints",
        "export",
        ".lock",
    }
    saved = json.loads((whole / "config.json").read_text())
    assert (
        saved["train"]["steps"] == 8 and saved.keys() == config_lib.get_default().to_dict().keys()
    )
    environment = json.loads((whole / "env.json").read_text())
    assert environment["versions"]["jax"] and environment["devices"]["count"] == 1
    assert (
        "--config=configs/tiny.py" in environment["command"]
        and environment["attention"] == "blocked"
    )
    account = json.loads((whole / "data_report.json").read_text())
    assert account["train"]["rows"]["used_whole"] == 64 and account["length"]["steps"] == 8
    training = [row for row in rows(whole) if "train/loss" in row]
    assert [row["step"] for row in training] == list(range(1, 9))
    wanted = "train/nll train/mean_p train/entropy train/token_accuracy train/p_histogram speed/tokens_per_s"
    assert set(wanted.split()) <= training[-1].keys() and sum(
        training[-1]["train/p_histogram"]
    ) == pytest.approx(1)
    assert [row["step"] for row in rows(whole) if "heldout/nll" in row] == [0, 4, 8]
    exported = {file.name for file in (whole / "export").iterdir()}
    assert exported == {
        "README.md",
        "config.json",
        "dft_jax.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def same_bytes(one, other):
    return one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_resuming_a_finished_run_only_exports_again(whole, tmp_path):
    copy = tmp_path / "runs/run"
    shutil.copytree(whole, copy)
    shutil.rmtree(copy / "export")
    assert launch.run(copy) == 0, launch.log(copy)[-3000:]
    assert launch.rows(copy) == launch.rows(whole)
    assert same_bytes(whole / "export/model.safetensors", copy / "export/model.safetensors")


@pytest.mark.slow
def test_eight_devices_and_resuming_there(whole, tmp_path):
    """Four steps on one device, the rest on a 2 × 2 × 2 mesh: the curve of the whole run, to float
    tolerance.
    """
    workdir, mesh = (
        tmp_path / "runs/run",
        ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"),
    )
    assert launch.run(workdir, launch.Fault("whole 4", "KILL")) == -signal.SIGKILL
    assert launch.run(workdir, arguments=mesh, devices=8) == 0, launch.log(workdir)[-3000:]
    np.testing.assert_allclose(curve(workdir), curve(whole), rtol=1e-4)


@pytest.mark.slow
def test_two_processes_equal_one(whole, tmp_path):
    """jax.distributed over loopback, two devices each, parameters sharded across the processes."""
    workdir = tmp_path / "runs/run"
    processes = launch.start_many(workdir, 2, {}, arguments=("--config.mesh.fsdp=2",), devices=2)
    codes = [launch.wait(process) for process in processes]
    assert codes == [0, 0], launch.log(workdir)[-3000:]
    np.testing.assert_allclose(curve(workdir), curve(whole), rtol=1e-4)
    one, two = (load_file(folder / "export/model.safetensors") for folder in (whole, workdir))
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_processes_train_on_images_as_one(tmp_path):
    arguments = (
        *images.arguments(tmp_path),
        "--config.train.steps=2",
        "--config.eval.every=0",
        "--config.data.heldout=",
        "--config.export.enabled=False",
    )
    one, two = tmp_path / "runs/one", tmp_path / "runs/two"
    assert launch.run(one, arguments=arguments) == 0, launch.log(one)[-3000:]
    processes = launch.start_many(two, 2, {}, arguments=(*arguments, "--config.mesh.fsdp=2"))
    codes = [launch.wait(process) for process in processes]
    assert codes == [0, 0], launch.log(two)[-3000:]
    np.testing.assert_allclose(curve(two), curve(one), rtol=1e-4)


def test_inspect_data_shows_trained_tokens(tmp_path):
    """On one machine, of a run that is cut over the devices of many, and keeps its features."""
    command = [
        sys.executable,
        "-m",
        "dft_jax.analysis.inspect_data",
        "--config=configs/tiny.py",
        "--rows=1",
        "--config.mesh.sequence=3",
        "--config.mesh.expert=5",
        f"--config.data.image_features={tmp_path}",
    ]
    done = subprocess.run(
        [*command, "--config.data.max_rows=20"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert '"read": 20' in done.stdout and "\033[30;42m" in done.stdout
    trained = done.stdout.split("\033[30;42m")[1].split("\033[0m")[0]
    assert (
        trained.endswith("<|endoftext|>") and "#### " in trained and "<|im_start|>" not in trained
    )


def test_export_command(whole, tmp_path, capfd, monkeypatch):
    """On eight devices, what one device trained; into a new folder only."""
    out = tmp_path / "new"
    outcome = run_command(export.main, [f"--workdir={whole}", f"--out={out}"], capfd, monkeypatch)
    assert outcome.code == 0 and "exported step 8" in outcome.stdout
    assert same_bytes(out / "model.safetensors", whole / "export/model.safetensors")
    outcome = run_command(export.main, [f"--workdir={whole}", f"--out={out}"], capfd, monkeypatch)
    assert outcome.code == 2 and "is not empty; give a new folder" in outcome.stderr
    outcome = run_command(export.main, [f"--workdir={tmp_path}"], capfd, monkeypatch)
    assert outcome.code == 2 and "give the directory of a run" in outcome.stderr
