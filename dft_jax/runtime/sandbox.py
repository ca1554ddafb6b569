"""Processes that may hang, run out of memory or die: started bare, limited, killed when late.

For work that text from outside decides: comparing a model's answers, rendering a checkpoint's chat
template. What runs here is our own code, and the guard is one more caution; programs that a model
wrote are confined by the kernel (evals/jail). An entry point runs in a new interpreter, calls
`serve` there, and answers one request at a time:

    parent                                    worker
    Worker("module:function", wall_s, ...)    function(pipe, wall_s, ...) -> serve
    give(request)                             answer(request) -> reply
    poll() -> reply, LATE, DEAD or REFUSED
"""

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from dft_jax.runtime import system

START_S = 120.0  # for a worker to import what it needs on a busy machine
# Instead of a reply: its time was over, its process died, or it tried what the guard refuses.
LATE = "late"
DEAD = "dead"
REFUSED = "refused"
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "TZ")


class Worker:
    """One process and the parent's end of its pipe.

    `request` is what the process is at work on, None for nothing. The process ends with its parent,
    however that ends, because its pipe then reads EOF.

    Args:
      entry: "module:function", called there with the pipe's number, wall_s and the arguments, all
        as text.
      wall_s: seconds for one request.
    """

    def __init__(self, entry: str, wall_s: float, *arguments: object):
        self.entry = entry
        self.wall_s = wall_s
        self.request: Any = None
        self.ready = False
        self.is_over = False
        self.deadline = time.monotonic() + START_S
        # kill() closes it.
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        self.pipe, workers_end = Pipe()
        module, function = entry.split(":")
        code = f"import sys; from {module} import {function}; {function}(*sys.argv[1:])"
        texts = [str(argument) for argument in (workers_end.fileno(), wall_s, *arguments)]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", code, *texts],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.log,
            pass_fds=[workers_end.fileno()],
            env=_environment(),
            # Ctrl-C is for the parent, which may want to finish what it does.
            start_new_session=True,
        )
        # Only the worker may hold this end: else the parent's would never read EOF when it dies.
        workers_end.close()
        self.kill = weakref.finalize(self, _end, self.process, self.pipe, self.log)

    def give(self, request: Any) -> None:
        """Sends a request, plain values, to a worker that is ready and has none."""
        self.request = request
        self.deadline = time.monotonic() + self.wall_s
        # Where the process is dead, poll() finds out.
        with contextlib.suppress(OSError):
            self.pipe.send_bytes(json.dumps(request).encode())

    def poll(self) -> Any:
        """The reply if there is one by now, else None.

        `is_over` then says whether the process has to be replaced.
        """
        message = None
        try:
            if self.pipe.poll():
                message = self.pipe.recv_bytes()
        except (EOFError, OSError):
            return self._end_as(DEAD, "did not start")
        # The first message is that it is ready, with the limits that the system does not have.
        if message is not None and not self.ready:
            self.ready = True
            _note_missing(tuple(json.loads(message)))
        elif message is not None:
            reply, self.is_over = json.loads(message)
            self.request = None
            return reply
        elif time.monotonic() > self.deadline and (self.request is not None or not self.ready):
            return self._end_as(LATE, f"did not start within {START_S:.0f} s")
        return None

    def ask(self, request: Any) -> Any:
        """Gives a request when the worker is ready; waits for its reply, LATE, DEAD or REFUSED."""
        reply = None
        while reply is None:
            if self.ready and self.request is None:
                self.give(request)
            wait([self.pipe], max(0.0, self.deadline - time.monotonic()))
            reply = self.poll()
        return reply

    def _end_as(self, outcome: str, why: str) -> str:
        """The outcome of a worker that is over; RuntimeError where it never was ready."""
        self.is_over = True
        if self.ready:
            return outcome
        self.process.kill()
        self.log.seek(0)
        last_words = self.log.read()[-2000:].decode(errors="replace")
        raise RuntimeError(f"a worker ({self.entry}) {why}:\n{last_words}")


