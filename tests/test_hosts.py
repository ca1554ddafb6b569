"""Processes of one job that differ: all exit with 2 and name what, before anything compiles."""

import contextlib
import datetime
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import zoneinfo

import pytest

from dft_jax import assets
from dft_jax.lab import recipe
from dft_jax.models.hf.digests import weights_sample
from dft_jax.runtime import distributed, errors
from dft_jax.runtime.options import flatten
from dft_jax.training import identity
from tests.faults import launch
from tests.marks import slow_but

LAB = [f"--config.model.path={assets.LAB}", "--config.model.init=checkpoint"]
DATED = "{{ strftime_now('%Y-%m-%d') }} {% for m in messages %}{{ m['content'] }} {% endfor %}"


def start(folder, arguments, zones=("UTC", "UTC")):
    """Exit codes, log and phases of two processes with these arguments, in these time zones."""
    (folder / "runs").mkdir(exist_ok=True)
    workdir = folder / "runs/run"
    job = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{launch.free_port()}", "JAX_NUM_PROCESSES": "2"}
    processes = []
    for number in range(2):
        environment = {**job, "JAX_PROCESS_ID": str(number), "TZ": zones[number]}
        options = tuple(arguments[number])
        processes.append(launch.start(workdir, arguments=options, environment=environment))
    codes = [launch.wait(process) for process in processes]
    return codes, launch.log(workdir), launch.phases(workdir)


def other_data(folder):
    """The same path on each host's own disk, with one digit of one answer changed on one."""
    options = []
    for number in range(2):
        file = folder / f"disk{number}/train.jsonl"
        file.parent.mkdir()
        text = (assets.TINY / "train.jsonl").read_text()
        file.write_text(text if number == 0 else text.replace("1", "2", 1))
        options.append([f"--config.data.train={file}"])
    return options


def other_weights(folder):
    """A checkpoint of the same shapes under the same name, trained otherwise."""
    options = []
    for number, weights in enumerate((assets.LAB, assets.LAB_CLEAN)):
        copy = shutil.copytree(assets.LAB, folder / f"disk{number}/base")
        shutil.copy(weights / "model.safetensors", copy)
        options.append([f"--config.model.path={copy}", "--config.model.init=checkpoint"])
    return options


def dated(folder):
    file = folder / "dated.jinja"
    file.write_text(DATED)
    return f"--config.data.template={file}"


def other_date(folder):
    template = dated(folder)
    return [[template, f"--config.data.date=2026-07-2{number}"] for number in (6, 7)]


# What differs -> the options of each process, and what is said of it.
DIFFERENCES = {
    "data": (other_data, "process 1 has training_data_sha256 = '"),
    "weights": (other_weights, "process 1 has weights_sha256_of_sample = '"),
    "seed": (
        lambda _: [[], ["--config.train.seed=1"]],
        "process 1 has config.train.seed = 1, process 0 has 0",
    ),
    "rate": (
        lambda _: [[], ["--config.optimizer.learning_rate=0.02"]],
        "process 1 has config.optimizer.learning_rate = 0.02, process 0 has 0.01",
    ),
    "template": (
        lambda _: [
            ["--config.data.max_length=384"],
            ["--config.data.max_length=384", "--config.data.template=deepseek-math"],
        ],
        "process 1 has config.data.template = 'deepseek-math', process 0 has 'plain'",
    ),
    "date": (
        other_date,
        "process 1 has config.data.date = '2026-07-27', process 0 has '2026-07-26'",
    ),
    "held-out data": (
        lambda _: [[], ["--config.data.heldout="]],
        "process 1 has heldout_data_sha256 = ''",
    ),
    "evaluation": (
        lambda _: [[], ["--config.eval.every=2"]],
        "process 1 has config.eval.every = 2, process 0 has 4",
    ),
}
FAST = ("rate", "weights")


@pytest.mark.parametrize("case", slow_but(FAST, list(DIFFERENCES)))
def test_hosts_that_differ_are_refused(case, tmp_path):
    options, words = DIFFERENCES[case]
    codes, log, phases = start(tmp_path, options(tmp_path))
    assert codes == [errors.EXIT_USER_ERROR] * 2, log[-3000:]
    assert (
        log.count("the processes of this job differ: start all of them with the same command") == 2
    )
    assert log.count(words) == 2, log[-3000:]
    assert not [phase for phase in phases if phase.startswith("step")]


