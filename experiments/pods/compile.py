"""Compiles the training step for TPU pods that are not there: memory, collectives, FLOPs, and the
time that a roofline foresees, each beside the plan.

    python -m experiments.pods.compile --out=experiments/pods/results.csv

Goes on where it ended: a case that the file has is not compiled again. What has to be installed is
in experiments/performance/README.md. A row of a batch is one document, half of it trained.
"""

import dataclasses
import json
import math
import os
import time
from pathlib import Path

from experiments.performance import aot

if __name__ == "__main__":
    os.environ.update(aot.ENVIRONMENT)

import jax

from dft_jax import config as config_lib, sharding
from dft_jax.models.rematerialisation import OFFLOAD
from dft_jax.planner import layouts, memory
from dft_jax.planner.devices import ARCHITECTURES, described
from dft_jax.training.throughput import flops_per_token
from experiments import common
from experiments.performance import hlo, records
from experiments.planner import check

MODELS = {
    "1.5b": "Qwen/Qwen2.5-Math-1.5B",
    "8b": "meta-llama/Llama-3.1-8B",
    "30b-a3b": "Qwen/Qwen3-30B-A3B",
    "70b": "meta-llama/Llama-3.1-70B",
}
# A pod's name counts v5p's cores, of which a chip has two, and v6e's chips.
PODS = {"v5p-128": "v5p:4x4x4", "v6e-256": "v6e:16x16"}
# v6e, from one chip to 256.
GROWING = {n: f"v6e:{x}x{n // x}" for n, x in ((1, 1), (4, 2), (8, 2), (16, 4), (32, 4), (64, 8))}
GROWING |= {128: "v6e:8x16", 256: "v6e:16x16"}
CHUNK_TOKENS = 4096  # of the head
# Where experts lie on different chips, four ways.
EXPERTS = ((PODS["v5p-128"], 64), (PODS["v6e-256"], 256))


@dataclasses.dataclass(frozen=True)
class Case:
    """A step to compile: `rows` of `length` tokens a device, in each of its micro-batches."""

    part: str  # of the study: pods, or a curve
    model: str
    device: str  # a topology, perhaps of several slices (aot.devices_of)
    mesh: tuple[int, ...]  # data, fsdp, tensor, and the others where they are not 1
    length: int
    rows: int = 1
    accumulation: int = 1
    remat: str = "full"
    rank: int = 0  # of adapters; 0: all is trained

    @property
    def settings(self) -> dict[str, str]:
        """What tells it from the others, as the table has it."""
        values = dataclasses.asdict(self) | {"mesh": "x".join(map(str, self.mesh))}
        return {name: str(value) for name, value in values.items()}


