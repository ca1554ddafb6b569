"""Workers: what becomes of a request when the process hangs, dies, fills its memory or acts."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from dft_jax.runtime import sandbox, system
from tests.marks import slow_but

ROOT = pathlib.Path(__file__).parents[2]
ENTRY = "tests.runtime.test_sandbox:serve"


def serve(pipe_number, wall_s, megabytes):
    """The entry point of the workers here: requests name what to do."""

    def prepare():
        sandbox.limit_memory(system.mapped_kib() * 1024 + int(megabytes) * 2**20)
        return lambda request: (_do(*request), False)

    sandbox.serve(pipe_number, wall_s, prepare, compiles="<ours>")


def _do(what, argument):
    try:
        match what:
            case "echo":
                return argument
            case "hang":
                return 10 ** (10**argument)
            case "die":
                os.abort()
            case "fill":
                return len(bytearray(argument))
            case "environment":
                return dict(os.environ)
            case "write":
                pathlib.Path(argument).touch()
            case "start":
                subprocess.Popen([argument])
            case "compile":
                return len(compile("1", argument, "exec").co_code)
    except Exception as error:
        return type(error).__name__
    return "done"


@pytest.fixture
def worker():
    worker = sandbox.Worker(ENTRY, 1.0, 200)
    yield worker
    worker.kill()


def test_requests_are_answered_one_by_one(worker):
    for value in ["text \ud800 \x00", 3, [1, None], {"a": 1.5}]:
        assert worker.ask(["echo", value]) == value
    assert worker.request is None and not worker.is_over


def test_a_late_worker_is_over(worker):
    assert worker.ask(["echo", 1]) == 1
    start = time.monotonic()
    assert worker.ask(["hang", 9]) == sandbox.LATE and worker.is_over
    assert 1 <= time.monotonic() - start < 3
    worker.kill()
    worker.kill()  # a second time changes nothing
    assert worker.process.returncode == -signal.SIGKILL


def test_a_dead_worker_is_over(worker):
    assert worker.ask(["die", 0]) == sandbox.DEAD and worker.is_over


def test_memory_is_limited(worker):
    assert worker.ask(["fill", 100 * 2**20]) == 100 * 2**20
    assert worker.ask(["fill", 300 * 2**20]) == "MemoryError"


def test_whoever_tries_to_act_is_refused(worker, tmp_path):
    """Whatever the answer, and only that request."""
    for request in (
        ["write", str(tmp_path / "canary")],
        ["start", "true"],
        ["compile", "<string>"],
    ):
        assert worker.ask(request) == sandbox.REFUSED
    assert isinstance(worker.ask(["compile", "<ours>"]), int) and worker.ask(["echo", 1]) == 1
    assert not list(tmp_path.iterdir())


def test_nothing_of_the_environment_gets_there(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    worker = sandbox.Worker(ENTRY, 1.0, 200)
    names = worker.ask(["environment", None]).keys()
    assert names - {"LC_CTYPE"} <= {"PATH", "LD_LIBRARY_PATH", "TZ", "PYTHONHASHSEED", "PYTHONPATH"}
    block = pathlib.Path(f"/proc/{worker.process.pid}/environ")
    assert not block.exists() or "hf_secret" not in block.read_text()
    worker.kill()


def test_a_worker_that_does_not_start_says_why():
    worker = sandbox.Worker("tests.runtime.test_sandbox:no_such_function", 1.0)
    with pytest.raises(
        RuntimeError, match=r"(?s)did not start.*cannot import name 'no_such_function'"
    ):
        worker.ask(1)


@pytest.mark.parametrize("at_work", slow_but([False], [False, True]))
def test_workers_end_with_their_parent(at_work):
    """Also when it is killed; one that is at work has until twice its time and a little more."""
    code = (
        "import sys, time; from dft_jax.runtime import sandbox\n"
        "w = sandbox.Worker(sys.argv[1], 0.5, 200); w.ask(['echo', 1])\n"
    )
    code += "w.give(['hang', 9]) if sys.argv[2] == 'True' else None\n"
    code += "print(w.process.pid, flush=True); time.sleep(100)"
    command = [sys.executable, "-c", code, ENTRY, str(at_work)]
    parent = subprocess.Popen(
        command, stdout=subprocess.PIPE, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 60  # its time is that of its processor
    while is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(worker)


def is_alive(process):
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1][0] not in "ZX"
    except OSError:
        return False
