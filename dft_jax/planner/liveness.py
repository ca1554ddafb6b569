"""How much memory a traced computation holds at once, by a walk over its jaxpr.

Nothing is compiled or run. Six rules stand for what a compiler does with memory:

- element-wise operations, casts, broadcasts, slices and reshapes are fused into what reads them:
  they take no memory until a matrix product, a loop or another operation that needs its operands in
  memory reads them, or they are results;
- a result takes the place of an operand of its size that nothing reads any more, where it can be
  made in place; on accelerators a product that is added to something is made inside of the sum;
- what is made from nothing is made first, as by XLA: the zeros that loops fill or add to are there
  from the beginning;
- a loop holds its operands and its stacked results, and besides what one trip holds; a loop of one
  trip is none;
- what the computation puts into the host's memory takes none of the device's;
- what enters shard_map is gathered, in the dtype that it is cast to there; what leaves it is summed
  over devices whole, beside what it is a sum of, and cut where it is read.

Not here: what a compiler copies without need, pads, moves to another time, or makes once too often.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import jax
from jax.extend import core

from dft_jax.planner import inlining
from dft_jax.planner.operations import (
    FUSED,
    IN_PLACE,
    Array,
    Loop,
    Operation,
    Value,
    add_inside_products,
    cast_before_gathered,
    find_alike,
)

# Of an array inside of shard_map, by its shape: the share of it that lies on one device.
ShareInside = Callable[[tuple[int, ...]], float]


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a trace does not say: the share of arrays `inside` of shard_map that lies on one device,
    and whether the compiler makes a product inside of the sum that it is a part of.
    """

    inside: ShareInside = lambda shape: 1.0
    adds_inside_products: bool = False


# They read what is fused into them, without putting it into memory.
_REDUCTIONS = frozenset(
    """
    reduce reduce_sum reduce_max reduce_min reduce_and reduce_or reduce_prod argmax argmin
    """.split()
)


@dataclasses.dataclass
class _Event:
    """Arrays that are made, each with whether in place; those read; those of one trip of a loop."""

    made: list[tuple[Array, bool]]
    read: set[Array]
    inside: list[Array] = dataclasses.field(default_factory=list)


def peak(closed: core.ClosedJaxpr, inputs: Sequence[Array], rules: Rules = Rules()) -> list[Array]:
    """The arrays that are in memory when they take most, on one device.

    Args:
      closed: the computation, with the shapes that its arrays have on one device when nothing is
        sharded.
      inputs: the arrays of its arguments; `last=math.inf` keeps one to the end, else its room can
        be used again. The share of one that lies on one device is that of what lies like it.
      rules: of its compiler and its devices.
    """
    values = []
    for var, array in zip(closed.jaxpr.invars, inputs, strict=True):
        value = Value(var.aval, [array], in_memory=True)
        array.traced, traced = var.aval.shape, math.prod(var.aval.shape) * var.aval.dtype.itemsize
        if traced:
            array.share = array.n_bytes / traced
        value.like = array
        values.append(value)
    return _walk(closed.jaxpr, values, rules, is_local=False)


def total(arrays: Iterable[Array]) -> float:
    """Bytes of these arrays."""
    return sum(array.n_bytes for array in arrays)


