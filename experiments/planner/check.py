"""The planner's account of the real training step against XLA's, compiled ahead of time for devices
that are not there.

    python -m experiments.planner.check --out=experiments/planner/results.csv python
    experiments/planner/check.py --out=experiments/planner/results_tpu.csv --topology=v5e:2x4  #
    needs libtpu

Nothing is allocated or run: XLA compiles the step that training would run, for simulated CPU
devices or for a named TPU, and says what it would allocate on each device: arguments + results +
temporaries - what both have in common.
"""

import os
import pathlib
import sys
import time

from dft_jax.runtime import files
from dft_jax.training.state import abstract_state
from dft_jax.training.step import StepOptions, make_hyperparameters, make_train_step
from dft_jax.types import Frozen
from experiments import common

FIELDS = """compiler model compute mesh remat rows accumulation xla_gib plan_gib error_percent
    xla_temporary_gib plan_temporary_gib temporary_error_percent xla_peak_gib compile_s""".split()
MODEL = "Qwen/Qwen2.5-Math-1.5B"
GIB = 2**30

# compute dtype, mesh, policy, rows, micro-batches
CPU_CASES = [
    *(
        ("float32", (1, 8, 1), remat, rows, 1)
        for remat in ("none", "dots", "full")
        for rows in (1, 2, 4)
    ),
    *(
        ("float32", (2, 2, 2), remat, rows, 1)
        for remat in ("none", "dots", "full")
        for rows in (1, 4)
    ),
    *(
        ("float32", mesh, remat, 1, 1)
        for mesh in ((8, 1, 1), (1, 4, 2))
        for remat in ("none", "dots", "full")
    ),
    *(
        ("float32", (1, 1, 1), remat, rows, 1)
        for remat in ("none", "dots", "full")
        for rows in (1, 4)
    ),
    *(
        ("float32", mesh, remat, 1, 4)
        for mesh in ((1, 8, 1), (2, 2, 2), (1, 1, 1))
        for remat in ("dots", "full")
    ),
    *(("bfloat16", (1, 8, 1), remat, 1, 1) for remat in ("none", "dots", "full")),
]
TPU_CASES = [
    ("bfloat16", (1, 8, 1), "dots", 1, 1),
    ("bfloat16", (1, 8, 1), "full", 1, 1),
    ("bfloat16", (2, 2, 2), "dots", 1, 1),
    ("bfloat16", (1, 8, 1), "full", 4, 1),
    ("bfloat16", (1, 8, 1), "dots", 1, 4),
]


def compile_step(planner, layout, devices):
    """The training step of `planner` under `layout`, compiled for these devices."""
    import jax

    from dft_jax import sharding
    from dft_jax.losses import objectives
    from dft_jax.models.model import OPTIONS, build, matmul_precision
    from dft_jax.training import optimizer as optimizer_lib

    config = planner.config
    n_devices = layout.mesh[0] * layout.mesh[1] * layout.mesh[2]
    mesh = jax.make_mesh(
        layout.mesh, sharding.MESH_AXES, sharding.AXIS_TYPES, devices=devices[:n_devices]
    )
    options = {name: config.model[name] for name in OPTIONS} | {"remat": layout.remat}
    model = build(planner.architecture, mesh, **options)
    optimizer = optimizer_lib.make_optimizer(config.optimizer)
    given = make_hyperparameters(config.optimizer, config.train.seed, 100, mesh)
    objective = objectives.make_objective(config.objective)
    step = make_train_step(
        model, objective, optimizer, StepOptions.of(config.train, config.optimizer)
    )
    batch = planner.batch(layout.accumulation, layout.rows * sharding.batch_shards(mesh))
    with matmul_precision(config.model.compute_dtype):
        return step.lower(Frozen(given), abstract_state(model, optimizer), batch).compile()


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


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--topology", help="as v5e:2x4; by default eight simulated CPU devices")
    arguments = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

    import jax
    from jax.experimental import topologies

    from dft_jax import config as config_lib
    from dft_jax.planner import memory
    from dft_jax.planner.devices import ARCHITECTURES

    devices, cases, compiler = jax.devices(), CPU_CASES, "cpu"
    if arguments.topology:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=arguments.topology)
        devices, cases, compiler = topology.devices, TPU_CASES, arguments.topology
    rows = []
    for compute, mesh, remat, n_rows, accumulation in cases:
        config = config_lib.get_default()
        config.model.compute_dtype = compute
        planner = memory.Planner(config, ARCHITECTURES[MODEL])
        row = compare(planner, memory.StepLayout(mesh, remat, n_rows, accumulation), devices)
        row |= {"compiler": compiler, "model": MODEL}
        rows.append(row)
        # After each case, because one takes minutes.
        files.write_csv(rows, pathlib.Path(arguments.out), FIELDS)
        print(*(f"{name}={row[name]}" for name in FIELDS), file=sys.stderr)


if __name__ == "__main__":
    main()