def _environment() -> dict[str, str]:
    """The environment of a worker.

    Nothing of the parent's, where keys and tokens lie, reaches a process that reads text from
    outside.
    """
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    # sympy walks its sets in the same order in every worker.
    environment["PYTHONHASHSEED"] = "0"
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return environment


@functools.cache
def _note_missing(limits: tuple[str, ...]) -> None:
    """Once for each command: what the system does not limit in its workers."""
    for limit in limits:
        print(
            f"note: {system.name()} does not limit the {limit} of the processes that grade and"
            " that render templates; their limits of time hold",
            file=sys.stderr,
            flush=True,
        )


def _end(process: subprocess.Popen, pipe: Connection, log: Any) -> None:
    process.kill()
    process.wait()
    pipe.close()
    log.close()


# ---- what runs in a worker

_missing: list[str] = []  # of this worker: limits that the system does not have

# request -> reply, and whether this process has to be replaced after it
Answer = Callable[[Any], tuple[Any, bool]]

# Beginnings of audit events: all that acts on files, processes, the network or memory.
_REFUSED = (
    "os.system os.exec os.posix_spawn os.spawn os.fork os.forkpty os.kill os.remove os.rename"
    " os.rmdir os.mkdir os.link os.symlink os.truncate os.chmod os.chown os.putenv subprocess."
    " socket. ctypes. shutil. tempfile. ftplib. urllib. http. webbrowser. pty. smtplib."
    " code.__new__"
).split()
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Guard:
    """An audit hook that lets a worker import modules and compute, and refuses all that acts.

    `compiles` is the one name under which text may become code, where that is what the worker is
    for.
    """

    def __init__(self, compiles: str | None = None):
        self.compiles = compiles
        self.refused: list[str] = []

    def __call__(self, event: str, args: tuple) -> None:
        # Noted as well, because the code that is refused may catch the exception.
        if self.is_refused(event, args):
            self.refused.append(event)
            raise PermissionError(f"{event} is refused in a worker")

    def is_refused(self, event: str, args: tuple) -> bool:
        """Whether an audit event, with its arguments, is of something that acts."""
        if event == "compile":
            return args[0] is not None and self._is_made_up(args[1])
        if event == "exec":
            return self._is_made_up(args[0].co_filename)
        if event == "open":
            return isinstance(args[2], int) and bool(args[2] & _WRITES)
        return event.startswith(tuple(_REFUSED))

    def _is_made_up(self, name: Any) -> bool:
        """Whether code comes from no file: strings are compiled under names such as <string>."""
        if isinstance(name, bytes):
            name = name.decode(errors="replace")
        name = str(name)
        return name.startswith("<") and not name.startswith("<frozen ") and name != self.compiles


def serve(
    pipe_number: str, wall_s: str, prepare: Callable[[], Answer], compiles: str | None = None
) -> None:
    """The worker's loop: answers requests until the parent closes the pipe or is gone.

    `prepare` imports, limits the memory and returns what answers; only then is the guard set, which
    would refuse some of that.
    """
    pipe = Connection(int(pipe_number))
    system.forbid_core_dumps()
    sys.dont_write_bytecode = True
    answer = prepare()
    guard = Guard(compiles)
    sys.addaudithook(guard)
    # It is ready.
    pipe.send_bytes(json.dumps(_missing).encode())
    while True:
        try:
            request = json.loads(pipe.recv_bytes())
        except EOFError:
            return
        # Should the parent be killed while this computes, nobody would end it: the kernel does,
        # some seconds later.
        system.limit_processor_s(int(time.process_time() + 2 * float(wall_s)) + 5)
        reply, is_over = answer(request)
        if guard.refused:
            reply = REFUSED
            guard.refused.clear()
        pipe.send_bytes(json.dumps([reply, is_over]).encode())
        if is_over:
            return


def limit_memory(n_bytes: int) -> None:
    """Limits the address space of this worker; the parent says once where the system cannot."""
    if not system.limit_memory(n_bytes):
        _missing.append("memory")
