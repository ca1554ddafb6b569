"""Whether this machine confines programs: tried with programs that try to get out.

They take the ordinary way, one job like any other, with a file, two listeners and a process around
them that they are not to reach.
"""

import contextlib
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .extraction import CONTINUATION
from .supervisor import HERE, Jail, Job

_SLEEP_S = 0.5  # of the program that sleeps for ever
_WALL_S = 20.0  # of the others, on a busy machine
_F = "def f(x):\n    "


def failures(jail: Jail) -> list[str]:
    """What went otherwise than it has to, a line each; empty where programs are confined.

    Raises:
      Unconfined: the processes did not come to be locked.
    """
    memory = 2 * jail.memory_mb * 2**20
    with _surroundings() as env, ThreadPoolExecutor(4) as pool:
        ways = (HERE / "probes.py").read_text()
        # What is open stands in the assertion's text.
        tests = f"found = open_ways({env!r})\nassert not found, ' '.join(found)"
        jobs = {
            "ways": _job(ways, tests, entry_point="open_ways"),
            "memory": _job(f"{_F}return len(bytearray(x))", f"assert f({memory}) == {memory}"),
            "time": _job("import time\n" + _F + "time.sleep(10**6)", "f(1)", wall_s=_SLEEP_S),
            "right": _job(f"{_F}return x + 1", "assert f(1) == 2"),
            "wrong": _job(f"{_F}return x + 2", "assert f(1) == 2"),
        }
        outcomes = dict(zip(jobs, pool.map(jail.run, jobs.values()), strict=True))
    expected = {
        "ways": "correct",
        "memory": "timeout",
        "time": "timeout",
        "right": "correct",
        "wrong": "wrong",
    }
    found = []
    for name, outcome in outcomes.items():
        if outcome.verdict == expected[name]:
            continue
        if name == "ways" and outcome.verdict == "wrong":
            opened = outcome.reason.removeprefix("AssertionError: ")
            found += [f"{way} is not refused" for way in opened.split()]
        else:
            reason = f" ({outcome.reason})" if outcome.reason else ""
            found.append(f"probe of {name}: {outcome.verdict}, not {expected[name]}{reason}")
    return found


def _job(program: str, tests: str, entry_point: str = "f", wall_s: float = _WALL_S) -> Job:
    # As a prompt that nothing follows: completions are cut where a test of their own begins.
    return Job("", program, entry_point, "", tests, CONTINUATION, wall_s)


@contextlib.contextmanager
def _surroundings() -> Iterator[dict[str, Any]]:
    """Things of this user that a program could reach, were it not confined."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        # So that the mode of the file, not of the folder, is what lets it be read.
        os.chmod(folder, 0o755)
        canary = os.path.join(folder, "canary")
        with open(canary, "w") as file:
            file.write("canary")
        os.chmod(canary, 0o666)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        name = f"dft-jax-{os.getpid()}"
        unix.bind(f"\0{name}")
        unix.listen()
        victim = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL)
        stack.callback(victim.wait)
        stack.callback(victim.kill)
        yield {
            "canary": canary,
            "port": listener.getsockname()[1],
            "abstract": name,
            "victim": victim.pid,
        }
