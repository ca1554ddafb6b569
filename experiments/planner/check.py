"""The planner's account of the real training step against XLA's, compiled ahead of time for devices
that are not there.

    python -m experiments.planner.check --out=experiments/planner/results.csv
    python -m experiments.planner.check --out=experiments/planner/results_gpu.csv --compiler=gpu
    python -m experiments.planner.check --out=experiments/planner/results_tpu.csv --compiler=tpu

Nothing is allocated or run: XLA compiles the step that training would run, for simulated CPU
devices, for Hopper GPUs, or for TPUs, and says what it would allocate on each device: arguments +
results + temporaries - what both have in common. What the last two need is in
experiments/performance/README.md. `--only=N,M` makes these cases alone, and keeps the others' rows.

    python -m experiments.planner.check --out=experiments/planner/fits.csv --compiler=gpu \\
        --suggestions=experiments/planner/suggestions.csv

compiles what the planner suggests for each model and machine: does it fit there?
"""

import dataclasses
import os
import pathlib
import sys
import time

from dft_jax.planner.devices import CPU, described
from dft_jax.runtime import files
from dft_jax.training.state import abstract_state
from dft_jax.training.step import StepOptions, make_train_step
from dft_jax.types import Hyperparameters
from experiments import common
from experiments.performance import records

FIELDS = """compiler model compute attention mesh remat rows accumulation xla_gib plan_gib
    error_percent xla_temporary_gib plan_temporary_gib temporary_error_percent xla_peak_gib
    compile_s""".split()
MODEL = "Qwen/Qwen2.5-Math-1.5B"
MODELS = {"1.5b": MODEL, "7b": "Qwen/Qwen2.5-Math-7B", "8b": "meta-llama/Llama-3.1-8B"}
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Case:
    """A step to compile. `device` is `cpu`, a GPU's name, or a TPU's topology."""

    device: str
    mesh: tuple[int, ...]
    remat: str
    rows: int
    accumulation: int = 1
    model: str = "1.5b"
    compute: str = "bfloat16"
    attention: str = "auto"


# Rematerialisation, policy by policy.
POLICIES = ("none", "dots", "full")
CPU_CASES = [
    *(
        Case("cpu", (1, 8, 1), remat, rows, compute="float32")
        for remat in POLICIES
        for rows in (1, 2, 4)
    ),
    *(
        Case("cpu", (2, 2, 2), remat, rows, compute="float32")
        for remat in POLICIES
        for rows in (1, 4)
    ),
    *(
        Case("cpu", mesh, remat, 1, compute="float32")
        for mesh in ((8, 1, 1), (1, 4, 2))
        for remat in POLICIES
    ),
    *(
        Case("cpu", (1, 1, 1), remat, rows, compute="float32")
        for remat in POLICIES
        for rows in (1, 4)
    ),
    *(
        Case("cpu", mesh, remat, 1, 4, compute="float32")
        for mesh in ((1, 8, 1), (2, 2, 2), (1, 1, 1))
        for remat in ("dots", "full")
    ),
    *(Case("cpu", (1, 8, 1), remat, 1) for remat in POLICIES),
]
ONE = (1, 1, 1)
GPU_CASES = [
    Case("h100", ONE, "none", 2, 8),
    Case("h100", ONE, "none", 8, 8),
    Case("h100", ONE, "none", 8, 1),
    Case("h100", ONE, "dots", 4, 8),
    Case("h100", ONE, "dots", 8, 8),
    Case("h100", ONE, "dots", 8, 1),
    Case("h100", ONE, "full", 8, 8),
    Case("h100", ONE, "full", 32, 2),
    Case("h100", ONE, "none", 2, 8, attention="blocked"),
    Case("h100", ONE, "dots", 8, 8, attention="blocked"),
    Case("h100", ONE, "full", 8, 8, attention="blocked"),
    Case("h200", ONE, "none", 16, 4),
    Case("h200", ONE, "dots", 16, 4),
    Case("h200", ONE, "full", 4, 16, "7b"),
    Case("h200", ONE, "full", 16, 1, "7b"),
    Case("h200", ONE, "full", 8, 1, "8b"),
]
TPU_CASES = [
    Case("v5e:2x4", (1, 8, 1), "none", 1),
    Case("v5e:2x4", (1, 8, 1), "dots", 1),
    Case("v5e:2x4", (1, 8, 1), "full", 1),
    Case("v5e:2x4", (1, 8, 1), "dots", 1, 4),
    Case("v5e:2x4", (1, 8, 1), "full", 4),
    Case("v5e:2x4", (2, 2, 2), "dots", 1),
    Case("v5e:2x4", (2, 2, 2), "full", 2, 2),
    Case("v5e:2x4", (1, 8, 1), "dots", 1, attention="blocked"),
    Case("v5p:2x2x1", (1, 4, 1), "none", 8, 4),
    Case("v5p:2x2x1", (1, 4, 1), "dots", 8),
    Case("v5p:2x2x1", (4, 1, 1), "none", 4, 2),
    Case("v5p:2x2x1", (1, 4, 1), "full", 2, 1, "7b"),
    Case("v5p:2x2x1", (1, 4, 1), "dots", 4, 2, "7b"),
    Case("v6e:2x4", (1, 8, 1), "none", 2, 2),
    Case("v6e:2x4", (1, 8, 1), "dots", 4),
    Case("v5p:2x2x1", (1, 1, 1, 4), "none", 4, 1),
    Case("v5p:2x2x1", (1, 2, 1, 2), "dots", 4, 2),
    Case("v5e:2x4", (1, 2, 1, 4), "full", 4, 1),
]
# Of so many devices.
TOPOLOGIES = {
    ("v5e", 8): "v5e:2x4",
    ("v5e", 16): "v5e:4x4",
    ("v5p", 4): "v5p:2x2x1",
    ("v5p", 8): "v5p:2x2x2",
}
CASES = {"cpu": CPU_CASES, "gpu": GPU_CASES, "tpu": TPU_CASES}


