"""The fences that a process builds around itself: limits, no capabilities, Landlock, seccomp.

`lock` is called when all modules are imported and all descriptors are open, and before a byte of a
model's text is read. Nothing here can be undone by the process.
"""

import ctypes
import os
import platform
import resource
import struct
from collections.abc import Sequence
from typing import Any

from . import calls

LIBC = ctypes.CDLL(None, use_errno=True)
_PR_CAPBSET_DROP, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 24, 22, 38
_PR_SET_PDEATHSIG, _SIGKILL = 1, 9
_SECCOMP_MODE_FILTER = 2
_CAPABILITIES_VERSION = 0x20080522
_LAST_CAPABILITY = 63
# Landlock's calls have the same numbers on every machine.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION = 1
_RULE_PATH = 1
_READ_FILE, _READ_DIR = 4, 8
_OPEN_PATH = os.O_PATH | os.O_CLOEXEC if hasattr(os, "O_PATH") else 0
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


class Broken(Exception):
    """A fence that cannot be built: nothing may run here."""


def lock(
    *,
    cpu_s: int,
    memory_bytes: int,
    readable: Sequence[str],
    listable: Sequence[str],
    landlock: bool,
    parent: int,
) -> None:
    """Confines this process for good.

    Args:
      cpu_s: seconds of processor time; then the kernel kills it.
      memory_bytes: its address space.
      readable: files and folders that it may read from.
      listable: folders that it may list, without reading what is in them.
      landlock: whether the kernel has it (and then it has to work).
      parent: the process with which this one ends.

    Raises:
      Broken: a fence that did not come to stand.
    """
    limit(cpu_s, memory_bytes)
    drop_capabilities()
    end_with_parent(parent)
    call("no new privileges", LIBC.prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if landlock:
        confine_files(readable, listable)
    filter_calls()


def call(what: str, function: Any, *arguments: Any) -> int:
    """The result of a C function, which is -1 where it failed; Broken then, with the reason."""
    result = function(*(_as_c(argument) for argument in arguments))
    if result < 0:
        raise Broken(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _as_c(argument: Any) -> Any:
    # An int of Python goes as 32 bits, and a call with six arguments reads 64 of each.
    if isinstance(argument, int):
        return ctypes.c_long(argument)
    return argument


def limit(cpu_s: int, memory_bytes: int) -> None:
    """Fence A. NPROC is not among them: it counts a user's processes; the filter forbids all."""
    limits = {
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 32,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_STACK: 8 * 2**20,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for kind, value in limits.items():
        # Login nodes set lower ones, which only root could raise.
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(kind, (value, value))


def end_with_parent(parent: int) -> None:
    """A signal that kills comes when the parent ends, were it killed itself; the filter forbids to
    undo it.
    """
    call("end with parent", LIBC.prctl, _PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    # In a namespace of ids the parent is outside, as 0, and namespaces.py has seen to it.
    if os.getppid() not in (0, parent):
        raise Broken("the parent has ended")


def drop_capabilities() -> None:
    """Root without namespaces keeps its number, to read an interpreter below /root; no power."""
    if os.geteuid() != 0:
        return
    for capability in range(_LAST_CAPABILITY + 1):
        # Numbers beyond the kernel's last one are refused.
        LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    header = struct.pack("Ii", _CAPABILITIES_VERSION, 0)
    call("capabilities", LIBC.capset, header, bytes(24))


# ---- Landlock


def landlock_version() -> int:
    """Of the kernel's Landlock; 0 where there is none."""
    version = LIBC.syscall(
        ctypes.c_long(_CREATE_RULESET), None, ctypes.c_long(0), ctypes.c_long(_ASK_VERSION)
    )
    return max(0, version)


def confine_files(readable: Sequence[str], listable: Sequence[str]) -> None:
    """Fence C: reads there, and nothing else of any file; no network, no signals outward."""
    version = landlock_version()
    files = 0x1FFF  # all that the first version knows: execute, write, read, list, make, remove
    network = 0
    scoped = 0
    # refer, truncate, control of devices
    for since, bit in ((2, 13), (3, 14), (5, 15)):
        if version >= since:
            files |= 1 << bit
    attributes = struct.pack("Q", files)
    if version >= 4:
        network = 3  # bind and connect of TCP
        attributes = struct.pack("QQ", files, network)
    if version >= 6:
        scoped = 3  # abstract unix sockets and signals stay among the confined
        attributes = struct.pack("QQQ", files, network, scoped)
    rules = call("Landlock", LIBC.syscall, _CREATE_RULESET, attributes, len(attributes), 0)
    for path in (*readable, *_DEVICES):
        _allow(rules, path, _READ_FILE | _READ_DIR)
    for path in listable:
        _allow(rules, path, _READ_DIR)
    call("Landlock", LIBC.syscall, _RESTRICT_SELF, rules, 0)
    os.close(rules)


def _allow(rules: int, path: str, access: int) -> None:
    if not os.path.exists(path):
        return
    if not os.path.isdir(path):
        access &= _READ_FILE
    place = os.open(path, _OPEN_PATH)
    rule = struct.pack("=Qi", access, place)
    call(f"Landlock, {path}", LIBC.syscall, _ADD_RULE, rules, _RULE_PATH, rule, 0)
    os.close(place)


# ---- seccomp


class _Filter(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]


def filter_calls() -> None:
    """Fence B, the last one: it forbids building any other."""
    machine = platform.machine()
    if machine not in calls.MACHINES:
        raise Broken(f"seccomp: no table of system calls for {machine}")
    steps = calls.program(machine, os.getpid())
    packed = b"".join(step.packed() for step in steps)
    # ctypes keeps the bytes alive while the structure is.
    wanted = _Filter(len(steps), packed)
    call(
        "seccomp",
        LIBC.prctl,
        _PR_SET_SECCOMP,
        _SECCOMP_MODE_FILTER,
        ctypes.byref(wanted),
        0,
        0,
    )
