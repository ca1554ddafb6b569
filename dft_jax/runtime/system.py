"""What operating systems do each in their own way: limits of a process, its memory, locks.

Linux has everything. macOS has no /proc, counts peak memory in bytes, and refuses to limit a
process's address space (CPython raises ValueError). A limit that the system lacks is left out, and
the caller learns of it. Windows has not even the modules: there the package says so and ends.
"""

import sys

if sys.platform == "win32":
    _REMEDY = "error: dft_jax runs on Linux and macOS, not on Windows itself; use WSL 2 there"
    print(_REMEDY, file=sys.stderr)
    sys.exit(2)

import contextlib
import fcntl
import platform
import re
import resource
import subprocess
from pathlib import Path
from typing import IO

NAMES = {"linux": "Linux", "darwin": "macOS"}


def name() -> str:
    """Of this system, as people write it."""
    return NAMES.get(sys.platform, sys.platform)


def limit_memory(n_bytes: int) -> bool:
    """Limits the address space of this process, beyond which Python raises MemoryError.

    Returns:
      Whether the system does it. A lower limit that was there before stays.
    """
    return _limit(resource.RLIMIT_AS, n_bytes)


def limit_processor_s(seconds: int) -> bool:
    """Lets the kernel end this process once it has computed so long; whether the system can."""
    return _limit(resource.RLIMIT_CPU, seconds, lower_hard=False)


def forbid_core_dumps() -> None:
    """A process that dies leaves no image of its memory."""
    _limit(resource.RLIMIT_CORE, 0)


def _limit(kind: int, value: int, lower_hard: bool = True) -> bool:
    """Sets a limit of this process: the hard one too, or only the soft one, which may rise again.

    Beyond the hard one, as `ulimit -t` and `ulimit -v` set it on login nodes, setrlimit raises.
    """
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    if lower_hard:
        hard = value
    try:
        resource.setrlimit(kind, (value, hard))
    except (OSError, ValueError):
        return False
    return True


def peak_kib() -> int:
    """The most memory that this process had resident at once, in KiB.

    On Linux from /proc: getrusage would count what the process held that this one was forked from.
    """
    with contextlib.suppress(OSError):
        return status_kib("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes.
    if sys.platform == "darwin":
        return peak // 1024
    return peak


def mapped_kib() -> int:
    """The address space of this process by now, in KiB: part of `limit_memory`'s; 0 if unknown."""
    with contextlib.suppress(OSError):
        return status_kib("VmSize")
    return 0


def status_kib(field: str, process: int | str = "self") -> int:
    """A number of /proc/PROCESS/status, in KiB.

    Raises:
      OSError: there is no such file, as on macOS, or the process has ended.
    """
    status = Path(f"/proc/{process}/status").read_text()
    match = re.search(rf"{field}:\s+(\d+)", status)
    # A process that has ended, but that nobody has waited for yet, has a file without memory.
    if match is None:
        raise ProcessLookupError(f"process {process} has no {field}")
    return int(match[1])


def lock(file: IO) -> None:
    """Takes the lock of an open file for as long as it is open.

    Raises:
      BlockingIOError: another process has it.
      OSError: there are no locks on this file system.
    """
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def processor() -> str:
    """What decides which machine code this processor runs: its kind, and its instructions."""
    # Linux.
    with contextlib.suppress(OSError):
        info = Path("/proc/cpuinfo").read_text()
        fields = re.findall(r"^(?:model name|flags|Features)\s*:.*", info, re.MULTILINE)
        return " ".join([platform.machine(), *sorted(set(fields))])
    # macOS.
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return f"{platform.machine()} {done.stdout.strip()}"
    return platform.machine()


def peak_gib() -> float:
    """The most memory that this process had at once, in GiB."""
    return peak_kib() / 2**20
