"""Studies: phases, done-files, stopping and resuming; an arm is the run that training makes."""

import dataclasses
import json
import shutil
import time

import numpy as np
import pytest

from dft_jax import api, assets
from dft_jax.data import order
from dft_jax.lab import recipe
from dft_jax.lm.checkpoint import open_config
from dft_jax.runtime import errors, files, interrupts
from dft_jax.study import (
    clock as clock_lib,
    laboratory,
    records as records_lib,
    report,
    run,
    spec as spec_lib,
    texts as texts_lib,
    training,
)
from dft_jax.study.clock import Clock
from dft_jax.study.spec import Arm, Phase, Spec, Text
from dft_jax.training import metrics
from tests.commands import run_command
from tests.marks import slow_but
from tests.tiny_trainer import tiny_config

TEXTS = (
    Text("seen", str(assets.TINY / "heldout.jsonl"), "gsm8k", 8, answer_mark="####"),
    Text("other", str(assets.TINY / "train.jsonl"), "gsm8k", 4),
)
ARMS = tuple(Arm(objective, rate, 0) for rate in (1e-2, 3e-3) for objective in ("sft", "dft"))
CONFIG = {"train.steps": 4, "train.global_batch": 8, "data.row_length": 192}


def make_spec(**changes):
    values = dict(
        name="tiny", config=tiny_config(**CONFIG), arms=ARMS, texts=TEXTS, measured_at=(2, 4)
    )
    return Spec(**values | changes)


# ---- specs ---------------------------------------------------------------------------------------


def test_phases_are_in_order_and_have_files_of_their_own():
    phases = spec_lib.phases(make_spec())
    assert [str(phase) for phase in phases[:6]] == [
        "base heldout 0",
        *(
            f"sft,learning_rate=0.01,seed=0 {what}"
            for what in ("train 2", "heldout 2", "train 4", "heldout 4")
        ),
        "sft,learning_rate=0.01,seed=0 prune 4",
    ]
    assert len({phase.file for phase in phases}) == len(phases)


def warmup_of(spec):
    return spec.config.optimizer.warmup_from


