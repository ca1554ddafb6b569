"""Runs jobs in two confined processes each, and reads their verdicts.

    supervisor ──job (sealed memory)──▶ tests ──calls──▶ candidate
               ◀──one line, a verdict──       ◀──values──

Nothing that the candidate writes reaches this process: its only pipes lead to the tests.
"""

import dataclasses
import fcntl
import functools
import json
import os
import platform
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import calls

VERDICTS = ("correct", "wrong", "no_answer", "timeout", "error")
HERE = Path(__file__).parent
# Fences that a kernel may lack; limits and the filter of system calls are always there.
LANDLOCK, NAMESPACES = "landlock", "namespaces"
START_S = 60.0  # for both processes to be locked, on a busy machine
_LOOK_S = 0.2  # between two looks at whether to stop
_LARGEST_LINE = 2**20 + 1
_SEAL_ALL, _ADD_SEALS = 0xF, 1033
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache")
_ENVIRONMENT = {"LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}


class Unconfined(Exception):
    """This machine does not confine programs, so none is run; the text says what is missing."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A completion and how it is judged; texts of a benchmark but for the first.

    `style` is one of extraction.py, `setup` runs before `tests`, which call `entry_point` by its
    name, or define `check(candidate)`.
    """

    completion: str
    prompt: str
    entry_point: str
    setup: str
    tests: str
    style: str
    wall_s: float = 10.0
    imports_numpy: bool = False  # in the tests, before they are locked


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One of VERDICTS, why, the program that was run (None: none was found), and its seconds."""

    verdict: str
    reason: str
    program: str | None
    seconds: float


class Stopped(Exception):
    """The jail was closed while a job ran."""


class Jail:
    """Runs jobs; use it as a context manager. `run` may be called from several threads at once.

    Args:
      fences: which of LANDLOCK and NAMESPACES to build; by default those of this machine.
      memory_mb: address space of each process, in MiB.
      packages: a folder of packages whose numpy programs may import; empty for none.
      folder: of the files that run inside.
      python: the interpreter; by default this one.

    Raises:
      Unconfined: another system or processor, or no fence around files.
    """

    def __init__(
        self,
        fences: Sequence[str] | None = None,
        *,
        memory_mb: int = 1024,
        packages: str = "",
        folder: Path = HERE,
        python: str = "",
    ):
        self.python = python or os.path.realpath(_interpreter())
        self.memory_mb = memory_mb
        self.packages = packages
        self.folder = folder.resolve()
        self._base = ""
        self._closing = threading.Event()
        _require_system()
        if fences is None:
            with self:
                self.fences, reasons = self._found()
        else:
            self.fences, reasons = tuple(fences), {}
        if not self.fences:
            missing = "; ".join(f"{name}: {why}" for name, why in reasons.items())
            raise Unconfined(missing or "no fence around files was asked for")

    def __enter__(self) -> "Jail":
        self._closing.clear()
        # The root of namespaces is mounted on it, and is seen by them alone.
        self._base = tempfile.mkdtemp(prefix="jail-")
        return self

    def __exit__(self, *exc: object) -> None:
        self._closing.set()
        shutil.rmtree(self._base, ignore_errors=True)

    def run(self, job: Job) -> Outcome:
        """The verdict on a job.

        Raises:
          Unconfined: the processes did not come to be locked.
          Stopped: the jail was closed meanwhile.
        """
        for attempt in (1, 2):
            running = _Running(self, job)
            try:
                outcome = running.outcome()
            finally:
                running.kill()
            if outcome is not None:
                return outcome
            # A machine that swaps may kill, or not start, a process that is not to blame.
            time.sleep(0.1 * attempt)
        raise Unconfined(f"two processes were not locked within {START_S:.0f} s: {self.why_not()}")

    def why_not(self) -> str:
        """Why a process cannot be confined with the fences that were asked for; empty if it can."""
        return self._try(self.fences)

    # ---- which fences there are

    def _found(self) -> tuple[tuple[str, ...], dict[str, str]]:
        """The fences that can be built here, and why the others cannot."""
        found = []
        reasons = {}
        for name in (LANDLOCK, NAMESPACES):
            why = self._try((name,))
            if why:
                reasons[name] = why
            else:
                found.append(name)
        return tuple(found), reasons

    def _try(self, fences: Sequence[str]) -> str:
        """What a process that has nothing to do says when it cannot be confined so; else empty."""
        if LANDLOCK in fences and not _landlock_version():
            return "absent"
        command = self._command(fences, {"role": "nothing", "descriptors": []}, 10.0)
        try:
            done = subprocess.run(
                command, env=_ENVIRONMENT, capture_output=True, timeout=START_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return type(error).__name__
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        if done.returncode == 0:
            return ""
        return lines[-1] if lines else f"ended with {done.returncode}"

    # ---- commands

    def start(self, job: Job, role: str, descriptors: Sequence[int]) -> subprocess.Popen:
        """A confined process that holds these descriptors and no others."""
        work = {"role": role, "descriptors": list(descriptors), "imports_numpy": job.imports_numpy}
        return subprocess.Popen(
            self._command(self.fences, work, job.wall_s),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=descriptors,
            env=_ENVIRONMENT,
            # Ctrl-C is for this process, which kills the others.
            start_new_session=True,
        )

    def _command(self, fences: Sequence[str], work: dict[str, Any], wall_s: float) -> list[str]:
        spec = {
            "cpu_s": int(wall_s) + 2,
            "memory_bytes": self.memory_mb * 2**20,
            "readable": self._shown(),
            "listable": [self.packages] if self.packages else [],
            "landlock": LANDLOCK in fences,
            "packages": self.packages,
            "imports_numpy": False,
            "parent": os.getpid(),
        }
        # Not isolated (-I), which would ignore the seed of hashes: sets would have another order,
        # and some programs another verdict, each time. The environment is this file's own.
        bare = [self.python, "-P", "-s", "-S", "-B"]
        command = [*bare, str(self.folder / "inside.py"), json.dumps(spec | work)]
        if NAMESPACES not in fences:
            return command
        around = {"parent": os.getpid(), "base": self._base, "show": self._shown()}
        return [*bare, str(self.folder / "namespaces.py"), json.dumps(around), *command]

    def _shown(self) -> list[str]:
        """What the processes may read: the interpreter, its libraries, numpy, and this folder."""
        prefix = os.path.dirname(os.path.dirname(self.python))
        paths = [*_SYSTEM, prefix, os.path.realpath(sys.base_prefix), str(self.folder)]
        if self.packages:
            for name in ("numpy", "numpy.libs"):
                paths.append(os.path.join(self.packages, name))
        # "/" would show everything: an interpreter right below it has no folder of its own.
        return [path for path in dict.fromkeys(paths) if path != "/"]

    def is_closing(self) -> bool:
        """Whether jobs that still run are to be given up."""
        return self._closing.is_set()


class _Running:
    """The two processes of one job, and this process's end of the pipe with the verdict."""

    def __init__(self, jail: Jail, job: Job):
        self.jail = jail
        self.job = job
        self.processes: list[subprocess.Popen] = []
        self.verdicts, verdicts_end = os.pipe()
        os.set_blocking(self.verdicts, False)
        content = _sealed(job)
        requests_out, requests_in = os.pipe()
        replies_out, replies_in = os.pipe()
        theirs = (content, verdicts_end, requests_out, requests_in, replies_out, replies_in)
        try:
            of_tests = (content, requests_in, replies_out, verdicts_end)
            self.processes.append(jail.start(job, "tests", of_tests))
            of_candidate = (requests_out, replies_in)
            self.processes.append(jail.start(job, "candidate", of_candidate))
        except BaseException:
            self.kill()
            raise
        finally:
            # Only they may hold these: else no end of a process would be an end of its pipe.
            for descriptor in theirs:
                os.close(descriptor)

    def outcome(self) -> Outcome | None:
        """Waits for the verdict; None where the processes were not locked."""
        if self._line(START_S) != b"locked":
            return None
        began = time.monotonic()
        line = self._line(self.job.wall_s)
        seconds = time.monotonic() - began
        if line is None:
            reason = f"no verdict within {self.job.wall_s:g} s"
            return Outcome("timeout", reason, None, seconds)
        try:
            content = json.loads(line)
            verdict, reason, program = content["verdict"], content["reason"], content["program"]
        except (ValueError, TypeError, KeyError):
            return Outcome("error", "the process of the tests ended", None, seconds)
        if verdict not in VERDICTS:
            return Outcome("error", "no verdict", None, seconds)
        return Outcome(verdict, str(reason), program, seconds)

    def _line(self, wait_s: float) -> bytes | None:
        """The next line; what there was where the pipe ended; None where the time was over.

        Never a read that blocks: a process may hold the pipe open and say nothing.
        """
        deadline = time.monotonic() + wait_s
        poll = select.poll()
        poll.register(self.verdicts, select.POLLIN)
        line = b""
        while not line.endswith(b"\n"):
            if self.jail.is_closing():
                raise Stopped
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            if not poll.poll(1000 * min(left, _LOOK_S)):
                continue
            # Byte for byte the first line, for the second may be there already.
            part = os.read(self.verdicts, 1 if len(line) < 16 else 2**16)
            if not part or len(line) > _LARGEST_LINE:
                return line
            line += part
        return line.removesuffix(b"\n")

    def kill(self) -> None:
        """Ends both processes, and with them all that they may have started."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
        if self.verdicts >= 0:
            os.close(self.verdicts)
            self.verdicts = -1


def _sealed(job: Job) -> int:
    """A descriptor of memory that holds the job, which nobody can change.

    A pipe holds 64 KiB, and writing more would wait for a process that may be stuck.
    """
    descriptor = os.memfd_create("job", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    content = json.dumps(dataclasses.asdict(job)).encode()
    while content:
        content = content[os.write(descriptor, content) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    fcntl.fcntl(descriptor, _ADD_SEALS, _SEAL_ALL)
    return descriptor


def _interpreter() -> str:
    # The link in a virtual environment needs files there that are not shown.
    return getattr(sys, "_base_executable", "") or sys.executable


def _require_system() -> None:
    if sys.platform != "linux":
        raise Unconfined(f"{platform.system()} has no such fences")
    if platform.machine() not in calls.MACHINES:
        known = " and ".join(calls.MACHINES)
        raise Unconfined(f"{platform.machine()}: system calls are known of {known} only")


@functools.cache
def _landlock_version() -> int:
    from . import fences

    return fences.landlock_version()