@pytest.mark.slow
def test_hosts_where_it_is_another_day_write_the_date_of_the_first(tmp_path):
    """25 hours apart, so never on the same day; the template writes a date that nobody gives."""
    zones = ("Pacific/Kiritimati", "Pacific/Pago_Pago")
    arguments = [dated(tmp_path), "--config.train.steps=2", "--config.checkpoint.every=2"]
    codes, log, phases = start(tmp_path, [arguments, arguments], zones)
    assert codes == [0, 0], log[-3000:]
    assert [phase for phase in phases if phase.startswith("step")]
    written = json.loads((tmp_path / "runs/run/config.json").read_text())["data"]["date"]
    today = {zone: datetime.datetime.now(zoneinfo.ZoneInfo(zone)).date() for zone in zones}
    assert today[zones[0]] != today[zones[1]] and written == today[zones[0]].isoformat()


@pytest.mark.parametrize("failing", [0, 1])
def test_a_mistake_of_one_host_ends_all_with_it(failing, tmp_path):
    """Its data is missing: nobody waits for the heartbeat; all exit with 2, not to be retried."""
    options = [[], []]
    options[failing] = ["--config.data.train=/nowhere/train.jsonl"]
    codes, log, _ = start(tmp_path, options)
    assert codes == [errors.EXIT_USER_ERROR] * 2, log[-3000:]
    assert (
        log.count(
            f"error: process {failing}: config.data.train='/nowhere/train.jsonl': no such file"
        )
        == 2
    )


def slurm_step(port):
    """Variables of the two tasks of a step on this machine, where JAX will choose this port."""
    # JAX's port is 61440 and the job's number modulo 4096.
    shared = {"SLURM_JOB_ID": str(port - 61440), "SLURM_STEP_NODELIST": "127.0.0.1"}
    shared |= {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    tasks = []
    for number in range(2):
        tasks.append(shared | {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)})
    return tasks


def free_slurm_port():
    for port in range(61440 + os.getpid() % 1000, 65536):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def test_tasks_of_a_slurm_step_are_one_job_without_being_told(tmp_path):
    """The mistake of one ends both, so they have met."""
    workdir = tmp_path / "runs/run"
    workdir.parent.mkdir()
    processes = []
    for number, task in enumerate(slurm_step(free_slurm_port())):
        options = ("--config.data.train=/nowhere/train.jsonl",) * number
        processes.append(launch.start(workdir, arguments=options, environment=task))
    codes = [launch.wait(process) for process in processes]
    log = launch.log(workdir)
    assert codes == [errors.EXIT_USER_ERROR] * 2, log[-3000:]
    assert log.count("error: process 1: config.data.train='/nowhere/train.jsonl'") == 2
    assert log.count("note: one of 2 processes, found by JAX (slurm); --distributed=false") == 1


@pytest.mark.slow
def test_processes_that_do_not_see_each_other_share_no_folder(tmp_path):
    """As under srun before --distributed was automatic: one trains, and the other is refused."""
    workdir = tmp_path / "runs/run"
    workdir.parent.mkdir()
    # Long enough at its second step for the other one to come.
    hold = launch.Fault("step 2", "sleep", argument=8)
    alone = ("--distributed=false", "--config.train.steps=2", "--config.checkpoint.every=2")
    tasks = slurm_step(free_slurm_port())
    first = launch.start(workdir, hold, arguments=alone, environment=tasks[0])
    while f"{launch.HURT} sleep" not in launch.phases(workdir):
        assert first.is_alive(), launch.log(workdir)[-3000:]
        time.sleep(0.05)
    second = launch.start(workdir, arguments=alone, environment=tasks[1])
    assert launch.wait(second) == errors.EXIT_USER_ERROR
    assert launch.wait(first) == 0, launch.log(workdir)[-3000:]
    assert launch.log(workdir).count("another process is at work there") == 1


@pytest.mark.slow
def test_folders_that_are_not_shared_are_refused(tmp_path):
    """Each host has its own disk under the same name; here: each process its own folder."""
    options = [[f"--workdir={tmp_path}/disk{number}"] for number in range(2)]
    codes, log, _ = start(tmp_path, options)
    assert codes == [errors.EXIT_USER_ERROR] * 2, log[-3000:]
    assert log.count("is not the folder that process 0 has under this name") == 2