def test_a_study_from_before_there_was_a_choice_goes_on_with_its_warmup(tmp_path, capfd):
    """Its inputs do not name it, and those of a study that begins now do."""
    new = make_spec()
    old = make_spec(config=tiny_config(**CONFIG, **{"optimizer.warmup_from": "zero"}))
    key = "config.optimizer.warmup_from"
    assert spec_lib.inputs_of(new, ARMS[0])[key] == "step"
    assert key not in spec_lib.inputs_of(old, ARMS[0])
    records = records_lib.Records(tmp_path / "old", old)
    records.open_arm(None, {})
    assert records_lib.with_first_warmup(new, tmp_path / "old") is new  # no arm has begun
    assert capfd.readouterr().err == ""
    records.open_arm(ARMS[0], {})
    goes_on = records_lib.with_first_warmup(new, tmp_path / "old")
    assert warmup_of(goes_on) == "zero" and f"began with {key}=zero" in capfd.readouterr().err
    records_lib.Records(tmp_path / "old", goes_on).open_arm(ARMS[0], {})
    # Where nobody looks for it, it is refused.
    with pytest.raises(errors.UserError, match=f"{key}: 'zero' -> 'step'"):
        records_lib.Records(tmp_path / "old", new).open_arm(ARMS[0], {})
    records_lib.Records(tmp_path / "new", new).open_arm(ARMS[0], {})
    assert records_lib.with_first_warmup(new, tmp_path / "new") is new
    with pytest.raises(errors.UserError, match=f"{key}: 'step' -> 'zero'"):
        records_lib.Records(tmp_path / "new", old).open_arm(ARMS[0], {})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms": ()}, ["arms", "at least one"]),
        ({"arms": (ARMS[0], ARMS[0])}, ["sft,learning_rate=0.01,seed=0 is there twice"]),
        ({"arms": (Arm("dfft", 1e-3, 0),)}, ["'dfft'", "did you mean 'dft'"]),
        ({"arms": (Arm("sft", 0.0, 0),)}, ["learning_rate=0", "above 0"]),
        ({"arms": (Arm("sft", 1e-3, -1),)}, ["seed=-1", "at least 0"]),
        ({"measured_at": (2, 3)}, ["measured_at=[2, 3]", "train.steps=4"]),
        ({"measured_at": (0, 4)}, ["measured_at=[0, 4]", "at least 1"]),
        ({"measured_at": (4, 2)}, ["measured_at=[4, 2]"]),
        ({"config": tiny_config(**CONFIG | {"train.steps": 0})}, ["train.steps=0", "counts steps"]),
        ({"texts": ()}, ["texts", "at least one"]),
        ({"texts": (TEXTS[0], TEXTS[0])}, ["the same name"]),
        (
            {"texts": (dataclasses.replace(TEXTS[0], rows="gsm8"),)},
            ["rows='gsm8'", "did you mean 'gsm8k'", "known: fields, "],
        ),
        (
            {"texts": (dataclasses.replace(TEXTS[0], max_length=999),)},
            ["max_length=999", "data.max_length=160"],
        ),
        ({"keep": "all"}, ["keep='all'", "parameters, nothing"]),
        (
            {"config": tiny_config(**CONFIG | {"data.image_features": "f"})},
            ["data.image_features", "remove it"],
        ),
    ],
)
def test_a_wrong_spec_is_reported(changes, words):
    found = "\n".join(spec_lib.problems(make_spec(**changes)))
    assert all(word in found for word in words), found
    assert not spec_lib.problems(make_spec())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["no such file", "correct the path"]),
        ("x = 1\n", ["no get_spec()"]),
        ("def get_spec():\n    return 1\n", ["should return a Spec, not int"]),
        ("def get_spec(:\n", ["spec.py:1", "correct the spec"]),
        ("def get_spec():\n    a = 1\n    return 1 / 0\n", ["spec.py:3", "ZeroDivisionError"]),
    ],
)
def test_a_spec_file_that_is_no_spec_is_reported(content, words, tmp_path):
    file = tmp_path / "spec.py"
    if content is not None:
        file.write_text(content)
    with pytest.raises(errors.UserError) as error:
        spec_lib.read(str(file))
    assert all(word in str(error.value) for word in words), error.value


def test_the_specs_of_the_repository_are_sound():
    first, every = (
        spec_lib.read(f"experiments/real/dynamics.py:arms={arms}") for arms in ("first", "all")
    )
    assert (len(first.arms), len(every.arms)) == (12, 36)
    for spec in (first, every):
        seeds = [arm.seed for arm in spec.arms]
        assert seeds == sorted(seeds), "seeds outermost"
        names = {(arm.objective, arm.learning_rate) for arm in spec.arms}
        assert len(spec.arms) == 3 * len(names)


# ---- inputs and done-files -----------------------------------------------------------------------


def test_paths_are_no_inputs_and_everything_else_is():
    arm = ARMS[0]
    before = spec_lib.inputs_of(make_spec(), arm)
    moved = make_spec(
        config=tiny_config(
            **CONFIG | {"model.path": "/elsewhere", "data.train": "/other/train.jsonl"}
        )
    )
    assert spec_lib.inputs_of(moved, arm) == before
    for change in (
        {"optimizer.weight_decay": 0.5},
        {"data.template": "plain"},
        {"train.global_batch": 4},
    ):
        changed = spec_lib.inputs_of(make_spec(config=tiny_config(**CONFIG | change)), arm)
        for kind in ("train", "heldout", "prune"):
            assert spec_lib.digest(changed, kind) != spec_lib.digest(before, kind), (change, kind)
    other = spec_lib.inputs_of(make_spec(texts=TEXTS[:1]), arm)
    assert spec_lib.digest(other, "train") == spec_lib.digest(before, "train"), (
        "training knows nothing of the texts"
    )
    assert spec_lib.digest(other, "heldout") != spec_lib.digest(before, "heldout")
    digests = {spec_lib.digest(spec_lib.inputs_of(make_spec(), arm), "train") for arm in ARMS}
    assert len(digests) == len(ARMS)


