"""The processes of a job meet at process 0's port before JAX connects them there.

JAX ends a process that waits in vain with a stack trace and SIGABRT, and (0.10.2) one whose port is
taken with a segmentation fault: nothing that a command could turn into a line. So process 0 first
listens at the port itself, until all others have said who they are; then it lets them go, and JAX
has the port.
"""

import contextlib
import socket
import time
from collections.abc import Iterator

_GO = b"go\n"
_RETRY_S = 0.5  # between two attempts to reach process 0
_PORT_S = 60  # in which a process of an earlier start has to be gone from the port
_TALK_S = 5  # in which who has connected says who it is, and hangs up when it may go


class Absent(Exception):
    """Not all were there in time; the message says who was not."""


def meet(address: str, count: int, index: int, within_s: float, bind: str = "") -> None:
    """Returns on all `count` processes, once all of them have called it.

    Args:
      address: host:port of process 0, which the others connect to.
      index: of this process.
      bind: host:port at which process 0 listens; by default the port of `address`, on all of its
        addresses.

    Raises:
      Absent: some did not come within `within_s` seconds.
      OSError: of process 0, the port cannot be listened at.
    """
    if count == 1:
        return
    assert within_s > 0
    until = time.monotonic() + within_s
    if index == 0:
        _, port = split(address)
        host, port = split(bind) if bind else ("", port)
        _wait_for_all(host, port, count, until)
    else:
        _report(*split(address), _hello(count, index), until)


def split(address: str) -> tuple[str, int]:
    """Host and port; ValueError where it is not of that form. A host may stand in brackets."""
    host, _, port = address.rpartition(":")
    if not host:
        raise ValueError(f"{address!r} is not host:port")
    return host.strip("[]"), int(port)


def _hello(count: int, index: int) -> bytes:
    """What a process says of itself; of another job's processes the number is another one."""
    return f"dft_jax process {index} of {count}\n".encode()


def _wait_for_all(host: str, port: int, count: int, until: float) -> None:
    """Process 0's part."""
    indices = {_hello(count, index): index for index in range(1, count)}
    here: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as open_ones:
        with _listen(host, port, until) as listener:
            while len(here) < count - 1:
                connection = _accept(listener, until)
                if connection is None:
                    missing = sorted(set(range(1, count)) - here.keys())
                    raise Absent(f"{_listed(missing)} of {count} did not come")
                open_ones.enter_context(connection)
                # Who says anything else, as a port scanner or another job, is not waited for.
                index = indices.get(_line(connection))
                if index is not None:
                    here[index] = connection
                # One that has gone again, and may come again.
                for number in [number for number in here if _has_left(here[number])]:
                    del here[number]
        for connection in here.values():
            connection.sendall(_GO)
        # The others hang up first: whose side does that keeps the port for a minute.
        for connection in here.values():
            _line(connection)


def _listen(host: str, port: int, until: float) -> socket.socket:
    """A socket that listens; OSError where another has the port and keeps it."""
    problem = OSError()
    for _ in _left(min(until, time.monotonic() + _PORT_S)):
        try:
            return _listen_now(host, port)
        except OSError as error:
            problem = error
    raise problem


def _listen_now(host: str, port: int) -> socket.socket:
    if not host and socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    family = socket.AF_INET
    if ":" in host:
        family = socket.AF_INET6
    return socket.create_server((host, port), family=family)


def _accept(listener: socket.socket, until: float) -> socket.socket | None:
    """The next connection; None where none came in time."""
    listener.settimeout(max(0.01, until - time.monotonic()))
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        return None
    connection.settimeout(_TALK_S)
    return connection


def _line(connection: socket.socket) -> bytes:
    """What comes until the end of a line; empty where nothing does."""
    received = b""
    with contextlib.suppress(OSError):
        while not received.endswith(b"\n") and len(received) < 100:
            part = connection.recv(100)
            if not part:
                break
            received += part
    return received


def _has_left(connection: socket.socket) -> bool:
    """Whether the other side has hung up; it has nothing more to say before that."""
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(_TALK_S)


def _report(host: str, port: int, hello: bytes, until: float) -> None:
    """What the others do: say who they are until process 0 lets them go."""
    problem = "process 0 let nobody go"
    for left_s in _left(until):
        try:
            with socket.create_connection((host, port), timeout=left_s) as connection:
                connection.sendall(hello)
                connection.settimeout(left_s)
                if _line(connection) == _GO:
                    return
            problem = "process 0 was reached, but not all others came"
        except OSError as error:
            problem = f"process 0 was not reached: {error.strerror or error}"
    raise Absent(problem)


def _left(until: float) -> Iterator[float]:
    """Seconds that are left, again and again with a pause between, while there are any."""
    while until > time.monotonic():
        yield until - time.monotonic()
        time.sleep(max(0.0, min(_RETRY_S, until - time.monotonic())))


def _listed(indices: list[int]) -> str:
    """'process 3', or 'processes 1, 2, 5 and 40 more'."""
    if len(indices) == 1:
        return f"process {indices[0]}"
    shown = ", ".join(str(index) for index in indices[:8])
    more = ""
    if len(indices) > 8:
        more = f" and {len(indices) - 8} more"
    return f"processes {shown}{more}"
