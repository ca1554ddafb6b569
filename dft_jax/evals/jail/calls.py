"""Which system calls a confined process may make, as the program of a seccomp filter.

Everything is allowed but what is listed here: what starts or touches processes, opens sockets,
changes files or their attributes, mounts, or takes memory that no limit counts. The answer is
EPERM, as a system without the call would give it: a program that tries, and catches, goes on to
fail its tests. Numbers are those of linux-libc-dev (asm/unistd_64.h, asm-generic/unistd.h).
"""

import dataclasses
import errno
import struct

# By platform.machine(): AUDIT_ARCH, and the column of the tables below.
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# name=x86_64/aarch64; `-` where a machine has no such call.
_REFUSED = """
clone=56/220 fork=57/- vfork=58/- execve=59/221 execveat=322/281 socket=41/198 socketpair=53/199
connect=42/203 bind=49/200 listen=50/201 accept=43/202 accept4=288/242 sendto=44/206
recvfrom=45/207 sendmsg=46/211 recvmsg=47/212 sendmmsg=307/269 recvmmsg=299/243
setsockopt=54/208 rt_sigqueueinfo=129/138 rt_tgsigqueueinfo=297/240 ptrace=101/117
process_vm_readv=310/270 process_vm_writev=311/271 kcmp=312/272 mount=165/40 umount2=166/39
pivot_root=155/41 chroot=161/51 unshare=272/97 setns=308/268 bpf=321/280 perf_event_open=298/241
userfaultfd=323/282 keyctl=250/219 add_key=248/217 request_key=249/218 io_setup=206/0
seccomp=317/277 personality=135/92 modify_ldt=154/- iopl=172/- ioperm=173/- memfd_create=319/279
shmget=29/194 shmat=30/196 shmctl=31/195 semget=64/190 semop=65/193 semtimedop=220/192
semctl=66/191 msgget=68/186 msgsnd=69/189 msgrcv=70/188 msgctl=71/187 mq_open=240/180
mq_unlink=241/181 chmod=90/- fchmod=91/52 fchmodat=268/53 chown=92/- fchown=93/55 lchown=94/-
fchownat=260/54 utime=132/- utimes=235/- futimesat=261/- utimensat=280/88 setxattr=188/5
lsetxattr=189/6 fsetxattr=190/7 removexattr=197/14 lremovexattr=198/15 fremovexattr=199/16
setpriority=141/140 ioprio_set=251/30 sched_setparam=142/118 sched_setscheduler=144/119
sched_setaffinity=203/122 sched_setattr=314/274 migrate_pages=256/238 move_pages=279/239
mbind=237/235 name_to_handle_at=303/264 open_by_handle_at=304/265 quotactl=179/60 acct=163/89
swapon=167/224 swapoff=168/225 reboot=169/142 kexec_load=246/104 kexec_file_load=320/294
init_module=175/105 finit_module=313/273 delete_module=176/106 syslog=103/116
settimeofday=164/170 clock_settime=227/112 adjtimex=159/171 clock_adjtime=305/266
sethostname=170/161 setdomainname=171/162 vhangup=153/58 inotify_init=253/- inotify_init1=294/26
fanotify_init=300/262 signalfd=282/- signalfd4=289/74 timerfd_create=283/85 eventfd2=290/19
lookup_dcookie=212/18 prctl=157/167 truncate=76/45 sync=162/81 syncfs=306/267
"""
# These only with one first argument: the own process (abort() and raise() need it), or 0 for it.
_OF_ITSELF = "kill=62/129 tkill=200/130 tgkill=234/131"
_OF_ZERO = "prlimit64=302/261"
# All later calls are unknown to their caller: clone3 (the C library then takes clone), io_uring,
# pidfd_*, the new mounts, whatever comes, and the x32 numbers. But faccessat2 and futex_waitv.
_FIRST_LATER = 424
_LATER_ALLOWED = (439, 449)

# struct seccomp_data: number at 0, machine at 4, arguments of 8 bytes from 16, low word first.
_NUMBER, _MACHINE, _FIRST_ARGUMENT = 0, 4, 16
# Instructions of the filter's language, and what it may answer.
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One step: where the comparison holds skip `then` steps, else `otherwise`."""

    code: int
    value: int
    then: int = 0
    otherwise: int = 0

    def packed(self) -> bytes:
        """As the kernel reads it (struct sock_filter)."""
        return struct.pack("HBBI", self.code, self.then, self.otherwise, self.value)


def numbers(table: str, column: int) -> dict[str, int]:
    """Name -> number of the calls in a table, on the machine of this column."""
    found = {}
    for entry in table.split():
        name, _, pair = entry.partition("=")
        number = pair.split("/")[column]
        if number != "-":
            found[name] = int(number)
    return found


def refused(machine: str) -> dict[str, int]:
    """Name -> number of the calls that are answered with EPERM whatever their arguments."""
    return numbers(_REFUSED, MACHINES[machine][1])


def program(machine: str, own_pid: int) -> list[Instruction]:
    """The filter of one process; only numbers are compared, so no pointer is ever read."""
    audit_number, column = MACHINES[machine]
    steps = [
        Instruction(_LOAD, _MACHINE),
        # A call of another machine's table (32 bits) has other numbers.
        Instruction(_IF_EQUAL, audit_number, then=1),
        Instruction(_RETURN, _KILL),
        Instruction(_LOAD, _NUMBER),
    ]
    for number in _LATER_ALLOWED:
        steps += _where(_IF_EQUAL, number, _ALLOW)
    steps += _where(_IF_AT_LEAST, _FIRST_LATER, _ERROR | errno.ENOSYS)
    for number in refused(machine).values():
        steps += _where(_IF_EQUAL, number, _ERROR | errno.EPERM)
    for table, only in ((_OF_ITSELF, own_pid), (_OF_ZERO, 0)):
        for number in numbers(table, column).values():
            steps += [
                Instruction(_IF_EQUAL, number, otherwise=4),
                Instruction(_LOAD, _FIRST_ARGUMENT),
                *_where(_IF_EQUAL, only, _ALLOW),
                Instruction(_RETURN, _ERROR | errno.EPERM),
            ]
    return [*steps, Instruction(_RETURN, _ALLOW)]


def _where(comparison: int, value: int, answer: int) -> list[Instruction]:
    """Answers so where the comparison holds, and goes on where it does not."""
    return [Instruction(comparison, value, otherwise=1), Instruction(_RETURN, answer)]