def _walk(
    jaxpr: core.Jaxpr,
    inputs: list[Value],
    rules: Rules,
    is_local: bool,
    outside: Sequence[Value] = (),
) -> list[Array]:
    """The arrays of a computation, or of a loop's body, that are in memory at its peak.

    `outside` are a loop's results, as whoever runs the loop sees those of its body.
    """
    operations, outputs = inlining.inline(jaxpr, inputs, is_local)
    results = []
    for value, output in zip(outside, outputs, strict=False):
        if output is not None:
            results.append([value, output])
    operations = cast_before_gathered(inlining.needed(operations, outputs))
    if rules.adds_inside_products:
        operations = add_inside_products(operations, outputs)
    find_alike(operations, results)
    schedule = _Schedule(rules)
    schedule.fill(operations, outputs, is_local)
    at_peak = []
    for value in inputs:
        at_peak.extend(value.arrays)
    at_peak.extend(schedule.early)
    live = set(at_peak)
    held = most = total(at_peak)
    for number, event in enumerate(schedule.events):
        dying = [array for array in event.read if array.last == number and array in live]
        for array, in_place in event.made:
            replaced = None
            if in_place:
                replaced = _with_room_for(array, dying)
            if replaced is None:
                held += array.n_bytes
            else:
                # 0 bytes where the room is that of the surrounding computation.
                array.n_bytes = replaced.n_bytes
                array.kind = replaced.kind
                dying.remove(replaced)
                live.remove(replaced)
            live.add(array)
        if held + total(event.inside) > most:
            most, at_peak = held + total(event.inside), [*live, *event.inside]
        gone = [array for array in live if array.last <= number]
        held -= total(gone)
        live.difference_update(gone)
    return [dataclasses.replace(array) for array in at_peak if array.n_bytes]


def _with_room_for(array: Array, candidates: list[Array]) -> Array | None:
    for candidate in candidates:
        if candidate.room == array.n_bytes > 0:
            return candidate
    return None


# ---- what is in memory when


