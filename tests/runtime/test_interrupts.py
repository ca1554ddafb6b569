"""Signals: before there is anything to save, twice, as an echo, in long steps."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dft_jax.api import train
from dft_jax.runtime import errors, interrupts
from dft_jax.training import reporter
from tests import xla
from tests.faults import launch
from tests.tiny_trainer import tiny_config

ALONE = """
import os, signal, time
from dft_jax.runtime import interrupts
with interrupts.Interrupts():
    {work}
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(20)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_before_there_is_anything_to_save_the_process_ends_at_once(name):
    code = ALONE.replace("{work}", "pass").replace("SIGTERM", name)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=launch.ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == errors.EXIT_RESUMABLE
    assert (
        f"{name}: ended before there was anything to save" in done.stderr
        and time.monotonic() - began < 19
    )


@pytest.mark.slow
def test_a_second_signal_says_what_is_awaited_and_a_third_ends_at_once(tmp_path):
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
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(interrupts.ECHO_S + 0.5)
    assert process.is_alive()
    began = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    assert launch.wait(process, 30) == 128 + signal.SIGINT and time.monotonic() - began < 10
    said = launch.log(workdir)
    assert said.count("SIGTERM: the step in flight has to end (about ") == 1
    assert said.count("SIGTERM again: the step in flight has to end (about ") == 1
    assert said.count("a third signal ends at once, and loses what is not saved") == 1


@pytest.mark.slow
def test_a_second_signal_while_the_save_runs_does_not_lose_it(tmp_path):
    """The save is held up where its files are there and its manifest is not."""
    (tmp_path / "runs").mkdir()
    workdir = tmp_path / "runs/saving"
    # No checkpoint but that for the signal, which comes in the third step.
    quiet = ("--config.checkpoint.every=100", "--config.eval.every=0", "--config.train.steps=2000")
    process = launch.start(
        workdir, launch.Fault("commit *", "sleep", argument=4.0), arguments=quiet
    )
    while "step 3" not in launch.phases(workdir):
        assert process.is_alive()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    while not any(phase.startswith("commit") for phase in launch.phases(workdir)):
        time.sleep(0.05)
    time.sleep(interrupts.ECHO_S)
    os.kill(process.pid, signal.SIGTERM)
    assert launch.wait(process, 60) == errors.EXIT_RESUMABLE
    assert list((workdir / "checkpoints").glob("*/manifest.json"))
    assert "SIGTERM again: the save is running (of unknown length: the first one)" in launch.log(
        workdir
    )


def test_what_remains_is_estimated_from_what_was_measured(monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    unknown = "of unknown length: the first one"
    remaining = interrupts.Outlook().remaining()
    assert (
        remaining
        == "the work in progress has to reach a place where it can stop, then the state is saved"
        f" ({unknown})"
    )
    remaining = interrupts.Outlook(step_s=60.0, step_began=80.0, save_s=12.0).remaining()
    assert (
        remaining
        == "the step in flight has to end (about 40 s), then the state is saved (about 12 s)"
    )
    remaining = interrupts.Outlook(step_s=60.0, save_s=12.0, save_began=95.0).remaining()
    assert remaining == "the save is running (about 7 s)"


def run_with_steps_of(step_s, tmp_path, monkeypatch, signal_in=None):
    """Steps that began, of a run whose steps seem to take so long; SIGTERM in the middle of one."""
    began, waited = [], []
    flush, watched, wait = (
        reporter.Reporter.flush,
        reporter.Reporter.step,
        reporter.Reporter.wait,
    )

    def slow_flush(self):
        if self._pending is not None:
            step = self._pending[0]
            time.sleep(step_s / 2)
            if step == signal_in:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(step_s / 2)
        flush(self)

    def noted(self, step):
        began.append(step)
        return watched(self, step)

    monkeypatch.setattr(reporter.Reporter, "flush", slow_flush)
    monkeypatch.setattr(reporter.Reporter, "step", noted)
    monkeypatch.setattr(reporter.Reporter, "wait", lambda self: waited.append(1) or wait(self))
    with contextlib.suppress(errors.Stopped), interrupts.Interrupts():
        train(tiny_config(**{"train.steps": 6, "checkpoint.every": 100}), tmp_path)
    return began, len(waited)


@pytest.mark.slow
def test_a_signal_in_a_long_step_is_answered_before_the_next(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(interrupts, "LONG_STEP_S", 0.3)
    began, _ = run_with_steps_of(0.5, tmp_path, monkeypatch, signal_in=3)
    assert began == [1, 2, 3]
    assert (tmp_path / "checkpoints/3/manifest.json").exists()
    said = capfd.readouterr().err
    assert (
        "SIGTERM: the step in flight has to end (about 0." in said
        and "then the state is saved (" in said
    )


@pytest.mark.slow
def test_short_steps_are_dispatched_ahead(tmp_path, monkeypatch):
    """Only the first is awaited: nobody knows yet how long it takes."""
    monkeypatch.setattr(interrupts, "LONG_STEP_S", 30.0)
    began, waited = run_with_steps_of(0.0, tmp_path, monkeypatch)
    assert began == [1, 2, 3, 4, 5, 6] and waited == 1


class Devices:
    """Stands for the sum over the devices of two processes, of which the other one says `other`."""

    def __init__(self, monkeypatch, other=(False, False, False)):
        self.other = other
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(interrupts, "_sum_of_all", self.sum)

    def sum(self, *answers):
        return np.array(answers, np.int32) + np.array(self.other, np.int32)


def test_several_processes_know_at_the_next_call_or_at_once(monkeypatch):
    other = Devices(monkeypatch)
    caught = interrupts.Interrupts()
    monkeypatch.setattr(interrupts, "_current", caught)
    monkeypatch.setattr(caught, "_arm", lambda: None)
    assert not interrupts.check() and interrupts.steps_are_long()  # nothing was measured
    monkeypatch.setattr(interrupts, "outlook", interrupts.Outlook(step_s=0.1))
    assert not interrupts.check(save_is_due=True)
    assert interrupts.check(save_is_due=True)  # agreed one call late,
    assert not interrupts.steps_are_long()
    assert not interrupts.check()  # and once
    other.other = (False, True, False)
    assert interrupts.check(at_once=True)
    other.other = (True, False, False)
    assert not interrupts.check()
    with pytest.raises(errors.Stopped, match="a signal to another process"):
        interrupts.check()


def test_only_the_clock_of_process_0_counts(monkeypatch):
    """Clocks that differ must not make processes save at different steps."""
    summed = []
    monkeypatch.setattr(
        jax,
        "make_array_from_process_local_data",
        lambda layout, answers: summed.append(answers[0].tolist()) or jnp.asarray(answers),
    )
    monkeypatch.setattr(interrupts, "_adder", lambda: (None, lambda x: x))
    for index in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        interrupts._sum_of_all(True, True, True)
    assert summed == [[1, 1, 1], [1, 0, 0]]


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
    """As after Ctrl-C on `dft_jax.main … 2>&1 | tee log`: the run still saves and exits with 42."""
    command = [sys.executable, "-m", "dft_jax.main", *launch.ARGUMENTS, f"--workdir={tmp_path}/run"]
    environment = os.environ | {"XLA_FLAGS": xla.flags(1)}
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
