"""The operations of a traced computation, what they read and make, and which arrays lie alike.

The step is traced as if a device were alone, and how its results are cut over devices is in no
jaxpr. But what is computed from an array element by element, or carried around a loop in its place,
is cut as it is: so a gradient is traced to its moment, and a cast to its parameter. Shapes would
not do: B of rank D beside `gate` [F, D] has its shape, and only one of the two is cut over `fsdp`.
"""

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from jax.extend import core

# Operations that are computed where their results are read.
FUSED = frozenset(
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
# Their results take the place of operands.
IN_PLACE = frozenset(
    """scatter scatter-add dynamic_update_slice psum pmax pmin product_added""".split()
)
# What they compute has its elements elsewhere, of however equal a shape.
_MOVED = frozenset("""rev reshape transpose""".split())
# Their first operand is what they write into.
_WRITTEN_INTO = frozenset("""scatter scatter-add dynamic_update_slice""".split())


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
    # Of an argument that the step trains, or of its moments.
    is_trained: bool = False
    # Of an argument: its shape as traced, and how much of that lies on one device.
    traced: tuple[int, ...] | None = None
    share: float = 1.0
    # The argument that it lies like, where there is one.
    like: "Array | None" = None
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


class Value:
    """A variable: in memory, or to be computed from `arrays` when it is read.

    `like` is the argument that it lies like, None while none is known.
    """

    def __init__(self, aval: Any, arrays: Iterable[Array] = (), in_memory: bool = False):
        self.aval = aval
        self.arrays = set(arrays)
        self.in_memory = in_memory
        self.like: Array | None = None


@dataclasses.dataclass
class Loop:
    """The body of a loop; its operands are constants, then carried values, then slices."""

    body: core.Jaxpr
    n_constants: int
    n_carried: int


@dataclasses.dataclass
class Operation:
    """An equation of the jaxpr, or of one inside it; `is_local` means inside shard_map."""

    name: str
    params: Mapping[str, Any]
    inputs: list[Value]
    outputs: list[Value]
    is_local: bool
    loop: Loop | None = None

    def groups_alike(self) -> list[list[Value]]:
        """Its operands and results, those together that are cut over devices in one way."""
        if self.loop is not None:
            first, groups = self.loop.n_constants, []
            for number in range(self.loop.n_carried):
                groups.append([self.inputs[first + number], self.outputs[number]])
            return groups
        if self.name in _WRITTEN_INTO or self.name == PRODUCT_ADDED:
            return [[self.inputs[0], *self.outputs]]
        if self.name in FUSED and self.name not in _MOVED:
            # Several results are those of a split: of none the shape is that of the operand.
            return [[*self.inputs, *self.outputs]]
        return []


# A product and the sum that it is a part of, in one operation, which reads the other summand first.
PRODUCT_ADDED = "product_added"
_SUMS = frozenset("""add add_any""".split())


def add_inside_products(
    operations: Sequence[Operation], outputs: Iterable[Value | None]
) -> list[Operation]:
    """The operations with each product that is only added to something made inside of that sum.

    Compilers of accelerators cast a product and add it up where it is made: the last part of one
    kernel, which writes the sum where the other summand was. So the head's gradient [V, D] is one
    array, and not the sum so far beside the product of a chunk (XLA has it as
    `convolution_add_fusion`). Of a sum of two products the later is added to the earlier. A CPU's
    products are calls of a library, and their results are arrays.
    """
    reads = _reads(operations, outputs)
    products: dict[int, int] = {}  # a value that one sum reads -> its place in `kept`
    fused: set[int] = set()
    kept: list[Operation | None] = []
    for operation in operations:
        [result, *_] = operation.outputs
        added = None
        if operation.name in _SUMS:
            added = _product_and_other(operation, products, fused)
        if operation.name == "convert_element_type" and operation.inputs:
            place = products.get(id(operation.inputs[0]))
            if place is not None:
                # A product is written in the dtype that it is cast to.
                product = kept[place]
                assert product is not None, "one operation reads it"
                kept[place] = dataclasses.replace(product, outputs=[result])
                if reads[id(result)] == 1:
                    products[id(result)] = place
                continue
        if added is not None:
            place, other = added
            product = kept[place]
            assert product is not None, "one operation reads it"
            kept[place] = None
            inputs = [other, *product.inputs]
            operation = dataclasses.replace(product, name=PRODUCT_ADDED, inputs=inputs)
            operation.outputs = [result]
        elif operation.name == "dot_general" and reads[id(result)] == 1:
            products[id(result)] = len(kept)
        elif operation.name in FUSED:
            fused.add(id(result))
        kept.append(operation)
    return [operation for operation in kept if operation is not None]


def _product_and_other(
    addition: Operation, products: Mapping[int, int], fused: Collection[int]
) -> tuple[int, Value] | None:
    """Where the later of its summands that are products is, and the other summand, which has to be
    in memory; None where there are no such.
    """
    best = None
    if len(addition.inputs) != 2:
        return None
    first, second = addition.inputs
    for value, other in ((first, second), (second, first)):
        place = products.get(id(value), -1)
        is_array = id(other) not in fused and other.aval.shape == value.aval.shape
        if place >= 0 and is_array and (best is None or place > best[0]):
            best = place, other
    return best


def cast_before_gathered(operations: Sequence[Operation]) -> list[Operation]:
    """The operations with each array that is cast as it enters shard_map, and read by nothing else
    there, cast before: XLA gathers it in that dtype (of the head a bfloat16 [V, D], none in
    float32).
    """
    inside = [operation for operation in operations if operation.name != "leave"]
    reads = _reads(inside, ())
    entering = {}
    for operation in inside:
        [result, *_] = operation.outputs
        if operation.name == "enter" and reads[id(result)] == 1:
            entering[id(result)] = operation
    instead: dict[int, list[Operation]] = {}
    cast_values: dict[int, Value] = {}
    for operation in inside:
        [operand, *_] = operation.inputs or [None]
        entered = entering.get(id(operand))
        if operation.name == "convert_element_type" and entered is not None:
            [result] = operation.outputs
            outside = [Value(result.aval)]
            cast = dataclasses.replace(
                operation, inputs=entered.inputs, outputs=outside, is_local=False
            )
            gather = dataclasses.replace(entered, inputs=outside, outputs=[result])
            instead[id(entered)] = [cast, gather]
            instead[id(operation)] = []
            cast_values[id(operand)] = result
    kept = []
    for operation in operations:
        if operation.name == "leave":
            inputs = [cast_values.get(id(value), value) for value in operation.inputs]
            operation = dataclasses.replace(operation, inputs=inputs)
        kept += instead.get(id(operation), [operation])
    return kept


def _reads(operations: Sequence[Operation], outputs: Iterable[Value | None]) -> Counter[int]:
    """How often each value is read; results of the whole are, by whoever asked for them."""
    reads: Counter[int] = Counter()
    for operation in operations:
        reads.update(id(value) for value in operation.inputs)
    reads.update(id(value) for value in outputs if value is not None)
    return reads


def find_alike(operations: Sequence[Operation], results: Sequence[list[Value]]) -> None:
    """Says of values which argument they lie like: forward from operands, and back from results.

    `results` are pairs of what is the same inside of a loop and outside, or a slice of it: slices
    are cut as the whole is.
    """
    for outside, inside in results:
        inside.like = inside.like or outside.like
    for one_way in (operations, operations[::-1], operations):
        for operation in one_way:
            for group in operation.groups_alike():
                _share(group)
    for outside, inside in results:
        outside.like = outside.like or inside.like


def _share(group: list[Value]) -> None:
    """Values of one shape lie like the first of them of which it is known."""
    known: dict[tuple[int, ...], Array] = {}
    for value in group:
        if value.like is not None:
            known.setdefault(value.aval.shape, value.like)
    for value in group:
        if value.like is None:
            value.like = known.get(value.aval.shape)
