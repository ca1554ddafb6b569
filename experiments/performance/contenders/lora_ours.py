"""dft_jax's training step with an adapter, or of all of the model; each step has examples of its
own, and is noted.

python -m experiments.performance.contenders.lora_ours --folder=HF --examples=FILE --batch=4 \\
    --row_length=160 --learning_rate=1e-4 --adapter=FOLDER --dtype=float32
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
    parser.add_argument("--batch", type=int, required=True, help="examples of a step")
    parser.add_argument("--row_length", type=int, required=True)
    parser.add_argument("--learning_rate", type=float, required=True)
    parser.add_argument("--adapter", default="", help="PEFT folder")
    parser.add_argument("--dtype", default="float32", help="of the parameters")
    parser.add_argument("--compute_dtype", default="float32")
    arguments = parser.parse_args()
    meter = Meter(
        {"dft_jax": dft_jax.__version__} | versions("jax", "jaxlib", "flax", "optax", "numpy")
    )
    changes = {
        "optimizer.learning_rate": arguments.learning_rate,
        "model.param_dtype": arguments.dtype,
        "lora.adapter": arguments.adapter,
    }
    config = adapter.make_config(arguments.compute_dtype, **changes)
    model = adapter.build(config, arguments.folder)
    trainee = adapter.Trainee(config, model, "dft", arguments.folder)
    examples = Examples.load(arguments.examples)
    while True:
        for some in examples.in_steps(arguments.batch):
            meter.tick(trainee.finish)
            trainee.step(adapter.lay_out(some, "padded", arguments.row_length))
            meter.note(**trainee.facts())


if __name__ == "__main__":
    main()
