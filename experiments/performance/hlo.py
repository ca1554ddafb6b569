"""What a compiled program does, read from its text alone: products, attention calls, collectives,
bytes, and the time that a roofline gives. Standard library only.

`executed(text, chip)` lists every instruction that runs, with how often. Of loops XLA writes the
number of trips where it knows it; of the others the caller says it. A conditional is counted as its
cheaper branch: the expensive one is the exception that it is there for. Of a fusion only its inputs
and outputs move, of an input that it slices only the slices, and what it updates in place moves as
much as is updated.
"""

import dataclasses
import functools
import math
import re

from experiments.performance.hlo_text import (
    Computation,
    Instruction,
    Program,
    called_by,
    parse,
    root_of,
    shape_of,
    size_of,
    trip_count,
)

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
ACROSS = "sum across slices"  # of TPUs, through their hosts and the network between these
# They name a value, or a part of one, and move nothing.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while"}
_FREE |= {"conditional", "call", "opt-barrier", "partition-id", "replica-id", "async-start"}
_RAGGED = "ragged-dot-none"  # a TPU's kernel by its name; ragged-dot-metadata makes no products
_SEEN_THROUGH = {"bitcast", "reshape", "convert", "copy"}


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a roofline asks of a device: rates that programs reach, not those of a data sheet."""

    bf16: float  # FLOP/s of products
    f32: float
    memory: float  # bytes/s
    link: float = math.inf  # bytes/s that one collective gets
    network: float = math.inf  # bytes/s between slices
    host: float = math.inf  # bytes/s to the memory of the host, and as many back
    launch: float = 0.0  # s before each kernel


@dataclasses.dataclass(frozen=True)
class Executed:
    """An instruction that runs `times` times; the numbers are those of one run."""

    instruction: Instruction
    times: float
    kind: str  # gemm, attention, memory, host, or a collective's name
    flops: float
    n_bytes: float
    seconds: float


# ---- products


def _numbers(pattern: str, text: str) -> list[int]:
    match = re.search(pattern, text)
    return [int(number) for number in re.findall(r"\d+", match[1])] if match else []


def _dot_flops(instruction: Instruction, computation: Computation) -> tuple[float, str]:
    """Of `dot`, and of cuBLAS's calls, whose settings name what is contracted."""
    about = instruction.attributes
    contracted = _numbers(r"lhs_contracting_dims=\{([\d,]*)\}", about)
    contracted = contracted or _numbers(r'"lhs_contracting_dimensions":\[([^\]]*)\]', about)
    dtype, left = shape_of(computation[instruction.operands[0]].type)
    _, out = shape_of(instruction.type)
    return 2.0 * math.prod(out) * math.prod(left[axis] for axis in contracted), dtype


def _convolution_flops(instruction: Instruction, computation: Computation) -> tuple[float, str]:
    """TPUs write products as convolutions, batch axes as windows that mostly see padding."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    dtype, left = shape_of(computation[instruction.operands[0]].type)
    _, right = shape_of(computation[instruction.operands[1]].type)
    _, out = shape_of(instruction.type)
    if labels is None:
        return 0.0, dtype
    flops = 2.0 * out[labels[3].index("b")] * out[labels[3].index("f")]
    flops *= right[labels[2].index("i")]
    for axis in sorted(set(labels[1]) - {"b", "f"}):
        sizes = left[labels[1].index(axis)], right[labels[2].index(axis)]
        window = _window(instruction.attributes, int(axis))
        flops *= _pairs(*sizes, out[labels[3].index(axis)], tuple(window.values()))
    groups = _numbers(r"batch_group_count=(\d+)", instruction.attributes)
    return flops / (groups[0] if groups else 1), dtype


def _window(about: str, axis: int) -> dict[str, int]:
    """Of a convolution's spatial axis: stride, low padding, dilations."""
    found = {"stride": 1, "pad": 0, "lhs_dilate": 1, "rhs_dilate": 1}
    text = re.search(r"window=\{([^}]*)\}", about)
    for field in text[1].split() if text else []:
        name, _, values = field.partition("=")
        if name in found:
            found[name] = int(values.split("x")[axis].split("_")[0])
    return found


@functools.cache
def _pairs(n_in: int, n_window: int, n_out: int, window: tuple[int, ...]) -> int:
    """How many pairs of an output and a place of its window meet an input and no padding."""
    stride, pad, lhs_dilate, rhs_dilate = window
    pairs = 0
    for w in range(n_window):
        for o in range(n_out):
            place = o * stride + w * rhs_dilate - pad
            pairs += place % lhs_dilate == 0 and 0 <= place <= (n_in - 1) * lhs_dilate
    return pairs


