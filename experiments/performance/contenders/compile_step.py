"""Seconds that the first call of the training step takes beyond the second: tracing and compiling
it.

python -m experiments.performance.contenders.compile_step --folder=HF --examples=FILE

Prints {"compile_s": …}. In a process of its own, with no persistent cache; the batch is small, so
that a step is short.
"""

import argparse
import json
import time

from experiments.performance.contenders import adapter
from experiments.performance.workload import Examples


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True)
    parser.add_argument("--examples", required=True)
    arguments = parser.parse_args()
    config = adapter.make_config()
    trainee = adapter.Trainee(
        config, adapter.build(config, arguments.folder), "dft", arguments.folder
    )
    batches = adapter.lay_out(Examples.load(arguments.examples), "padded", 64)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        trainee.step(batches)
        trainee.finish()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"compile_s": seconds[0] - min(seconds[1:])}))


if __name__ == "__main__":
    main()
