"""Values between tests and candidate: there and back, liars, and bytes that nobody should trust."""

import json
import math
import os
import struct
import sys

import numpy as np
import pytest

from dft_jax.evals.jail import codec


class Everything(int):
    def __eq__(self, other):
        return True

    __hash__ = int.__hash__

    def __index__(self):
        return 7

    def __repr__(self):
        return "7"


class Text(str):
    def __str__(self):
        return "other"


class Items(list):
    def __iter__(self):
        return iter([7])


VALUES = [
    None,
    True,
    False,
    0,
    -(10**400),
    0.1,
    -0.0,
    math.inf,
    2 - 3j,
    "é\ud800\0",
    b"\x00\xff",
    [1, [2, (3,)], {}],
    (),
    {1: "a", (2, 3): [None], "k": {4}},
    set(),
    frozenset({1, 2}),
    range(5, -5, -2),
]


def there_and_back(value):
    left, right = os.pipe()
    codec.send(right, codec.encode(value), codec.LARGEST_REPLY)
    found = codec.decode(codec.receive(left, codec.LARGEST_REPLY))
    os.close(left)
    os.close(right)
    return found


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_there_and_back(value):
    found = there_and_back(value)
    assert found == value and type(found) is type(value)
    assert math.copysign(1, found) == math.copysign(1, value) if value == 0.0 else True


def test_what_lies_arrives_as_what_it_holds():
    assert type(there_and_back(Everything(3))) is int and there_and_back(Everything(3)) == 3
    assert there_and_back(Text("own")) == "own"
    assert there_and_back(Items([1, 2])) == [1, 2]
    assert there_and_back(np.float64(1.5)) == 1.5 and there_and_back(np.int64(3)) == 3
    assert math.isnan(there_and_back(math.nan))
    assert list(there_and_back(x for x in (1, 2))) == [1, 2]
    one = there_and_back(Ellipsis)
    assert type(one) is object and one != Ellipsis


@pytest.fixture
def deep():
    """Room for calls that are checked, of which each takes several frames."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)
    yield
    sys.setrecursionlimit(limit)


def test_what_has_no_end_is_not_sent(deep, monkeypatch):
    monkeypatch.setattr(codec, "MOST_ITEMS", 1000)
    endless = []
    endless.append(endless)
    with pytest.raises(codec.Unsendable):
        codec.encode(endless)
    with pytest.raises(codec.Unsendable):
        codec.encode(iter(int, 1))
    with pytest.raises(codec.Unsendable):
        codec.send(-1, "x" * 100, 10)
    # What is there already has an end.
    assert len(codec.encode([0] * 2000)["l"]) == 2000


def test_a_million_numbers_are_a_reply():
    """Tests of HumanEval+ (problems 100 and 130) ask for as many."""
    for message in (codec.encode([10**6 + 2] * 10), codec.encode([10.0**6 + 0.5] * 10)):
        assert 10**5 * len(json.dumps(message)) < codec.LARGEST_REPLY


NO_VALUES = [
    1,
    1.5,
    [],
    {},
    {"i": 1},
    {"i": "1_0"},
    {"i": " 1"},
    {"i": "zz"},
    {"f": "one"},
    {"f": 1},
    {"c": ["1"]},
    {"b": "0"},
    {"r": ["1", "2", "0"]},
    {"l": None},
    {"l": "ab"},
    {"l": [1]},
    {"d": [[None]]},
    {"d": [[{"l": []}, None]]},
    {"s": [{"l": []}]},
    {"x": []},
    {"i": "1", "f": "1"},
]


@pytest.mark.parametrize("message", NO_VALUES, ids=repr)
def test_what_is_no_value_is_refused(message):
    with pytest.raises(codec.Malformed):
        codec.decode(message)


def test_depth_is_bounded(deep):
    message = {"l": []}
    for _ in range(codec.DEEPEST + 5):
        message = {"l": [message]}
    with pytest.raises(codec.Malformed):
        codec.decode(message)


@pytest.mark.parametrize(
    "content, error",
    [
        (struct.pack(">I", codec.LARGEST_REPLY + 1), codec.Malformed),
        (struct.pack(">I", 10) + b"{}", EOFError),
        (b"\0\0", EOFError),
        (struct.pack(">I", 2) + b"{]", codec.Malformed),
        (struct.pack(">I", 60_000) + b"[" * 60_000, codec.Malformed),
        (struct.pack(">I", 1) + b"\xff", codec.Malformed),
    ],
)
def test_bytes_that_are_no_message(content, error):
    left, right = os.pipe()
    os.write(right, content)
    os.close(right)
    with pytest.raises(error):
        codec.receive(left, codec.LARGEST_REPLY)
    os.close(left)
