"""The process that runs a model's program: it loads it once, then answers calls of one function.

It holds two ends of pipes and nothing else. What it answers are values; whether they are right is
decided in the other process, which has the expected ones.
"""

import random
import sys
import types
from typing import Any

from . import codec

MODULE = "candidate"
_TEXT = 300  # characters of an exception


def serve(requests: int, replies: int) -> None:
    """Answers until the tests end. Messages are those of `judging.Candidate`."""
    loaded = codec.receive(requests, codec.LARGEST_REQUEST)
    space, reply = load(loaded["program"], loaded["entry_point"])
    _reply(replies, reply)
    function = space.get(loaded["entry_point"])
    while True:
        request = codec.receive(requests, codec.LARGEST_REQUEST)
        arguments = codec.decode(request["a"])
        named = codec.decode(request["k"])
        try:
            value = function(*arguments, **named)  # type: ignore[misc]
            reply = {"v": codec.encode(value)}
        except BaseException as error:
            reply = _described(error)
        _reply(replies, reply)


def load(program: str, entry_point: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The names that a program defines, and what to say of it."""
    module = types.ModuleType(MODULE)
    # dataclasses and typing look a class's module up.
    sys.modules[MODULE] = module
    space = module.__dict__
    # A program that draws gets the same numbers each time.
    random.seed(0)
    try:
        exec(compile(program, "<program>", "exec", dont_inherit=True), space)
    except BaseException as error:
        return space, _described(error)
    return space, {"v": callable(space.get(entry_point))}


def _described(error: BaseException) -> dict[str, str]:
    """An exception as its type's name and its text, neither of which has to be printable."""
    try:
        text = str(error)
    except BaseException:
        text = ""
    return {"e": str(type(error).__name__)[:_TEXT], "x": text[:_TEXT]}


def _reply(replies: int, reply: dict[str, Any]) -> None:
    try:
        codec.send(replies, reply, codec.LARGEST_REPLY)
    except (codec.Unsendable, ValueError, RecursionError, MemoryError) as error:
        codec.send(replies, _described(error), codec.LARGEST_REPLY)