def test_the_base_depends_on_no_rate_and_no_seed():
    before = spec_lib.digest(spec_lib.inputs_of(make_spec(), None), "heldout")
    for change in ({"optimizer.learning_rate": 0.5}, {"train.steps": 8}):
        spec = make_spec(config=tiny_config(**CONFIG | change))
        assert spec_lib.digest(spec_lib.inputs_of(spec, None), "heldout") == before
    spec = make_spec(config=tiny_config(**CONFIG | {"data.template": "plain"}))
    assert spec_lib.digest(spec_lib.inputs_of(spec, None), "heldout") != before


PHASE = Phase(ARMS[0], "train", 2)


def done_in(folder, spec=None):
    records = records_lib.Records(folder, spec or make_spec())
    records.open_arm(ARMS[0], {"contents.weights_sha256": "a"})
    records.write(PHASE, 1.0, 2, {}, {"steps": []})
    return records


def test_a_done_file_of_other_inputs_is_refused_with_what_differs(tmp_path):
    done_in(tmp_path)
    other = records_lib.Records(
        tmp_path, make_spec(config=tiny_config(**CONFIG | {"optimizer.weight_decay": 0.5}))
    )
    with pytest.raises(errors.UserError) as error:
        other.is_done(PHASE)
    for word in ("train-0002.json", "config.optimizer.weight_decay: 0.01 -> 0.5", "another --out"):
        assert word in str(error.value), error.value


@pytest.mark.parametrize("turned", [False, True])
def test_an_arm_in_progress_is_not_continued_with_another_config(turned, tmp_path):
    """Its checkpoint says nothing of the config, and there need not be a done-file yet."""
    specs = [
        make_spec(config=tiny_config(**CONFIG | {"optimizer.weight_decay": w})) for w in (0.01, 0.5)
    ]
    first, second = reversed(specs) if turned else specs
    records_lib.Records(tmp_path, first).open_arm(ARMS[0], {})
    with pytest.raises(errors.UserError) as error:
        records_lib.Records(tmp_path, second).open_arm(ARMS[0], {})
    change = "0.5 -> 0.01" if turned else "0.01 -> 0.5"
    assert f"config.optimizer.weight_decay: {change}" in str(error.value)
    records_lib.Records(tmp_path, first).open_arm(ARMS[0], {})


def test_other_weights_are_refused(tmp_path):
    records = done_in(tmp_path)
    records.open_arm(ARMS[0], {"contents.weights_sha256": "a"})
    with pytest.raises(errors.UserError, match="contents.weights_sha256: 'a' -> 'b'"):
        records.open_arm(ARMS[0], {"contents.weights_sha256": "b"})


@pytest.mark.parametrize("content", ["", "{", "[]", '{"phase": "x"}'])
def test_a_damaged_done_file_is_reported(content, tmp_path):
    records = done_in(tmp_path)
    file = records.folder / PHASE.file
    file.write_text(content)
    with pytest.raises(errors.UserError, match="train-0002.json: not a done-file.*remove it"):
        records.is_done(PHASE)


def test_an_evaluation_that_is_added_leaves_what_is_done(tmp_path):
    done_in(tmp_path)
    more = make_spec(evaluation=recipe.settings(benchmarks=("lab",)))
    records = records_lib.Records(tmp_path, more)
    records.open_arm(ARMS[0], {"contents.weights_sha256": "a"})
    assert records.is_done(PHASE) and not records.is_done(Phase(ARMS[0], "evaluate", 4))


# ---- the clock -----------------------------------------------------------------------------------


def test_a_phase_that_does_not_fit_is_not_begun(capsys):
    clock = Clock(1)
    clock.deadline = time.monotonic() + 100
    clock.learn("train", 40.0, 4)
    clock.require("eight steps", {"train": 8})
    clock.require("something new", {"heldout": 1, "train": 1})
    with pytest.raises(errors.Stopped, match="--minutes=1"):
        clock.require("ten steps", {"train": 10})  # 100 s, and some margin
    assert "ten steps takes about 1.7 minutes, 1.7 are left; not begun" in capsys.readouterr().out
    clock.check()
    clock.deadline = time.monotonic() - 1
    with pytest.raises(errors.Stopped, match="--minutes=1"):
        clock.check()
    Clock().require("anything", {"train": 1e12})


