"""Signals: before there is anything to save, twice, as an echo; the rest is in test_faults.py."""

import os
import signal
import subprocess
import sys
import time

import pytest

from dft_jax import errors, interrupts
from tests.faults import launch

ALONE = """
import os, signal, time
from dft_jax import interrupts
with interrupts.Interrupts():
    {work}
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(20)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_before_there_is_anything_to_save_the_process_ends_at_once(name):
    code = ALONE.replace("{work}", "pass").replace("SIGTERM", name)
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=launch.ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == errors.EXIT_RESUMABLE
    assert f"{name}: ended before there was anything to save" in done.stderr and time.monotonic() - began < 19


def test_a_second_signal_ends_at_once(tmp_path):
    """The main thread is held up in a step; the thread that watches is not."""
    (tmp_path / "runs").mkdir()
    workdir = tmp_path / "runs/twice"
    process = launch.start(workdir, launch.Fault("step 3", "sleep", argument=60.0))
    while "step 3" not in launch.phases(workdir):
        assert process.is_alive()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGTERM)  # an echo of the first
    time.sleep(interrupts.ECHO_S + 0.5)
    assert process.is_alive()
    began = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    assert launch.wait(process, 30) == 128 + signal.SIGINT and time.monotonic() - began < 10
    assert launch.log(workdir).count("SIGTERM: saving within a step") == 1


def test_nothing_is_caught_unless_asked():
    before = signal.getsignal(signal.SIGINT)
    interrupts.check()
    with interrupts.Interrupts() as caught:
        interrupts.check()
        assert caught.handled is None
    assert signal.getsignal(signal.SIGINT) is before


def test_a_caught_signal_stops_at_the_next_check():
    with interrupts.Interrupts() as caught:
        interrupts.check()
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 10
        while caught.handled is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(errors.Stopped, match="SIGTERM"):
            interrupts.check()
    interrupts.check()


@pytest.mark.slow
def test_a_dead_reader_of_the_log_costs_nothing(tmp_path):
    """As after Ctrl-C on `python -m dft_jax.main … 2>&1 | tee log`: the run still saves and exits with 42."""
    command = [sys.executable, "-m", "dft_jax.main", *launch.ARGUMENTS, f"--workdir={tmp_path}/run"]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    command.append("--config.train.steps=4000")
    process = subprocess.Popen(
        command, cwd=launch.ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    metrics = tmp_path / "run/metrics.jsonl"
    while not (metrics.exists() and '"step": 3,' in metrics.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == errors.EXIT_RESUMABLE
    assert list((tmp_path / "run/checkpoints").glob("*/manifest.json"))
