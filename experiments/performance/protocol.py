"""How a contender takes turns: it works only when it is told to, and times itself. Standard library
only.

The parent writes a line to the contender's stdin, {"case": "dft", "steps": 3}, and waits for one on
its stdout,

    {"case": "dft", "steps": 3, "wall_s": 1.9, "cpu_s": 3.6, "peak_gib": 1.1, "minor_faults": 12,
    "facts": {…}}

so rounds of several processes can alternate, A B C A B C, and only one of them works at a time. The
first line that a contender writes says its versions. A trainer that owns its loop calls
`Meter.tick` before each step, from a callback or from its data iterator, and is held there.
"""

import importlib.metadata
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path


def versions(*packages: str) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in packages}


def peak_gib() -> float:
    """The most memory that this process had resident so far."""
    status = Path("/proc/self/status").read_text()
    kib = next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]
    return int(kib) / 2**20


class Meter:
    """The contender's end. `note` keeps facts for the gate, such as loss and gradient norm of the
    first step.
    """

    def __init__(self, made_of: dict[str, str]):
        # Libraries print to stdout; the answers go to a copy of it that only this object has.
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._left, self._command, self._facts = 0, None, {}
        self._say({"versions": made_of})

    def note(self, **facts) -> None:
        self._facts |= facts

    def tick(self, finish: Callable[[], None]) -> str:
        """To be called before each step: returns the case to work on; `finish` waits until earlier
        steps are done.

        At the end of a turn this answers and waits for the next one; without a next one, the
        process ends.
        """
        if self._left == 0:
            if self._command:
                finish()
                self._answer()
            line = sys.stdin.readline()
            if not line.strip():
                self._answers.close()
                sys.stderr.flush()
                os._exit(0)  # from within a trainer's loop, which would want to save and report
            self._command = json.loads(line)
            self._left = self._command["steps"]
            self._began = (time.perf_counter(), time.process_time(), self._faults())
        self._left -= 1
        return self._command["case"]

    def _answer(self) -> None:
        wall, cpu, faults = (time.perf_counter(), time.process_time(), self._faults())
        measured = dict(zip(("wall_s", "cpu_s", "minor_faults"), (wall, cpu, faults), strict=True))
        spent = {
            name: now - then
            for (name, now), then in zip(measured.items(), self._began, strict=True)
        }
        self._say({**self._command, **spent, "peak_gib": peak_gib(), "facts": self._facts})
        self._facts = {}

    def _faults(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    def _say(self, message: dict) -> None:
        self._answers.write(json.dumps(message) + "\n")
        self._answers.flush()
