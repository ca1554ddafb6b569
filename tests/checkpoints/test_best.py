"""The best step: which one it is, and that its checkpoint stays."""

import json
import math

import pytest

from dft_jax.checkpoints import best, manager
from dft_jax.checkpoints.manager import Checkpoints
from dft_jax.lm import run as run_lib
from dft_jax.runtime import errors
from dft_jax.training import metrics
from tests.checkpoints.test_manager import RUN, flip_bit, names, state

NLL = "heldout/nll"


def test_every_metric_to_choose_by_is_measured():
    sums = dict.fromkeys(("loss", "nll", "p", "entropy", "correct", "tokens"), 1.0)
    measured = metrics.per_token(sums | {"p_histogram": [0.0] * 13}, "heldout")
    for name in best.LOWER + best.HIGHER:
        assert isinstance(measured[name], float), name


@pytest.mark.parametrize("metric, expected", [(NLL, 3), ("heldout/mean_p", 2)])
def test_the_best_is_the_lowest_or_the_highest(metric, expected):
    found = best.Best(metric)
    for step, value in ((1, 2.0), (2, 3.0), (3, 1.0), (4, 1.5)):
        found.improves(step, {metric: value, "heldout/other": 99.0})
    assert found.step == expected


def test_what_is_no_number_is_never_the_best():
    found = best.Best(NLL)
    for step, value in enumerate((math.nan, None, -math.inf, math.inf), 1):
        assert not found.improves(step, {NLL: value})
    assert not found.improves(5, {"heldout/loss": 1.0}) and found.step is None
    assert found.improves(6, {NLL: 4.0})
    assert not found.improves(7, {NLL: math.nan}) and found.step == 6


def test_the_first_of_equals_stays():
    found = best.Best(NLL)
    assert found.improves(1, {NLL: 2.0}) and not found.improves(2, {NLL: 2.0})


def test_the_base_is_not_the_best_step_and_is_mentioned_where_it_was_better():
    found = best.Best(NLL)
    assert not found.improves(0, {NLL: 2.0}) and found.summary() == ""
    found.improves(1, {NLL: 2.5})
    assert found.summary() == (
        "best: step 1, heldout/nll 2.5; before training it was 2, which no step has improved"
    )
    found.improves(2, {NLL: 1.5})
    assert found.summary() == "best: step 2, heldout/nll 1.5"


def write_rows(folder, values, end=""):
    lines = [json.dumps({"step": step, "train/nll": 1.0}) for step in values]
    lines += [json.dumps({"step": step, NLL: value}) for step, value in values.items()]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n" + end)


def test_rows_of_checkpoints_that_are_gone_do_not_count(tmp_path):
    write_rows(tmp_path, {0: 9.0, 1: 1.0, 2: 3.0, 3: 2.0, 4: None}, '{"step": 4, "heldout/nll": 0.')
    found = best.of_rows(tmp_path / "metrics.jsonl", NLL, [2, 3, 4])
    assert (found.step, found.value, found.before_training) == (3, 2.0, 9.0)
    assert best.of_rows(tmp_path / "metrics.jsonl", NLL, []).step is None
    assert best.of_rows(tmp_path / "none.jsonl", NLL, [1]).step is None


def save(folder, steps, metric=NLL):
    with Checkpoints(folder / "checkpoints", keep=1, best=metric) as checkpoints:
        checkpoints.folder.mkdir(exist_ok=True)
        for step in steps:
            checkpoints.save(step, state(step), RUN)


def test_the_best_stays_beside_the_newest(tmp_path):
    write_rows(tmp_path, {1: 3.0, 2: 1.0, 3: 2.0})
    save(tmp_path, (1, 2, 3, 4))
    assert names(tmp_path / "checkpoints") == ["2", "4"]
    # The run that resumes looks before it removes anything.
    with Checkpoints(tmp_path / "checkpoints", keep=1, best=NLL) as checkpoints:
        assert checkpoints.newest(repair=True) == 4 and checkpoints.best().step == 2
    assert names(tmp_path / "checkpoints") == ["2", "4"]
    save(tmp_path, (5,), metric="")
    assert names(tmp_path / "checkpoints") == ["5"]


def test_another_best_is_in_its_place_before_the_old_one_goes(tmp_path):
    """Saved before it was measured: nothing is saved again, and the old one need not linger."""
    write_rows(tmp_path, {1: 3.0})
    save(tmp_path, (1,))
    with Checkpoints(tmp_path / "checkpoints", keep=1, best=NLL) as checkpoints:
        checkpoints.save(2, state(2), RUN)
        checkpoints.wait()
        assert names(checkpoints.folder) == ["1", "2"]
        write_rows(tmp_path, {1: 3.0, 2: 2.0})
        checkpoints.keep_best()
        checkpoints.wait()
        assert names(checkpoints.folder) == ["2"]


def test_nothing_goes_where_the_new_best_could_not_be_saved(tmp_path, monkeypatch):
    write_rows(tmp_path, {1: 3.0, 2: 2.0})
    save(tmp_path, (1,))

    def fail(*_):
        raise OSError("no space left")

    refused = pytest.raises(errors.UserError, match="step 2 could not be saved")
    with refused, Checkpoints(tmp_path / "checkpoints", keep=1, best=NLL) as checkpoints:
        monkeypatch.setattr(manager.manifest, "write", fail)
        checkpoints.save(2, state(2), RUN)
        checkpoints.keep_best()
    assert (tmp_path / "checkpoints/1/manifest.json").exists()


@pytest.fixture
def checkpoints(tmp_path):
    write_rows(tmp_path, {1: 3.0, 2: 1.0, 3: 2.0})
    save(tmp_path, (1, 2, 3, 4))
    return Checkpoints(tmp_path / "checkpoints", best=NLL)


def test_a_reader_takes_the_step_that_it_asks_for(checkpoints, tmp_path):
    for wanted, step in (("newest", 4), ("best", 2), ("2", 2), (4, 4)):
        assert run_lib._step_of(tmp_path, checkpoints, wanted) == step
    with pytest.raises(errors.UserError, match="no checkpoint of step 3; there: 2, 4"):
        run_lib._step_of(tmp_path, checkpoints, 3)
    with pytest.raises(errors.UserError, match="trained without checkpoint.best.*or newest"):
        run_lib._step_of(tmp_path, Checkpoints(checkpoints.folder), "best")
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(errors.UserError, match="no checkpoint of .* has a heldout/nll yet"):
        run_lib._step_of(tmp_path, checkpoints, "best")


def test_a_damaged_best_is_refused_and_not_replaced_by_another(checkpoints, tmp_path):
    flip_bit(checkpoints.folder / "2")
    with pytest.raises(errors.UserError, match="checkpoints/2 is damaged .* give another --step"):
        run_lib._step_of(tmp_path, checkpoints, "best")


@pytest.mark.parametrize("wanted, word", [("bset", "did you mean 'best'"), ("-1", "or a number")])
def test_what_is_no_step_is_refused(wanted, word):
    with pytest.raises(errors.UserError, match=f"--step={wanted}.*{word}"):
        run_lib.require_step(wanted)
