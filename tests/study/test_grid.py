"""Grids of overrides, and studies that several jobs carry out in one folder."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from dft_jax import config as config_lib
from dft_jax.runtime import errors, folders
from dft_jax.study import grid, records as records_lib, report, run, spec as spec_lib
from dft_jax.study.clock import Clock
from dft_jax.study.grid import Share
from dft_jax.study.laboratory import Laboratory
from dft_jax.study.spec import Phase
from tests import xla
from tests.commands import ROOT
from tests.study.test_study import ARMS, SPEC, command, make_spec, results  # noqa: F401

GRID = ["optimizer.learning_rate=1e-2,3e-3", "objective=sft,dft"]


def test_a_grid_is_the_product_of_its_values():
    config = make_spec().config
    arms = grid.arms_of(grid.parse(GRID), config)
    assert arms == ARMS  # what a spec of before has, with the same names and folders
    seeds = grid.arms_of(grid.parse(["objective=sft,dft", "config.train.seed=0,1"]), config)
    assert [(arm.seed, arm.objective) for arm in seeds] == [
        (0, "sft"),
        (0, "dft"),
        (1, "sft"),
        (1, "dft"),
    ]
    assert {arm.learning_rate for arm in seeds} == {config.optimizer.learning_rate}


def test_other_keys_are_overrides_with_names_of_their_own():
    given = grid.parse(["optimizer.weight_decay=0.1,0.5", "optimizer.schedule=cosine"])
    spec = make_spec()
    arms = grid.arms_of(given, spec.config)
    assert [arm.name for arm in arms] == [
        "sft,learning_rate=0.01,seed=0,optimizer.weight_decay=0.1,optimizer.schedule=cosine",
        "sft,learning_rate=0.01,seed=0,optimizer.weight_decay=0.5,optimizer.schedule=cosine",
    ]
    for arm, decay in zip(arms, (0.1, 0.5), strict=True):
        assert spec_lib.config_of(spec, arm).optimizer.weight_decay == decay
        assert spec_lib.inputs_of(spec, arm)["config.optimizer.weight_decay"] == decay
    assert ARMS[0].name == "sft,learning_rate=0.01,seed=0"


def test_commas_of_an_objective_are_its_own():
    found = grid.parse(["objective=sft,power(alpha=0.5),mixed(alpha=0.1,beta=2)"])
    assert found["objective"] == ("sft", "power(alpha=0.5)", "mixed(alpha=0.1,beta=2)")


@pytest.mark.parametrize(
    "given, words",
    [
        (["objective.name=sft"], ["--grid=objective.name=sft", "unknown key", "'objective'"]),
        (["optimizer.learning_rat=1"], ["did you mean 'optimizer.learning_rate'"]),
        (["optimizer.learning_rate=fast"], ["learning_rate='fast'", "should be float"]),
        (["train.seed=0,1.5"], ["train.seed='1.5'", "should be int"]),
        (["train.seed="], ["train.seed=''", "should be int"]),
        (["optimizer.schedule=cosin"], ["did you mean 'cosine'"]),
        (["train.seed=0,0"], ["a value is there twice"]),
        (["train.seed=0", "train.seed=1"], ["is there twice; give all its values at once"]),
        (["data.template=plain"], ["arms of a study differ in", "a spec for each data.template"]),
        (["train.steps=4,8"], ["a spec for each train.steps"]),
    ],
)
def test_a_wrong_grid_is_refused(given, words):
    with pytest.raises(errors.UserError) as error:
        grid.parse(given)
    assert all(word in str(error.value) for word in words), error.value


def test_a_variant_has_the_arms_of_one_program():
    given = grid.parse([*GRID, "train.accumulation=1,2"])
    spec = make_spec()
    spec = make_spec(arms=grid.arms_of(given, spec.config))
    found = grid.variants(spec)
    assert [len(variant.arms) for variant in found] == [4, 4]
    assert [variant.config.train.accumulation for variant in found] == [1, 2]
    for variant in found:
        for arm in variant.arms:
            # Done-files are those of the whole study, and the base is the same one.
            for one in (arm, None):
                assert spec_lib.inputs_of(variant, one) == spec_lib.inputs_of(spec, one)
    assert len(grid.variants(make_spec())) == 1


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_all_arms_each_once(count):
    arms = grid.arms_of(grid.parse([*GRID, "train.seed=0,1,2"]), config_lib.get_default())
    shares = [Share(number, count).of(arms) for number in range(1, count + 1)]
    assert sorted(sum(shares, ()), key=arms.index) == list(arms)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({"SLURM_ARRAY_TASK_ID": "0"}, Share(1, 4)),
        ({"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_MIN": "1"}, Share(4, 4)),
        ({"JOB_COMPLETION_INDEX": "2"}, Share(3, 4)),
    ],
)
def test_the_environment_says_which_job_this_is(environment, expected):
    assert grid.share("", 4, environment) == expected


@pytest.mark.parametrize(
    "arm, array, environment, words",
    [
        ("3/2", 0, {}, "--arm=3/2 should be N/M"),
        ("0/2", 0, {}, "--arm=0/2 should be N/M"),
        ("two", 0, {}, "--arm=two should be N/M"),
        ("1/2", 2, {}, "--arm and --array say the same"),
        ("", 2, {}, "neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX .* give --arm=N/2"),
        ("", 2, {"JOB_COMPLETION_INDEX": "2"}, "--array=2: this is job 2, from 0"),
    ],
)
def test_a_wrong_share_is_refused(arm, array, environment, words):
    with pytest.raises(errors.UserError, match=words):
        grid.share(arm, array, environment)
    assert grid.share("", 0, {}) == Share(1, 1) and grid.share("2/8", 0, {}) == Share(2, 8)


# ---- several jobs in one folder ------------------------------------------------------------------


class Worker(run.Study):
    """A job whose work takes no time: it writes the done-files, and notes what it did."""

    def __init__(self, folder, spec=None):
        # Of a laboratory its spec alone: nothing is opened.
        lab = object.__new__(Laboratory)
        object.__setattr__(lab, "spec", spec or make_spec())
        super().__init__(lab, folder, Clock())
        self.did = []
        self.meanwhile = lambda: None  # what another does while this one is at its first arm

    def _run_base(self):
        self._do(None)

    def _run_arm(self, arm):
        self._do(arm)

    def _do(self, arm):
        self.did.append(arm)
        self.meanwhile()
        for phase in spec_lib.phases_of(self.lab.spec, arm):
            self.records.write(phase, 0.0, 1, {}, {})


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(run, "_PATIENCE_S", 0.3)
    monkeypatch.setattr(run, "_POLL_S", 0.01)


def test_two_jobs_do_each_arm_once(tmp_path, impatient):
    first, second = Worker(tmp_path), Worker(tmp_path)
    first.run(Share(1, 2).of(ARMS))
    second.run(Share(2, 2).of(ARMS))
    assert first.did == [None, ARMS[0], ARMS[2]] and second.did == [ARMS[1], ARMS[3]]
    assert "4 of 4 arms complete" in records_lib.status(first.records)


def test_an_arm_that_another_is_at_is_left_to_it(tmp_path, impatient):
    """The same share twice, as of a job that was requeued while it still ran."""
    first, second = Worker(tmp_path), Worker(tmp_path)

    def meanwhile():
        first.meanwhile = lambda: None
        second.run(ARMS[1:3])  # does not wait for the base that the first is at

    first.meanwhile = meanwhile
    first.run(ARMS)
    assert second.did == list(ARMS[1:3]) and first.did == [None, ARMS[0], ARMS[3]]


def test_nobody_waits_for_ever(tmp_path, impatient):
    worker = Worker(tmp_path)
    refused = pytest.raises(folders.Busy, match="seed=0: another process is at work there")
    with folders.locked(tmp_path / "locks" / ARMS[1].name, "--out"), refused:
        worker.run(ARMS)
    # What is free was done first.
    assert worker.did == [None, ARMS[0], ARMS[2], ARMS[3]]
    worker.run(ARMS)
    assert worker.did[-1] == ARMS[1]


def test_what_another_has_finished_meanwhile_is_not_waited_for(tmp_path, impatient, monkeypatch):
    worker, other = Worker(tmp_path), Worker(tmp_path)
    lock = folders.locked(tmp_path / "locks" / ARMS[1].name, "--out")
    lock.__enter__()

    def finish(_):
        other._do(ARMS[1])
        lock.__exit__(None, None, None)

    monkeypatch.setattr(run.time, "sleep", finish)
    worker.run(ARMS[1:2])
    assert worker.did == [None]


def test_an_arm_that_is_done_between_looking_and_locking_is_not_done_again(tmp_path, monkeypatch):
    worker, other = Worker(tmp_path), Worker(tmp_path)
    locked = folders.locked

    def late(place, flag):
        if place.name == ARMS[0].name and not other.did:
            other._do(ARMS[0])
        return locked(place, flag)

    monkeypatch.setattr(folders, "locked", late)
    worker.run(ARMS[:1])
    assert other.did == [ARMS[0]] and worker.did == [None]


def test_a_stop_is_heard_while_waiting(tmp_path, impatient):
    worker = Worker(tmp_path)

    def stop():
        raise errors.Stopped("SIGTERM")

    worker.clock.check = stop
    lock = folders.locked(tmp_path / "locks" / ARMS[1].name, "--out")
    with lock, pytest.raises(errors.Stopped):
        worker.run(ARMS[1:2])


def test_the_lock_of_a_killed_job_is_free(tmp_path, impatient):
    code = "import sys, time, pathlib; from dft_jax.runtime import folders\n"
    code += "with folders.locked(pathlib.Path(sys.argv[1])): print('held', flush=True)"
    code += "; time.sleep(60)"
    place = tmp_path / "locks" / ARMS[0].name
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    holder = subprocess.Popen(
        [sys.executable, "-c", code, place], stdout=subprocess.PIPE, cwd=ROOT, env=environment
    )
    assert holder.stdout.readline() == b"held\n"
    worker = Worker(tmp_path)
    with pytest.raises(folders.Busy):
        worker.run(ARMS[:1])
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    worker.run(ARMS[:1])
    assert worker.did == [None, ARMS[0]]


# ---- the report and the command ------------------------------------------------------------------


def test_the_report_tells_variants_apart():
    arms = grid.arms_of(
        grid.parse(["objective=sft,dft", "optimizer.weight_decay=0,0.5", "train.seed=0,1"]),
        make_spec().config,
    )
    spec = make_spec(arms=arms)
    values = dict.fromkeys([*report.COLUMNS, "token_accuracy"], 1.0)
    rows = [report.Row(None, "seen", 0, values)]
    for arm in arms:
        value = 1.0 + dict(arm.overrides)["optimizer.weight_decay"] + (arm.objective == "dft")
        rows.append(report.Row(arm, "seen", 4, dict.fromkeys(values, value)))
    table = report.values_table(spec, rows, "seen", 4)
    assert "| sft optimizer.weight_decay=0 | 0.01 | 2 | 1.000 [" in table
    assert "| sft optimizer.weight_decay=0.5 | 0.01 | 2 | 1.500 [" in table
    differences = report.differences_table(spec, rows, "seen", 4)
    assert "| dft - sft optimizer.weight_decay=0.5 | 0.01 | 2 | +1.000 [" in differences
    lines = report._csv_rows(rows)
    assert {tuple(line) for line in lines} == {tuple(lines[0])}, "all have the same columns"
    assert lines[0]["optimizer.weight_decay"] == "" and lines[2]["optimizer.weight_decay"] == 0.5
    old = report._csv_rows([report.Row(ARMS[0], "seen", 4, values)])
    assert list(old[0])[:5] == ["objective", "learning_rate", "seed", "text", "step"]


def test_status_and_report_as_words(command, tmp_path):  # noqa: F811
    worker = Worker(tmp_path / "study")
    worker.run(ARMS[:2])
    outcome = command(f"--out={tmp_path}/study", "--status", *[f"--grid={one}" for one in GRID])
    assert "2 of 4 arms complete" in outcome.stdout, outcome
    sys_arguments = ["--grid=objective=dft"]
    outcome = command(f"--out={tmp_path}/study", "--status", *sys_arguments)
    assert "1 of 1 arms complete" in outcome.stdout, outcome


def test_a_wrong_grid_ends_in_one_line(command, tmp_path):  # noqa: F811
    outcome = command(f"--out={tmp_path}/study", "--grid=data.rows=gsm8k", "--array=2")
    assert outcome.code == 2 and outcome.stderr.startswith("error: "), outcome
    assert not (tmp_path / "study").exists()


def start(folder, verb, *arguments, **environment):
    words = [sys.executable, "-m", "dft_jax.study", verb, f"--spec={folder}/spec.py"]
    variables = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | environment
    variables["XLA_FLAGS"] = xla.flags(1)
    return subprocess.Popen(
        [*words, *arguments], cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True
    )


def finish(process):
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0, out
    return out


@pytest.mark.more
def test_an_array_of_jobs_one_of_them_killed_is_as_one_study(tmp_path):
    """Real processes in one folder: what comes out is bit for bit that of one process."""
    (tmp_path / "spec.py").write_text(SPEC)
    given = ["--grid=objective=sft,dft", "--grid=optimizer.weight_decay=0.01,0.5"]
    finish(start(tmp_path, "run", f"--out={tmp_path}/one", *given))
    jobs = []
    for index in ("0", "1"):
        jobs.append(
            start(
                tmp_path,
                "run",
                f"--out={tmp_path}/many",
                "--array=2",
                *given,
                SLURM_ARRAY_TASK_ID=index,
            )
        )
    deadline = time.monotonic() + 300
    # Of the second job's first arm, the first half.
    name = "sft,learning_rate=0.01,seed=0,optimizer.weight_decay=0.5"
    while not (tmp_path / "many/done" / name / "train-0002.json").exists():
        assert time.monotonic() < deadline and jobs[1].poll() is None
        time.sleep(0.02)
    jobs[1].kill()
    jobs[1].communicate()
    assert jobs[1].returncode == -signal.SIGKILL
    first = finish(jobs[0])
    second = finish(start(tmp_path, "run", f"--out={tmp_path}/many", "--arm=2/2", *given))
    assert "other jobs have the rest" in first
    assert "Complete: all 4 arms." in second and "4 of 4 arms complete" in second
    spec = make_spec(arms=grid.arms_of(grid.parse([one[7:] for one in given]), make_spec().config))
    one, many = (records_lib.Records(tmp_path / name, spec) for name in ("one", "many"))
    assert results(one) == results(many)
    for file in ("report.md", "results.csv"):
        assert (tmp_path / "one" / file).read_text() == (tmp_path / "many" / file).read_text()
    assert (tmp_path / "many/curves.png").exists()
    measured = [line for line in first.splitlines() if " heldout " in line]
    again = [line for line in second.splitlines() if " heldout " in line]
    assert not set(measured) & set(again)
    # A decay of weights does something, so the arms differ.
    decays = {json.dumps(one.read(Phase(arm, "heldout", 4)).results) for arm in spec.arms}
    assert len(decays) == 4
    report_ = finish(start(tmp_path, "report", f"--out={tmp_path}/many", *given))
    assert "| sft optimizer.weight_decay=0.5 | 0.01 | 1 |" in report_