def compile_step(planner, layout, devices):
    """The training step of `planner` under `layout`, compiled for these devices."""
    import jax

    from dft_jax import sharding
    from dft_jax.losses import objectives
    from dft_jax.models.attention import select
    from dft_jax.models.model import OPTIONS, build, matmul_precision, with_backend
    from dft_jax.training import optimizer as optimizer_lib

    config = planner.config
    mesh = sharding.mesh_on(devices, layout.mesh)
    options = {name: config.model[name] for name in OPTIONS} | {"remat": layout.remat}
    asked, computed = config.model.attention, config.model.compute_dtype
    # As the device itself describes it, not as the planner does.
    backend = select.foreseen(asked, devices[0], planner.architecture, computed)
    model = with_backend(build(planner.architecture, mesh, **options, lora=planner.lora), backend)
    optimizer = optimizer_lib.make_optimizer(config.optimizer)
    # Shapes: there is nowhere to put an array.
    given = Hyperparameters(
        jax.ShapeDtypeStruct((100,), "float32"), jax.ShapeDtypeStruct((), "uint32")
    )
    objective = objectives.make_objective(config.objective)
    step = make_train_step(
        model, objective, optimizer, StepOptions.of(config.train, config.optimizer)
    )
    batch = planner.batch(layout.accumulation, layout.rows * sharding.batch_shards(mesh))
    with matmul_precision(config.model.compute_dtype):
        frozen = dataclasses.replace(planner.frozen(model), hyperparameters=given)
        return step.lower(frozen, abstract_state(model, optimizer), batch).compile()


def allocated_gib(compiled) -> tuple[float, float, float]:
    """What XLA would allocate on each device in all, and for temporaries; and what it uses at once
    (not on a CPU).
    """
    m = compiled.memory_analysis()
    everything = (
        m.argument_size_in_bytes
        + m.output_size_in_bytes
        + m.temp_size_in_bytes
        - m.alias_size_in_bytes
    )
    return everything / GIB, m.temp_size_in_bytes / GIB, m.peak_memory_in_bytes / GIB


def compare(planner, layout, devices) -> dict:
    """A row of results."""
    start = time.perf_counter()
    xla, xla_temporary, xla_peak = allocated_gib(compile_step(planner, layout, devices))
    seconds = time.perf_counter() - start
    account = planner.memory(layout)
    plan = account.total
    plan_temporary = plan - account.parameters - account.moments - account.batch
    return {
        "compute": planner.config.model.compute_dtype,
        "mesh": "x".join(map(str, layout.mesh)),
        "remat": layout.remat,
        "rows": layout.rows,
        "accumulation": layout.accumulation,
        "xla_gib": f"{xla:.2f}",
        "plan_gib": f"{plan:.2f}",
        "error_percent": f"{100 * (plan / xla - 1):.1f}",
        "xla_temporary_gib": f"{xla_temporary:.2f}",
        "plan_temporary_gib": f"{plan_temporary:.2f}",
        "temporary_error_percent": f"{100 * (plan_temporary / xla_temporary - 1):.1f}",
        "xla_peak_gib": f"{xla_peak:.2f}" if devices[0].platform != "cpu" else "",
        "compile_s": f"{seconds:.0f}",
    }


