"""Compiles the training step of 8B for rows of 32,768 tokens on four chips of TPU v5p that are not
there (a v5p-8), on each mesh of MESHES: memory, collectives, and the time that a roofline foresees.

    python -m experiments.long_rows.compile --out=experiments/long_rows/results.csv

What has to be installed is in experiments/performance/README.md. A row is one document. Memory and
collectives are the compiled program's; FLOPs of attention and times are computed from it.
"""

import json
import os
from pathlib import Path

from experiments.performance import aot

if __name__ == "__main__":
    os.environ.update(aot.ENVIRONMENT)

import numpy as np
from jax.sharding import Mesh

from dft_jax import sharding
from dft_jax.types import Batch
from experiments import common
from experiments.performance import programs, records
from experiments.performance.contenders import adapter

ROW, DEVICE, TOKENS, ROWS = "train_8b_32k", "v5p:2x2x1", 32_768, 4
# data, fsdp, tensor, sequence. Every step has four rows, in as many micro-batches as that takes.
MESHES = ((1, 4, 1, 1), (1, 2, 1, 2), (1, 1, 1, 4), (1, 1, 4, 1), (1, 1, 2, 2))


def step_batch(rows: int) -> Batch:
    """Shapes count alone: micro-batches [A, rows, L], each row one document, half of it trained."""
    shape_ABL = (ROWS // rows, rows, TOKENS)
    tokens_ABL = np.ones(shape_ABL, np.int32)
    positions_ABL = np.broadcast_to(np.arange(TOKENS, dtype=np.int32), shape_ABL)
    mask_ABL = positions_ABL >= TOKENS // 2
    return Batch(tokens_ABL, tokens_ABL, mask_ABL, tokens_ABL, positions_ABL, most_segments=1)


def program_on(mesh: Mesh) -> programs.Compilable:
    """The step on a mesh; each device has one row, or a part of one."""
    config = programs.training_config("8b", "full", programs.CHUNK_TOKENS)
    model = programs.training_model(config, "8b", False, mesh, "auto")
    optimizer, step = adapter.make_step(config, model, "dft")
    batch = step_batch(sharding.batch_shards(mesh))
    trained = TOKENS // 2 // mesh.shape["sequence"]
    return programs.Compilable(
        step,
        adapter.step_shapes(model, optimizer, batch),
        unknown_trips=max(1, trained // programs.CHUNK_TOKENS),
        attention=model.module.backend,
        made=ROWS * TOKENS,
    )


def compiled_line(sizes: tuple[int, ...]) -> dict:
    """A line of the table."""
    program, compiled, seconds = aot.compile_on(program_on, DEVICE, sizes)
    return aot.line_of(ROW, ["full"], DEVICE, sizes, program, compiled, seconds)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--out", type=Path, help="CSV file")
    arguments = parser.parse_args()
    lines = []
    for sizes in MESHES:
        try:
            lines.append(compiled_line(sizes))
        except Exception as error:  # of the compiler: what does not fit is a result
            mesh, first_line = "x".join(map(str, sizes)), str(error).splitlines()[0]
            lines.append({"row": ROW, "mesh": mesh, "error": first_line[:300]})
        print(json.dumps(lines[-1]), flush=True)
    if arguments.out:
        columns = list(dict.fromkeys(name for line in lines for name in line))
        complete = [{name: line.get(name) for name in columns} for line in lines]
        records.write_rows(arguments.out, complete)


if __name__ == "__main__":
    main()
