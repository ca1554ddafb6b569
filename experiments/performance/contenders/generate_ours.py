"""dft_jax's sampler: 16 prompts of 64 tokens, 64 new tokens each, temperature 1. A step is all of
them.

python -m experiments.performance.contenders.generate_ours --folder=HF --examples=FILE
"""

import argparse

import dft_jax
from dft_jax.sampling.sampler import Request, Sampler
from experiments.performance.contenders import adapter
from experiments.performance.protocol import Meter, versions
from experiments.performance.workload import Examples

NEW_TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True)
    parser.add_argument("--examples", required=True)
    arguments = parser.parse_args()
    meter = Meter({"dft_jax": dft_jax.__version__} | versions("jax", "jaxlib", "numpy"))
    prompts = Examples.load(arguments.examples).ids_NL.tolist()
    model = adapter.build(adapter.make_config(), arguments.folder)
    params = adapter.load_params(arguments.folder, model)
    sampler = Sampler(
        model, stop_ids=[], max_length=len(prompts[0]) + NEW_TOKENS, slots=len(prompts)
    )

    def generate(temperature: float) -> list[tuple[int, ...]]:
        asked = [
            Request(str(i), 0, tuple(ids), temperature, NEW_TOKENS) for i, ids in enumerate(prompts)
        ]
        made = {
            completion.request.problem: completion.ids
            for completion in sampler.sample(params, asked, False)
        }
        assert all(len(ids) == NEW_TOKENS for ids in made.values()) and len(made) == len(prompts)
        return [made[str(i)] for i in range(len(prompts))]

    meter.note(greedy=generate(0.0))
    while True:
        meter.tick(lambda: None)
        generate(1.0)


if __name__ == "__main__":
    main()
