"""The program of the self-test: run as a model's program is, it tries every way out.

It is not imported but read, and given to the jail like any other program.
"""

import contextlib
import ctypes
import errno
import os
import resource
import socket
import threading
from typing import Any

Env = dict[str, Any]  # as in selftest.py
LIBC = ctypes.CDLL(None, use_errno=True)
_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x20000
_PTRACE_ATTACH = 16


def read_canary(env: Env) -> None:
    with open(env["canary"]) as file:
        file.read()


def write_canary(env: Env) -> None:
    # What may be opened may be emptied, whatever the limits say of writing.
    os.close(os.open(env["canary"], os.O_WRONLY))


def chmod_canary(env: Env) -> None:
    os.chmod(env["canary"], 0o666)


def connect(env: Env) -> None:
    socket.create_connection(("127.0.0.1", env["port"]), 2).close()


def connect_unix(env: Env) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.connect("\0" + env["abstract"])


def fork(env: Env) -> None:
    if not os.fork():
        os._exit(0)


def execute(env: Env) -> None:
    # A file that is not there: where exec is allowed, the answer is that.
    try:
        os.execv("/no/such/file", ["file"])
    except FileNotFoundError:
        return


def thread(env: Env) -> None:
    try:
        threading.Thread(target=int).start()
    except RuntimeError as error:
        raise PermissionError from error


def signal_another(env: Env) -> None:
    os.kill(env["victim"], 0)


def trace_another(env: Env) -> None:
    _refused(LIBC.ptrace(_PTRACE_ATTACH, env["victim"], 0, 0))


def mount(env: Env) -> None:
    _refused(LIBC.mount(b"none", b"/usr", b"tmpfs", 0, None))


def unshare(env: Env) -> None:
    _refused(LIBC.unshare(_NEW_USER | _NEW_MOUNTS))


def raise_limit(env: Env) -> None:
    """Where a limit is unlimited there is nothing to raise: it should not be."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard + 1, hard + 1))
    except ValueError as error:
        raise PermissionError from error


def become_another(env: Env) -> None:
    os.setuid(1 if os.getuid() == 0 else 0)


def outlive_parent(env: Env) -> None:
    _refused(LIBC.prctl(1, 0, 0, 0, 0))


def know_environment(env: Env) -> None:
    if set(os.environ) <= {"LANG", "LC_CTYPE", "PYTHONHASHSEED", "OPENBLAS_NUM_THREADS"}:
        raise PermissionError


def hold_descriptors(env: Env) -> None:
    held = []
    for number in range(3, 256):
        with contextlib.suppress(OSError):
            os.fstat(number)
            held.append(number)
    # Its own two ends of pipes.
    if len(held) <= 2:
        raise PermissionError


def _refused(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, errno.errorcode.get(number, "unknown"))


WAYS = (
    read_canary,
    write_canary,
    chmod_canary,
    connect,
    connect_unix,
    thread,
    signal_another,
    trace_another,
    mount,
    unshare,
    raise_limit,
    become_another,
    outlive_parent,
    know_environment,
    hold_descriptors,
    execute,
    fork,
)


def open_ways(env: Env) -> list[str]:
    """Names of the ways that were not refused."""
    found = []
    for way in WAYS:
        try:
            way(env)
        except OSError:
            continue
        found.append(way.__name__)
    return found
