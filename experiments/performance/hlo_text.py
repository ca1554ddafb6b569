"""Reads the text of a compiled program: computations, their instructions, sizes of types, and how
often loops run. Standard library only.
"""

import dataclasses
import math
import re

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2}
_BYTES |= {"u16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8}
_BYTES |= {"token": 0, "opaque": 0}
_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_NAMES = re.compile(r"%([\w.\-]+)")
# that of a computation with a thread of its own names it
_END = re.compile(r"^\}(, execution_thread=.*)?\s*$")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    type: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool
    value: str  # of a constant

    @property
    def base(self) -> str:
        """The opcode of what an asynchronous start begins."""
        return self.opcode.removesuffix("-start")


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
    """The computations of a module by name."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Program:
    """The computations of a module's text, as `compiled.as_text()` gives it."""
    computations: dict[str, Computation] = {}
    entry, inside = "", None
    for line in text.splitlines():
        header = _HEADER.match(line)
        if _END.match(line):
            inside = None
        elif inside is None and header and not line.startswith("HloModule"):
            inside = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        # settings of kernels have lines of their own
        elif inside is not None and line.startswith("  "):
            found = _instruction(line.strip())
            if found:
                inside[found.name] = found
    return Program(computations, entry)


def _instruction(line: str) -> Instruction | None:
    name, equals, rest = line.removeprefix("ROOT ").partition(" = ")
    if not equals:
        return None
    type_end = _closing(rest, 0) if rest.startswith("(") else rest.find(" ")
    opcode, _, _ = rest[type_end:].strip().partition("(")
    start = rest.find("(", type_end)
    end = _closing(rest, start)
    operands = tuple(_NAMES.findall(rest[start:end]))
    about = (name.removeprefix("%"), opcode, rest[:type_end], operands, rest[end:])
    value = rest[start + 1 : end - 1]
    return Instruction(*about, is_root=line.startswith("ROOT "), value=value)


def _closing(text: str, start: int) -> int:
    """One past the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    return len(text)


def _arrays(type: str) -> list[tuple[str, tuple[int, ...], str]]:
    """dtype, shape and layout of each array of a type."""
    found = []
    for dtype, sizes, layout in _ARRAY.findall(type):
        if dtype in _BYTES:
            shape = tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size)
            found.append((dtype, shape, layout))
    return found


def size_of(type: str, with_near: bool = False) -> float:
    """Bytes of a type in main memory; what TPUs keep in the core, space S(1), is not there."""
    n_bytes = 0.0
    for dtype, shape, layout in _arrays(type):
        if with_near or "S(1)" not in layout:
            n_bytes += _BYTES[dtype] * math.prod(shape)
    return n_bytes


def shape_of(type: str) -> tuple[str, tuple[int, ...]]:
    """dtype and shape of a type's first array, wherever it lies."""
    dtype, shape, _ = next(iter(_arrays(type)), ("f32", (), ""))
    return dtype, shape


def root_of(computation: Computation) -> Instruction:
    return next(instruction for instruction in computation.values() if instruction.is_root)


def called_by(instruction: Instruction, *names: str) -> list[str]:
    """Computations that an instruction calls under these attributes."""
    found = []
    for name in names:
        match = re.search(rf"\b{name}=(\{{[^}}]*\}}|%?[\w.\-]+)", instruction.attributes)
        if match:
            found += [word.strip(" %{}") for word in match[1].split(",")]
    return found


def trip_count(loop: Instruction, around: Computation, program: Program) -> int | None:
    """As XLA:GPU writes it, or the constant below which a loop's condition keeps its counter, by
    the step of its body; None where the length is data.

    The counter begins at 0, or at 1 where XLA has put the first trip before the loop.
    """
    known = re.search(r"known_trip_count\W+n\W+(\d+)", loop.attributes)
    if known:
        return int(known[1])
    [condition], [body] = called_by(loop, "condition"), called_by(loop, "body")
    bounds = _constants(condition, program)
    inside = program.computations[condition]
    compared = root_of(inside)
    root = compared
    for name in called_by(compared, "calls"):
        root = root_of(program.computations[name])
    if root.opcode != "compare" or len(bounds) != 1:
        return None
    counter = _counter(compared, inside)
    trips = bounds[0] - _counter_start(loop, around, counter)
    return -(-trips // _counter_step(program.computations[body], counter))


def _counter(compared: Instruction, condition: Computation) -> int:
    """Which of what a loop carries its condition looks at."""
    for name in compared.operands:
        found = re.search(r"\bindex=(\d+)", condition[name].attributes)
        if condition[name].opcode == "get-tuple-element" and found:
            return int(found[1])
    return 0


def _counter_start(loop: Instruction, around: Computation, counter: int) -> int:
    """The constant that a loop is given for its counter; 0 if that is hidden."""
    given = around[loop.operands[0]]
    if given.opcode != "tuple":
        return 0
    found = around[given.operands[counter]]
    while found.opcode in ("copy", "bitcast"):
        found = around[found.operands[0]]
    return int(found.value) if found.opcode == "constant" else 0


def _constants(name: str, program: Program) -> list[int]:
    """Whole numbers that stand in a computation and in what it calls."""
    found = []
    for part in program.computations[name].values():
        if part.opcode == "constant" and part.value.isdigit():
            found.append(int(part.value))
        for inner in called_by(part, "calls"):
            found += _constants(inner, program)
    return found


def _counter_step(body: Computation, counter: int) -> int:
    """What a loop's body adds to its counter, in one step or in several; 1 if that is hidden."""
    name, step = root_of(body).operands[counter], 0
    while body[name].opcode in ("add", "copy", "bitcast"):
        operands = body[name].operands
        constants = [one for one in operands if body[one].opcode == "constant"]
        others = [one for one in operands if one not in constants]
        step += sum(int(body[one].value) for one in constants)
        if len(others) != 1:
            break
        [name] = others
    return step or 1
