"""The launchers, with stand-ins for gcloud, Slurm and kubectl that are first on PATH; no cluster is
touched.
"""

import dataclasses
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from dft_jax.runtime.errors import EXIT_RESUMABLE, EXIT_USER_ERROR

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"
LAUNCHERS = {
    "tpu_pod": ["--name=tpu", "--zone=z", "--repo=https://host/repo", "--commit=0123abc"],
    "slurm": ["--nodes=2", "--gpus=4"],
    "gke": [
        "--image=host/image",
        "--accelerator=tpu-v5-lite-podslice",
        "--topology=4x4",
        "--bucket=bucket",
    ],
}
EXTRA = ["--config.data.train=my data.jsonl", """--config.data.template=it's "a" $(x) `y` \\ z"""]

pytestmark = pytest.mark.skipif(not shutil.which("flock"), reason="the launchers are for Linux")

# Stands for dft_jax.main: its n-th start ends with the n-th word of `plan`, or runs until SIGTERM
# and ends with 42.
TRAINING = f"""#!{sys.executable} -SE
import json, os, pathlib, signal, sys, time

folder = pathlib.Path(next(a for a in sys.argv if a.startswith("--workdir=")).split("=", 1)[1])
folder.mkdir(parents=True, exist_ok=True)
worker = os.environ.get("WORKER", "0")

def note(name, text):
    with open(folder / (name + worker), "a") as file:
        file.write(text + "\\n")

def save(number, frame):
    note("signals", signal.Signals(number).name)
    time.sleep(0.2)
    os._exit(42)

signal.signal(signal.SIGTERM, save)
note("starts", json.dumps(sys.argv[1:]))
plan = pathlib.Path(os.environ["STATE"], "plan" + worker)
plan = plan.read_text().split() if plan.exists() else []
n = len((folder / ("starts" + worker)).read_text().splitlines())
if n <= len(plan) and plan[n - 1] != "run":
    print("ends with its plan")
    sys.exit(int(plan[n - 1]))
time.sleep(30)  # not for ever, where a test fails
"""

STUBS = {
    # Two workers with homes of their own; the last argument is --command=, run in each as ssh
    # would. Of a queue each look sees the next state, and the last one stays; a new request goes
    # through those in `will`.
    "gcloud": """
        [[ ! -e $STATE/unreachable ]] || exit 255
        if [[ $3 == queued-resources ]]; then
          queue=$STATE/request
          case $4 in
            list)
              printf '%s\t%s\n' another ACTIVE
              [[ ! -s $queue ]] || printf '%s\t%s\n' tpu "$(head -n 1 "$queue")"
              [[ ! -s $queue || $(wc -l <"$queue") == 1 ]] || sed -i 1d "$queue" ;;
            create) cp "$STATE/will" "$queue" ;;
            delete) rm "$queue" ;;
          esac
          exit
        fi
        code=0 command=${*: -1}
        for WORKER in 0 1; do
          export WORKER HOME=$STATE/home$WORKER
          mkdir -p "$HOME"; cd "$HOME"; bash -c "${command#--command=}" || code=$?
        done
        exit "$code" """,
    "git": 'if [[ $1 == clone ]]; then mkdir -p "${*: -1}"; ln -s "$SCRIPTS" "${*: -1}/scripts"; fi',
    "python3": 'mkdir -p "$3/bin"; cp "$STATE/training" "$3/bin/python"; ln -s "$STATE/bin/pip" "$3/bin/pip"',
    "pip": "",
    "stat": 'echo "device of ${*: -1}"',
    # As the real one, it answers SIGTERM by killing its tasks.
    "srun": 'shift; "$@" & echo $! >"$STATE/task"; trap "kill -KILL $!" TERM; wait $!',
    "scancel": 'if [[ $1 == --signal=TERM ]]; then kill -TERM "$(<"$STATE/task")"; fi',
    "squeue": 'cat "$STATE/queue" 2>/dev/null || true',
    "sbatch": "",
    "scontrol": "",
    "kubectl": """
        if [[ $1 == apply ]]; then cat >"$STATE/applied"; fi
        if [[ $1 == get ]]; then cat "$STATE/jobset" 2>/dev/null || true; fi""",
}
NOTE_CALL = r"""#!/usr/bin/env bash
{ printf '%s\0' "${0##*/}" "$@"; printf '\n'; } >>"$STATE/calls"
"""