def planner_of(case: Case):
    """The planner of a case's config on its device."""
    from dft_jax import config as config_lib
    from dft_jax.planner import memory
    from dft_jax.planner.devices import ARCHITECTURES

    config = config_lib.get_default()
    config.model.compute_dtype, config.model.attention = case.compute, case.attention
    if case.device != "cpu":
        config.train.loss_chunk_tokens = 4096  # as docs/performance.md has it
    if case.model != "1.5b":
        config.model.param_dtype = "bfloat16"
    device = CPU if case.device == "cpu" else described(case.device.partition(":")[0])
    return memory.Planner(config, ARCHITECTURES[MODELS[case.model]], device)


def check_suggestion(row: dict[str, str]) -> dict:
    """A suggestion with what its compiler says."""
    from dft_jax import config as config_lib
    from dft_jax.planner import layouts, memory
    from dft_jax.planner.devices import ARCHITECTURES
    from experiments.performance import aot

    config = config_lib.get_default()
    config.update_from_flattened_dict(dict(item.split("=") for item in row["choice"].split()))
    planner = memory.Planner(config, ARCHITECTURES[row["model"]], described(row["device"]))
    mesh = tuple(int(size) for size in row["mesh"].split("x"))
    layout = layouts.StepLayout(mesh, row["remat"], int(row["rows"]), int(row["accumulation"]))
    device = TOPOLOGIES.get((row["device"], int(row["devices"])), row["device"])
    devices = aot.devices_of(device, int(row["devices"]))
    with aot.stand_ins(device):
        found = compare(planner, layout, devices)
    said = {name: found[name] for name in ("xla_gib", "xla_peak_gib", "error_percent")}
    fits = float(found["xla_gib"]) <= float(row["device_gib"])
    return dict(row) | said | {"fits": "yes" if fits else "NO"}


def row_of(case: Case, devices) -> dict:
    """A row of results for a case, on the devices it is compiled for."""
    from dft_jax.planner import layouts

    planner = planner_of(case)
    layout = layouts.StepLayout(case.mesh, case.remat, case.rows, case.accumulation)
    about = {
        "compiler": case.device,
        "model": MODELS[case.model],
        "attention": planner.build(case.mesh).module.backend,
    }
    return about | compare(planner, layout, devices)


def key_of(row: dict) -> tuple:
    """What tells a case's row from the others."""
    return tuple(str(row[name]) for name in FIELDS[: FIELDS.index("xla_gib")])


def earlier(file: pathlib.Path) -> dict[tuple, dict]:
    """The rows of an earlier call; none where there is no file."""
    return {key_of(row): row for row in records.read_rows(file)}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--compiler", choices=list(CASES), default="cpu")
    parser.add_argument("--only", help="numbers of cases, from 0, with commas")
    parser.add_argument("--suggestions", type=pathlib.Path, help="what `table` has written")
    arguments = parser.parse_args()
    if arguments.compiler == "cpu":
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

    from experiments.performance import aot

    os.environ.update(aot.ENVIRONMENT)
    import jax

    jax.config.update("jax_platforms", "cpu")
    if arguments.suggestions:
        check_suggestions(arguments.suggestions, arguments.compiler, arguments.out)
    else:
        check_cases(CASES[arguments.compiler], arguments.only, arguments.out)


def check_cases(cases: list[Case], only: str | None, out: pathlib.Path) -> None:
    """Writes a row for each, or for those whose numbers are in `only`."""
    import jax

    from experiments.performance import aot

    rows, chosen = {}, range(len(cases))
    if only:
        chosen = [int(number) for number in only.split(",")]
        rows = earlier(out)
    for number in chosen:
        case = cases[number]
        devices = jax.devices() if case.device == "cpu" else aot.devices_of(case.device)
        with aot.stand_ins(case.device):
            row = row_of(case, devices)
        rows[key_of(row)] = row
        # After each case, because one takes minutes.
        files.write_csv(list(rows.values()), out, FIELDS)
        print(*(f"{name}={row[name]}" for name in FIELDS), file=sys.stderr, flush=True)


def check_suggestions(file: pathlib.Path, compiler: str, out: pathlib.Path) -> None:
    """Writes those for this compiler's devices with what it says of them, after each."""
    from experiments.performance import aot

    rows = records.read_rows(out)
    for row in records.read_rows(file):
        if any(row.items() <= done.items() for done in rows):
            continue
        if ("gpu" if aot.is_gpu(row["device"]) else "tpu") == compiler:
            rows.append(check_suggestion(row))
            files.write_csv(rows, out)
            print(rows[-1], file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
