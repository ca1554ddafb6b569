"""Process 0 lets the others go once all of them have come, whoever else knocks."""

import socket
import threading
import time

import pytest

from dft_jax.runtime import meeting
from tests.faults import launch


def start(address, count, index, within_s=10.0):
    """(thread, outcomes): the outcome is None, or what was raised."""
    outcomes = []

    def run():
        try:
            outcomes.append(meeting.meet(address, count, index, within_s))
        except (meeting.Absent, OSError) as error:
            outcomes.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcomes


def finish(started):
    thread, outcomes = started
    thread.join(20)
    assert not thread.is_alive()
    return outcomes[0]


@pytest.fixture
def address():
    return f"127.0.0.1:{launch.free_port()}"


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0)])
def test_all_go_when_the_last_has_come(order, address):
    started = [start(address, 4, index) for index in order[:3]]
    time.sleep(0.7)
    assert not any(outcomes for _, outcomes in started), "one did not wait"
    started.append(start(address, 4, order[3]))
    assert [finish(one) for one in started] == [None] * 4
    # The port is free for JAX, at once.
    _, port = meeting.split(address)
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_strangers_and_other_jobs_are_not_counted(address):
    first = start(address, 3, 0)
    time.sleep(0.2)
    for words in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"dft_jax process 2 of 4\n",
        b"dft_jax process 7 of 3\n",
        b"",
    ):
        with socket.create_connection(("127.0.0.1", meeting.split(address)[1])) as stranger:
            stranger.sendall(words)
    others = [start(address, 3, index) for index in (1, 2)]
    assert [finish(one) for one in (first, *others)] == [None] * 3


def test_one_that_leaves_again_is_waited_for(address):
    """A launcher started it anew."""
    first = start(address, 3, 0)
    time.sleep(0.2)
    with socket.create_connection(("127.0.0.1", meeting.split(address)[1])) as gone:
        gone.sendall(b"dft_jax process 1 of 3\n")
        time.sleep(0.2)
    second = start(address, 3, 2)
    time.sleep(0.7)
    assert not first[1] and not second[1]
    assert [finish(one) for one in (start(address, 3, 1), first, second)] == [None] * 3


def test_who_did_not_come_is_named_on_both_sides(address):
    started = [start(address, 12, index, 1.0) for index in (0, 3)]
    said = [str(finish(one)) for one in started]
    assert said[0] == "processes 1, 2, 4, 5, 6, 7, 8, 9 and 2 more of 12 did not come"
    assert said[1].startswith("process 0 was ")


def test_a_port_that_becomes_free_is_taken(address):
    """That of an earlier start, whose process 0 is still going."""
    _, port = meeting.split(address)
    with socket.create_server(("127.0.0.1", port)):
        started = [start(address, 2, 0)]
        time.sleep(0.7)
        assert not started[0][1]
    started.append(start(address, 2, 1))
    assert [finish(one) for one in started] == [None] * 2


@pytest.mark.parametrize(
    "text, expected",
    [("h:1", ("h", 1)), ("[::]:5", ("::", 5)), ("fe80::1:80", ("fe80::1", 80))],
)
def test_addresses_are_host_and_port(text, expected):
    assert meeting.split(text) == expected


@pytest.mark.parametrize("text", ["h", "h:", ":1", "h:x"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ValueError):
        meeting.split(text)
