"""The filter of system calls, run instruction by instruction as the kernel does; and its numbers
against the system's own headers, where they are installed.
"""

import errno
import pathlib
import re

import pytest

from dft_jax.evals.jail import calls

ALLOW, KILL = "allow", "kill"
PID = 4711
HEADERS = {
    "x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    "aarch64": "/usr/include/asm-generic/unistd.h",
}


def answer(machine, number, argument=0, audit=None):
    """What the filter says to a call."""
    data = {0: number, 4: audit or calls.MACHINES[machine][0], 16: argument & 0xFFFFFFFF}
    steps = calls.program(machine, PID)
    place, loaded = 0, 0
    while True:
        step = steps[place]
        place += 1
        if step.code == 0x20:
            loaded = data[step.value]
        elif step.code == 0x06:
            kinds = {0x7FFF0000: ALLOW, 0x80000000: KILL}
            return kinds.get(step.value) or errno.errorcode[step.value & 0xFFFF]
        else:
            holds = loaded == step.value if step.code == 0x15 else loaded >= step.value
            place += step.then if holds else step.otherwise


@pytest.mark.parametrize("machine", calls.MACHINES)
def test_what_is_refused(machine):
    for name, number in calls.refused(machine).items():
        assert answer(machine, number) == "EPERM", name
    # io_uring, clone3, pidfd_open, landlock, the x32 numbers, and one that nobody knows yet
    for number in (425, 435, 434, 444, 0x40000000 + 39, 2**31):
        assert answer(machine, number) == "ENOSYS", number
    assert answer(machine, 439) == answer(machine, 449) == ALLOW


@pytest.mark.parametrize(
    "machine, read, kill, tgkill, prlimit",
    [("x86_64", 0, 62, 234, 302), ("aarch64", 63, 129, 131, 261)],
)
def test_what_is_allowed(machine, read, kill, tgkill, prlimit):
    assert answer(machine, read) == ALLOW
    for number in (kill, tgkill):
        assert answer(machine, number, PID) == ALLOW
        for other in (0, 1, -1, -PID, PID + 1):
            assert answer(machine, number, other) == "EPERM"
    assert answer(machine, prlimit, 0) == ALLOW and answer(machine, prlimit, PID) == "EPERM"


def test_a_call_of_another_machine_ends_the_process():
    for machine in calls.MACHINES:
        assert answer(machine, 0, audit=0x40000003) == KILL


def test_instructions_as_the_kernel_reads_them():
    assert calls.Instruction(0x15, 0xC000003E, then=1, otherwise=2).packed() == (
        b"\x15\x00\x01\x02\x3e\x00\x00\xc0"
    )


@pytest.mark.parametrize("machine", calls.MACHINES)
def test_numbers_are_those_of_the_headers(machine):
    header = pathlib.Path(HEADERS[machine])
    if not header.exists():
        pytest.skip(f"{header} is not installed")
    # The generic table calls some by the name that they have on 64 bits: __NR3264_fcntl.
    pattern = r"#define __NR(?:3264)?_(\w+)\s+(\d+)"
    known = {name: int(number) for name, number in re.findall(pattern, header.read_text())}
    found = calls.refused(machine)
    assert len(found) > 90
    for name, number in found.items():
        assert known[name] == number, name
    missing = calls.refused("x86_64").keys() - found.keys()
    assert not missing & known.keys()