def test_the_newest_speed_counts():
    clock = Clock(1)
    clock.learn("train", 40.0, 4)
    clock.learn("train", 8.0, 4)
    clock.learn("train", 0.0, 0)
    assert clock.predicted_s({"train": 3, "unknown": 5}) == 6.0


# ---- running -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab():
    return laboratory.open_laboratory(make_spec())


def carry_out(lab, folder, clock=None):
    study = run.Study(lab, folder, clock or Clock())
    study.run()
    return records_lib.Records(folder, lab.spec)


@pytest.fixture(scope="module")
def finished(lab, tmp_path_factory):
    return carry_out(lab, tmp_path_factory.mktemp("study"))


def results(records):
    return {str(phase): records.read(phase).results for phase in spec_lib.phases(records.spec)}


@pytest.mark.slow
def test_all_is_done_and_nothing_is_done_twice(finished, lab, monkeypatch):
    assert "4 of 4 arms complete, 21 of 21 phases done" in records_lib.status(finished)
    assert not list((finished.folder.parent / "checkpoints").glob("*"))

    def refuse(*_, **__):
        raise AssertionError("something was done again")

    monkeypatch.setattr(training.Training, "__enter__", refuse)
    monkeypatch.setattr(run.Study, "_measure", refuse)
    carry_out(lab, finished.folder.parent)


@pytest.mark.slow
def test_an_arm_is_the_run_that_train_run_makes(finished, tmp_path):
    """One program for two rates, row counts of all seeds: the numbers are the run's own."""
    for arm in (ARMS[0], ARMS[3]):
        config = spec_lib.config_of(finished.spec, arm)
        api.train(config, tmp_path / arm.name)
        lines = (tmp_path / arm.name / "metrics.jsonl").read_text().splitlines()
        expected = [row for row in map(json.loads, lines) if "train/nll" in row]
        found = []
        for phase in (Phase(arm, "train", 2), Phase(arm, "train", 4)):
            found += finished.read(phase).results["steps"]
        assert [row["step"] for row in found] == [1, 2, 3, 4]
        for ours, theirs in zip(found, expected, strict=True):
            assert ours["nll"] == pytest.approx(theirs["train/nll"], abs=2e-5)
            assert ours["mean_p"] == pytest.approx(theirs["train/mean_p"], abs=2e-6)
            assert ours["gradient_norm"] == pytest.approx(
                theirs["optimizer/gradient_norm"], rel=1e-4
            )
            assert ours["learning_rate"] == pytest.approx(
                theirs["optimizer/learning_rate"], rel=1e-4
            )
            assert ours["is_clipped"] == (theirs["optimizer/gradient_norm"] > 1)


@pytest.mark.parametrize("weight", [None, 5.0, 0.5, 0.0])
def test_a_step_has_the_means_of_metrics_jsonl(weight):
    """Of weighted tokens they are Σ w·x / Σ w."""
    sums = {"loss": 3.0, "nll": 4.0, "p": 1.0, "entropy": 2.0, "correct": 5.0, "tokens": 8.0}
    sums |= {"p_histogram": np.zeros(13), "is_finite": True, "learning_rate": 1e-3}
    sums |= {"gradient_norm": 2.0} | ({} if weight is None else {"weight": weight})
    # Nothing is opened for it.
    lab = object.__new__(laboratory.Laboratory)
    object.__setattr__(lab, "spec", make_spec())
    arm = object.__new__(training.Training)
    vars(arm).update(lab=lab, arm=ARMS[0], step=0)
    row, expected = arm._row(sums), metrics.per_token(sums, "train")
    for name in ("loss", "nll", "mean_p", "entropy"):
        assert row[name] == pytest.approx(expected[f"train/{name}"], abs=1e-6)
    assert row["tokens"] == expected["train/supervised_tokens"] == 8


@pytest.mark.slow
def test_one_program_for_each_objective(finished, lab):
    programs = lab.programs
    check = Clock().check
    assert programs.step_of("sft", check) is programs.step_of("sft", check)
    rates = [
        finished.read(Phase(arm, "train", 4)).results["steps"][-1]["nll"]
        for arm in ARMS
        if arm.objective == "sft"
    ]
    assert abs(rates[0] - rates[1]) > 1e-3, "the rates should differ in what they do"


