"""How much memory a traced computation holds at once, by a walk over its jaxpr.

Nothing is compiled or run. Four rules stand for what a compiler does with memory:

- element-wise operations, casts, broadcasts, slices and reshapes are fused into what reads them:
  they take no memory until a matrix product, a loop or another operation that needs its operands in
  memory reads them, or they are results;
- a result takes the place of an operand of its size that nothing reads any more, where it can be
  made in place;
- what is made from nothing is made first, as by XLA: the zeros that loops fill or add to are there
  from the beginning;
- a loop holds its operands and its stacked results, and besides what one trip holds; a loop of one
  trip is none.

Not here: what a compiler copies without need, pads, moves to another time, or makes once too often.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jax.extend import core

from dft_jax.planner.shares import Shares

# Operations that are computed where their results are read.
_FUSED = frozenset(
    """
    abs add add_any and axis_index bitcast_convert_type broadcast_in_dim ceil clamp concatenate
    convert_element_type copy cos div dynamic_slice eq erf exp exp2 expand_dims expm1 floor ge gt
    integer_pow iota is_finite le log log1p logistic lt max min mul name ne neg not
    or pad pow random_bits random_fold_in random_seed random_unwrap
    random_wrap reduce_precision rem reshape reshard rev round rsqrt select_n sharding_constraint
    shift_right_logical sign sin slice split sqrt square squeeze stack stop_gradient sub tanh
    transpose xor
    """.split()
)
# They read what is fused into them, without putting it into memory.
_REDUCTIONS = frozenset(
    """
    reduce reduce_sum reduce_max reduce_min reduce_and reduce_or reduce_prod argmax argmin
    """.split()
)
# Their results take the place of operands.
_IN_PLACE = frozenset("""scatter scatter-add dynamic_update_slice psum pmax pmin""".split())
# Calls whose inside is part of what surrounds them.
_CALLS = frozenset(
    """jit pjit remat2 checkpoint shard_map closed_call core_call custom_jvp_call
    custom_vjp_call""".split()
)


@dataclasses.dataclass(eq=False)
class Array:
    """Memory on one device, and the `room` in it for a result that takes its place.

    The two differ for what lies outside a loop's body: it takes nothing there and has room.
    """

    n_bytes: float
    shape: tuple[int, ...]
    dtype: Any
    # Of an argument; what takes its place has the same.
    kind: str = ""
    # Inside shard_map, where no rule of sharding cuts it further.
    is_whole: bool = False
    # One slice for each trip of a loop.
    is_stacked: bool = False
    # By default as much as it takes.
    room: float | None = None
    # The event that reads it last.
    last: float = -1

    def __post_init__(self):
        if self.room is None:
            self.room = self.n_bytes


class _Value:
    """A variable: in memory, or to be computed from `arrays` when it is read."""

    def __init__(self, aval: Any, arrays: Iterable[Array] = (), in_memory: bool = False):
        self.aval = aval
        self.arrays = set(arrays)
        self.in_memory = in_memory


@dataclasses.dataclass
class _Loop:
    """The body of a loop; its operands are constants, then carried values, then slices."""

    body: core.Jaxpr
    n_constants: int
    n_carried: int


@dataclasses.dataclass
class _Operation:
    """An equation of the jaxpr, or of one inside it; `is_local` means inside shard_map."""

    name: str
    params: Mapping[str, Any]
    inputs: list[_Value]
    outputs: list[_Value]
    is_local: bool
    loop: _Loop | None = None


@dataclasses.dataclass
class _Event:
    """Arrays that are made, each with whether in place; those read; those of one trip of a loop."""

    made: list[tuple[Array, bool]]
    read: set[Array]
    inside: list[Array] = dataclasses.field(default_factory=list)


def peak(closed: core.ClosedJaxpr, inputs: Sequence[Array], shares: Shares) -> list[Array]:
    """The arrays that are in memory when they take most, on one device.

    Args:
      closed: the computation, with the shapes that its arrays have on one device when nothing is
        sharded.
      inputs: the arrays of its arguments; `last=math.inf` keeps one to the end, else its room can
        be used again.
      shares: how much of an array lies on one device.
    """
    values = []
    for var, array in zip(closed.jaxpr.invars, inputs, strict=True):
        values.append(_Value(var.aval, [array], in_memory=True))
    return _walk(closed.jaxpr, values, shares, is_local=False)


def total(arrays: Iterable[Array]) -> float:
    """Bytes of these arrays."""
    return sum(array.n_bytes for array in arrays)


def _walk(jaxpr: core.Jaxpr, inputs: list[_Value], shares: Shares, is_local: bool) -> list[Array]:
    """The arrays of a computation, or of a loop's body, that are in memory at its peak."""
    operations: list[_Operation] = []
    outputs = _inline(jaxpr, inputs, operations, is_local, {})
    schedule = _Schedule(shares)
    schedule.fill(_needed(operations, outputs), outputs, is_local)
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


