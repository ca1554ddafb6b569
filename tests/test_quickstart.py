"""The quick start, made small: one table, three pictures, two sentences, and nothing done twice."""

import pytest

from dft_jax.analysis import quickstart
from dft_jax.lab import recipe
from dft_jax.sampling import sampler
from dft_jax.training import job
from tests.commands import run_command


@pytest.mark.slow
def test_quickstart(tmp_path, capfd, monkeypatch):
    config = recipe.lab_config

    def small(objective):
        made = config(objective)
        made.data.max_rows = 128
        made.train.steps = 4
        made.eval.every = 2
        made.eval.max_examples = 32
        made.checkpoint.every = 4
        return made

    monkeypatch.setattr(quickstart, "lab_config", small)
    settings = recipe.settings
    monkeypatch.setattr(
        quickstart, "settings", lambda: settings(max_problems=2, samples=2, slots=16)
    )
    outcome = run_command(quickstart.main, [f"--out={tmp_path}/run"], capfd, monkeypatch)
    assert outcome.code == 0, outcome.stderr
    lines = outcome.stdout.splitlines()
    # Three runs at three temperatures; of pass@k and maj@k at two, those of several samples.
    assert (
        lines[0].startswith("benchmark") and sum(line.startswith("lab ") for line in lines) == 9 + 6
    )
    assert any("differences to base" in line for line in lines)
    assert (
        "At temperature 1, DFT is " in outcome.stdout
        and "The untouched base at temperature 0.3" in outcome.stdout
    )
    for name in ("curves.png", "histogram.png", "comparison.png"):
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(sampler.Sampler, "sample", lambda *_: pytest.fail("sampled again"))
    monkeypatch.setattr(job, "init_state", lambda *_: pytest.fail("trained again"))
    again = run_command(quickstart.main, [f"--out={tmp_path}/run"], capfd, monkeypatch)
    assert again.code == 0 and again.stdout.splitlines()[:-1] == lines[:-1]
