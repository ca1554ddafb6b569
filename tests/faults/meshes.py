"""A run killed on one device resumes on other devices, meshes and processes: nearly the same."""

import pathlib
import shutil
from collections.abc import Iterator

from dft_jax import sharding
from tests.faults import launch, state
from tests.faults.launch import Fault

STEPS, KILLED_AT, TOLERANCE = 20, 10, 1e-4
ARGUMENTS = (
    f"--config.train.steps={STEPS}",
    f"--config.checkpoint.every={KILLED_AT}",
    "--config.eval.every=0",
)
# Devices of each process, processes, and the mesh as data × fsdp × tensor (× sequence).
LAYOUTS = [
    (1, 1, (1, 1, 1)),
    *((2, 1, mesh) for mesh in ((2, 1, 1), (1, 2, 1), (1, 1, 2))),
    *((4, 1, mesh) for mesh in ((4, 1, 1), (1, 4, 1), (2, 1, 2))),
    *((8, 1, mesh) for mesh in ((8, 1, 1), (1, 8, 1), (2, 2, 2))),
    *((4, 1, mesh) for mesh in ((1, 1, 1, 4), (1, 2, 1, 2))),  # each row on several devices
    (2, 2, (1, 2, 1, 2)),
    (1, 2, (1, 2, 1)),
    (2, 2, (2, 2, 1)),
    (1, 4, (2, 2, 1)),
]


def restarts(folder: pathlib.Path, layouts: list[tuple] = LAYOUTS) -> Iterator[dict]:
    """Each layout takes up a copy of the same killed run."""
    whole, killed = folder / "mesh.whole", folder / "mesh.killed"
    assert launch.run(whole, arguments=ARGUMENTS) == 0, launch.log(whole)[-2000:]
    assert launch.run(killed, Fault(f"whole {KILLED_AT}", "KILL"), arguments=ARGUMENTS) == -9
    assert state.steps(killed) == [KILLED_AT]
    wanted = _curve(whole)
    for devices, processes, mesh in layouts:
        name = (
            f"{processes * devices} devices, {processes} processes, mesh {'x'.join(map(str, mesh))}"
        )
        workdir = folder / f"mesh.{name.replace(', ', '.').replace(' ', '')}"
        shutil.copytree(killed, workdir)
        axes = tuple(
            f"--config.mesh.{axis}={n}" for axis, n in sharding.Sizes(*mesh)._asdict().items()
        )
        options = dict(arguments=ARGUMENTS + axes, devices=devices)
        if processes == 1:
            codes = [launch.run(workdir, **options)]
        else:
            codes = [
                launch.wait(process)
                for process in launch.start_many(workdir, processes, {}, **options)
            ]
        found = _curve(workdir) if not any(codes) else {}
        drift = max(
            (_relative(found[k], wanted[k]) for k in wanted if k in found), default=float("nan")
        )
        ok = found.keys() == wanted.keys() and drift <= TOLERANCE
        detail = f"exit {codes}, largest relative difference of loss and gradient norm {drift:.1e}"
        yield {"kind": "another layout", "case": name, "ok": ok, "detail": detail}


def _curve(workdir: pathlib.Path) -> dict:
    """{(step, metric): value} of the steps after the kill."""
    return {
        (row["step"], name): row[name]
        for row in launch.rows(workdir)
        for name in ("train/loss", "optimizer/gradient_norm")
        if row["step"] > KILLED_AT and name in row
    }


def _relative(one: float, other: float) -> float:
    return abs(one - other) / abs(other)
