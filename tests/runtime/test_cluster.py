"""Which processes are one job: what JAX finds by the variables of each kind of cluster, and joining
them.
"""

import os
import socket
import subprocess
import sys

import jax
import pytest

from dft_jax.runtime import cluster, errors, meeting
from tests.faults import launch

PREFIXES = ("SLURM_", "OMPI_", "KUBERNETES_", "JOB_", "TPU_", "JAX_COORDINATOR", "MEGASCALE_")


def slurm(**changes):
    """Variables of a task that srun started, the second of four on two nodes."""
    task = {
        "SLURM_JOB_ID": "17",
        "SLURM_STEP_NODELIST": "node[001-002]",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_NTASKS": "4",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "1",
    }
    return task | changes


# What runs the process -> its variables, and what is found.
CLUSTERS = {
    "none": ({}, None),
    "srun": (slurm(), cluster.Found("slurm", 4, 1)),
    "srun of one task": (
        slurm(SLURM_STEP_NUM_TASKS="1", SLURM_NTASKS="1"),
        cluster.Found("slurm", 1, 0),
    ),
    "a shell in an allocation of four tasks": (
        slurm(SLURM_STEP_NUM_TASKS="1"),
        cluster.Found("slurm", 1, 0),
    ),
    "a batch script, outside of any step": ({"SLURM_JOB_ID": "17", "SLURM_NTASKS": "4"}, None),
    "mpirun": (
        {
            "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911",
            "OMPI_COMM_WORLD_SIZE": "3",
            "OMPI_COMM_WORLD_RANK": "0",
            "OMPI_COMM_WORLD_LOCAL_RANK": "0",
            "OMPI_VERSION": "4.1.5",
        },
        cluster.Found("ompi", 3, 0),
    ),
    "a pod of no job": ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
}


@pytest.fixture
def variables(monkeypatch):
    """variables({...}): these, and none of any other cluster."""

    def put(chosen):
        for name in list(os.environ):
            if name.startswith(PREFIXES):
                monkeypatch.delenv(name)
        for name, value in chosen.items():
            monkeypatch.setenv(name, value)

    put({})
    return put


@pytest.mark.parametrize("case", CLUSTERS)
def test_clusters_are_found_as_jax_finds_them(case, variables, capfd):
    chosen, expected = CLUSTERS[case]
    variables(chosen)
    assert cluster.detect() == expected
    assert capfd.readouterr().err == ""


ON_TPU = """
from dft_jax.runtime import cluster
print(cluster.detect())
"""


SLICES = {"MEGASCALE_NUM_SLICES": "3", "MEGASCALE_SLICE_ID": "2"}
SLICE = dict.fromkeys(SLICES, "")


@pytest.mark.parametrize(
    "hosts, slices, count, index",
    [("host0,host1", SLICE, 2, 1), ("host0,host1", SLICES, 6, 5), ("localhost", {}, 1, 0)],
)
def test_hosts_of_tpu_slices_are_found(hosts, slices, count, index, variables):
    """JAX asks whether this is a TPU machine when it is imported, so in a process of its own."""
    variables({})
    chosen = {"TPU_WORKER_HOSTNAMES": hosts, "TPU_WORKER_ID": "1"} | slices
    chosen |= {"JAX_FORCE_TPU_INIT": "1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", ON_TPU]
    options = {"cwd": launch.ROOT, "capture_output": True, "text": True}
    done = subprocess.run(command, env=os.environ | chosen, **options)
    assert done.stdout == f"Found(cluster='gketpu', count={count}, index={index})\n", done.stderr