def test_differences_name_process_key_and_both_values():
    everyone = [
        {"same": 1, "seed": 0},
        {"same": 1, "seed": 0},
        {"same": 1, "seed": 7, "new": "x"},
        {"seed": 8},
    ]
    assert distributed.differences(everyone) == [
        "process 2 has new = 'x', process 0 has 'absent'",
        "process 3 has same = 'absent', process 0 has 1",
        "process 2 has seed = 7, process 0 has 0 (2 processes differ from process 0)",
    ]
    assert distributed.differences(everyone[:2]) == []


def test_problems_of_some_are_named_with_their_number():
    everyone = [["no disk"], ["no disk", "no data"], ["no disk", "no data"]]
    assert distributed._merged(everyone) == ["no disk", "processes 1, 2: no data"]


def test_one_process_agrees_with_itself():
    distributed.agree("alone", {"a": (1, 2)})
    with pytest.raises(errors.UserError, match="^broken$"), distributed.together("alone"):
        raise errors.UserError("broken")


FACTS = """
import json, os, jax
{change}
from dft_jax.runtime import environment
print(json.dumps(environment.process_facts()))
"""


def facts(change="", **environment):
    done = subprocess.run(
        [sys.executable, "-c", FACTS.replace("{change}", change)],
        cwd=launch.ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.slow
def test_what_environments_and_packages_change_is_among_the_facts():
    """Precision, packages, numbers of devices, the compiler's flags; not where it dumps."""
    flags = "--xla_force_host_platform_device_count="
    usual = facts(XLA_FLAGS=f"{flags}2")
    assert facts(XLA_FLAGS=f"{flags}2 --xla_dump_to=/tmp/dump") == usual
    others = [
        (facts(XLA_FLAGS=f"{flags}4"), "devices.local_count"),
        (facts(XLA_FLAGS=f"{flags}2", JAX_ENABLE_X64="1"), "options.jax_enable_x64"),
        (
            facts(XLA_FLAGS=f"{flags}2", JAX_DEFAULT_MATMUL_PRECISION="float32"),
            "options.jax_default_matmul_precision",
        ),
        (
            facts(
                "import importlib.metadata as m; m.version = lambda name: '0'",
                XLA_FLAGS=f"{flags}2",
            ),
            "versions.jax",
        ),
    ]
    for found, name in others:
        assert any(f" has {name} = " in line for line in distributed.differences([usual, found])), (
            name
        )


def test_every_tensor_counts_in_the_sample_of_weights(tmp_path):
    """A tensor changed anywhere in bulk, as by fine-tuning, gives another sample, a copy none."""
    from safetensors.numpy import load_file, save_file

    whole = weights_sample(assets.LAB)
    copy = shutil.copytree(assets.LAB, tmp_path / "copy")
    assert weights_sample(copy) == whole
    tensors = load_file(copy / "model.safetensors")
    for name in tensors:
        changed = tensors | {name: tensors[name] * 1.01}
        save_file(changed, copy / "model.safetensors", metadata={"format": "pt"})
        assert weights_sample(copy) != whole, name


def test_a_runs_facts_cover_its_whole_config():
    """But for paths, which may differ where what they lead to does not."""
    config = recipe.lab_config("sft")
    found = identity.run_facts(config, {"steps": 1}, [4], None)
    keys = {f"config.{key}" for key in flatten(config)}
    paths = {"model.path", "lora.adapter", "data.train", "data.heldout", "data.image_folder"}
    assert keys - found.keys() == {f"config.{path}" for path in paths}


BOTH_WAYS = """
import sys, jax
address, index = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(address, 2, index)
from dft_jax.runtime import distributed
def both(values): return [*values, len(values)]
mine = "x" * (3 + 100_000 * index)
by_service = distributed.decided("test", mine, both)
again = distributed.decided("test", [index, 0.1], both)
distributed._client = lambda: None
assert distributed.decided("test", mine, both) == by_service
assert distributed.decided("test", [index, 0.1], both) == again == [[0, 0.1], [1, 0.1], 2]
"""


@pytest.mark.slow
def test_without_the_service_the_devices_carry_the_same():
    address = f"127.0.0.1:{launch.free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BOTH_WAYS, address, str(index)],
            cwd=launch.ROOT,
            stderr=subprocess.PIPE,
        )
        for index in range(2)
    ]
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said.decode()[-3000:]
