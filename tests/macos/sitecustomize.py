"""Makes Linux lack what macOS lacks, in every Python process with this folder on its PYTHONPATH.

`resource.setrlimit` refuses the address space as macOS does, `ru_maxrss` counts bytes, there is no
/proc, what the modules `os` and `select` have on Linux alone is gone, and dft_jax.runtime.system is
told that it is on macOS. All else still sees Linux: packages choose their compiled parts by it.

It is no macOS: what Apple's file systems, linker or signals do otherwise is not here.
"""

import builtins
import functools
import io
import os
import resource
import select
import types

_setrlimit, _getrusage = resource.setrlimit, resource.getrusage


def _refuse_address_space(what, limits):
    if what == resource.RLIMIT_AS:
        raise ValueError("current limit exceeds maximum limit")  # CPython's words for EINVAL
    _setrlimit(what, limits)


def _usage_in_bytes(who):
    usage = _getrusage(who)
    return types.SimpleNamespace(ru_maxrss=usage.ru_maxrss * 1024)


def _without_proc(function):
    @functools.wraps(function)
    def call(path, *arguments, **named):
        if str(path).startswith("/proc/"):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return function(path, *arguments, **named)

    return call


resource.setrlimit, resource.getrusage, resource.prlimit = (
    _refuse_address_space,
    _usage_in_bytes,
    None,
)
io.open = builtins.open = _without_proc(builtins.open)
_LINUX_ONLY = {
    os: (
        "sched_getaffinity",
        "sched_setaffinity",
        "posix_fadvise",
        "posix_fallocate",
        "memfd_create",
        "pidfd_open",
    ),
    select: ("epoll",),
}
for _module, _names in _LINUX_ONLY.items():
    for _name in _names:
        if hasattr(_module, _name):
            delattr(_module, _name)

from dft_jax.runtime import system  # noqa: E402 — after what it uses is as on macOS

system.sys = types.SimpleNamespace(platform="darwin")
