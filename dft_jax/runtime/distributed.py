"""What the processes of a job settle with each other outside the programs on their devices.

It goes through JAX's coordination service, not through device collectives: those need a program
that all have compiled alike, which is just what is still in question, and on CPUs they give up when
a process comes 30 seconds late. Here a process waits for as long as the others live; one that dies
ends them (commands/cli.py: the heartbeat).
"""

import collections
import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dft_jax.runtime import errors, processes

_POLL_MS = 10_000  # of one question to the service, which is asked again
_SHOWN = 60  # characters of a value in a message
_ABSENT = "absent"

# How often each topic was settled: the service's keys can be written once only.
_rounds: collections.Counter[str] = collections.Counter()


def decided(topic: str, value: Any, decide: Callable[[list[Any]], Any]) -> Any:
    """decide([process 0's `value`, process 1's, …]), the same on every process.

    Process 0 decides. All processes call this, with the same topics in the same order. Values and
    decisions are plain JSON.
    """
    # JSON and back even where there is one process, so that a tuple is a list for any number.
    if jax.process_count() == 1:
        return _through_json(decide([_through_json(value)]))
    client = _client()
    if client is None:
        return _through_json(decide(_gathered_by_devices(value)))
    _rounds[topic] += 1
    key = f"dft_jax/{topic}/{_rounds[topic]}"
    client.key_value_set(f"{key}/{jax.process_index()}", json.dumps(value))
    if processes.is_first():
        values = []
        for number in range(jax.process_count()):
            values.append(json.loads(_wait(client, f"{key}/{number}")))
        client.key_value_set(f"{key}/decision", json.dumps(decide(values)))
    return json.loads(_wait(client, f"{key}/decision"))


def by_first(topic: str, work: Callable[[], Any]) -> Any:
    """What `work` returns, plain JSON, on every process: process 0 does it, the others wait for it.

    Raises:
      UserError: that of `work`, on every process.
    """

    def decide(_: list[Any]) -> dict[str, Any]:
        try:
            return {"result": work(), "problems": []}
        except errors.UserError as error:
            return {"result": None, "problems": error.problems}

    decision = decided(topic, None, decide)
    _end_together(decision["problems"])
    return decision["result"]


def meet(topic: str) -> None:
    """Waits until all processes are here, however far apart they come.

    For before devices meet for the first time: on CPUs that fails where one process is 30 seconds
    late, as after reading weights from a slower disk, or compiling what another had in its cache.
    """
    decided(topic, None, lambda _: None)


@contextlib.contextmanager
def together(topic: str) -> Iterator[None]:
    """Around what each process does by itself: a UserError of one of them ends all, here.

    Otherwise the others would wait for it in their next collective until the heartbeat ends them,
    with another code.

    Raises:
      UserError: with the problems of all processes, named where not all have them.
    """
    problems: list[str] = []
    try:
        yield
    except errors.UserError as error:
        if jax.process_count() == 1:
            raise
        problems = error.problems
    _end_together(decided(topic, problems, _merged))


def agree(topic: str, facts: dict[str, Any]) -> None:
    """Compares `facts` (name -> plain value) with those of the other processes.

    Raises:
      UserError: on every process alike, naming what differs, on which process, and both values.
    """
    lines = decided(topic, facts, differences)
    if lines:
        remedy = "start all of them with the same command, files and packages"
        lines = [f"the processes of this job differ: {remedy}", *lines]
    _end_together(lines)


def _end_together(problems: list[str]) -> None:
    """As errors.raise_if_any, for problems that all processes have alike.

    They leave the coordination service first, which waits for all: it lives in process 0, and
    whoever is still there when that ends is aborted, with another exit code than its own.
    """
    if problems and jax.process_count() > 1:
        # A process may have died meanwhile.
        with contextlib.suppress(Exception):
            jax.distributed.shutdown()
    errors.raise_if_any(problems)


def differences(everyone: list[dict[str, Any]]) -> list[str]:
    """What some processes have otherwise than process 0, one line for each name."""
    names: set[str] = set()
    for facts in everyone:
        names |= facts.keys()
    lines = []
    for name in sorted(names):
        values = [facts.get(name, _ABSENT) for facts in everyone]
        expected = values[0]
        others = [number for number, value in enumerate(values) if value != expected]
        if others:
            first = others[0]
            line = f"process {first} has {name} = {_shown(values[first])}"
            line += f", process 0 has {_shown(expected)}"
            if len(others) > 1:
                line += f" ({len(others)} processes differ from process 0)"
            lines.append(line)
    return lines


def _shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    if len(text) <= _SHOWN:
        return text
    return f"{text[:_SHOWN]}…"


def _merged(everyone: list[list[str]]) -> list[str]:
    """The problems of all processes, each once, with their numbers where not all have it."""
    having: dict[str, list[int]] = {}
    for number, problems in enumerate(everyone):
        for problem in problems:
            having.setdefault(problem, []).append(number)
    lines = []
    for problem, numbers in having.items():
        if len(numbers) == len(everyone):
            lines.append(problem)
        elif len(numbers) == 1:
            lines.append(f"process {numbers[0]}: {problem}")
        else:
            listed = ", ".join(str(number) for number in numbers)
            lines.append(f"processes {listed}: {problem}")
    return lines


def _client() -> Any:
    """The coordination service's client, for which JAX has no public name; perhaps None."""
    try:
        from jax._src import distributed
    except ImportError:
        return None
    return getattr(getattr(distributed, "global_state", None), "client", None)


def _wait(client: Any, key: str) -> str:
    """The value of a key, once it is there: minutes, where another process reads more data."""
    while True:
        try:
            return client.blocking_key_value_get(key, _POLL_MS)
        # Waiting is no error, as long as the others live.
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def _gathered_by_devices(value: Any) -> list[Any]:
    """The values of all processes, carried by the devices where there is no service."""
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    # Two collectives, since all processes must give arrays of one length: first the lengths.
    sizes = multihost_utils.process_allgather(np.int32(content.size)).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: content.size] = content
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def _through_json(value: Any) -> Any:
    """The value as it comes out of the service: a tuple is a list."""
    return json.loads(json.dumps(value))
