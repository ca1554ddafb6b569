"""The order in which what a run has come to is made to last."""

import jax.numpy as jnp

from dft_jax.checkpoints.manager import Best, Checkpoints
from dft_jax.training.folder import RunFolder
from dft_jax.training.reporter import Reporter
from dft_jax.types import TrainState


def test_rows_are_out_of_the_machine_before_the_checkpoint_that_needs_them(tmp_path, monkeypatch):
    """In a bucket, where a run resumes from the checkpoint and with the rows that are there."""
    calls = []
    monkeypatch.setattr(Checkpoints, "save", lambda self, step, *_: calls.append(f"save {step}"))
    monkeypatch.setattr(Reporter, "sync", lambda self: calls.append("rows"))
    checkpoints, report = Checkpoints.__new__(Checkpoints), Reporter.__new__(Reporter)
    best = Best("")
    folder = RunFolder(tmp_path, checkpoints, None, {}, best, lambda: calls.append("publish"))
    folder.save(TrainState(jnp.int32(4), {}, ()), report)
    assert calls == ["rows", "publish", "save 4"]