@dataclasses.dataclass
class Cluster:
    """A folder with the stand-ins and what they were asked; `workdir` is where the run called `one`
    is stored.
    """

    folder: pathlib.Path

    def __post_init__(self):
        self.mount = self.folder / "my runs"
        self.workdir = self.mount / "one"
        self.mount.mkdir()
        self.write("training", TRAINING)
        for name, body in STUBS.items():
            self.write(f"bin/{name}", NOTE_CALL + body)
        path = f"{self.folder}/bin:{os.environ['PATH']}"
        self.env = {
            **os.environ,
            "PATH": path,
            "STATE": str(self.folder),
            "SCRIPTS": str(SCRIPTS),
            "SLURM_JOB_ID": "7",
        }

    def write(self, name, text):
        (self.folder / name).parent.mkdir(exist_ok=True)
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def plan(self, *workers: str):
        for index, codes in enumerate(workers):
            self.write(f"plan{index}", codes)

    def options(self, script, *arguments, extra=()) -> list[str]:
        options = [
            *LAUNCHERS[script],
            "--run=one",
            f"--mount={self.mount}",
            "--config=my config.py:objective=dft",
        ]
        options += [f"--python={self.folder}/training"] if script == "slurm" else []
        options += ["--poll=0.05", "--grace=5"] if script == "tpu_pod" else []
        return [*options, *arguments, "--", *extra]

    def start(self, script, *arguments, verb="start", extra=()) -> subprocess.Popen:
        return self.popen(
            [SCRIPTS / f"{script}.sh", verb, *self.options(script, *arguments, extra=extra)]
        )

    def popen(self, command, **env) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env={**self.env, **env}, **pipes)

    def run(self, *arguments, **options) -> "Done":
        return finish(self.start(*arguments, **options))

    def calls(self, *names) -> list[list[str]]:
        """What was called, with its arguments."""
        file = self.folder / "calls"
        rows = file.read_text().split("\0\n")[:-1] if file.exists() else []
        return [row.split("\0") for row in rows if not names or row.split("\0")[0] in names]

    def lines(self, name) -> list[str]:
        file = self.workdir / name
        return file.read_text().splitlines() if file.exists() else []

    def training_arguments(self, extra=()) -> list[str]:
        fixed = ["-m", "dft_jax.main", "--distributed", "--config=my config.py:objective=dft"]
        return [*fixed, f"--workdir={self.workdir}", *extra]


@dataclasses.dataclass
class Done:
    code: int
    stdout: str
    stderr: str


def finish(process) -> Done:
    stdout, stderr = process.communicate(timeout=20)
    return Done(process.returncode, stdout, stderr)


def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