def _ragged_flops(instruction: Instruction, computation: Computation) -> tuple[float, str]:
    """Of a TPU's kernel for `jax.lax.ragged_dot`, in which every row meets one expert's matrix.

    Rows [N, D] by matrices [E, F, D] make [N, F]; of two arrays of rows come gradients [E, F, D].
    """
    inputs = [shape_of(computation[name].type) for name in instruction.operands]
    dtype, rows = next((dtype, shape) for dtype, shape in inputs if len(shape) == 2)
    _, out = shape_of(instruction.type)
    if len(out) == 2:
        return 2.0 * math.prod(out) * rows[1], dtype
    return 2.0 * rows[0] * math.prod(out[1:]), dtype


_PRODUCTS = {"dot": _dot_flops, "convolution": _convolution_flops}


def products(
    instruction: Instruction, computation: Computation, program: Program
) -> tuple[float, str]:
    """FLOPs of the products that an instruction makes, and the dtype of their inputs."""
    if instruction.base in _PRODUCTS:
        return _PRODUCTS[instruction.base](instruction, computation)
    if instruction.base == "custom-call" and "__cublas" in instruction.attributes:
        return _dot_flops(instruction, computation)
    if instruction.base == "custom-call" and instruction.name.startswith(_RAGGED):
        return _ragged_flops(instruction, computation)
    flops, dtype = 0.0, "f32"
    if instruction.base == "fusion":
        for name in called_by(instruction, "calls"):
            inner = program.computations[name]
            for part in inner.values():
                more, of = products(part, inner, program)
                flops, dtype = flops + more, of if more else dtype
    return flops, dtype


def attention_flops(instruction: Instruction, computation: Computation) -> float:
    """Of a kernel of attention, each row counted as one causal segment; 0 of anything else.

    A device may have some of a row's queries and all of its keys, of which half are seen, on
    average over the devices. Products with [queries, keys]: two forward, five backward; of the
    TPU's two backward kernels three and four. Queries are [B, L, H, K] for cuDNN and [B, H, L, K]
    on TPUs.
    """
    if instruction.base != "custom-call":
        return 0.0
    name, about = instruction.name, instruction.attributes
    if "fmha" in about:
        n_products, length_axis = 5 if "Backward" in about else 2, -3
    elif "splash" in name:
        n_products, length_axis = 2, -2
        for kernel, products_of_kernel in (("_dq_", 3), ("_dkv_", 4)):
            n_products = products_of_kernel if kernel in name else n_products
    else:
        return 0.0
    inputs = [shape_of(computation[name].type) for name in instruction.operands]
    wide = (shape for dtype, shape in inputs if dtype in ("bf16", "f32") and len(shape) >= 3)
    queries, keys = next(wide), next(wide)
    return n_products * math.prod(queries) * keys[length_axis]  # 2 · L / 2 for each product


# ---- bytes


def _users(name: str, computation: Computation) -> list[Instruction]:
    """Who reads a value, looking through what only renames or converts it."""
    found = []
    for other in computation.values():
        if name in other.operands:
            if other.opcode in _SEEN_THROUGH and not other.is_root:
                found += _users(other.name, computation)
            else:
                found.append(other)
    return found


def _read_by_fusion(parameter: Instruction, computation: Computation) -> float:
    """Bytes that a fusion reads of one of its inputs."""
    n_bytes = 0.0
    for user in _users(parameter.name, computation):
        first = _origin(user.operands[0], computation) if user.operands else ""
        if user.opcode in ("dynamic-slice", "gather", "slice") and first == parameter.name:
            n_bytes += size_of(user.type)
        elif user.opcode == "dynamic-update-slice" and first == parameter.name:
            continue  # in place
        else:
            return size_of(parameter.type)
    return min(n_bytes, size_of(parameter.type))


def _origin(name: str, computation: Computation) -> str:
    """The value that a chain of renamings and conversions begins with."""
    while name in computation and computation[name].opcode in _SEEN_THROUGH:
        name = computation[name].operands[0]
    return name


def _written_by_fusion(name: str, computation: Computation) -> float:
    """Bytes that a fusion writes for its result, or for one of them."""
    root = computation[_origin(name, computation)]
    if root.opcode == "tuple":
        return sum(_written_by_fusion(part, computation) for part in root.operands)
    if root.opcode == "dynamic-update-slice":
        return size_of(computation[root.operands[1]].type)
    if root.opcode == "scatter":
        return 2 * size_of(computation[root.operands[-1]].type)
    return size_of(computation[name].type)