class StopAt(Clock):
    """Stops the study at the n-th check."""

    def __init__(self, n):
        super().__init__()
        self.n = n

    def check(self):
        self.n -= 1
        if self.n < 0:
            raise errors.Stopped("a test")

    def require(self, what, work):
        self.check()


@pytest.mark.parametrize("loses_checkpoints", slow_but([], [False, True], slow=[True]))
def test_stopped_anywhere_it_ends_with_the_same_results(
    loses_checkpoints, finished, lab, tmp_path, monkeypatch
):
    """Also mid-arm, between training and measuring, and where every checkpoint is lost."""
    stops, resumed = 0, 0
    restore = training.Checkpoints.restore

    def counted(self, *arguments):
        nonlocal resumed
        resumed += 1
        return restore(self, *arguments)

    monkeypatch.setattr(training.Checkpoints, "restore", counted)
    while True:
        try:
            # Enough to get from an arm's beginning to its second measured step, were all lost.
            records = carry_out(lab, tmp_path, StopAt(15 if loses_checkpoints else 5))
            break
        except errors.Stopped:
            stops += 1
            assert stops < 40
            if loses_checkpoints:
                shutil.rmtree(tmp_path / "checkpoints")
    assert stops > (1 if loses_checkpoints else 5)
    assert (resumed > 0) != loses_checkpoints
    assert results(records) == results(finished)


@pytest.mark.slow
def test_done_files_alone_are_enough(finished, lab, tmp_path, monkeypatch):
    """Copied elsewhere: finished arms are skipped, the one without files is made again."""
    shutil.copytree(finished.folder, tmp_path / "done")
    shutil.rmtree(tmp_path / "done" / ARMS[1].name)
    begun = []
    enter = training.Training.__enter__
    monkeypatch.setattr(
        training.Training, "__enter__", lambda self: begun.append(self.arm) or enter(self)
    )
    records = carry_out(lab, tmp_path)
    assert begun == [ARMS[1]]
    assert results(records) == results(finished)


@pytest.mark.slow
def test_a_removed_measurement_is_made_again(finished, lab, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "done")
    (tmp_path / "done" / Phase(ARMS[0], "heldout", 2).file).unlink()
    assert results(carry_out(lab, tmp_path)) == results(finished)


@pytest.mark.slow
def test_an_arm_that_is_ahead_of_a_removed_measurement_begins_anew(
    finished, lab, tmp_path, monkeypatch
):
    """Its checkpoint is of no use, and in nobody's way when the arm is stopped at that step again."""
    file = tmp_path / "done" / Phase(ARMS[0], "heldout", 2).file
    train_to = training.Training.to

    def stopped_at_3(self, last):
        train_to(self, min(last, 3))
        if last > 3:
            raise errors.Stopped("a test")

    with monkeypatch.context() as patched:
        patched.setattr(training.Training, "to", stopped_at_3)
        for _ in range(2):
            file.unlink(missing_ok=True)
            with pytest.raises(errors.Stopped):
                carry_out(lab, tmp_path)
            assert (tmp_path / "checkpoints" / ARMS[0].name / "3").exists()
    assert results(carry_out(lab, tmp_path)) == results(finished)


@pytest.mark.slow
def test_parameters_are_kept_where_the_spec_says_so(tmp_path):
    world = "world(split=validation, family=chain, levels=2-4, n=16)"
    lab = {
        "model.path": str(assets.LAB),
        "model.init": "checkpoint",
        "data.template": "plain",
        "data.train": world,
    }
    texts = (Text("world", world, "gsm8k", 4, answer_mark="####"),)
    spec = make_spec(
        config=tiny_config(**CONFIG | lab), arms=ARMS[:1], texts=texts, keep="parameters"
    )
    records = carry_out(laboratory.open_laboratory(spec), tmp_path)
    folder = tmp_path / "exports" / ARMS[0].name
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        file.name for file in folder.iterdir()
    }
    assert records.is_complete(ARMS[0]) and not (tmp_path / "checkpoints" / ARMS[0].name).exists()