def test_a_pod_whose_others_jax_cannot_see_works_alone_and_says_so(variables, capfd, monkeypatch):
    # Without the package that asks the cluster's API.
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    variables({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"})
    assert cluster.detect() is None
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("note: works alone: ") and "jax[k8s]" in line


def test_a_cluster_that_does_not_say_how_many_there_are_is_refused(variables):
    variables(slurm(SLURM_NTASKS="many"))
    with pytest.raises(errors.UserError, match="a process of slurm.*many.*--distributed=false"):
        cluster.join(None)


@pytest.mark.parametrize(
    "wanted, chosen, calls, says",
    [
        (None, {}, 0, ""),
        (None, slurm(SLURM_STEP_NUM_TASKS="1"), 0, ""),
        (None, slurm(), 1, ""),
        (
            None,
            slurm(SLURM_PROCID="0"),
            1,
            "note: one of 4 processes, found by JAX (slurm); --distributed=false",
        ),
        (True, slurm(), 1, ""),
        (False, slurm(), 0, ""),
        (
            False,
            {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
            0,
            "",
        ),
        (
            None,
            {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
            1,
            "note: one of 2 processes, as JAX_NUM_PROCESSES says",
        ),
    ],
)
def test_auto_joins_where_there_are_several(
    wanted, chosen, calls, says, variables, capfd, monkeypatch
):
    variables(chosen)
    made = []

    def initialize(*places, **given):
        made.append((places, given))

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(meeting, "meet", lambda *_: None)
    cluster.join(wanted, 7)
    assert len(made) == calls
    # Host and port as JAX would take them: it looks for nothing by itself but the local devices.
    for (address, count, _), given in made:
        port = 61440 + 17 if "SLURM_JOB_ID" in chosen else 1
        assert (address.rpartition(":")[2], count) == (str(port), 4 if port > 1 else 2)
        assert given["initialization_timeout"] == 7
    said = capfd.readouterr().err
    assert said.startswith(says) and said.count("\n") == bool(says)


@pytest.mark.parametrize(
    "chosen, words",
    [
        (
            {"JAX_COORDINATOR_ADDRESS": "10.0.0.1"},
            "JAX_COORDINATOR_ADDRESS='10.0.0.1' should be host:port",
        ),
        ({"JAX_COORDINATOR_ADDRESS": "h:1"}, "not found .*JAX_NUM_PROCESSES"),
        (
            {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
            "there is no process 2 of 2",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "two"},
            "not found .*two.*JAX_PROCESS_ID",
        ),
    ],
)
def test_variables_that_name_no_job_are_refused(chosen, words, variables):
    variables(chosen)
    with pytest.raises(errors.UserError, match=words):
        cluster.join(None)


def test_asking_for_others_where_there_are_none_is_refused(variables):
    with pytest.raises(errors.UserError, match="not found; start them with srun"):
        cluster.join(True)


def join_alone(workdir, index, address, seconds=3):
    """Exit code and log of one of two processes; the other one never starts."""
    job = {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(index),
    }
    options = (f"--join_seconds={seconds}",)
    workdir.parent.mkdir()
    code = launch.wait(launch.start(workdir, arguments=options, environment=job), 60)
    return code, launch.log(workdir)


@pytest.mark.parametrize("index", [0, 1])
def test_others_that_do_not_come_end_in_one_line(index, tmp_path):
    """Process 1 finds nobody at the port of process 0; process 0 waits for process 1."""
    address = f"127.0.0.1:{launch.free_port()}"
    code, log = join_alone(tmp_path / "runs/run", index, address)
    assert code == errors.EXIT_USER_ERROR, log
    said = [line for line in log.splitlines() if line.startswith("error: ")]
    why = "process 1 of 2 did not come" if index == 0 else "process 0 was not reached: Connection"
    assert len(said) == 1 and f"did not meet at {address} in 3 s ({why}" in said[0], log
    assert "--join_seconds" in said[0]
    # Nothing of JAX's, which would have ended the process itself.
    assert "Traceback" not in log and "DEADLINE" not in log


def test_a_port_that_another_program_has_ends_in_one_line(tmp_path):
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        code, log = join_alone(tmp_path / "runs/run", 0, address)
    assert code == errors.EXIT_USER_ERROR and log.count("error: ") == 1, log
    assert f"process 0 cannot listen at {address} (Address already in use)" in log
    assert "Traceback" not in log
