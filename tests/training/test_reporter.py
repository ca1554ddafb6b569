"""What a run says of its speed: compilations, where the time went, transfers, profiles."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dft_jax.api import train as run
from dft_jax.runtime import system
from dft_jax.training import guards, inputs, metrics_log, reporter as progress
from tests.tiny_trainer import Trainer, tiny_config, tiny_examples


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Of a run of 50 packed steps with evaluations in between, and a profile of two steps."""
    folder = tmp_path_factory.mktemp("progress") / "run"
    data, rng = folder.with_name("train.jsonl"), np.random.default_rng(0)
    problems = [
        {"prompt": "a" * rng.integers(5, 60), "completion": "b" * rng.integers(5, 60)}
        for _ in range(40)
    ]
    data.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    files = {
        "data.train": str(data),
        "data.heldout": str(data),
        "data.rows": "fields",
        "eval.max_examples": 12,
    }
    config = tiny_config(**files, **{"train.steps": 50, "eval.every": 10, "profile": "20,21"})
    config.mesh.update(data=2, fsdp=2, tensor=2)
    with pytest.MonkeyPatch.context() as patch:
        # Rows of a tiny model are so fast that one number of them would be compiled.
        patch.setattr(inputs, "compilation_rows", lambda model, row_length: 1.0)
        run(config, folder)
    return folder, [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.mark.slow
def test_nothing_compiles_after_the_first_step(rows, capfd):
    _, written = rows
    counts = [row["speed/compilations"] for row in written if "speed/compilations" in row]
    assert len(counts) == 50 and counts[0] >= 2 and set(counts) == {counts[0]}
    # of more than one shape
    assert len({row["data/rows"] for row in written if "data/rows" in row}) > 1
    assert sum("heldout/nll" in row for row in written) == 6


@pytest.mark.slow
def test_the_parts_of_a_step_make_all_of_it(rows):
    _, written = rows
    timed = [row for row in written if "speed/step_s" in row]
    assert 40 <= len(timed) < 50  # not the first, nor those after an evaluation
    for row in timed:
        parts = [row[f"speed/{part}_s"] for part in ("data_wait", "device_wait", "host")]
        assert min(parts) >= 0 and sum(parts) == pytest.approx(row["speed/step_s"])
        efficiency = row["speed/tokens_per_s"] / row["speed/positions_per_s"]
        assert efficiency == pytest.approx(row["data/packing_efficiency"])
        assert row["speed/supervised_tokens_per_s"] < row["speed/tokens_per_s"]


@pytest.mark.slow
def test_a_profile_is_of_the_steps_asked_for(rows):
    folder, _ = rows
    assert len(list((folder / "profile").rglob("*.xplane.pb"))) == 1


@pytest.mark.slow
def test_first_step_is_told_once(rows):
    _, written = rows
    (found,) = [row["speed/first_step_s"] for row in written if "speed/first_step_s" in row]
    assert found > 0


@pytest.fixture
def reporter(tmp_path, mesh1):
    model, config = Trainer(mesh1).model, tiny_config()
    log = metrics_log.Writer(tmp_path, config.log, resume_from=None)
    made = progress.Reporter(config, model, log, tiny_examples().mean_length, steps=3, start=0)
    yield made
    made.close()


def watch(reporter, step, work):
    with reporter.step(step):
        sums = work()
        reporter._pending = (step, sums, None)


def test_the_bar_counts_time_from_the_first_step(reporter):
    """Five minutes of compiling before it would be five minutes a step."""

    def minutes_pass(n):
        reporter.bar.start_t -= 60 * n
        reporter.bar.last_print_t -= 60 * n

    sums = jnp.zeros(3)
    minutes_pass(5)
    watch(reporter, 1, lambda: sums)
    reporter.bar.update(1)
    shown = reporter.bar.format_dict
    assert shown["n"] == 1 and shown["elapsed"] < 30
    # From then on all of it counts.
    minutes_pass(2)
    watch(reporter, 2, lambda: sums)
    assert 120 <= reporter.bar.format_dict["elapsed"] < 150


def test_a_compilation_while_training_is_told(reporter, capfd):
    increment = jax.jit(lambda x: x + 1)
    small, large = jnp.zeros(3), jnp.zeros(4)
    increment(small)
    watch(reporter, 7, lambda: increment(small))
    assert "compiled" not in capfd.readouterr().err
    watch(reporter, 8, lambda: increment(large))
    assert "step 8 compiled something" in capfd.readouterr().err


def test_a_transfer_that_nobody_asked_for_is_an_error(reporter):
    increment = jax.jit(lambda x: x + 1)
    increment(np.zeros(3))
    watch(reporter, 1, lambda: increment(jax.device_put(np.zeros(3))))
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        watch(reporter, 2, lambda: increment(np.zeros(3)))


def test_waiting_for_data_is_counted_as_such(reporter):
    def slow():
        for n in range(2):
            time.sleep(0.05)
            yield n

    assert list(reporter.timed(slow())) == [0, 1]
    assert reporter.throughput.spent_s["data_wait_s"] >= 0.1


def test_profile_says_what_it_takes(refused):
    for value in ("5", "6,5", "0,3", "a,b"):
        refused([f"--config.profile={value}"], "should be the first and the last step, as in 10,12")


@pytest.mark.slow
def test_peak_memory_of_the_host_is_reported(rows):
    """At least what the interpreter takes with jax in it, and never less than before.

    But for 2 MiB: Linux counts pages for each processor, and adds them up in batches (0.1 MiB was
    seen).
    """
    _, written = rows
    peaks = [row["speed/peak_host_gib"] for row in written if "train/nll" in row]
    assert len(peaks) == 50 and 0.1 < peaks[0] < 100 and np.diff(peaks).min() > -2 / 1024
    held = np.ones(2**26)  # half a GiB
    assert system.peak_gib() >= max(peaks[0], held.nbytes / 2**30)


def said(rounding, *rows):
    """What RoundingWarning says after each row of (rate, share of weights moved, update lost)."""
    config = tiny_config(
        **{"optimizer.rounding": rounding, "optimizer.learning_rate": 1e-5}
    ).optimizer
    watch, names = guards.RoundingWarning(config), ("learning_rate", "moved_share", "update_lost")
    values = [{f"optimizer/{name}": v for name, v in zip(names, row, strict=True)} for row in rows]
    return [watch.after(step, row) for step, row in enumerate(values, start=1)]


def test_weights_that_do_not_move_are_told_of_once_and_at_the_full_rate():
    quiet, warning, over = said("nearest", (5e-6, 0.01, 0.9), (1e-5, 0.14, 0.61), (1e-5, 0.1, 0.7))
    assert quiet == over == ""
    assert warning.startswith(
        "step 2: 14.0% of the bfloat16 weights moved and 61.0% of the update was rounded away"
    )
    assert "config.optimizer.rounding='stochastic'" in warning
    [warning] = said("stochastic", (1e-5, 0.4, 0.0))
    assert "40.0% of the bfloat16 weights moved" in warning and "right on average" in warning
    assert said("nearest", (1e-5, 0.5, 0.2), (1e-5, 0.1, 0.7)) == ["", ""]
    watch = guards.RoundingWarning(tiny_config().optimizer)
    assert watch.after(1, {"optimizer/learning_rate": 1.0}) == ""  # float32
