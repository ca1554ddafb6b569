"""What XLA's flags change in a compiled step, without a device.

    python -m experiments.performance.aot_flags gpu [--out=FOLDER]      # h100, one device and eight
    python -m experiments.performance.aot_flags tpu

Compiles a training step under each set of FLAGS, a process for each, into aot_flags.csv: what the
program is then, and its time by the roofline of README.md. A flag that only changes an order (of
kernels, or of what is sent beside them) shows in no number here; `gpu --ab` measures it. Flags are
options of one program here, with the names that they have in XLA_FLAGS.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import common
from experiments.performance import aot, aot_tables, records
from experiments.performance.aot_tables import Case

HERE = Path(__file__).parent
FIELDS = ("device", "mesh", "attempt", "flags", "total_gib", "temporary_gib", "gemms")
FIELDS += ("recomputed_gemms", "collectives", "collective_gb", "kernels", "tflop", "gb")
FIELDS += ("predicted_ms", "compile_s", "jax", "commit", "gap")


GPU = (Case("train", "1.5b 8 none 8", "h100"), Case("train", "7b 2 full 1", "h100", "1x8x1"))
TPU = (Case("train", "1.5b 1 dots 1", "v5e:2x4", "1x8x1"),)
FLAGS: dict[str, tuple[Mapping[str, Any], ...]] = {
    "gpu": (
        {},
        {"xla_gpu_memory_limit_slop_factor": 118},
        {"xla_gpu_enable_triton_gemm": False},
        {"xla_gpu_enable_command_buffer": ""},
        {"xla_gpu_deterministic_ops": True},
        {"xla_gpu_enable_latency_hiding_scheduler": True},
        {"xla_gpu_all_gather_combine_threshold_bytes": 2**30},
    ),
    "tpu": (
        {},
        {"xla_tpu_enable_async_collective_fusion": False},
        {"xla_tpu_enable_async_collective_fusion_fuse_all_gather": True},
        {"xla_enable_async_all_gather": True},
        {"xla_tpu_scoped_vmem_limit_kib": 65536},
        {"xla_tpu_enable_data_parallel_all_reduce_opt": True},
        {"xla_tpu_overlap_compute_collective_tc": True},
    ),
}


def shown(flags: Mapping[str, Any]) -> str:
    """As in XLA_FLAGS."""
    words = []
    for name, value in flags.items():
        text = str(value).lower() if isinstance(value, bool) else value
        words.append(f"--{name}={text}")
    return " ".join(words) or "none"


def table(lines: list[dict]) -> str:
    """Markdown of a CSV's lines."""
    rows = []
    for line in lines:
        where = line["device"] if line["mesh"] == "1x1x1" else f"{line['device']} {line['mesh']}"
        row = {"program": f"{line['attempt']}, {where}", "flags": line["flags"]}
        if line["gap"]:
            rows.append(row | {"GiB": line["gap"]})
            continue
        rows.append(
            row
            | {
                "GiB": f"{float(line['total_gib']):.1f}",
                "GEMMs (recomputed)": f"{line['gemms']} ({line['recomputed_gemms']})",
                "kernels": line["kernels"],
                "collectives": line["collectives"] or "–",
                "GB moved": f"{float(line['gb']):.4g}",
                "predicted ms": f"{float(line['predicted_ms']):,.4g}",
            }
        )
    return common.markdown_table(rows)


def fill(file: Path, cases: tuple[Case, ...], all_flags: tuple[Mapping[str, Any], ...]) -> None:
    """Compiles what has no line of this commit yet."""
    commit = aot.package_commit()
    for case in cases:
        for flags in all_flags:
            about = {"device": case.device, "mesh": case.mesh, "attempt": case.attempt}
            about["flags"] = shown(flags)
            lines = records.read_rows(file)
            if any(about.items() <= line.items() and line["commit"] == commit for line in lines):
                continue
            others = [line for line in lines if not about.items() <= line.items()]
            found = about | {"commit": commit} | aot_tables.compiled(case, options=flags)
            records.write_rows(file, [*others, {name: found.get(name) for name in FIELDS}])
            print(f"{shown(flags)}: {found.get('gap') or found['predicted_ms']}", flush=True)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("platform", choices=list(FLAGS))
    parser.add_argument("--out", type=Path, default=HERE, help="folder of aot_flags.csv")
    arguments = parser.parse_args()
    cases = {"gpu": GPU, "tpu": TPU}[arguments.platform]
    fill(arguments.out / "aot_flags.csv", cases, FLAGS[arguments.platform])
    print(table(records.read_rows(arguments.out / "aot_flags.csv")))


if __name__ == "__main__":
    main()