def moved(instruction: Instruction, computation: Computation, program: Program) -> float:
    """Bytes that an instruction reads from and writes to main memory."""
    read = sum(size_of(computation[name].type) for name in set(instruction.operands))
    result = size_of(instruction.type)
    if instruction.opcode != instruction.base:
        result = max(0.0, result - read)  # a start names its inputs too
    if instruction.base in ("dynamic-slice", "gather", "slice"):
        return 2 * result
    if instruction.base == "dynamic-update-slice":
        return 2 * size_of(computation[instruction.operands[1]].type)
    called = called_by(instruction, "calls")
    if instruction.base == "fusion" and called:
        inner = program.computations[called[0]]
        parameters = [part for part in inner.values() if part.opcode == "parameter"]
        read = sum(_read_by_fusion(parameter, inner) for parameter in parameters)
        return read + _written_by_fusion(root_of(inner).name, inner)
    return read + result


def to_or_from_host(instruction: Instruction, computation: Computation) -> float:
    """Bytes that an instruction copies between the device and its host's memory, space S(5)."""
    if "S(5)" not in instruction.type:
        return 0.0
    if instruction.base == "dynamic-update-slice":
        return size_of(computation[instruction.operands[1]].type, True)
    if instruction.base == "dynamic-slice":
        sizes = _numbers(r"dynamic_slice_sizes=\{([\d,]*)\}", instruction.attributes)
        whole = computation[instruction.operands[0]].type
        return size_of(whole, True) * math.prod(sizes) / math.prod(shape_of(whole)[1])
    if instruction.base == "copy":
        return size_of(computation[instruction.operands[0]].type, True)
    return 0.0


# ---- collectives


def collective_of(instruction: Instruction) -> str:
    """The kind of a collective; empty for anything else, and for the end of one.

    Raises:
      ValueError: something is sent to other slices that is no sum.
    """
    if instruction.base in COLLECTIVES:
        return instruction.base
    if instruction.base != "send" or "_xla_megascale" not in instruction.attributes:
        return ""
    if '_xla_megascale_transfer_type="ALL_REDUCE"' not in instruction.attributes:
        raise ValueError(f"what is this between slices? {instruction.attributes[:300]}")
    return ACROSS


def exchanged(instruction: Instruction, computation: Computation) -> float:
    """Bytes of the larger of a collective's input and result on one device."""
    if instruction.base == "send":  # its second operand is a token
        return size_of(computation[instruction.operands[0]].type, True)
    given = sum(size_of(computation[name].type, True) for name in instruction.operands)
    result = size_of(instruction.type, True)
    if instruction.opcode.endswith("-start") and instruction.base != "all-reduce":
        result -= given  # the start names both
    return max(given, result)


def collective_seconds(kind: str, n_bytes: float, instruction: Instruction, chip: Chip) -> float:
    """Around a ring; what is reduced and gathered again goes around twice."""
    if kind == "collective-permute":
        return n_bytes / chip.link
    if kind == ACROSS:
        # _xla_megascale_target="{1,2}x{0:7}": the slices, by the chips that meet.
        members = len(re.search(r'target="\{([\d,]*)\}', instruction.attributes)[1].split(","))
        return 2 * n_bytes * (members - 1) / members / chip.network
    members = _members(instruction.attributes)
    turns = 2 if kind == "all-reduce" else 1
    return turns * n_bytes * (members - 1) / members / chip.link


def _members(about: str) -> int:
    """How many devices take part in one group of a collective, in the three ways it is written.

    {{0,1},{2,3}}, [2,2]<=[4], and mesh['a'=2,'b'=2] {'b'}, where an axis of size 4 may be cut as
    in 'c':(1)2, which is the second number.

    Raises:
      ValueError: a fourth way.
    """
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", about)
    if listed:
        return len(listed[1].split(","))
    sizes = _numbers(r"replica_groups=\[(\d+,\d+)\]", about)
    if sizes:
        return sizes[1]
    named = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", about)
    if named is None:
        raise ValueError(f"groups of devices that are written in another way: {about[:300]}")
    size_of_axis = dict(re.findall(r"'([^']*)'=(\d+)", named[1]))
    members = 1
    for axis, part in re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", named[2]):
        members *= int(part or size_of_axis[axis])
    return members


# ---- the whole program


def executed(text: str, chip: Chip, unknown_trips: int = 1) -> list[Executed]:
    """Every instruction that runs; loops of a length that XLA does not know run `unknown_trips`
    times.
    """
    program = parse(text)
    return _run(program.entry, program, chip, unknown_trips)


def _run(name: str, program: Program, chip: Chip, unknown_trips: int) -> list[Executed]:
    steps = []
    computation = program.computations.get(name, {})

    def inside(called: list[str]) -> list[list[Executed]]:
        return [_run(one, program, chip, unknown_trips) for one in called]

    for instruction in computation.values():
        if instruction.opcode == "while":
            trips = trip_count(instruction, computation, program) or unknown_trips
            for body in inside(called_by(instruction, "body", "condition")):
                steps += [dataclasses.replace(s, times=s.times * trips) for s in body]
        elif instruction.opcode == "conditional":
            names = ("branch_computations", "true_computation", "false_computation")
            branches = inside(called_by(instruction, *names))
            steps += min(branches, key=seconds_of)
        elif instruction.opcode in ("call", "async-start"):
            for part in inside(called_by(instruction, "to_apply", "calls")):
                steps += part
        else:
            steps += _step(instruction, computation, program, chip)
    return steps