def test_what_is_kept_says_how_it_was_trained(lab, tmp_path):
    """And of random weights, of which no file is the base, it is written at all."""
    spec = make_spec(config=tiny_config(**CONFIG, **{"data.template": "plain"}))
    study = run.Study(dataclasses.replace(lab, spec=spec), tmp_path, Clock())
    study._keep(ARMS[1], lab.programs.base)
    about = files.read_json(tmp_path / "exports" / ARMS[1].name / "dft_jax.json")
    assert (about["objective"], about["step"], about["base"]["init"]) == ("dft", 4, "random")
    assert about["template"] == "plain"
    card = (tmp_path / "exports" / ARMS[1].name / "README.md").read_text()
    assert "with the objective `dft`, 4 steps. Prompts: `plain`." in card


def test_a_text_without_enough_short_examples_is_reported():
    for text, words in (
        (dataclasses.replace(TEXTS[0], max_examples=9999), "ask for fewer"),
        (
            dataclasses.replace(TEXTS[0], max_length=10, max_examples=0),
            "0 examples of at most 10 tokens",
        ),
        (dataclasses.replace(TEXTS[0], answer_mark="\\boxed{"), "no example has '\\\\boxed{'"),
    ):
        with pytest.raises(errors.UserError) as error:
            laboratory.open_laboratory(make_spec(texts=(text,)))
        assert words in str(error.value)


def test_a_template_that_writes_the_date_needs_one_of_the_spec(tmp_path):
    """Else the arms of the second evening would read another text than those of the first."""
    template = "{{ strftime_now('%Y') }} "
    template += "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    (tmp_path / "dated.jinja").write_text(template)
    for date, is_refused in (("", True), ("2026-07-26", False)):
        changes = {"data.template": str(tmp_path / "dated.jinja"), "data.date": date}
        spec = make_spec(config=tiny_config(**CONFIG | changes))
        _, _, tokenizer = open_config(spec.config)
        if is_refused:
            with pytest.raises(errors.UserError, match="config.data.date = "):
                texts_lib.refuse_undated(spec, tokenizer)
        else:
            texts_lib.refuse_undated(spec, tokenizer)


def test_a_signal_stops_a_study(lab, tmp_path, monkeypatch):
    def stopped():
        raise errors.Stopped("SIGTERM")

    monkeypatch.setattr(interrupts, "check", stopped)
    with pytest.raises(errors.Stopped, match="SIGTERM"):
        carry_out(lab, tmp_path, clock_lib.Clock())


# ---- the report ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_report_of_everything(finished, tmp_path):
    text = report.write(finished, tmp_path)
    assert "Complete: all 4 arms." in text and "ncomplete**" not in text
    assert {file.name for file in tmp_path.iterdir()} == {"report.md", "results.csv", "curves.png"}
    measured = finished.read(Phase(ARMS[0], "heldout", 4)).results["seen"]
    (line,) = [
        line for line in text.split("## other")[0].splitlines() if line.startswith("| sft | 0.01 |")
    ]
    assert f"| {measured['nll']:.3f} |" in line


@pytest.mark.slow
def test_the_report_says_what_is_missing(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "done")
    shutil.rmtree(tmp_path / "done" / ARMS[3].name)
    (tmp_path / "done" / Phase(ARMS[2], "heldout", 4).file).unlink()
    text = report.write(records_lib.Records(tmp_path, finished.spec), tmp_path)
    assert "**Incomplete**: 2 of 4 arms are done" in text
    assert f"Missing, wholly or in part: {ARMS[2].name}; {ARMS[3].name}." in text
    (tmp_path / "empty").mkdir()
    nothing = records_lib.Records(tmp_path / "empty", finished.spec)
    empty = report.write(nothing, tmp_path / "empty")
    assert "**Incomplete**: 0 of 4" in empty and empty.endswith("empty: report.md")
    (tmp_path / "file").touch()
    with pytest.raises(errors.UserError, match="file: the report cannot be written"):
        report.write(nothing, tmp_path / "file")


