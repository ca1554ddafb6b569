"""The run's directory: whole files only, one row a step after any restart, JSON that is JSON."""

import json

import pytest

from dft_jax import writer
from tests.training import tiny_config


def rows(folder):
    return [
        json.loads(line, parse_constant=pytest.fail) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def write(folder, resume_from, steps):
    log = writer.Writer(folder, tiny_config(), resume_from=resume_from)
    for step in steps:
        log.write(step, {"train/loss": step / 2})
    log.close()


def test_a_resumed_run_has_each_step_once(tmp_path):
    write(tmp_path, None, [0, 1, 2, 3])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "train/lo')  # killed while writing
    write(tmp_path, 2, [3, 4])
    assert [row["step"] for row in rows(tmp_path)] == [0, 1, 2, 3, 4]


def test_a_run_killed_before_its_first_checkpoint_starts_its_metrics_again(tmp_path):
    write(tmp_path, None, [0, 1])
    write(tmp_path, None, [0, 1, 2])
    assert [row["step"] for row in rows(tmp_path)] == [0, 1, 2]


def test_not_a_number_is_null(tmp_path):
    log = writer.Writer(tmp_path, tiny_config(), resume_from=None)
    log.write(1, {"train/loss": float("nan"), "optimizer/gradient_norm": float("inf")})
    log.close()
    assert rows(tmp_path) == [{"step": 1, "train/loss": None, "optimizer/gradient_norm": None}]


def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    writer.write_json(tmp_path / "a.json", {"old": 1})

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(writer.os, "replace", fail)
    with pytest.raises(OSError):
        writer.write_json(tmp_path / "a.json", {"new": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