def _step(
    instruction: Instruction, computation: Computation, program: Program, chip: Chip
) -> list[Executed]:
    """The instruction with its cost, and the collectives that TPUs put inside of fusions."""
    if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
        return []
    n_bytes = to_or_from_host(instruction, computation)
    if n_bytes:
        return [Executed(instruction, 1, "host", 0.0, n_bytes, n_bytes / chip.host)]
    if "S(5)" in instruction.type:  # room on the host, of which nothing moves
        return []
    kind = collective_of(instruction)
    if kind:
        n_bytes = exchanged(instruction, computation)
        seconds = collective_seconds(kind, n_bytes, instruction, chip)
        return [Executed(instruction, 1, kind, 0.0, n_bytes, seconds)]
    found = []
    for name in called_by(instruction, "calls") if instruction.base == "fusion" else []:
        inner = program.computations[name]
        for part in inner.values():
            if collective_of(part):
                found += _step(part, inner, program, chip)
    flops, dtype = products(instruction, computation, program)
    kind = "gemm" if flops else "memory"
    attention = attention_flops(instruction, computation)
    if attention:
        kind, flops, dtype = "attention", attention, "bf16"
    rate = chip.bf16 if dtype in ("bf16", "f16") else chip.f32
    n_bytes = moved(instruction, computation, program)
    seconds = max(flops / rate, n_bytes / chip.memory) + chip.launch
    return [*found, Executed(instruction, 1, kind, flops, n_bytes, seconds)]


def seconds_of(steps: list[Executed]) -> float:
    return sum(step.times * step.seconds for step in steps)


def facts(text: str, chip: Chip, unknown_trips: int = 1) -> dict[str, float | int | str]:
    """The numbers of the tables: calls and recomputed products as the program has them, work and
    time as it runs.
    """
    steps = executed(text, chip, unknown_trips)
    gemms, n_calls = counted(parse(text))
    exchanges = [step for step in steps if step.kind in (*COLLECTIVES, ACROSS)]
    parts = ("gemm", "attention", "memory", "collective", "network", "host")
    spent = dict.fromkeys(parts, 0.0)
    groups = dict.fromkeys(COLLECTIVES, "collective") | {ACROSS: "network", "host": "host"}
    for step in steps:
        group = groups.get(step.kind, step.kind)
        spent[group] += 1e3 * step.times * step.seconds
    local = [step for step in steps if step.kind not in groups]
    copies = [step for step in steps if step.kind == "host"]
    return {
        "attention_calls": n_calls,
        "gemms": len(gemms),
        "recomputed_gemms": sum("remat" in name for name in gemms),
        "collectives": collectives_text(exchanges),
        "collective_gb": sum(step.times * step.n_bytes for step in exchanges) / 1e9,
        "tflop": sum(step.times * step.flops for step in steps) / 1e12,
        "gb": sum(step.times * step.n_bytes for step in local) / 1e9,
        "host_gb": sum(step.times * step.n_bytes for step in copies) / 1e9,
        "kernels": round(sum(step.times for step in steps)),
        **{f"{group}_ms": ms for group, ms in spent.items()},
        "predicted_ms": 1e3 * seconds_of(steps),
    }


def counted(program: Program) -> tuple[list[str], int]:
    """Names of the instructions that make products, and how many are calls of attention: in all
    branches, whichever is taken.
    """
    fused = set()
    for computation in program.computations.values():
        for instruction in computation.values():
            if instruction.base == "fusion":
                fused |= set(called_by(instruction, "calls"))
    gemms, n_calls = [], 0
    for name, computation in program.computations.items():
        for instruction in computation.values() if name not in fused else ():
            if attention_flops(instruction, computation):
                n_calls += 1
            elif products(instruction, computation, program)[0]:
                gemms.append(instruction.name)
    return gemms, n_calls


def collectives_text(steps: list[Executed]) -> str:
    """`7 all-gather (63 runs, 3.27 GB); …`: how many the program has, how often they run."""
    parts = []
    for kind in (*COLLECTIVES, ACROSS):
        some = [step for step in steps if step.kind == kind]
        if some:
            runs = round(sum(step.times for step in some))
            gb = sum(step.times * step.n_bytes for step in some) / 1e9
            parts.append(f"{len(some)} {kind} ({runs} runs, {gb:.3g} GB)")
    return "; ".join(parts)