# ---- the computation as one list of operations

_Casts = dict[Any, list[_Value]]  # (operand, dtype) -> its result


def _inline(
    jaxpr: core.Jaxpr,
    inputs: list[_Value],
    operations: list[_Operation],
    is_local: bool,
    casts: _Casts,
) -> list[_Value | None]:
    """Appends the operations of `jaxpr` and of the calls in it.

    Returns:
      Its results, None for literals.
    """
    values: dict[Any, Any] = dict(zip(jaxpr.invars, inputs, strict=True))
    for var in jaxpr.constvars:
        values[var] = _Value(var.aval, in_memory=True)

    for equation in jaxpr.eqns:
        name, operands = equation.primitive.name, _read(values, equation.invars)
        if name in _CALLS:
            if name == "shard_map" and not is_local:
                # Each device gets the whole of what its computation reads.
                operands = _entered(operands, operations)
            [body] = core.jaxprs_in_params(equation.params)
            is_body_local = is_local or name == "shard_map"
            results = _inline(body, _filled(equation, operands), operations, is_body_local, casts)
        elif name == "scan" and equation.params["length"] == 1:
            results = _inline_scan(equation, operands, operations, is_local, casts)
        elif name == "optimization_barrier":
            # It says when something is made, not of what.
            results = _filled(equation, operands)
        elif name == "convert_element_type":
            results = _inline_cast(equation, operands, operations, is_local, casts)
        else:
            results = _append(equation, operands, operations, is_local)
        for var, result in zip(equation.outvars, results, strict=True):
            values[var] = result
    return _read(values, jaxpr.outvars)


def _read(values: dict[Any, Any], variables: Iterable[Any]) -> list[_Value | None]:
    """What the variables stand for; None for literals."""
    found: list[_Value | None] = []
    for var in variables:
        if isinstance(var, core.Literal):
            found.append(None)
        else:
            found.append(values[var])
    return found


def _append(
    equation: Any, operands: list[_Value | None], operations: list[_Operation], is_local: bool
) -> list[_Value]:
    """Appends an operation as it is; returns its results."""
    name = equation.primitive.name
    results = [_Value(var.aval) for var in equation.outvars]
    loop = None
    if name in ("scan", "while"):
        loop = _loop(equation)
    inputs = list(filter(None, operands))
    operations.append(_Operation(name, equation.params, inputs, results, is_local, loop))
    return results


def _inline_cast(
    equation: Any,
    operands: list[_Value | None],
    operations: list[_Operation],
    is_local: bool,
    casts: _Casts,
) -> list[_Value]:
    """The same cast twice is one."""
    [operand] = operands
    cast = (id(operand), equation.params["new_dtype"])
    if cast in casts:
        return casts[cast]
    results = _append(equation, operands, operations, is_local)
    if operand:
        casts[cast] = results
    return results


def _inline_scan(
    equation: Any,
    operands: list[_Value | None],
    operations: list[_Operation],
    is_local: bool,
    casts: _Casts,
) -> list[_Value]:
    """A loop of one trip: slices of its operands are fused, as is the stacking of its results."""
    loop, inputs = _loop(equation), _filled(equation, operands)
    body = loop.body
    for index in range(loop.n_constants + loop.n_carried, len(inputs)):
        whole = inputs[index]
        inputs[index] = _Value(body.invars[index].aval)
        operations.append(_Operation("squeeze", {}, [whole], [inputs[index]], is_local))
    results = _inline(body, inputs, operations, is_local, casts)
    stacked = [_Value(var.aval) for var in equation.outvars]
    for result, value in zip(results, stacked, strict=True):
        parts = []
        if result:
            parts.append(result)
        operations.append(_Operation("expand_dims", {}, parts, [value], is_local))
    return stacked


def _loop(equation: Any) -> _Loop:
    """A scan or a while loop, read from the shapes of its operands and results.

    JAX 0.12 no longer has these numbers among a scan's parameters.
    A body's operands are constants, carried values, and a slice of each array that is looped over,
    in this order; its results are carried values, and a slice of each that is stacked. A slice has
    one dimension less.
    """
    if equation.primitive.name == "while":
        body, n_carried = _open(equation.params["body_jaxpr"]), len(equation.outvars)
        return _Loop(body, len(body.invars) - n_carried, n_carried)
    [body] = core.jaxprs_in_params(equation.params)
    n_carried = _count_same_rank(equation.outvars, body.outvars)
    return _Loop(body, _count_same_rank(equation.invars, body.invars) - n_carried, n_carried)


