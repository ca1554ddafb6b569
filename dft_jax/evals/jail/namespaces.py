"""Fence D: starts inside.py where no file can be written, no other process and no network is seen.

Run by its path, as the first of a confined process's two interpreters. Steps are in the only order
in which they work; each comment names what goes wrong in another.
"""

import ctypes
import json
import os
import select
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
_NEW_USER = 0x10000000
# mount, cgroup, host name, System V IPC, process ids, network
_NEW = 0x20000 | 0x2000000 | 0x4000000 | 0x8000000 | 0x20000000 | 0x40000000
_RDONLY, _NOSUID, _NODEV, _BIND, _REC, _PRIVATE = 1, 2, 4, 0x1000, 0x4000, 0x40000
_DETACH = 2
_MOUNT_SETATTR = 442  # on every machine
_AT_RECURSIVE = 0x8000
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_SIGKILL = 9
_NOBODY = 65534
_CAP_SYS_ADMIN = 21
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_FAILED = 97


def main() -> None:
    """argv: what to show (JSON), then the command that runs inside."""
    spec = json.loads(sys.argv[1])
    command = sys.argv[2:]
    die_with_parent()
    # The supervisor may have died before that call.
    if os.getppid() != spec["parent"]:
        sys.exit(_FAILED)
    as_root = has_capability(_CAP_SYS_ADMIN)
    own_ids = os.getuid(), os.getgid()
    if as_root:
        check("unshare", LIBC.unshare(_NEW))
    else:
        # In one call: the user namespace gives the right to the others.
        check("unshare", LIBC.unshare(_NEW | _NEW_USER))
        map_ids(*own_ids)
    build_root(spec["base"], spec["show"])
    confine(command, as_root)


def check(what: str, result: int) -> int:
    """The result; OSError where it says that the step failed."""
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def die_with_parent() -> None:
    """A signal that kills comes when the parent ends, however it ends."""
    check("prctl", LIBC.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0))


def has_capability(number: int) -> bool:
    """Whether this process has it in effect."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> number & 1)
    return False


def map_ids(uid: int, gid: int) -> None:
    """Outside this user, inside nobody. One line each: a second is refused to whoever unshared."""
    for name, line in (
        ("setgroups", "deny"),
        ("uid_map", f"{_NOBODY} {uid} 1"),
        ("gid_map", f"{_NOBODY} {gid} 1"),
    ):
        try:
            with open(f"/proc/self/{name}", "w") as file:
                file.write(line)
        except OSError as error:
            raise OSError(error.errno, f"{name}: {error.strerror}") from error


# ---- the root folder


def build_root(base: str, show: list[str]) -> None:
    """A root that holds what is shown, all of it read-only, and nothing else.

    No /proc, which many containers refuse to mount, no /tmp, and no place that can be written.
    """
    # Else the mounts would show outside.
    mount(None, "/", None, _REC | _PRIVATE, None)
    options = b"size=1m,nr_inodes=400,mode=755"
    mount("tmpfs", base, "tmpfs", _NOSUID | _NODEV, options)
    shown: list[str] = []
    for path in sorted(show, key=len):
        is_there = any(path == other or path.startswith(f"{other}/") for other in shown)
        if os.path.lexists(path) and not is_there:
            place(path, base + path)
            shown.append(path)
    for path in _DEVICES:
        # Without `nodev`, or a device could not be opened.
        touch(base + path)
        mount(path, base + path, None, _BIND, None)
    set_attributes(base, _RDONLY | _NOSUID, recursive=False)
    os.chdir(base)
    number = _PIVOT_ROOT[os.uname().machine]
    check("pivot_root", LIBC.syscall(ctypes.c_long(number), b".", b"."))
    # The old root is now on top of the new one.
    check("umount", LIBC.umount2(b".", _DETACH))
    os.chdir("/")


def place(path: str, target: str) -> None:
    """Shows a file or folder at its own path; a link as the same link."""
    if os.path.islink(path):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        touch(target)
    # Not recursive it would be refused for a tree in which something else is mounted.
    mount(path, target, None, _BIND | _REC, None)
    # A bind ignores `read-only`, and mounting again has to repeat flags that it cannot know.
    set_attributes(target, _RDONLY | _NOSUID | _NODEV, recursive=True)


def touch(path: str) -> None:
    """An empty file to mount on."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w"):
        pass


def mount(
    source: str | None, target: str, kind: str | None, flags: int, options: bytes | None
) -> None:
    """mount(2); OSError names the target."""
    texts = [None if text is None else text.encode() for text in (source, target, kind)]
    check(f"mount {target}", LIBC.mount(*texts, ctypes.c_ulong(flags), options))


def set_attributes(target: str, attributes: int, recursive: bool) -> None:
    """mount_setattr(2), of kernel 5.12."""
    wanted = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    result = LIBC.syscall(
        ctypes.c_long(_MOUNT_SETATTR),
        ctypes.c_long(-100),
        target.encode(),
        ctypes.c_long(flags),
        wanted,
        ctypes.c_long(32),
    )
    check(f"mount_setattr {target}", result)


# ---- the process


def confine(command: list[str], as_root: bool) -> None:
    """Runs the command as process 1 of the new ids, and ends as it ends."""
    alive, alive_end = os.pipe()
    child = os.fork()
    if child:
        # Whatever this process kept open, the other side of a pipe would wait for.
        os.dup2(alive_end, 3)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 255)
    os.close(alive_end)
    if as_root:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    for capability in range(64):
        # Numbers beyond the kernel's last one are refused.
        LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    check("prctl", LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    # Again, for a change of user clears it; and the parent may be dead by now.
    die_with_parent()
    if select.select([alive], [], [], 0)[0]:
        os._exit(_FAILED)
    os.close(alive)
    os.setsid()
    # What capabilities are left end here: the user is not root, and none are inherited.
    os.execv(command[0], command)


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        print(error.args[-1], file=sys.stderr)
        os._exit(_FAILED)
