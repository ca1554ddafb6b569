"""Compiles a row of the tables for a device that is not there, on a machine with CPUs alone.

python -m experiments.performance.aot train_1.5b 1.5b 8 none --device=h100
python -m experiments.performance.aot train_1.5b 1.5b 1 dots 1 --device=v5e:2x4 --mesh=1x8x1
python -m experiments.performance.aot head 4096 --device=h200 --top=20 --hlo=FILE

What follows the row is its attempt, as in gpu.ATTEMPTS: of a training row shape, rows of a device
in a micro-batch, rematerialisation, and micro-batches (all of a step's if left out). Prints a JSON
line. See README.md for what has to be installed, and for the roofline's assumptions.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from dft_jax import sharding
from dft_jax.models.attention import select
from dft_jax.models.model import matmul_precision
from dft_jax.planner.devices import host_rate
from experiments import common
from experiments.performance import hlo, programs, records

HERE = Path(__file__).parent
GIB = 2**30
# Rates of NVIDIA's and Google's pages (data sheets of H100 SXM and H200, and
# cloud.google.com/tpu/docs), times what programs reach of them: 0.8 in products, 0.9 of the rate of
# the memory, half of a TPU's links for one collective, half of what its host has to the network
# (of v6e four cards of 200 Gbit/s for eight chips). 2 µs from one kernel to the next on a GPU. To
# the host, and back, what plans assume.
CHIPS = {
    "h100": hlo.Chip(0.8 * 989e12, 0.8 * 67e12, 0.9 * 3.35e12, host=host_rate("h100"), launch=2e-6),
    "h200": hlo.Chip(0.8 * 989e12, 0.8 * 67e12, 0.9 * 4.8e12, host=host_rate("h200"), launch=2e-6),
    "v5e": hlo.Chip(
        0.8 * 197e12, 0.8 * 197e12 / 6, 0.9 * 819e9, link=0.5 * 200e9, host=host_rate("v5e")
    ),
    "v5p": hlo.Chip(
        0.8 * 459e12, 0.8 * 459e12 / 6, 0.9 * 2765e9, link=0.5 * 600e9, host=host_rate("v5p")
    ),
    "v6e": hlo.Chip(
        0.8 * 918e12,
        0.8 * 918e12 / 6,
        0.9 * 1640e9,
        link=0.5 * 448e9,
        network=0.5 * 12.5e9,
        host=host_rate("v6e"),
    ),
}
_H200 = (
    ("device_memory_size: 84942979072", "device_memory_size: 151000000000"),
    ("memory_bandwidth: 3352320000000", "memory_bandwidth: 4800000000000"),
    ("NVIDIA H100 80GB HBM3", "NVIDIA H200"),
)
# libtpu looks for a TPU and for its metadata server otherwise, and takes a lock for itself.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


# ---- devices that are not there


def is_gpu(device: str) -> bool:
    return device in ("h100", "h200")


def chip_of(device: str) -> hlo.Chip:
    """Of `h100`, `h200`, or a TPU's topology such as v5e:2x4."""
    return CHIPS[device.partition(":")[0]]


def gpu_description(device: str) -> str:
    """What XLA is told of a GPU: public numbers, in its own text form."""
    text = (HERE / "h100.txtpb").read_text(encoding="utf-8")
    for old, new in _H200 if device == "h200" else ():
        assert old in text, old
        text = text.replace(old, new)
    return text


def devices_of(device: str, n_gpus: int = 1) -> list:
    """Devices to compile for: those of a TPU's topology, v6e:4x4*2 for two slices of it, or so many
    GPUs of one machine.

    Raises:
      Missing: the compiler is not installed.
    """
    try:
        if is_gpu(device):
            about = {"target_config": gpu_description(device), "topology": f"1x1x{n_gpus}"}
            return topologies.get_topology_desc("", "cuda", **about).devices
        topology, _, n_slices = device.partition("*")
        more = {"num_slices": int(n_slices)} if n_slices else {}
        return topologies.get_topology_desc(topology, "tpu", **more).devices
    except (NotImplementedError, RuntimeError) as error:
        raise Missing(f"no compiler for {device}: {error}") from error


class Missing(Exception):
    """A device's compiler is not installed here."""


def make_mesh(devices: list, sizes: tuple[int, ...]) -> Mesh:
    """Over the first of the devices; sizes are data, fsdp, tensor, then those that are not 1."""
    return sharding.mesh_on(devices, sizes)


@contextlib.contextmanager
def stand_ins(device: str) -> Iterator[None]:
    """What asks the machine for a GPU is answered as a Hopper GPU with cuDNN 9.14 would; kernels
    of attention are taken as they are, because their self-test cannot run.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(select, "mistake", lambda *_: None))
        # or it would be said that the test was passed
        stack.enter_context(mock.patch.object(select.processes, "is_first", lambda: False))
        if is_gpu(device):
            from jax._src.cudnn import fused_attention_stablehlo as lib

            answers = {
                "check_cudnn_version": lambda: 91400,
                "check_compute_capability": lambda _: True,
                "is_cuda_compute_capability_equal": lambda version: version == "9.0",
            }
            stack.enter_context(mock.patch.multiple(lib, **answers))
            stack.enter_context(mock.patch.object(jax, "default_backend", lambda: "gpu"))
        yield


# ---- compiling


def compile_row(
    row: str,
    attempt: list,
    device: str,
    sizes: tuple[int, ...] = (1, 1, 1),
    options: dict | None = None,
    **more,
):
    """A row's program, compiled: (Compilable, compiled, seconds). `more` goes to the row."""
    make = programs.of(row)
    assert make is not None, f"{row} has no program of ours"
    made = functools.partial(make, *attempt, **more)
    return compile_on(made, device, sizes, options)


