"""`transformers.generate`, sampling from the whole distribution (top_k=0, top_p=1), as many tokens
as the other side.

python -m experiments.performance.contenders.generate_torch --folder=HF --examples=FILE
"""

import argparse

import torch
import transformers

from experiments.performance.protocol import Meter, versions
from experiments.performance.workload import Examples

NEW_TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True)
    parser.add_argument("--examples", required=True)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    meter = Meter(versions("torch", "transformers"))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        arguments.folder, dtype=torch.float32
    ).eval()
    ids = torch.from_numpy(Examples.load(arguments.examples).ids_NL).long()

    def generate(**choice) -> torch.Tensor:
        with torch.inference_mode():
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW_TOKENS,
                eos_token_id=None,
                pad_token_id=0,
                **choice,
            )
        assert made.shape == (len(ids), ids.shape[1] + NEW_TOKENS), made.shape
        return made[:, ids.shape[1] :]

    meter.note(greedy=generate(do_sample=False).tolist())
    while True:
        meter.tick(lambda: None)
        generate(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)


if __name__ == "__main__":
    main()