class _Schedule:
    """What is made and read, event after event; each array learns which event reads it last.

    `early` are the arrays that are made before all.
    """

    def __init__(self, rules: Rules):
        self.rules = rules
        self.events: list[_Event] = []
        self.early: list[Array] = []

    def fill(
        self, operations: list[Operation], outputs: list[Value | None], is_local: bool
    ) -> None:
        """Schedules the operations; what they give at the end is in memory, and stays."""
        for operation in operations:
            if operation.name in FUSED:
                for value in operation.outputs:
                    value.arrays = _arrays_of(operation.inputs)
            elif operation.name == "enter":
                self._enter(operation)
            elif operation.name == "leave":
                self._leave(operation)
            else:
                self._run(operation)
        results = list(filter(None, outputs))
        for value in results:
            self._store([value], is_local)
        for value in results:
            for array in value.arrays:
                array.last = math.inf

    def _run(self, operation: Operation) -> None:
        """An operation that puts its results into memory."""
        inside: list[Array] = []
        n_in_place = 0
        if operation.name in IN_PLACE:
            n_in_place = len(operation.outputs)
        if operation.name == "dynamic_update_slice":
            # The update of a slice is written where it belongs; only what it is written into has to
            # be there.
            self._store(operation.inputs[:1], operation.is_local)
        elif operation.name not in _REDUCTIONS:
            self._store(operation.inputs, operation.is_local)
        if operation.name in ("scan", "while", "cond"):
            inside, n_in_place = self._trip(operation)
        read = _arrays_of(operation.inputs)
        made = []
        for number, value in enumerate(operation.outputs):
            array = self._array(value, operation.is_local)
            array.is_stacked = operation.name == "scan" and number >= n_in_place
            value.arrays = {array}
            value.in_memory = True
            if array.is_stacked:
                self.early.append(array)
            else:
                made.append((array, number < n_in_place))
        self._add(_Event(made, read, inside))

    def _trip(self, operation: Operation) -> tuple[list[Array], int]:
        """What one trip holds beside the loop's operands and results, and how many it carries."""
        is_local = operation.is_local
        if operation.name == "cond":
            branches = core.jaxprs_in_params(operation.params)
            insides = []
            for branch in branches:
                operands = [Value(var.aval) for var in branch.invars]
                loop = Loop(branch, len(operands), 0)
                insides.append(self._body(loop, operands, operation.outputs, is_local))
            return max(insides, key=total), 0
        loop = operation.loop
        assert loop is not None, f"{operation.name} is no loop"
        inside = self._body(loop, operation.inputs, operation.outputs, is_local)
        return inside, loop.n_carried

    def _body(
        self, loop: Loop, operands: list[Value], results: list[Value], is_local: bool
    ) -> list[Array]:
        """What one trip holds.

        Constants and carried values lie outside; slices of the rest are read from there as by a
        fused operation. What `results` lie like is found here, where it was not known before.
        """
        inputs = []
        n_outside = loop.n_constants + loop.n_carried
        for number, (var, operand) in enumerate(zip(loop.body.invars, operands, strict=True)):
            value = Value(var.aval)
            value.like = operand.like
            if number < n_outside:
                outside = self._array(value, is_local)
                outside.n_bytes = 0.0
                if number < loop.n_constants:
                    outside.last = math.inf
                value.arrays, value.in_memory = {outside}, True
            inputs.append(value)
        return _walk(loop.body, inputs, self.rules, is_local, results)

    def _enter(self, operation: Operation) -> None:
        """What is sharded outside is gathered; the rest is used as it is."""
        [outside], [inside] = operation.inputs, operation.outputs
        gathered = self._array(inside, is_local=True)
        if gathered.n_bytes == self._array(outside, is_local=False).n_bytes:
            inside.arrays = outside.arrays
            inside.in_memory = outside.in_memory
        else:
            inside.arrays = {gathered}
            inside.in_memory = True
            self._add(_Event([(gathered, False)], outside.arrays))

    def _leave(self, operation: Operation) -> None:
        """What is cut outside is summed over devices first; the rest is used as it is.

        XLA sums it whole, into an array of its own, and then cuts it: it does so even where a
        reduce-scatter is asked for. What the computation was given keeps its place until then. (Of
        the head of 8B alone, compiled for 64 chips of v6e, 5.08 GiB are allocated: two float32
        arrays [V, D] of 1.96, the sum and the sum over devices, and 0.98 of the gathered head.)
        """
        inside, *given = operation.inputs
        [outside] = operation.outputs
        summed = self._array(inside, is_local=True)
        cut = self._array(outside, is_local=False)
        if cut.n_bytes >= summed.n_bytes:
            outside.arrays = inside.arrays
            outside.in_memory = inside.in_memory
            return
        self._store([inside], is_local=True)
        self._add(_Event([(summed, False)], inside.arrays | _arrays_of(given)))
        # Cut where it is read: compiled steps are as large as if the head's gradient lay whole
        # beside the layers' backward pass (the sizes alone say so).
        outside.arrays = {summed}

    def _store(self, values: list[Value], is_local: bool) -> None:
        """Puts into memory what was only to be computed so far."""
        for value in values:
            if value.in_memory:
                continue
            array = self._array(value, is_local)
            if value.arrays:
                self._add(_Event([(array, True)], value.arrays))
            else:
                self.early.append(array)
            value.arrays = {array}
            value.in_memory = True

    def _add(self, event: _Event) -> None:
        number = len(self.events)
        for array in event.read:
            array.last = max(array.last, number)
        for array, _ in event.made:
            array.last = max(array.last, number)
        self.events.append(event)

    def _array(self, value: Value, is_local: bool) -> Array:
        aval, like, share = value.aval, value.like, 1.0
        if like is not None and aval.shape != like.traced:
            # A slice: one layer's weights are gathered for use, and its gradients are whole.
            like = None
        if is_local:
            share = self.rules.inside(aval.shape)
        elif like is not None:
            share = like.share
        n_bytes = math.prod(aval.shape) * aval.dtype.itemsize * share
        if aval.memory_space == jax.memory.Space.Host:
            n_bytes = 0.0
        return Array(n_bytes, aval.shape, aval.dtype, is_whole=is_local, like=like)


def _arrays_of(values: Iterable[Value]) -> set[Array]:
    """What reading these values reads."""
    arrays: set[Array] = set()
    for value in values:
        arrays.update(value.arrays)
    return arrays