def compile_on(
    make: Callable[..., programs.Compilable],
    device: str,
    sizes: tuple[int, ...],
    options: dict | None = None,
):
    """What `make(mesh=…)` gives for a mesh of these sizes, compiled; as `compile_row`."""
    mesh = make_mesh(devices_of(device, math.prod(sizes)), sizes)
    with stand_ins(device):
        program = make(mesh=mesh)
        with matmul_precision(program.compute_dtype):
            lowered = program.function.lower(*program.arguments)
        start = time.perf_counter()
        compiled = lowered.compile(options)
    return program, compiled, time.perf_counter() - start


def memory_of(compiled) -> dict[str, float]:
    """GiB of one device: all that is allocated, and the temporary part of it."""
    m = compiled.memory_analysis()
    total = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
    total -= m.alias_size_in_bytes
    return {
        "total_gib": total / GIB,
        "temporary_gib": m.temp_size_in_bytes / GIB,
        "peak_gib": m.peak_memory_in_bytes / GIB,
    }


def line_of(
    row: str, attempt: list, device: str, sizes: tuple[int, ...], program, compiled, seconds: float
) -> dict:
    """A line of the tables."""
    found = hlo.facts(compiled.as_text(), chip_of(device), program.unknown_trips)
    rate = program.made / (found["predicted_ms"] / 1e3) if program.made else None
    return {
        "row": row,
        "attempt": " ".join(map(str, attempt)),
        "device": device,
        "mesh": "x".join(map(str, sizes)),
        "attention": program.attention,
        **memory_of(compiled),
        "compile_s": round(seconds),
        **found,
        "trips": program.unknown_trips,
        "made": program.made,
        "predicted_per_s": rate,
        "commit": package_commit(),
        "jax": jax.__version__,
    }


def package_commit() -> str:
    """The last commit that changed the package; with a + where it has changes since."""
    commit = records.git("log", "-1", "--format=%h", "--", "dft_jax")
    return commit + "+" * bool(records.git("status", "--porcelain", "--", "dft_jax"))


def top(text: str, chip: hlo.Chip, unknown_trips: int, n: int) -> list[str]:
    """The `n` instructions that take most of the predicted time."""
    steps = hlo.executed(text, chip, unknown_trips)
    steps.sort(key=lambda step: -step.times * step.seconds)
    lines = []
    for step in steps[:n]:
        source = re.search(r'op_name="([^"]*)"', step.instruction.attributes)
        lines.append(
            f"{1e3 * step.times * step.seconds:8.2f} ms {step.times:5.0f} × {step.kind:10}"
            f" {step.flops / 1e9:8.1f} GFLOP {step.n_bytes / 1e6:8.1f} MB"
            f" {step.instruction.name} {step.instruction.type[:60]} {source[1] if source else ''}"
        )
    return lines


def words_of(text: str) -> list:
    """An attempt from words: numbers are numbers."""
    return [int(word) if word.isdigit() else word for word in text.split()]


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("row", help="as in gpu.ATTEMPTS, or train, head, recipe, optimizer, decode")
    parser.add_argument("attempt", nargs="*", help="its arguments")
    parser.add_argument("--device", default="h100", help="h100, h200, or a TPU topology: v5e:2x4")
    parser.add_argument("--mesh", default="1x1x1", help="data x fsdp x tensor")
    parser.add_argument("--attention", help="of a training row: auto, or a backend by name")
    parser.add_argument("--chunk", type=int, help="of a training row: tokens of a head's chunk")
    parser.add_argument(
        "--set", action="append", default=[], help="of a training row: optimizer.rounding=nearest"
    )
    parser.add_argument("--trips", type=int, help="of loops whose length is data")
    parser.add_argument("--options", type=json.loads, help="XLA's, as JSON")
    parser.add_argument("--hlo", type=Path, help="file for the compiled program's text")
    parser.add_argument("--top", type=int, default=0, help="print so many instructions by time")
    parser.add_argument("--tiny", action="store_true", help="small shapes")
    arguments = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")
    attempt, sizes = (
        words_of(" ".join(arguments.attempt)),
        tuple(map(int, arguments.mesh.split("x"))),
    )
    more = {"attention": arguments.attention, "chunk_tokens": arguments.chunk}
    more = {name: value for name, value in more.items() if value is not None}
    for change in arguments.set:
        key, _, value = change.partition("=")
        more[key] = value
    try:
        program, compiled, seconds = compile_row(
            arguments.row,
            attempt,
            arguments.device,
            sizes,
            arguments.options,
            tiny=arguments.tiny,
            **more,
        )
    except Missing as missing:
        raise SystemExit(str(missing)) from missing
    if arguments.trips:
        program = dataclasses.replace(program, unknown_trips=arguments.trips)
    text = compiled.as_text()
    if arguments.hlo:
        arguments.hlo.write_text(text)
    for line in top(text, chip_of(arguments.device), program.unknown_trips, arguments.top):
        print(line, file=sys.stderr)
    about = (arguments.row, attempt, arguments.device, sizes)
    print(json.dumps(line_of(*about, program, compiled, seconds)))


if __name__ == "__main__":
    main()
