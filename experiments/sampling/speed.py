"""Sampling speed of dft_jax and of `transformers.generate`: the same checkpoint, prompts and number
of tokens.

python experiments/sampling/speed.py --model=FOLDER --jax_python=PYTHON --torch_python=PYTHON
--out=results.csv

Each contender is a process of its own that loads the model, warms up once, and then waits for its
turn: rounds alternate between the two, so that both see the same machine. Nothing stops before the
number of tokens is made.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROMPTS, PROMPT_TOKENS, NEW_TOKENS, ROUNDS = 64, 100, 256, 5


def prompts(vocab_size: int) -> list[list[int]]:
    """Random, from a fixed seed, without any library."""
    state, rows = 1, []
    for _ in range(PROMPTS):
        row = []
        for _ in range(PROMPT_TOKENS):
            state = (1103515245 * state + 12345) % 2**31
            row.append(state // 8 % (vocab_size - 1000))
        rows.append(row)
    return rows


def jax_side(folder: str, greedy: bool):
    from dft_jax.lm.opening import open_lm
    from dft_jax.sampling.sampler import Request, Sampler

    opened = open_lm(folder, compute_dtype="float32")
    sampler = Sampler(
        opened.model, stop_ids=[], max_length=PROMPT_TOKENS + NEW_TOKENS, slots=PROMPTS
    )
    params = opened.params
    rows = prompts(opened.model.config.vocab_size)

    def run() -> int:
        asked = [
            Request(str(i), 0, tuple(row), 0.0 if greedy else 1.0, NEW_TOKENS)
            for i, row in enumerate(rows)
        ]
        return sum(
            len(completion.ids) for completion in sampler.sample(params, asked, progress=False)
        )

    import jax

    return run, {"jax": jax.__version__}


def torch_side(folder: str, greedy: bool):
    import torch
    import transformers

    torch.set_num_threads(2)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor(prompts(model.config.vocab_size))
    choice = (
        dict(do_sample=False)
        if greedy
        else dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
    )

    def run() -> int:
        with torch.inference_mode():
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW_TOKENS,
                eos_token_id=None,
                pad_token_id=0,
                **choice,
            )
        return made.numel() - ids.numel()

    return run, {"torch": torch.__version__, "transformers": transformers.__version__}


def contend(side: str, folder: str, greedy: bool) -> None:
    """Answers each line on stdin with the seconds of one run."""
    run, versions = {"jax": jax_side, "torch": torch_side}[side](folder, greedy)
    run()
    print(json.dumps(versions), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        tokens = run()
        assert tokens == PROMPTS * NEW_TOKENS, tokens
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--jax_python", default=sys.executable)
    parser.add_argument("--torch_python", default=sys.executable)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--contend", choices=["jax", "torch"])
    parser.add_argument("--greedy", action="store_true")
    arguments = parser.parse_args()
    if arguments.contend:
        return contend(arguments.contend, arguments.model, arguments.greedy)
    rows = []
    for greedy in (False, True):
        rows += compete(arguments, greedy)
        with open(arguments.out, "w", newline="", encoding="utf-8") as handle:
            sheet = csv.DictWriter(handle, list(rows[0]))
            sheet.writeheader()
            sheet.writerows(rows)


def compete(arguments, greedy: bool) -> list[dict]:
    root = Path(__file__).parents[2]
    # Both have the two cores of this machine: XLA takes what affinity gives, torch is told.
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(root),
    }
    sides = {}
    for side, python in (("jax", arguments.jax_python), ("torch", arguments.torch_python)):
        command = [
            python,
            __file__,
            f"--contend={side}",
            f"--model={arguments.model}",
            *["--greedy"] * greedy,
        ]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        sides[side] = subprocess.Popen(command, env=environment, **pipes)
        # loaded and warm, before the other one starts
        versions = json.loads(sides[side].stdout.readline())
        print(side, versions, flush=True)
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(ROUNDS):
        for side, process in sides.items():
            process.stdin.write("\n")
            process.stdin.flush()
            seconds[side].append(json.loads(process.stdout.readline())["seconds"])
            print(f"{side} {seconds[side][-1]:.1f} s", flush=True)
    for process in sides.values():
        process.stdin.close()
        process.wait()
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    ratio = medians["torch"] / medians["jax"]
    rounds = [t / j for t, j in zip(seconds["torch"], seconds["jax"], strict=True)]
    print(
        f"{'greedy' if greedy else 'T = 1'}: {ratio:.2f} times faster (rounds"
        f" {min(rounds):.2f} to {max(rounds):.2f})"
    )
    return [
        {
            "mode": "greedy" if greedy else "T=1",
            "side": side,
            "median_s": round(medians[side], 2),
            "all_s": " ".join(f"{value:.2f}" for value in seconds[side]),
            "tokens_per_s": round(PROMPTS * NEW_TOKENS / medians[side], 1),
            "ratio_of_medians": round(ratio, 3),
        }
        for side in sides
    ]


if __name__ == "__main__":
    main()