def test_intervals_are_students():
    """Three values with mean 2 and standard deviation 1: 2 ± 4.3027 / √3."""
    found = report.interval([1.0, 2.0, 3.0])
    assert (found.mean, found.low, found.high) == pytest.approx(
        (2.0, 2 - 2.484, 2 + 2.484), abs=1e-3
    )
    assert report.interval([1.0]) is None, "one seed says nothing of others"


def test_differences_are_paired_by_seed():
    arms = [Arm(objective, 1e-3, seed) for seed in (0, 1, 2) for objective in ("sft", "dft")]
    spec = make_spec(arms=tuple(arms))
    names = [*report.COLUMNS, "token_accuracy"]
    rows = []
    for arm in arms:
        value = 10.0 * arm.seed + (arm.objective == "dft") * (1 + 0.01 * arm.seed)
        rows.append(report.Row(arm, "seen", 4, dict.fromkeys(names, value)))
    # seed 2 has no DFT: it is in no pair
    table = report.differences_table(spec, rows[:-1], "seen", 4)
    assert "| dft - sft | 0.001 | 2 | +1.005 [" in table
    expected = report.interval([1.0, 1.01])
    assert f"[{expected.low:.3f}, {expected.high:.3f}]" in table
    assert np.isclose(expected.high - expected.low, 2 * 12.7062 * 0.005, atol=1e-3)


@pytest.mark.slow
def test_clipped_is_the_share_of_the_steps_so_far(finished):
    rows = report.rows_of(finished)
    for arm in ARMS:
        steps = []
        for last in (2, 4):
            steps += finished.read(Phase(arm, "train", last)).results["steps"]
            expected = sum(step["gradient_norm"] > 1.0 for step in steps) / len(steps)
            found = {row.values["clipped"] for row in rows if row.arm == arm and row.step == last}
            assert found == {expected}


# ---- the command ----------------------------------------------------------------------------

SPEC = """
from tests.study.test_study import CONFIG, make_spec, tiny_config


def get_spec(argument=""):
    if not argument:
        return make_spec()
    return make_spec(config=tiny_config(**CONFIG | {"model.path": argument}))
"""


@pytest.fixture
def command(tmp_path, capfd, monkeypatch):
    from dft_jax.study import __main__ as study_command

    (tmp_path / "spec.py").write_text(SPEC)

    def call(*arguments):
        return run_command(
            study_command.main, [f"--spec={tmp_path}/spec.py", *arguments], capfd, monkeypatch
        )

    return call


def test_status_and_report_compile_nothing(command, finished):
    folder = finished.folder.parent
    for flag, words in (
        ("--status", "4 of 4 arms complete"),
        ("--report", "Complete: all 4 arms."),
    ):
        outcome = command(f"--out={folder}", flag)
        assert (outcome.code, outcome.compiled) == (0, ()) and words in outcome.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--out is required"),
        (["--out=gs://bucket"], "--out=gs://bucket"),
        (["--out=nowhere", "--status"], "no such folder"),
        (["--out=rate=[1e-5]"], "with [ in its path cannot be read"),
        (["--out=nowhere", "--minutes=-1"], "minutes"),
        (["--out=nowhere", "--minutes=nan"], "--minutes=nan is no number"),
        (["--spec=none.py", "--out=nowhere"], "--spec=none.py: no such file"),
        (["--spec=spec.py:no/model", "--out=nowhere"], "no/model"),
    ],
)
def test_a_wrong_command_is_reported(arguments, words, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = command(*arguments)
    assert outcome.code == 2 and words in outcome.stderr and outcome.stderr.startswith("error: ")
    assert not (tmp_path / "nowhere").exists()


def test_a_study_from_before_streams_had_versions_keeps_its_own(tmp_path):
    """Arms of one study have their examples in orders of one kind."""
    assert records_lib.stream_version(tmp_path) == order.VERSION
    file = tmp_path / "done" / "base" / "inputs.json"
    file.parent.mkdir(parents=True)
    for held, version in (({}, 1), ({"contents.stream_version": 2}, 2)):
        file.write_text(json.dumps(held))
        assert records_lib.stream_version(tmp_path) == version
