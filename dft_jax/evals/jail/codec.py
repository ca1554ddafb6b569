"""Values between the tests and the candidate, as messages of JSON with their length in front.

null, booleans and strings stand for themselves; everything else is an object with one key:

    {"i": "-1f"}        int, hexadecimal       {"l": […]}   list, t tuple, s set, z frozenset
    {"f": "0.1"}        float                  {"d": [[key, value], …]}   dict
    {"c": ["1.0", …]}   complex                {"r": [start, stop, step]}   range
    {"b": "00ff"}       bytes                  {"n": […]}   any iterator, all that it gives
    {"o": null}         anything else: on arrival an object that equals nothing

So an `int` whose class says that it equals everything arrives as its number. The reader trusts no
byte of it: whatever is not of this form is a `Malformed`.
"""

import json
import os
import re
import struct
from typing import Any

DEEPEST = 200  # levels of containers
MOST_ITEMS = 100_000  # that an iterator may give; containers have an end
# Bytes, from the candidate. HumanEval+ asks for lists of a million numbers, of some 20 bytes each.
LARGEST_REPLY = 32 * 2**20
LARGEST_REQUEST = 256 * 2**20
_HEX_INT = re.compile(r"-?[0-9a-f]+")
_HEX_BYTES = re.compile(r"([0-9a-f]{2})*")


class Malformed(Exception):
    """What was read is no value of this form, or no whole message."""


class Unsendable(Exception):
    """A value that no message holds: too deep, or endless."""


# ---- messages


def send(descriptor: int, message: Any, largest: int) -> None:
    """Writes a message; Unsendable, with nothing written, where it is larger than that."""
    content = json.dumps(message).encode()
    if len(content) > largest:
        raise Unsendable(f"{len(content)} bytes, of at most {largest}")
    # A view, because a pipe takes 64 kB at once, and what is left would be copied each time.
    rest = memoryview(struct.pack(">I", len(content)) + content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def receive(descriptor: int, largest: int) -> Any:
    """Reads a message.

    Raises:
      EOFError: the other side has ended.
      Malformed: a length beyond `largest`, of which nothing more is read; or no JSON.
    """
    (length,) = struct.unpack(">I", _read(descriptor, 4))
    if length > largest:
        raise Malformed(f"a message of {length} bytes")
    content = _read(descriptor, length)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"no JSON ({type(error).__name__})") from None


def _read(descriptor: int, length: int) -> bytes:
    parts = []
    while length:
        part = os.read(descriptor, min(length, 2**20))
        if not part:
            raise EOFError
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


# ---- values


def encode(value: Any, depth: int = 0) -> Any:
    """The value as JSON has it; of a subclass what its base class holds.

    Raises:
      Unsendable: containers nested too deeply, or an iterator without end.
    """
    if depth > DEEPEST:
        raise Unsendable(f"more than {DEEPEST} levels of containers")
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if issubclass(kind, str):
        return str.__str__(value)
    encoded = _encoded_number(kind, value)
    if encoded is None:
        encoded = _encoded_container(kind, value, depth)
    if encoded is not None:
        return encoded
    if kind.__module__ == "numpy" and getattr(value, "shape", None) == ():
        return encode(value.item(), depth + 1)
    return {"o": None}


def _encoded_container(kind: type, value: Any, depth: int) -> Any:
    """Containers and iterators; None for a value of another kind."""
    for container, tag in ((list, "l"), (tuple, "t"), (set, "s"), (frozenset, "z")):
        if issubclass(kind, container):
            return {tag: [encode(item, depth + 1) for item in container.__iter__(value)]}
    if issubclass(kind, dict):
        pairs = []
        for key, member in dict.items(value):
            pairs.append([encode(key, depth + 1), encode(member, depth + 1)])
        return {"d": pairs}
    if hasattr(kind, "__next__"):
        return {"n": _given(value, depth)}
    return None


def _encoded_number(kind: type, value: Any) -> Any:
    """Numbers, bytes and ranges; None for a value of another kind."""
    if issubclass(kind, int):
        return {"i": format(int.__index__(value), "x")}
    if issubclass(kind, float):
        return {"f": float.__repr__(value)}
    if issubclass(kind, complex):
        exact = complex.__complex__(value)
        return {"c": [repr(exact.real), repr(exact.imag)]}
    if issubclass(kind, (bytes, bytearray)):
        return {"b": bytes(memoryview(value)).hex()}
    if kind is range:
        return {"r": [format(end, "x") for end in (value.start, value.stop, value.step)]}
    return None


def _given(iterator: Any, depth: int) -> list[Any]:
    """All that an iterator gives."""
    found = []
    for item in iterator:
        if len(found) >= MOST_ITEMS:
            raise Unsendable(f"an iterator of more than {MOST_ITEMS} items")
        found.append(encode(item, depth + 1))
    return found


def decode(message: Any, depth: int = 0) -> Any:
    """The value of what `encode` made, whoever made it; Malformed for anything else."""
    if depth > DEEPEST + 1:
        raise Malformed(f"more than {DEEPEST} levels of containers")
    if message is None or isinstance(message, (bool, str)):
        return message
    if not isinstance(message, dict) or len(message) != 1:
        raise Malformed("no value")
    ((tag, content),) = message.items()
    try:
        if tag in _OF_TEXT:
            return _OF_TEXT[tag](content)
        return _decoded_container(tag, content, depth)
    except (TypeError, ValueError, OverflowError) as error:
        raise Malformed(f"no value of kind {tag!r}: {type(error).__name__}") from None


def _decoded_container(tag: str, content: Any, depth: int) -> Any:
    if tag == "o":
        return object()
    if not isinstance(content, list):
        raise Malformed("no value")
    if tag == "d":
        pairs = {}
        for key, member in content:
            pairs[decode(key, depth + 1)] = decode(member, depth + 1)
        return pairs
    if tag not in _OF_ITEMS:
        raise Malformed("no value")
    items = []
    for item in content:
        items.append(decode(item, depth + 1))
    return _OF_ITEMS[tag](items)


def _integer(text: Any) -> int:
    if not isinstance(text, str) or not _HEX_INT.fullmatch(text):
        raise ValueError
    return int(text, 16)


def _float(text: Any) -> float:
    if not isinstance(text, str) or len(text) > 40:
        raise ValueError
    return float(text)


def _complex(pair: Any) -> complex:
    real, imaginary = pair
    return complex(_float(real), _float(imaginary))


def _bytes(text: Any) -> bytes:
    if not isinstance(text, str) or not _HEX_BYTES.fullmatch(text):
        raise ValueError
    return bytes.fromhex(text)


def _range(ends: Any) -> range:
    start, stop, step = ends
    return range(_integer(start), _integer(stop), _integer(step))


_OF_TEXT = {"i": _integer, "f": _float, "c": _complex, "b": _bytes, "r": _range}
_OF_ITEMS = {"l": list, "t": tuple, "s": set, "z": frozenset, "n": iter}
