"""Starts the main command in forked processes that are hurt at a named phase of their work.

The product logs its phases (`step 3`, `evaluate 4`, `save 4`, `commit 4`, `whole 4`, `export NAME`)
at debug level; a logging handler in the child acts on the first that matches. Children are forked
from a server that has imported everything and used nothing, which saves their imports; their
environment is as of a new process.
"""

import dataclasses
import fnmatch
import json
import logging
import multiprocessing
import os
import pathlib
import signal
import socket
import sys
import threading
import time

from tests import xla

ROOT = pathlib.Path(__file__).parents[2]
STEPS, SAVE_EVERY, EVAL_EVERY = 8, 2, 4
ARGUMENTS = [
    f"--config={ROOT}/configs/tiny.py",
    f"--config.train.steps={STEPS}",
    f"--config.checkpoint.every={SAVE_EVERY}",
    f"--config.eval.every={EVAL_EVERY}",
    "--config.data.max_rows=64",
    "--config.data.max_length=160",
    "--config.data.template=plain",  # no process that renders has to start in each run
    "--config.train.global_batch=8",
    "--config.eval.max_examples=16",
    "--config.log.tensorboard=False",
]
LIMIT_S = 240.0
STALE = "FAULT_STALE_S"
HURT = "hurt"  # how the phases file tells of a fault


@dataclasses.dataclass(frozen=True)
class Fault:
    """At the first phase that matches `phase`, after `delay_s`: a signal, or one of ACTIONS."""

    phase: str
    action: str  # KILL, TERM, INT, or the name of an action
    delay_s: float = 0.0
    argument: float = 0.0


def _send(number: int):
    return lambda fault: os.kill(os.getpid(), number)


def _fill_disk(fault: Fault) -> None:
    """Leaves `argument` bytes free where the run is."""
    folder = pathlib.Path(os.environ["FAULT_FOLDER"])
    info = os.statvfs(folder)
    size = max(0, info.f_bavail * info.f_frsize - int(fault.argument))
    with open(folder / "filler", "wb") as handle:
        if size:
            os.posix_fallocate(handle.fileno(), 0, size)


ACTIONS = {
    "KILL": _send(signal.SIGKILL),
    "TERM": _send(signal.SIGTERM),
    "INT": _send(signal.SIGINT),
    "fill": _fill_disk,
    "sleep": lambda fault: time.sleep(fault.argument),
}


class _Hook(logging.Handler):
    """Acts once, in the thread that logs the phase, or in its own where there is a delay."""

    def __init__(self, fault: Fault | None, phases: pathlib.Path):
        super().__init__(logging.DEBUG)
        self.fault, self.phases = fault, phases

    def emit(self, record: logging.LogRecord) -> None:
        phase = record.getMessage()
        with open(self.phases, "a") as handle:
            handle.write(f"{phase}\n")
        if self.fault is None or not fnmatch.fnmatch(phase, self.fault.phase):
            return
        fault, self.fault = self.fault, None
        if fault.delay_s:
            threading.Timer(fault.delay_s, self.hurt, [fault]).start()
        else:
            self.hurt(fault)

    def hurt(self, fault: Fault) -> None:
        with open(self.phases, "a") as handle:
            handle.write(f"{HURT} {fault.action}\n")
        ACTIONS[fault.action](fault)


def _log_file(workdir: pathlib.Path) -> pathlib.Path:
    """Beside the folder that runs are in, which may have no room."""
    return workdir.parents[1] / f"{workdir.parent.name}.{workdir.name}.log"


def _child(
    arguments: list[str], fault: Fault | None, log: str, environment: dict[str, str], clock_s: float
) -> None:
    """Becomes the command."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    time.tzset()  # TZ may be among them, and was read when this process was forked
    if clock_s:
        true_time = time.time
        time.time = lambda: true_time() + clock_s
    from dft_jax import main
    from dft_jax.runtime import errors, lease

    # A killed job's folder in a bucket is its own for so long.
    lease.STALE_S = float(os.environ.get(STALE, lease.STALE_S))
    lease.RENEW_S = lease.STALE_S / 6

    product = logging.getLogger("dft_jax")
    product.setLevel(logging.DEBUG)
    product.propagate = False
    product.addHandler(_Hook(fault, pathlib.Path(f"{log}.phases")))
    sys.argv = ["dft_jax.main", *arguments]
    errors.exit_on_user_error(main.main)()


def context():
    """Where children are forked from; the server starts with the first one."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["dft_jax.main", "transformers", "grain", "orbax.checkpoint"])
    return made


def start(
    workdir: pathlib.Path,
    fault: Fault | None = None,
    *,
    arguments: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
    devices: int = 1,
    clock_s: float = 0.0,
    address: str = "",
) -> multiprocessing.Process:
    """The command in `workdir`, or at `address` in a bucket, with its log beside `workdir`."""
    flags = {
        "XLA_FLAGS": xla.flags(devices),
        "FAULT_FOLDER": str(workdir.parent),
    }
    everything = [*ARGUMENTS, f"--workdir={address or workdir}", *arguments]
    process = context().Process(
        target=_child,
        args=(everything, fault, str(_log_file(workdir)), flags | (environment or {}), clock_s),
    )
    process.start()
    return process


def wait(process: multiprocessing.Process, limit_s: float = LIMIT_S) -> int:
    """The exit code; negative for a signal. AssertionError for a process that hangs."""
    process.join(limit_s)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"still running after {limit_s} s")
    return process.exitcode


def run(workdir: pathlib.Path, fault: Fault | None = None, **options) -> int:
    """One process, from start to end."""
    return wait(start(workdir, fault, **options))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_many(
    workdir: pathlib.Path,
    count: int,
    faults: dict[int, Fault],
    environment: dict[str, str] | None = None,
    **options,
) -> list:
    """The processes of one job: two with a device each, or more; `faults` by process."""
    job = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": str(count)}
    return [
        start(
            workdir,
            faults.get(number),
            environment={**job, "JAX_PROCESS_ID": str(number), **(environment or {})},
            **options,
        )
        for number in range(count)
    ]


def phases(workdir: pathlib.Path) -> list[str]:
    file = pathlib.Path(f"{_log_file(workdir)}.phases")
    return file.read_text().splitlines() if file.exists() else []


def log(workdir: pathlib.Path) -> str:
    return _log_file(workdir).read_text()


def rows(workdir: pathlib.Path) -> list[dict]:
    """metrics.jsonl without what a clock measured."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith("speed/")} for line in lines
    ]