def _pods() -> list[Case]:
    """What a pod is asked for, on the meshes that one would try."""
    v5p, v6e = PODS["v5p-128"], PODS["v6e-256"]
    every = []
    for device, n in ((v5p, 64), (v6e, 256)):
        every += [
            Case("pods", "70b", device, (1, n, 1), 8192),
            Case("pods", "70b", device, (1, n, 1), 8192, rank=8),
            Case("pods", "30b-a3b", device, (1, n, 1), 4096),
            Case("pods", "8b", device, (1, n, 1), 32_768),
            Case("pods", "8b", device, (1, n // 4, 1, 4), 32_768),
            Case("pods", "70b", device, (1, n // 4, 4), 8192),
        ]
    every += [Case("pods", "70b", v5p, (1, 64, 1), 8192, rows=2)]
    every += [Case("pods", "30b-a3b", device, (1, n // 4, 1, 1, 4), 4096) for device, n in EXPERTS]
    every += [Case("pods", "8b", GROWING[16], (1, 16, 1), 4096, remat=OFFLOAD)]
    every += [Case("pods", "70b", v6e, (1, 256, 1), 8192, rows, remat=OFFLOAD) for rows in (5, 2)]
    return every


def _curves() -> list[Case]:
    """From 1 chip to 256: the paper's step, which stays as large as it is, and one that grows.

    The paper's step has 256 examples of 512 tokens, so 64 rows of 2,048.
    """
    strong, weak = [], []
    for n, device in GROWING.items():
        most = min(n, 64)  # devices that have a row each; more cut heads, then positions
        tensor = min(n // most, 2)
        mesh = (1, most, tensor, n // most // tensor)
        rows = max(1, min(4, 64 // most))
        steps = 64 // (most * rows)
        strong.append(Case("strong", "1.5b", device, mesh, 2048, rows, steps, "dots"))
        if n >= 4:
            weak.append(Case("weak", "8b", device, (1, n, 1), 4096))
    return [*strong, *weak]


def _slices() -> list[Case]:
    """Two slices, each with all parameters: gradients meet over the network between them."""
    two = "v6e:8x8*2"
    several = [Case("slices", "8b", two, (2, 64, 1), 4096, accumulation=n) for n in (1, 4)]
    return [*several, Case("slices", "70b", "v6e:16x16*2", (2, 256, 1), 8192)]


CASES = [*_pods(), *_curves(), *_slices()]


def planner_of(case: Case) -> memory.Planner:
    config = config_lib.get_default()
    changes = {
        "objective": "dft",
        "data.max_length": case.length,
        "model.compute_dtype": "bfloat16",
        "train.loss_chunk_tokens": CHUNK_TOKENS,
        "lora.rank": case.rank,
    }
    if case.rank:
        changes["model.param_dtype"] = "bfloat16"
    config.update_from_flattened_dict(changes)
    kind = case.device.partition(":")[0]
    return memory.Planner(config, ARCHITECTURES[MODELS[case.model]], described(kind))


def layout_of(case: Case) -> layouts.StepLayout:
    return layouts.StepLayout(case.mesh, case.remat, case.rows, case.accumulation)


def work_of(case: Case) -> dict[str, float]:
    """Tokens of a step, and the FLOPs that they need: recomputation is no work."""
    model = planner_of(case).build(case.mesh)
    tokens = case.length * case.rows * case.accumulation * sharding.batch_shards(model.mesh)
    return {"tokens": tokens, "model_tflop": tokens * flops_per_token(model, case.length) / 1e12}


def chunks_of(case: Case) -> int:
    """Of trained tokens, which a device has in a micro-batch: a loop's length that is data."""
    trained = case.rows * case.length // 2 // layout_of(case).devices["sequence"]
    return max(1, trained // CHUNK_TOKENS)


def plan_gib(case: Case) -> float:
    """Of a chip."""
    return planner_of(case).memory(layout_of(case)).total


def line_of(case: Case, keep: Path | None = None) -> dict:
    """A line of the table: what the compiler says of a case. The program's text goes to `keep`."""
    devices = aot.devices_of(case.device)
    start = time.perf_counter()
    planner, layout = planner_of(case), layout_of(case)
    with aot.stand_ins(case.device):
        compiled = check.compile_step(planner, layout, devices)
    text = compiled.as_text()
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / ("_".join(case.settings.values()) + ".hlo")).write_text(text, encoding="utf-8")
    found = hlo.facts(text, aot.chip_of(case.device), chunks_of(case))
    return {
        **case.settings,
        "chips": math.prod(case.mesh),
        **aot.memory_of(compiled),
        "host_gib": compiled.memory_analysis().host_temp_size_in_bytes / aot.GIB,
        "plan_gib": plan_gib(case),
        "plan_host_gib": planner.host_gib(layout),
        **work_of(case),
        **found,
        "compile_s": round(time.perf_counter() - start),
        "commit": aot.package_commit(),
        "jax": jax.__version__,
    }


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="CSV file")
    parser.add_argument("--only", help="model, device or part of the cases to compile")
    parser.add_argument("--keep", type=Path, help="folder for the compiled programs' texts")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    lines = records.read_rows(arguments.out)
    for case in CASES:
        known = any(case.settings.items() <= line.items() for line in lines)
        if known or (arguments.only and arguments.only not in case.settings.values()):
            continue
        try:
            line = line_of(case, arguments.keep)
        except Exception as error:  # of the compiler: what does not fit is a result
            line = case.settings | {"error": str(error).splitlines()[0][:300]}
        lines.append(line)
        print(json.dumps(line), flush=True)
        columns = list(dict.fromkeys(name for line in lines for name in line))
        complete = [{name: line.get(name) for name in columns} for line in lines]
        records.write_rows(arguments.out, complete)


if __name__ == "__main__":
    main()
