"""How much of the packed rows holds tokens, over an epoch of steps of 256 examples, as
`batches.TrainBatches` packs them.

python -m experiments.performance.contenders.efficiency [--data=FILE --tokenizer=FOLDER]

Without `--data`: lengths drawn like those of mathematical fine-tuning data. Prints a line of JSON;
`packed` leaves out the empty rows that bring a step to one of the few row counts; `bound` has as
many rows as the tokens of a step fill: no packing that keeps a step's examples has fewer.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from dft_jax import config as config_lib
from dft_jax.data import batches, packing
from dft_jax.data.examples import Examples, load_examples
from dft_jax.models.hf.locate import load_tokenizer
from experiments.performance.contenders import adapter
from experiments.performance.workload import math_lengths, random_examples

_BATCH, _ROW = 256, 2048
# Of the model T on two cores, which computes a row in 0.43 s: see training/programs.py.
_COMPILATION_ROWS = 23.0


def drawn_examples() -> Examples:
    examples = adapter.as_examples(random_examples(1000, math_lengths(32 * _BATCH, _ROW)))
    return Examples(examples, {}, [""] * len(examples))


def real_examples(data: str, tokenizer: str) -> Examples:
    config = config_lib.get_default()
    config.data.rows, config.data.max_length = "gsm8k", _ROW
    return load_examples(data, config.data, load_tokenizer(Path(tokenizer)), vocab_size=151_936)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data")
    parser.add_argument("--tokenizer")
    arguments = parser.parse_args()
    examples = (
        real_examples(arguments.data, arguments.tokenizer) if arguments.data else drawn_examples()
    )
    mesh = adapter.one_device_mesh()
    n_steps = len(examples) // _BATCH
    how = dict(
        steps=n_steps,
        global_batch=_BATCH,
        seed=0,
        accumulation=1,
        row_length=_ROW,
        compilation_rows=_COMPILATION_ROWS,
    )
    steps = batches.TrainBatches(examples, mesh, **how)
    real = positions = least_rows = full_rows = 0
    for number in range(n_steps):
        step = steps[number]
        real += step.real_tokens
        positions += step.batch.tokens_BL.size
        sizes = [packing.slots(examples.examples[n]) for n in steps.stream[number]]
        least_rows += len(packing.pack(sizes, _ROW))
        full_rows += -(-sum(sizes) // _ROW)
    found = {
        "efficiency": real / positions,
        "packed": real / (least_rows * _ROW),
        "bound": real / (full_rows * _ROW),
        "steps": n_steps,
    }
    mean_length = float(np.mean([len(example.ids) for example in examples.examples]))
    print(json.dumps(found | {"examples": len(examples), "mean_length": mean_length}))


if __name__ == "__main__":
    main()