def test_shellcheck():
    shellcheck = shutil.which("shellcheck") or shutil.which(
        "shellcheck", path=os.path.dirname(sys.executable)
    )
    if not shellcheck:
        pytest.skip("shellcheck is not installed")
    command = [shellcheck, "--external-sources", *sorted(SCRIPTS.glob("*.sh"))]
    found = subprocess.run(command, cwd=SCRIPTS.parent, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_scripts_are_short_and_strict():
    for file in SCRIPTS.glob("*.sh"):
        lines = file.read_text().splitlines()
        assert len(lines) <= 500 and max(map(len, lines)) <= 120, file
        assert file.name == "common.sh" or "set -euo pipefail" in lines, file


@pytest.mark.parametrize("script", LAUNCHERS)
def test_help_names_every_option(script):
    shown = subprocess.run([SCRIPTS / f"{script}.sh", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and not shown.stderr
    options = re.findall(r"\[([a-z]+)\]=", (SCRIPTS / f"{script}.sh").read_text())
    assert len(options) >= 10 and all(
        f"--{name}" in shown.stdout for name in ["dry-run", "help", *options]
    )


WRONG = {
    "--nonsense=1": "unknown option --nonsense",
    "--a[$(touch x)]=1": "unknown option",
    "--verbose": "written --name=value",
    "surplus": "'surplus'",
    "--run=": "--run is required",
    "--config=": "--config is required",
    "--run=a/b": "--run=a/b",
    "--mount=runs": "an absolute path is needed",
    "--mount=s3://bucket/runs": "an absolute path is needed",
    "--restarts=many": "--restarts=many",
}
WRONG_FOR = {
    "slurm": {"--mount=gs://bucket/runs": "gcsfuse"},
    "tpu_pod": {"--poll=often": "--poll=often: seconds"},
    "gke": {
        "--topology=16": "--topology=16",
        "--chips=3": "16 chips",
        "--claim=disk": "--bucket or --claim",
        "--run=One": "Kubernetes",
    },
}


@pytest.mark.parametrize("script", LAUNCHERS)
def test_wrong_options_end_in_one_line(script, cluster):
    for argument, words in (WRONG | WRONG_FOR[script]).items():
        done = cluster.run(script, argument)
        assert done.code == EXIT_USER_ERROR and not cluster.calls(), done
        assert (
            done.stderr.startswith("error: ")
            and done.stderr.count("\n") == 1
            and words in done.stderr
        ), done


@pytest.mark.parametrize("script", LAUNCHERS)
def test_dry_run_shows_all_and_runs_nothing(script, cluster):
    shown = [cluster.run(script, "--dry-run", extra=EXTRA) for _ in range(2)]
    assert shown[0].code == 0 and not shown[0].stderr
    assert shown[0] == shown[1]  # the same run name, the same workdir
    assert str(cluster.workdir) in shown[0].stdout
    stopping = cluster.run(script, "--dry-run", verb="stop")
    assert stopping.code == 0 and " one" in stopping.stdout.replace("=", " ")
    assert not cluster.calls()


@pytest.mark.parametrize("script", LAUNCHERS)
def test_flags_of_xla_are_in_the_variable_of_the_platform(script, cluster):
    """And nowhere, where none are given: the library sets none."""
    flags = "--xla_a=true --xla_b=false"
    variable = "XLA_FLAGS" if script == "slurm" else "LIBTPU_INIT_ARGS"
    verb = "batch" if script == "slurm" else "start"
    plain = cluster.run(script, "--dry-run", verb=verb)
    assert plain.code == 0 and variable not in plain.stdout
    done = cluster.run(script, "--dry-run", f"--xla={flags}", verb=verb)
    assert done.code == 0 and f"{variable}={flags}" in done.stdout, done
    if script == "gke":
        command = manifest(cluster, f"--xla={flags}")["spec"]["replicatedJobs"][0]["template"]
        (container,) = command["spec"]["template"]["spec"]["containers"]
        assert container["command"][:3] == ["env", f"{variable}={flags}", "python"]


def test_tpu_commands_survive_two_shells(cluster):
    words = shlex.split(
        cluster.run("tpu_pod", "--dry-run", "--flags=--project=p", extra=EXTRA).stdout
    )
    assert (
        words[:10]
        == "gcloud compute tpus tpu-vm ssh tpu --zone=z --worker=all --quiet --project=p".split()
    )
    start = next(word for word in words if "worker.sh start" in word)
    expected = ["start", "one", ".venv/bin/python", *cluster.training_arguments(EXTRA)]
    assert shlex.split(start.removeprefix("--command="))[2:] == expected


def test_tpu_interrupted_runs_are_started_again(cluster):
    """42 on both workers, then on one while the other crashes, then the end: three starts of one
    installation.
    """
    cluster.plan("42 42 0", "42 134 0")
    done = cluster.run("tpu_pod", extra=EXTRA)
    assert done.code == 0 and done.stderr.count("starting again") == 2, done
    for worker in "01":
        starts = [json.loads(line) for line in cluster.lines(f"starts{worker}")]
        assert starts == [cluster.training_arguments(EXTRA)] * 3
    assert len(cluster.calls("pip")) == 2  # on each of the workers once


@pytest.mark.parametrize("plans, code", [(("2", "run"), 2), (("134", "1"), 134), (("0", "0"), 0)])
def test_tpu_errors_are_not_started_again(plans, code, cluster):
    """And a worker that outlives another's failure is ended."""
    cluster.plan(*plans)
    done = cluster.run("tpu_pod")
    assert done.code == code and len(cluster.lines("starts0")) == 1, done
    assert ("ends with its plan" in done.stderr) == (code != 0)  # the log's last lines


def test_tpu_restarts_are_bounded(cluster):
    cluster.plan("42 0", "42 0")
    done = cluster.run("tpu_pod", "--restarts=0")
    assert done.code == EXIT_RESUMABLE and len(cluster.lines("starts0")) == 1, done
    assert "the same command resumes" in done.stderr


def test_tpu_signals_are_forwarded_once(cluster):
    """A second signal would end the workers without saving."""
    launcher = cluster.start("tpu_pod")
    until(lambda: cluster.lines("starts1"))
    launcher.send_signal(signal.SIGINT)
    time.sleep(0.1)
    launcher.send_signal(signal.SIGTERM)
    done = finish(launcher)
    assert done.code == EXIT_RESUMABLE and len(cluster.lines("starts0")) == 1, done
    assert cluster.lines("signals0") == cluster.lines("signals1") == ["SIGTERM"]


def test_tpu_run_outlives_its_launcher(cluster):
    """The launcher is killed, a second one attaches, ssh is cut, a third ends the run for good, a
    fourth resumes.
    """
    cluster.plan("run 0", "run 0")
    first = cluster.start("tpu_pod")
    until(lambda: cluster.lines("starts1"))
    first.kill()
    finish(first)
    second = cluster.start("tpu_pod")
    time.sleep(0.5)
    cluster.write("unreachable", "")
    time.sleep(0.2)
    (cluster.folder / "unreachable").unlink()
    assert second.poll() is None and not cluster.lines("signals0")
    assert cluster.run("tpu_pod", verb="stop").code == EXIT_RESUMABLE
    attached = finish(second)
    assert attached.code == EXIT_RESUMABLE and "attached" in attached.stdout, attached
    assert cluster.lines("signals0") == ["SIGTERM"] and len(cluster.lines("starts0")) == 1
    assert cluster.run("tpu_pod").code == 0
    assert len(cluster.lines("starts0")) == 2 and len(set(cluster.lines("starts0"))) == 1


def test_tpu_a_dead_worker_is_an_interruption(cluster):
    cluster.plan("run 0", "run 0")
    launcher = cluster.start("tpu_pod")
    until(lambda: cluster.lines("starts1"))
    group = cluster.folder / "home1/dft_jax/runs/one/group"
    os.killpg(int(group.read_text()), signal.SIGKILL)
    done = finish(launcher)
    assert done.code == 0 and "starting again" in done.stderr, done
    assert cluster.lines("signals0") == ["SIGTERM"] and not cluster.lines("signals1")


def test_tpu_unusable_workers(cluster):
    cluster.write("bin/stat", "#!/bin/sh\necho 1\n")
    done = cluster.run("tpu_pod")
    assert (
        done.code == 1
        and "no folder that workers share" in done.stderr
        and not cluster.lines("starts0")
    )
    cluster.write("unreachable", "")
    done = cluster.run("tpu_pod", verb="stop")
    assert done.code == 1 and "not every worker answers" in done.stderr


REQUEST = ["--type=v5litepod-8", "--runtime=v2-alpha-tpuv5-lite"]


def queue_verbs(cluster) -> list[str]:
    """What the queue was asked, looks left out."""
    calls = [call[4] for call in cluster.calls("gcloud") if call[3] == "queued-resources"]
    return [verb for verb in calls if verb != "list"]


@pytest.mark.parametrize(
    "found, verbs",
    [
        ("", ["create"]),
        ("WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n", []),
        ("ACTIVE\n", []),
        ("SUSPENDING\nSUSPENDED\n", ["delete", "create"]),
        ("FAILED\n", ["delete", "create"]),
    ],
    ids=["none", "waiting", "there", "taken away", "failed before"],
)
def test_tpu_request_waits_until_the_tpu_is_there(found, verbs, cluster):
    """Whatever is found: what is on its way is waited for, what has ended is asked for anew."""
    cluster.write("request", found)
    cluster.write("will", "CREATING\nWAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n")
    done = cluster.run(
        "tpu_pod", *REQUEST, "--tier=spot", "--flags=--project=p --internal-ip", verb="request"
    )
    assert done.code == 0 and done.stderr.splitlines()[-1] == "tpu: ACTIVE", done
    assert queue_verbs(cluster) == verbs
    # ssh's own flags are none of the queue's
    assert all("--internal-ip" not in call for call in cluster.calls("gcloud"))
    for call in cluster.calls("gcloud"):
        if call[4] == "create":
            expected = "--node-id=tpu --accelerator-type=v5litepod-8 --spot --zone=z --project=p"
            assert call[5] == "tpu" and set(expected.split()) <= set(call), call


def test_tpu_request_that_fails_ends(cluster):
    cluster.write("will", "WAITING_FOR_RESOURCES\nFAILED\n")
    done = cluster.run("tpu_pod", *REQUEST, verb="request")
    assert done.code == 1 and "describe tpu --zone=z says why" in done.stderr, done
    assert queue_verbs(cluster) == ["create"]
    cluster.write("unreachable", "")
    assert cluster.run("tpu_pod", *REQUEST, verb="request").code == 1


def test_tpu_request_that_is_left_stays_in_the_queue(cluster):
    """Ctrl-C ends the waiting, `release` the request."""
    cluster.write("will", "WAITING_FOR_RESOURCES\n")
    launcher = cluster.start("tpu_pod", *REQUEST, verb="request")
    until(lambda: (cluster.folder / "request").exists())
    launcher.send_signal(signal.SIGINT)
    assert finish(launcher).code != 0 and queue_verbs(cluster) == ["create"]
    assert cluster.run("tpu_pod", verb="release").code == 0
    assert queue_verbs(cluster) == ["create", "delete"]
    assert "--force" in cluster.calls("gcloud")[-1]


def test_tpu_that_is_taken_away_is_requested_again(cluster):
    cluster.plan("42 0", "42 0")
    cluster.write("request", "ACTIVE\nSUSPENDED\n")
    cluster.write("will", "PROVISIONING\nACTIVE\n")
    done = cluster.run("tpu_pod", *REQUEST)
    assert done.code == 0 and queue_verbs(cluster) == ["delete", "create"], done
    assert len(cluster.lines("starts0")) == 2


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--runtime=r"], "--type is required"),
        (["--type=t"], "--runtime is required"),
        ([*REQUEST, "--tier=cheap"], "--tier=cheap"),
    ],
)
def test_tpu_wrong_requests_end_in_one_line(arguments, words, cluster):
    done = cluster.run("tpu_pod", *arguments, verb="request")
    assert done.code == EXIT_USER_ERROR and not cluster.calls(), done
    assert words in done.stderr and done.stderr.count("\n") == 1


def submit(cluster, *arguments, **options) -> list[str]:
    """What Slurm would run as the job's batch shell."""
    done = cluster.run("slurm", *arguments, **options)
    assert done.code == 0, done
    return ["sh", "-c", cluster.calls("sbatch")[-1][-1].removeprefix("--wrap=")]


def test_slurm_asks_for_what_was_given(cluster):
    submit(cluster, "--time=1:00:00", "--flags=--partition=gpu --account=me")
    expected = "--job-name=one --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 --time=1:00:00 --signal=B:TERM@300"
    expected += " --requeue --dependency=singleton --partition=gpu --account=me"
    assert set(expected.split()) <= set(cluster.calls("sbatch")[0])


def test_slurm_refuses_a_second_copy(cluster):
    cluster.write("queue", "41\n")
    done = cluster.run("slurm")
    assert (
        done.code == EXIT_USER_ERROR and "as job 41" in done.stderr and done.stderr.count("\n") == 1
    )
    assert not cluster.calls("sbatch")


def test_slurm_term_saves_and_requeues(cluster):
    """Not through srun, which would kill its tasks, and once. The requeued job goes on in the same
    folder.
    """
    cluster.plan("run 0")
    command = submit(cluster, extra=EXTRA)
    batch = cluster.popen(command)
    until(lambda: cluster.lines("starts0"))
    batch.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    batch.send_signal(signal.SIGTERM)
    done = finish(batch)
    assert done.code == EXIT_RESUMABLE and cluster.lines("signals0") == ["SIGTERM"], done
    assert cluster.calls("scontrol") == [["scontrol", "requeue", "7"]]
    assert finish(cluster.popen(command, SLURM_RESTART_COUNT="1")).code == 0
    assert [json.loads(line) for line in cluster.lines("starts0")] == [
        cluster.training_arguments(EXTRA)
    ] * 2
    assert len(cluster.calls("scontrol")) == 1


def test_slurm_stop_saves_and_ends(cluster):
    assert cluster.run("slurm", verb="stop").code == 0
    pending, running = cluster.calls("scancel")
    assert "--state=PENDING" in pending and {"--batch", "--signal=INT", "--name=one"} <= set(
        running
    )
    batch = cluster.popen(submit(cluster))
    until(lambda: cluster.lines("starts0"))
    batch.send_signal(signal.SIGINT)
    done = finish(batch)
    assert done.code == EXIT_RESUMABLE and cluster.lines("signals0") == ["SIGTERM"], done
    assert not cluster.calls("scontrol")


@pytest.mark.parametrize("code, restarts", [(0, 0), (2, 0), (1, 0), (42, 50)])
def test_slurm_other_ends_are_not_requeued(code, restarts, cluster):
    cluster.plan(str(code))
    done = finish(cluster.popen(submit(cluster), SLURM_RESTART_COUNT=str(restarts)))
    assert done.code == code and not cluster.calls("scontrol"), done


STUDY = ["--config=", "--spec=my spec.py:model=m", "--array=3"]


def test_slurm_array_of_a_study(cluster):
    """Jobs that run at the same time, each with its own number, log and requeueing."""
    given = [*STUDY, "--nodes=1"]
    submit(cluster, *given)
    (call,) = cluster.calls("sbatch")
    expected = "--nodes=1 --ntasks-per-node=1 --gpus-per-node=4 --requeue --array=0-2"
    assert set(expected.split()) <= set(call) and "--dependency=singleton" not in call
    assert f"--output={cluster.mount}/one.%a.log" in call
    shown = cluster.run("slurm", *given, "--dry-run", verb="batch", extra=["--minutes=9"])
    words = shlex.split(shown.stdout)
    study = ["-m", "dft_jax.study", "run", "--spec=my spec.py:model=m", f"--out={cluster.workdir}"]
    assert words[-7:] == [*study, "--array=3", "--minutes=9"]


def test_slurm_a_job_of_an_array_requeues_itself_alone(cluster):
    cluster.write("training", TRAINING.replace("--workdir=", "--out="))
    cluster.plan("42")
    number = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    done = finish(cluster.popen(submit(cluster, *STUDY, "--nodes=1"), **number))
    assert done.code == EXIT_RESUMABLE, done
    assert cluster.calls("scontrol") == [["scontrol", "requeue", "7_2"]]


@pytest.mark.parametrize(
    "script, given, words",
    [
        ("slurm", ["--array=3"], "only a study is done by several jobs; give --spec"),
        ("slurm", ["--spec=a.py"], "--config and --spec"),
        ("slurm", STUDY, "--nodes=2: a study's jobs have one each"),
        ("slurm", [*STUDY, "--array=0"], "--array=0: at least 1"),
        ("gke", [*STUDY, "--array=many"], "--array=many: a whole number"),
        ("gke", STUDY, "a --topology of one node"),
    ],
)
def test_wrong_arrays_end_in_one_line(script, given, words, cluster):
    done = cluster.run(script, *given)
    assert done.code == EXIT_USER_ERROR and words in done.stderr, done
    assert done.stderr.count("\n") == 1 and not cluster.calls()


def test_gke_array_of_a_study(cluster):
    jobset = manifest(cluster, *STUDY, "--topology=2x2")
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (3, 3, "Indexed")
    command = job["template"]["spec"]["containers"][0]["command"]
    study = ["python", "-m", "dft_jax.study", "run", "--spec=my spec.py:model=m"]
    assert command[:7] == [*study, f"--out={cluster.workdir}", "--array=3"]


def manifest(cluster, *arguments) -> dict:
    yaml = pytest.importorskip("yaml")
    done = cluster.run("gke", *arguments, extra=EXTRA)
    assert done.code == 0, done
    return yaml.safe_load((cluster.folder / "applied").read_text())


def test_gke_manifest(cluster):
    jobset = manifest(cluster, "--slices=2")
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (slices,) = jobset["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert (slices["replicas"], job["parallelism"], job["completions"], job["backoffLimit"]) == (
        2,
        4,
        4,
        0,
    )
    assert (pod["restartPolicy"], pod["terminationGracePeriodSeconds"]) == ("Never", 300)
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    assert (
        container["resources"]["limits"]
        == container["resources"]["requests"]
        == {"google.com/tpu": 4}
    )
    # Kubernetes reads $$ as $
    fixed, extra = cluster.training_arguments(), [word.replace("$", "$$") for word in EXTRA]
    literal = [*fixed, "--join_seconds=1200", *extra]
    assert container["command"] == ["python", *literal]  # the first process is python, no shell
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    assert mount["name"] == volume["name"] and mount["mountPath"] == str(cluster.mount)
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "bucket"
    claimed = manifest(cluster, "--bucket=", "--claim=disk")["spec"]["replicatedJobs"][0][
        "template"
    ]["spec"]
    assert claimed["template"]["spec"]["volumes"][0]["persistentVolumeClaim"] == {
        "claimName": "disk"
    }


BUCKET = "--mount=gs://bucket/some runs/"


def test_runs_in_a_bucket_need_no_mount(cluster):
    job = manifest(cluster, "--bucket=", BUCKET)["spec"]["replicatedJobs"][0]["template"]
    pod = job["spec"]["template"]["spec"]
    assert "--workdir=gs://bucket/some runs/one" in pod["containers"][0]["command"]
    assert "volumes" not in pod and "volumeMounts" not in pod["containers"][0]
    shown = cluster.run("tpu_pod", "--dry-run", BUCKET)
    assert "--workdir=gs://bucket/some runs/one" in shown.stdout and shown.code == 0
    assert "mountpoint" not in shown.stdout and "share" not in shown.stdout
    mounted = cluster.run("tpu_pod", "--dry-run", "--bucket=bucket").stdout
    assert "mountpoint" in mounted and "share" in mounted


@pytest.mark.parametrize(
    "script, given, words",
    [
        ("tpu_pod", ["--bucket=bucket"], "leave out --bucket"),
        ("gke", [], "leave out --bucket"),
        ("gke", ["--bucket=", "--claim=disk"], "leave out --bucket and --claim"),
        ("gke", ["--bucket=", "--config=", "--spec=a"], "a study's folder has to be mounted"),
    ],
)
def test_a_bucket_is_mounted_or_written_to(script, given, words, cluster):
    done = cluster.run(script, BUCKET, *given)
    assert done.code == EXIT_USER_ERROR and words in done.stderr, done
    assert done.stderr.count("\n") == 1 and not cluster.calls()


@pytest.mark.parametrize(
    "code, action",
    [
        (2, "FailJobSet"),
        (42, "RestartJobSetAndIgnoreMaxRestarts"),
        (143, "RestartJobSetAndIgnoreMaxRestarts"),
        (1, ""),
    ],
)
def test_gke_exit_codes(code, action, cluster):
    """What Kubernetes and JobSet would do with them; without a rule, a restart that counts."""
    spec = manifest(cluster)["spec"]
    rules = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    listed = [rule for rule in rules if code in rule.get("onExitCodes", {}).get("values", [])]
    message = f"Container train for pod default/one-0 failed with exit code {code} matching FailJob rule at index 0"
    actions = [
        rule["action"]
        for rule in spec["failurePolicy"]["rules"]
        if listed
        and all(
            re.search(pattern, message) for pattern in rule.get("onJobFailureMessagePatterns", [])
        )
    ]
    assert (actions or [""])[0] == action
    assert spec["failurePolicy"]["maxRestarts"] == 5


@pytest.mark.parametrize(
    "jobset, verbs",
    [("", ["get", "apply"]), ("JobSet ", ["get"]), ("JobSet Failed", ["get", "delete", "apply"])],
)
def test_gke_same_name_again(jobset, verbs, cluster):
    cluster.write("jobset", jobset)
    assert cluster.run("gke").code == 0
    assert [call[1] for call in cluster.calls("kubectl")] == verbs
