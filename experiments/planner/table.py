"""What fits where, for the paper's models: the planner's account as a CSV file and the table of
README.md.

    python -m experiments.planner.table --out=experiments/planner

For each model and machine: one row per device and micro-batch under each policy, parameters sharded
over all devices (mesh.fsdp=-1), and the most rows that fit so (table.csv); then what the planner
suggests (suggestions.csv, which `check --suggestions` compiles).
"""

import pathlib

from dft_jax import config as config_lib
from dft_jax.models.model import REMAT_POLICIES
from dft_jax.planner import devices
from dft_jax.planner.layouts import layouts
from dft_jax.planner.memory import KINDS, Planner
from dft_jax.planner.suggestion import Suggestion, fitting, suggest
from dft_jax.runtime import files
from experiments import common

MODELS = ("Qwen/Qwen2.5-Math-1.5B", "Qwen/Qwen2.5-Math-7B", "meta-llama/Llama-3.1-8B")
# A v5p-8 has eight cores on four chips, and a device is a chip; a v5e-8 has eight chips of one
# core.
MACHINES = {
    "v5e-8": ("v5e", 8),
    "v5p-8": ("v5p", 4),
    "one H100": ("h100", 1),
    "one H200": ("h200", 1),
    "eight H100": ("h100", 8),
}
FIELDS = (
    "model",
    "machine",
    "device_gib",
    "mesh",
    "remat",
    "rows",
    *KINDS,
    "total",
    "verdict",
    "most_rows_that_fit",
)
STEP_ROWS = 256  # no two examples in one row: the worst


def rows_of(planner: Planner, n_devices: int, has_gib: float):
    """One row of the table for each policy."""
    mesh = (1, n_devices, 1)
    for remat in REMAT_POLICIES:
        account = planner.memory(next(layouts(mesh, remat, STEP_ROWS, STEP_ROWS)))
        most = fitting(planner, mesh, remat, STEP_ROWS, devices.SURE * has_gib)
        yield {
            "mesh": "x".join(map(str, mesh)),
            "remat": remat,
            "rows": 1,
            **{kind: f"{gib:.2f}" for kind, gib in account.by_kind().items()},
            "total": f"{account.total:.2f}",
            "verdict": devices.verdict(account.total, has_gib),
            "most_rows_that_fit": most.rows if most else 0,
        }


def cell(found: Suggestion | None, n_devices: int) -> str:
    """Of the table in README.md."""
    if found is None:
        return "no"
    layout = found.layout
    mesh = "×".join(map(str, layout.mesh))
    text = f"{layout.remat}, {mesh}, {layout.rows} rows, {found.gib:.0f} GiB"
    if found.n_devices > n_devices:
        text = f"on {found.n_devices}: {text}"
    choice = "".join(f"{key}={value}: " for key, value in found.choice.items())
    return choice + text


def as_row(found: Suggestion) -> dict:
    """A suggestion as `check --suggestions` reads it."""
    layout = found.layout
    return {
        "choice": " ".join(f"{key}={value}" for key, value in found.choice.items()),
        "devices": found.n_devices,
        "mesh": "x".join(map(str, layout.mesh)),
        "remat": layout.remat,
        "rows": layout.rows,
        "accumulation": layout.accumulation,
        "plan_gib": f"{found.gib:.2f}",
    }


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    print(f"| model | {' | '.join(MACHINES)} |\n|{' --- |' * (len(MACHINES) + 1)}")
    table, suggestions = [], []
    for model in MODELS:
        cells = []
        for machine, (device, n_devices) in MACHINES.items():
            planner = Planner(
                config_lib.get_default(),
                devices.ARCHITECTURES[model],
                devices.described(device),
            )
            has_gib = devices.DEVICES_GIB[device]
            for row in rows_of(planner, n_devices, has_gib):
                table.append({"model": model, "machine": machine, "device_gib": has_gib} | row)
            found = suggest(planner, n_devices, STEP_ROWS, devices.SURE * has_gib)
            cells.append(cell(found, n_devices))
            if found:
                about = {"model": model, "machine": machine, "device": device}
                suggestions.append(about | {"device_gib": has_gib} | as_row(found))
        print(f"| {model} | {' | '.join(cells)} |", flush=True)
    files.write_csv(table, arguments.out / "table.csv", FIELDS)
    files.write_csv(suggestions, arguments.out / "suggestions.csv")


if __name__ == "__main__":
    main()
