"""A traced computation as one list of operations, without calls and what nobody reads."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from jax.extend import core

from dft_jax.planner.operations import Loop, Operation, Value

# Calls whose inside is part of what surrounds them.
_CALLS = frozenset(
    """jit pjit remat2 checkpoint shard_map closed_call core_call custom_jvp_call
    custom_vjp_call""".split()
)


@dataclasses.dataclass(frozen=True)
class _Into:
    """Where operations go to, whether they are inside of shard_map, and the casts among them."""

    operations: list[Operation]
    is_local: bool
    casts: dict[Any, list[Value]]  # (operand, dtype) -> its result

    def add(self, name: str, operands: list[Value], result: Value) -> None:
        """One without parameters."""
        self.operations.append(Operation(name, {}, operands, [result], self.is_local))


def inline(
    jaxpr: core.Jaxpr, inputs: list[Value], is_local: bool
) -> tuple[list[Operation], list[Value | None]]:
    """The operations of `jaxpr` and of the calls in it, in their order, and its results, None for
    literals.
    """
    into = _Into([], is_local, {})
    results = _inline(jaxpr, inputs, into)
    return into.operations, results


def _inline(jaxpr: core.Jaxpr, inputs: list[Value], into: _Into) -> list[Value | None]:
    """Appends the operations; returns the results."""
    values: dict[Any, Any] = dict(zip(jaxpr.invars, inputs, strict=True))
    for var in jaxpr.constvars:
        values[var] = Value(var.aval, in_memory=True)

    for equation in jaxpr.eqns:
        name, operands = equation.primitive.name, _read(values, equation.invars)
        if name in _CALLS:
            [body] = core.jaxprs_in_params(equation.params)
            if name == "shard_map" and not into.is_local:
                # Each device gets the whole of what its computation reads.
                inside = dataclasses.replace(into, is_local=True)
                entered = _entered(operands, inside)
                results = _inline(body, _filled(equation, entered), inside)
                results = _left(results, entered, into)
            else:
                results = _inline(body, _filled(equation, operands), into)
        elif name == "scan" and equation.params["length"] == 1:
            results = _inline_scan(equation, operands, into)
        elif name == "optimization_barrier":
            # It says when something is made, not of what.
            results = _filled(equation, operands)
        elif name == "convert_element_type":
            results = _inline_cast(equation, operands, into)
        else:
            results = _append(equation, operands, into)
        for var, result in zip(equation.outvars, results, strict=True):
            values[var] = result
    return _read(values, jaxpr.outvars)


def _read(values: dict[Any, Any], variables: Iterable[Any]) -> list[Value | None]:
    """What the variables stand for; None for literals."""
    found: list[Value | None] = []
    for var in variables:
        if isinstance(var, core.Literal):
            found.append(None)
        else:
            found.append(values[var])
    return found


def _append(equation: Any, operands: list[Value | None], into: _Into) -> list[Value]:
    """Appends an operation as it is; returns its results."""
    name = equation.primitive.name
    results = [Value(var.aval) for var in equation.outvars]
    loop, inputs = None, list(filter(None, operands))
    if name in ("scan", "while"):
        # One for each operand of the body; a while loop has those of its condition before them.
        loop = _loop(equation)
        inputs = _filled(equation, operands)[-len(loop.body.invars) :]
    operation = Operation(name, equation.params, inputs, results, into.is_local, loop)
    into.operations.append(operation)
    return results


def _inline_cast(equation: Any, operands: list[Value | None], into: _Into) -> list[Value]:
    """The same cast twice is one."""
    [operand] = operands
    cast = (id(operand), equation.params["new_dtype"])
    if cast in into.casts:
        return into.casts[cast]
    results = _append(equation, operands, into)
    if operand:
        into.casts[cast] = results
    return results


def _inline_scan(equation: Any, operands: list[Value | None], into: _Into) -> list[Value]:
    """A loop of one trip: slices of its operands are fused, as is the stacking of its results."""
    loop, inputs = _loop(equation), _filled(equation, operands)
    body = loop.body
    for index in range(loop.n_constants + loop.n_carried, len(inputs)):
        whole = inputs[index]
        inputs[index] = Value(body.invars[index].aval)
        into.add("squeeze", [whole], inputs[index])
    results = _inline(body, inputs, into)
    stacked = [Value(var.aval) for var in equation.outvars]
    for result, value in zip(results, stacked, strict=True):
        parts = []
        if result:
            parts.append(result)
        into.add("expand_dims", parts, value)
    return stacked


def _loop(equation: Any) -> Loop:
    """A scan or a while loop, read from the shapes of its operands and results.

    JAX 0.12 no longer has these numbers among a scan's parameters.
    A body's operands are constants, carried values, and a slice of each array that is looped over,
    in this order; its results are carried values, and a slice of each that is stacked. A slice has
    one dimension less.
    """
    if equation.primitive.name == "while":
        body, n_carried = _open(equation.params["body_jaxpr"]), len(equation.outvars)
        return Loop(body, len(body.invars) - n_carried, n_carried)
    [body] = core.jaxprs_in_params(equation.params)
    n_carried = _count_same_rank(equation.outvars, body.outvars)
    return Loop(body, _count_same_rank(equation.invars, body.invars) - n_carried, n_carried)


def _count_same_rank(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    return sum(a.aval.ndim == b.aval.ndim for a, b in zip(outside, inside, strict=True))


def _entered(operands: list[Value | None], into: _Into) -> list[Value | None]:
    """The operands inside shard_map, where each device has the whole of them."""
    entered: list[Value | None] = []
    for operand in operands:
        if operand is None:
            entered.append(None)
            continue
        inside = Value(operand.aval)
        into.add("enter", [operand], inside)
        entered.append(inside)
    return entered


def _left(
    results: list[Value | None], entered: list[Value | None], into: _Into
) -> list[Value | None]:
    """The results outside of shard_map, where each device may have a part of them.

    Last among what their operations read is all that its computation was given.
    """
    given = list(filter(None, entered))
    left: list[Value | None] = []
    for result in results:
        if result is None:
            left.append(None)
            continue
        outside = Value(result.aval)
        into.add("leave", [result, *given], outside)
        left.append(outside)
    return left


def _filled(equation: Any, operands: list[Value | None]) -> list[Value]:
    """Operands with a value for each literal."""
    filled = []
    for var, value in zip(equation.invars, operands, strict=True):
        if value is None:
            value = Value(var.aval, in_memory=True)
        filled.append(value)
    return filled


def _open(jaxpr: Any) -> core.Jaxpr:
    return getattr(jaxpr, "jaxpr", jaxpr)


def needed(operations: list[Operation], outputs: list[Value | None]) -> list[Operation]:
    """Without those whose results nobody reads."""
    read = set(outputs)
    kept = []
    for operation in reversed(operations):
        if not read.isdisjoint(operation.outputs):
            kept.append(operation)
            # What a computation was given and does not read is not gathered for it.
            read.update(operation.inputs[:1] if operation.name == "leave" else operation.inputs)
    return kept[::-1]
