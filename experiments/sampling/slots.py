"""The share of decode places that do useful work, with completions as long as GSM8K's solutions.

python experiments/sampling/slots.py --model=FOLDER --tokenizer=FOLDER --gsm8k=gsm8k_test.jsonl

The model may be any (a tiny one is quick): each completion is cut at the length of one published
solution, in tokens.
"""

import argparse
import json
from pathlib import Path

from transformers import AutoTokenizer

from dft_jax.lm.opening import open_lm
from dft_jax.sampling.sampler import Request, Sampler


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--gsm8k", required=True, type=Path)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    rows = [json.loads(line) for line in arguments.gsm8k.read_text().splitlines()]
    lengths = [len(ids) for ids in tokenizer([row["answer"] for row in rows])["input_ids"]]
    print(
        f"{len(lengths)} lengths, mean {sum(lengths) / len(lengths):.0f}, largest"
        f" {max(lengths)} tokens"
    )
    opened = open_lm(arguments.model, compute_dtype="float32")
    params = opened.params
    for slots in (16, 32, 64, 128, 256):
        sampler = Sampler(opened.model, stop_ids=[], max_length=512, slots=slots)
        asked = [Request(str(i), 0, (1, 2, 3 + i % 200), 1.0, n) for i, n in enumerate(lengths)]
        assert sum(
            len(completion.ids) for completion in sampler.sample(params, asked, progress=False)
        ) == sum(lengths)
        usage = sampler.usage
        print(f"{slots} slots: {usage.tokens / usage.places:.1%} of {usage.places} places")


if __name__ == "__main__":
    main()
