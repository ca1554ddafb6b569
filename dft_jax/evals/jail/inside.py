"""What both confined processes run, by its path: import everything, lock, then read and work.

The candidate says that it is locked to the tests, they say so to the supervisor, and only then the
clock of the program starts.
"""

import importlib
import json
import os
import sys

if __name__ == "__main__":
    # This folder as a package of its own: dft_jax is not imported here, nor could it be.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from jail import inside  # type: ignore[import-not-found]

    inside.main()
else:
    from . import candidate, codec, fences, judging

_BROKEN = 96
LOCKED = "locked"
# What is not built in, and programs use most: read from the disk before it is out of reach on a
# slow one, and part of no program's time.
_COMMON = "bisect collections copy dataclasses datetime decimal fractions functools heapq itertools"
_COMMON += " hashlib math operator random re statistics string typing"


def main() -> None:
    """argv: the role, its descriptors and its limits (JSON)."""
    spec = json.loads(sys.argv[1])
    sys.argv = [""]
    # An int of any length is a fair answer.
    sys.set_int_max_str_digits(0)
    sys.dont_write_bytecode = True
    _import_common(spec)
    try:
        fences.lock(
            cpu_s=spec["cpu_s"],
            memory_bytes=spec["memory_bytes"],
            readable=spec["readable"],
            listable=spec["listable"],
            landlock=spec["landlock"],
            parent=spec["parent"],
        )
    except fences.Broken as error:
        print(error, file=sys.stderr)
        os._exit(_BROKEN)
    work = {"tests": _judge, "candidate": _serve, "nothing": _nothing}
    work[spec["role"]](*spec["descriptors"])


def _import_common(spec: dict) -> None:
    sys.path.pop()  # of this folder
    for name in _COMMON.split():
        importlib.import_module(name)
    if spec["packages"]:
        sys.path.append(spec["packages"])
        if spec["role"] == "tests" and spec["imports_numpy"]:
            importlib.import_module("numpy")


def _nothing() -> None:
    """To find out whether the fences can be built."""


def _serve(requests: int, replies: int) -> None:
    codec.send(replies, LOCKED, codec.LARGEST_REPLY)
    try:
        candidate.serve(requests, replies)
    except (EOFError, BrokenPipeError):
        # The tests are over.
        os._exit(0)


def _judge(job: int, requests: int, replies: int, verdicts: int) -> None:
    try:
        first = codec.receive(replies, codec.LARGEST_REPLY)
    except (EOFError, codec.Malformed):
        os._exit(_BROKEN)
    if first != LOCKED:
        os._exit(_BROKEN)
    os.write(verdicts, f"{LOCKED}\n".encode())
    with open(job, "rb") as file:
        content = json.loads(file.read())
    verdict = judging.judge(content, judging.Candidate(requests, replies))
    judging.report(verdicts, verdict)
    # Threads, exit handlers and finalisers have nothing to say any more.
    os._exit(0)
