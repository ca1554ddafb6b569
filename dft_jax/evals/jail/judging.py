"""The process that judges: it runs a benchmark's tests, in which the candidate is a call away.

The verdict goes to the supervisor as one line. It is `correct` only where every assert held and the
candidate answered at least one call; how the candidate ended is noted where it is noticed, because
tests may catch what is raised.
"""

import builtins
import json
import os
import re
import select
import types
from collections.abc import Callable
from typing import Any

from . import codec, extraction

LARGEST_VERDICT = 2**20  # bytes of the line
_TEXT = 300  # characters of a reason
_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")
# They end a loop without an error: `for a, b in zip(map(candidate, …), …)` would pass early.
_ENDS_LOOPS = (StopIteration, StopAsyncIteration)


class Ended(BaseException):
    """The candidate can answer no more; no `except Exception` of a test takes it for its own."""


class Candidate:
    """The tests' side of the two pipes."""

    def __init__(self, requests: int, replies: int):
        self.requests = requests
        self.replies = replies
        self.answered = 0
        # Why it can answer no more, as a verdict and a reason; stays whatever tests do.
        self.over: tuple[str, str] | None = None

    def load(self, program: str, entry_point: str) -> None:
        """Hands the program over.

        Raises:
          Exception: what loading it raised.
          Ended: it ended, or defines no such function.
        """
        defines = self._ask({"program": program, "entry_point": entry_point})
        if defines is not True:
            self._end("no_answer", f"the program defines no function {entry_point}")

    def call(self, *arguments: Any, **named: Any) -> Any:
        """The candidate's function, as tests see it."""
        message = {"a": codec.encode(list(arguments)), "k": codec.encode(named)}
        return self._ask(message)

    def _ask(self, message: dict[str, Any]) -> Any:
        if self.over:
            raise Ended
        # Nobody asked yet: what is there was written to be taken for an answer.
        if select.select([self.replies], [], [], 0)[0]:
            self._end("error", "the program ended, or wrote answers before it was asked")
        try:
            codec.send(self.requests, message, codec.LARGEST_REQUEST)
            reply = codec.receive(self.replies, codec.LARGEST_REPLY)
        except (OSError, EOFError):
            self._end("error", "the program's process ended")
        except codec.Malformed as error:
            self._end("error", f"the program wrote what is no answer: {error}")
        # An exception is an answer too; loading asks for none.
        self.answered += "a" in message
        if isinstance(reply, dict) and reply.keys() == {"e", "x"}:
            self._raise(str(reply["e"]), str(reply["x"])[:_TEXT])
        try:
            return codec.decode(reply["v"])
        except (codec.Malformed, RecursionError, KeyError, TypeError) as error:
            self._end("error", f"the program wrote what is no answer: {error}")

    def _end(self, verdict: str, reason: str) -> None:
        self.over = (verdict, reason)
        raise Ended

    def _raise(self, name: str, text: str) -> None:
        """An exception of the candidate, in the tests."""
        if name == "MemoryError":
            self._end("timeout", "MemoryError: its memory ran out")
        kind: Any = getattr(builtins, name, None)
        is_exception = isinstance(kind, type) and issubclass(kind, Exception)
        if not is_exception or issubclass(kind, _ENDS_LOOPS):
            raise RuntimeError(f"{name}: {text}")
        try:
            error = kind(text)
        except TypeError:  # one that wants more than a text
            error = RuntimeError(f"{name}: {text}")
        raise error


def judge(job: dict[str, Any], candidate: Candidate) -> dict[str, Any]:
    """The verdict on a job (`supervisor.Job`), its reason, and the program that was run."""
    program = extraction.code_of(job["completion"], job["prompt"], job["entry_point"], job["style"])
    if program is None:
        return _verdict("no_answer", "no program that defines the function", None)
    try:
        candidate.load(program, job["entry_point"])
        run(job, candidate.call)
    except Ended:
        pass
    except MemoryError:
        return _verdict("timeout", "the memory of the tests ran out", program)
    except BaseException as error:
        if candidate.over is None:
            return _verdict("wrong", describe(error), program)
    if candidate.over is not None:
        return _verdict(*candidate.over, program)
    if not candidate.answered:
        return _verdict("error", "the tests call no function of the program", program)
    return _verdict("correct", "", program)


def run(job: dict[str, Any], call: Callable[..., Any]) -> None:
    """The benchmark's own code, with `call` under the function's name."""
    module = types.ModuleType("tests")
    space = module.__dict__
    # The prompt may hold helpers that tests call; its own function is the candidate's.
    _execute(job["setup"], "<setup>", space)
    space[job["entry_point"]] = call
    space["candidate"] = call
    _execute(job["tests"], "<tests>", space)
    check = space.get("check")
    # MBPP 56 asks for a function of this name: it is no test of HumanEval's kind.
    if callable(check) and check is not call:
        check(call)


def _execute(text: str, name: str, space: dict[str, Any]) -> None:
    exec(compile(text, name, "exec", dont_inherit=True), space)


def describe(error: BaseException) -> str:
    """As the last line of a traceback."""
    try:
        text = str(error)
    except BaseException:
        text = ""
    # An address is another each time, and the same program has the same reason.
    text = _ADDRESS.sub("0x…", text)
    return f"{type(error).__name__}: {text}"[:_TEXT].removesuffix(": ")


def _verdict(verdict: str, reason: str, program: str | None) -> dict[str, Any]:
    return {"verdict": verdict, "reason": reason[:_TEXT], "program": program}


def report(descriptor: int, verdict: dict[str, Any]) -> None:
    """Writes the line; a program that is too long for it is left out."""
    line = json.dumps(verdict)
    if len(line) >= LARGEST_VERDICT:
        line = json.dumps(verdict | {"program": None})
    rest = f"{line}\n".encode()
    while rest:
        rest = rest[os.write(descriptor, rest) :]
