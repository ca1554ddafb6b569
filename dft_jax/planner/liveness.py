"""How much memory a traced computation holds at once: a walk over its jaxpr, which neither compiles
nor runs it.

Four rules stand for what a compiler does with memory:

- element-wise operations, casts, broadcasts, slices and reshapes are fused into what reads them: they take no memory
  until a matrix product, a loop or another operation that needs its operands in memory reads them,
  or they are results;
- a result takes the place of an operand of its size that nothing reads any more, where it can be made in place;
- what is made from nothing is made first, as by XLA: the zeros that loops fill or add to are there from the beginning;
- a loop holds its operands and its stacked results, and besides what one trip holds; a loop of one trip is none.

Not here: what a compiler copies without need, pads, moves to another time, or makes once too often.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jax.extend import core

_FUSED = frozenset(
    """abs add add_any and axis_index bitcast_convert_type broadcast_in_dim ceil clamp concatenate
    convert_element_type copy cos div dynamic_slice eq erf exp exp2 expand_dims expm1 floor ge gt
    integer_pow iota is_finite le log log1p
    logistic lt max min mul ne neg not optimization_barrier or pad pow random_bits random_fold_in
    random_seed random_unwrap random_wrap reduce_precision rem reshape reshard rev round rsqrt
    select_n sharding_constraint shift_right_logical sign sin slice split sqrt square squeeze stack
    stop_gradient sub tanh transpose xor""".split()
)
_REDUCTIONS = frozenset(
    "reduce_sum reduce_max reduce_min reduce_and reduce_or reduce_prod argmax argmin".split()
)
_IN_PLACE = frozenset("scatter scatter-add dynamic_update_slice psum pmax pmin".split())
# Calls whose inside is part of what surrounds them.
_CALLS = frozenset(
    "jit pjit remat2 checkpoint shard_map closed_call core_call custom_jvp_call custom_vjp_call".split()
)


@dataclasses.dataclass(eq=False)
class Array:
    """Memory on one device: `n_bytes` of it, with `room` (by default as much) for a result that
    takes its place.
    """

    n_bytes: float
    shape: tuple[int, ...]
    dtype: Any
    kind: str = ""  # of an argument; what takes its place has the same
    is_whole: bool = False  # inside shard_map, where no rule of sharding cuts it further
    is_stacked: bool = False  # one slice for each trip of a loop
    room: float | None = None
    last: float = -1  # the event that reads it last

    def __post_init__(self):
        self.room = self.n_bytes if self.room is None else self.room


class _Value:
    """A variable of the computation: in memory, or to be computed, when it is read, from the arrays
    in `of`.
    """

    def __init__(self, aval, of: Sequence[Array] = (), in_memory: bool = False):
        self.aval, self.of, self.in_memory = aval, set(of), in_memory


@dataclasses.dataclass
class _Loop:
    body: core.Jaxpr
    n_constants: int
    n_carried: int


@dataclasses.dataclass
class _Operation:
    name: str
    params: Mapping[str, Any]
    inputs: list[_Value]
    outputs: list[_Value]
    is_local: bool  # inside shard_map
    loop: _Loop | None = None


@dataclasses.dataclass
class _Event:
    made: list[tuple[Array, bool]]  # … and whether in place
    read: set[Array]
    inside: list[Array] = dataclasses.field(default_factory=list)  # of one trip, where it is a loop


def peak(
    closed: core.ClosedJaxpr, inputs: Sequence[Array], shares: Mapping[tuple[int, ...], float]
) -> list[Array]:
    """The arrays that are in memory when they take most, on one device.

    Args:
      closed: the computation, with the shapes that its arrays have on one device when nothing is
      sharded.
      inputs: the arrays of its arguments; `last=math.inf` keeps one to the end, else its room can
      be used again.
      shares: shape -> the fraction of an array of this shape that lies on one device; all others,
      and those inside
        `shard_map`, are whole.
    """
    values = [
        _Value(var.aval, [array], in_memory=True)
        for var, array in zip(closed.jaxpr.invars, inputs, strict=True)
    ]
    return _walk(closed.jaxpr, values, shares, is_local=False)


def total(arrays: Sequence[Array]) -> float:
    return sum(array.n_bytes for array in arrays)


def _walk(jaxpr, inputs: list[_Value], shares, is_local: bool) -> list[Array]:
    operations: list[_Operation] = []
    outputs = _inline(jaxpr, inputs, operations, is_local, {})
    schedule = _Schedule(shares)
    schedule.fill(_needed(operations, outputs), outputs, is_local)
    at_peak = [*(array for value in inputs for array in value.of), *schedule.early]
    live, held, most = set(at_peak), total(at_peak), total(at_peak)
    for number, event in enumerate(schedule.events):
        dying = [array for array in event.read if array.last == number and array in live]
        for array, in_place in event.made:
            replaced = next(
                (old for old in dying if in_place and old.room == array.n_bytes > 0), None
            )
            if replaced is None:
                held += array.n_bytes
            else:
                array.kind, array.n_bytes = (
                    replaced.kind,
                    replaced.n_bytes,
                )  # 0 bytes where the room is that of the surrounding computation
                dying.remove(replaced)
                live.remove(replaced)
            live.add(array)
        if held + total(event.inside) > most:
            most, at_peak = held + total(event.inside), [*live, *event.inside]
        gone = [array for array in live if array.last <= number]
        held -= total(gone)
        live.difference_update(gone)
    return [dataclasses.replace(array) for array in at_peak if array.n_bytes]


def _inline(jaxpr, inputs, operations, is_local, casts) -> list[_Value | None]:
    """Appends the operations of `jaxpr` and of the calls in it; returns its results, None for
    literals.
    """
    values = dict(zip(jaxpr.invars, inputs, strict=True))
    values |= {var: _Value(var.aval, in_memory=True) for var in jaxpr.constvars}

    def read(variables):
        return [None if isinstance(var, core.Literal) else values[var] for var in variables]

    for equation in jaxpr.eqns:
        name, params, operands = equation.primitive.name, equation.params, read(equation.invars)
        if name in _CALLS:
            local = is_local or name == "shard_map"
            if local and not is_local:  # each device gets the whole of what its computation reads
                operands = [value and _enter(value, operations) for value in operands]
            [body] = core.jaxprs_in_params(params)
            results = _inline(body, _filled(equation, operands), operations, local, casts)
        elif name == "scan" and params["length"] == 1:
            results = _inline_scan(equation, operands, operations, is_local, casts)
        else:
            cast = (
                (id(operands[0]), params["new_dtype"]) if name == "convert_element_type" else None
            )
            results = casts.get(cast) or [_Value(var.aval) for var in equation.outvars]
            if cast is None or cast not in casts:  # the same cast twice is one
                loop = _loop(equation) if name in ("scan", "while") else None
                operations.append(
                    _Operation(name, params, [v for v in operands if v], results, is_local, loop)
                )
                if cast is not None and operands[0]:
                    casts[cast] = results
        values |= zip(equation.outvars, results, strict=True)
    return read(jaxpr.outvars)


def _inline_scan(equation, operands, operations, is_local, casts) -> list[_Value]:
    """A loop of one trip: the slices of its operands are fused, and so is the stacking of its
    results.
    """
    loop, inputs = _loop(equation), _filled(equation, operands)
    body = loop.body
    for index in range(loop.n_constants + loop.n_carried, len(inputs)):
        whole, inputs[index] = inputs[index], _Value(body.invars[index].aval)
        operations.append(_Operation("squeeze", {}, [whole], [inputs[index]], is_local))
    results = _inline(body, inputs, operations, is_local, casts)
    stacked = [_Value(var.aval) for var in equation.outvars]
    for result, value in zip(results, stacked, strict=True):
        operations.append(
            _Operation("expand_dims", {}, [result] if result else [], [value], is_local)
        )
    return stacked


def _loop(equation) -> _Loop:
    """A scan or a while loop, read from the shapes: JAX 0.12 no longer has these numbers among a
    scan's parameters.

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


