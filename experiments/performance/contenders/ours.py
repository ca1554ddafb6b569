"""dft_jax's training step. A case is OBJECTIVE/LAYOUT, as in dft/padded; every case begins from the
checkpoint.

python -m experiments.performance.contenders.ours --folder=HF --examples=FILE \\
    --row_length=256 --cases=dft/padded
"""

import argparse

import dft_jax
from experiments.performance.contenders import adapter
from experiments.performance.protocol import Meter, versions
from experiments.performance.workload import Examples


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True)
    parser.add_argument("--examples", required=True)
    parser.add_argument("--row_length", type=int, required=True)
    parser.add_argument("--cases", required=True)
    arguments = parser.parse_args()
    meter = Meter(
        {"dft_jax": dft_jax.__version__} | versions("jax", "jaxlib", "flax", "optax", "numpy")
    )
    examples, config = Examples.load(arguments.examples), adapter.make_config()
    model = adapter.build(config, arguments.folder)
    trainees, batches = {}, {}
    for case in arguments.cases.split(","):
        objective, layout = case.split("/")
        trainees[case] = adapter.Trainee(config, model, objective, arguments.folder)
        batches[case] = adapter.lay_out(examples, layout, arguments.row_length)
    current, known = next(iter(trainees)), set()
    while True:
        current = meter.tick(trainees[current].finish)
        trainees[current].step(batches[current])
        if current not in known:  # the first step of a case is never timed
            known.add(current)
            meter.note(**trainees[current].facts())


if __name__ == "__main__":
    main()