def _count_same_rank(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    return sum(a.aval.ndim == b.aval.ndim for a, b in zip(outside, inside, strict=True))


def _entered(operands: list[_Value | None], operations: list[_Operation]) -> list[_Value | None]:
    """The operands inside shard_map, where each device has the whole of them."""
    entered: list[_Value | None] = []
    for operand in operands:
        if operand is None:
            entered.append(None)
            continue
        inside = _Value(operand.aval)
        operations.append(_Operation("enter", {}, [operand], [inside], is_local=True))
        entered.append(inside)
    return entered


def _filled(equation: Any, operands: list[_Value | None]) -> list[_Value]:
    """Operands with a value for each literal."""
    filled = []
    for var, value in zip(equation.invars, operands, strict=True):
        if value is None:
            value = _Value(var.aval, in_memory=True)
        filled.append(value)
    return filled


def _open(jaxpr: Any) -> core.Jaxpr:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _needed(operations: list[_Operation], outputs: list[_Value | None]) -> list[_Operation]:
    """Without those whose results nobody reads."""
    read = set(outputs)
    kept = []
    for operation in reversed(operations):
        if not read.isdisjoint(operation.outputs):
            kept.append(operation)
            read.update(operation.inputs)
    return kept[::-1]


# ---- what is in memory when


class _Schedule:
    """What is made and read, event after event; each array learns which event reads it last.

    `early` are the arrays that are made before all.
    """

    def __init__(self, shares: Shares):
        self.shares = shares
        self.events: list[_Event] = []
        self.early: list[Array] = []

    def fill(
        self, operations: list[_Operation], outputs: list[_Value | None], is_local: bool
    ) -> None:
        """Schedules the operations; what they give at the end is in memory, and stays."""
        for operation in operations:
            if operation.name in _FUSED:
                for value in operation.outputs:
                    value.arrays = _arrays_of(operation.inputs)
            elif operation.name == "enter":
                self._enter(operation)
            else:
                self._run(operation)
        results = list(filter(None, outputs))
        for value in results:
            self._store([value], is_local)
        for value in results:
            for array in value.arrays:
                array.last = math.inf

    def _run(self, operation: _Operation) -> None:
        """An operation that puts its results into memory."""
        inside: list[Array] = []
        n_in_place = 0
        if operation.name in _IN_PLACE:
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
            array = self._array(value.aval, operation.is_local)
            array.is_stacked = operation.name == "scan" and number >= n_in_place
            value.arrays = {array}
            value.in_memory = True
            if array.is_stacked:
                self.early.append(array)
            else:
                made.append((array, number < n_in_place))
        self._add(_Event(made, read, inside))

    def _trip(self, operation: _Operation) -> tuple[list[Array], int]:
        """What one trip holds beside the loop's operands and results, and how many it carries."""
        is_local = operation.is_local
        if operation.name == "cond":
            branches = core.jaxprs_in_params(operation.params)
            insides = [self._body(branch, len(branch.invars), 0, is_local) for branch in branches]
            return max(insides, key=total), 0
        loop = operation.loop
        assert loop is not None, f"{operation.name} is no loop"
        inside = self._body(loop.body, loop.n_constants, loop.n_carried, is_local)
        return inside, loop.n_carried

    def _body(
        self, jaxpr: core.Jaxpr, n_constants: int, n_carried: int, is_local: bool
    ) -> list[Array]:
        """What one trip holds.

        Constants and carried values lie outside; slices of the rest are read from there as by a
        fused operation.
        """
        inputs = []
        for number, var in enumerate(jaxpr.invars):
            outside = self._array(var.aval, is_local)
            outside.n_bytes = 0.0
            if number < n_constants:
                outside.last = math.inf
            if number < n_constants + n_carried:
                inputs.append(_Value(var.aval, [outside], in_memory=True))
            else:
                inputs.append(_Value(var.aval))
        return _walk(jaxpr, inputs, self.shares, is_local)

    def _enter(self, operation: _Operation) -> None:
        """What is sharded outside is gathered; the rest is used as it is."""
        [outside], [inside] = operation.inputs, operation.outputs
        gathered = self._array(inside.aval, is_local=True)
        if gathered.n_bytes == self._array(outside.aval, is_local=False).n_bytes:
            inside.arrays = outside.arrays
            inside.in_memory = outside.in_memory
        else:
            inside.arrays = {gathered}
            inside.in_memory = True
            self._add(_Event([(gathered, False)], outside.arrays))

    def _store(self, values: list[_Value], is_local: bool) -> None:
        """Puts into memory what was only to be computed so far."""
        for value in values:
            if value.in_memory:
                continue
            array = self._array(value.aval, is_local)
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

    def _array(self, aval: Any, is_local: bool) -> Array:
        share = self.shares.of(aval.shape, is_local)
        n_bytes = math.prod(aval.shape) * aval.dtype.itemsize * share
        return Array(n_bytes, aval.shape, aval.dtype, is_whole=is_local)


def _arrays_of(values: Iterable[_Value]) -> set[Array]:
    """What reading these values reads."""
    arrays: set[Array] = set()
    for value in values:
        arrays.update(value.arrays)
    return arrays