def _count_same_rank(outside, inside) -> int:
    return sum(a.aval.ndim == b.aval.ndim for a, b in zip(outside, inside, strict=True))


def _enter(value: _Value, operations) -> _Value:
    entered = _Value(value.aval)
    operations.append(_Operation("enter", {}, [value], [entered], is_local=True))
    return entered


def _filled(equation, operands) -> list[_Value]:
    """Operands with a value for each literal."""
    return [
        _Value(var.aval, in_memory=True) if value is None else value
        for var, value in zip(equation.invars, operands, strict=True)
    ]


def _open(jaxpr) -> core.Jaxpr:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _needed(operations: list[_Operation], outputs: list[_Value | None]) -> list[_Operation]:
    """Without those whose results nobody reads."""
    read, kept = set(outputs), []
    for operation in reversed(operations):
        if not read.isdisjoint(operation.outputs):
            kept.append(operation)
            read.update(operation.inputs)
    return kept[::-1]


class _Schedule:
    """What is made and read, event after event, and what is made before all; each array learns its
    last reader.
    """

    def __init__(self, shares):
        self.shares, self.events, self.early = shares, [], []

    def fill(
        self, operations: list[_Operation], outputs: list[_Value | None], is_local: bool
    ) -> None:
        for operation in operations:
            if operation.name in _FUSED:
                for value in operation.outputs:
                    value.of = set().union(*(read.of for read in operation.inputs))
            elif operation.name == "enter":
                self._enter(operation)
            else:
                self._run(operation)
        results = [value for value in outputs if value]
        for value in results:
            self._store([value], is_local)
        for value in results:
            for array in value.of:
                array.last = math.inf

    def _run(self, operation: _Operation) -> None:
        inside, n_in_place = [], len(operation.outputs) if operation.name in _IN_PLACE else 0
        if operation.name not in _REDUCTIONS:
            # The update of a slice is written where it belongs; only what it is written into has to
            # be there.
            n_stored = 1 if operation.name == "dynamic_update_slice" else None
            self._store(operation.inputs[:n_stored], operation.is_local)
        if operation.name in ("scan", "while", "cond"):
            inside, n_in_place = self._trip(operation)
        read = set().union(*(value.of for value in operation.inputs))
        made = []
        for number, value in enumerate(operation.outputs):
            array = self._array(value.aval, operation.is_local)
            array.is_stacked = operation.name == "scan" and number >= n_in_place
            value.of, value.in_memory = {array}, True
            if array.is_stacked:
                self.early.append(array)
            else:
                made.append((array, number < n_in_place))
        self._add(_Event(made, read, inside))

    def _trip(self, operation: _Operation) -> tuple[list[Array], int]:
        """What one trip holds beside the loop's operands and results, and the number of results
        that it carries.
        """
        if operation.name == "cond":
            branches = core.jaxprs_in_params(operation.params)
            insides = [
                self._body(branch, len(branch.invars), 0, operation.is_local) for branch in branches
            ]
            return max(insides, key=total), 0
        loop = operation.loop
        return self._body(
            loop.body, loop.n_constants, loop.n_carried, operation.is_local
        ), loop.n_carried

    def _body(
        self, jaxpr: core.Jaxpr, n_constants: int, n_carried: int, is_local: bool
    ) -> list[Array]:
        """Constants and carried values lie outside; slices of the rest are read from there as by a
        fused operation.
        """
        inputs = []
        for number, var in enumerate(jaxpr.invars):
            outside = self._array(var.aval, is_local)
            outside.n_bytes = 0.0
            if number < n_constants:
                outside.last = math.inf
            is_slice = number >= n_constants + n_carried
            inputs.append(_Value(var.aval, [] if is_slice else [outside], in_memory=not is_slice))
        return _walk(jaxpr, inputs, self.shares, is_local)

    def _enter(self, operation: _Operation) -> None:
        """What is sharded outside is gathered; the rest is used as it is."""
        [outside], [inside] = operation.inputs, operation.outputs
        gathered = self._array(inside.aval, is_local=True)
        if gathered.n_bytes == self._array(outside.aval, is_local=False).n_bytes:
            inside.of, inside.in_memory = outside.of, outside.in_memory
        else:
            inside.of, inside.in_memory = {gathered}, True
            self._add(_Event([(gathered, False)], outside.of))

    def _store(self, values: list[_Value], is_local: bool) -> None:
        """Puts into memory what was only to be computed so far."""
        for value in values:
            if not value.in_memory:
                array = self._array(value.aval, is_local)
                if value.of:
                    self._add(_Event([(array, True)], value.of))
                else:
                    self.early.append(array)
                value.of, value.in_memory = {array}, True

    def _add(self, event: _Event) -> None:
        for array in [*event.read, *(array for array, _ in event.made)]:
            array.last = max(array.last, len(self.events))
        self.events.append(event)

    def _array(self, aval, is_local: bool) -> Array:
        share = 1.0 if is_local else self.shares.get(aval.shape, 1.0)
        n_bytes = math.prod(aval.shape) * aval.dtype.itemsize * share
        return Array(n_bytes, aval.shape, aval.dtype, is_whole=is_local)
