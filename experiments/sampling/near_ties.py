"""Where two arrangements of one evaluation differ, shows how close the two tokens were at the first
difference.

python experiments/sampling/near_ties.py --model=FOLDER --benchmark_data=FOLDER --runs=OUT

OUT is what invariance.sh wrote. For each completion that differs between one device and another
arrangement, the tokens are made again on one device, and at the first difference the score that
decided (logit / T + noise, of the block and of the token in it) is compared between what was drawn
and the best of the rest: the margin in nats.
"""

import argparse
import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dft_jax.evals import planning
from dft_jax.evals.settings import Settings
from dft_jax.lm.opening import open_lm
from dft_jax.models import cached
from dft_jax.sampling import categorical, sampler

OTHERS = ("killed_and_resumed", "other_order_and_slots", "eight_devices")


def read(folder: Path) -> dict[tuple, dict]:
    rows = map(json.loads, (folder / "predictions.jsonl").read_text().splitlines())
    return {(row["benchmark"], row["temperature"], row["id"], row["sample"]): row for row in rows}


def margin(opened, params, request: sampler.Request, ids: tuple[int, ...]) -> float:
    """The smallest gap between the best and the second best score of the token after `ids`."""
    model = opened.model
    prompt = np.array([[*request.prompt_ids, *ids]], np.int32)
    hidden_BD, _ = cached.prefill(params, model, prompt, np.array([prompt.shape[1]]))
    words = (0, *sampler._words(request.problem), request.sample, len(ids))
    key = jax.random.key(words[0], impl="threefry2x32")
    for word in words[1:]:
        key = jax.random.fold_in(key, word)
    head_UDMW, vocab_size = params["head"], model.config.vocab_size
    scale_B1 = jnp.full((1, 1), request.temperature or 1.0)

    def summaries_of(*chunk):
        return categorical._summaries(categorical._logits(hidden_BD, *chunk, vocab_size), scale_B1)

    summaries = categorical._in_chunks(summaries_of, head_UDMW)
    max_BM, sum_BM, _ = categorical._real_blocks(summaries, vocab_size)
    keys = jax.random.split(key)
    block_M, noise = max_BM[0], 0.0
    if request.temperature:
        block_M = max_BM[0] / request.temperature + jnp.log(sum_BM[0])
        noise = jax.random.gumbel(keys[0], block_M.shape, mode="high")
    best = jnp.sort(block_M + noise)
    gaps = [float(best[-1] - best[-2])]
    block = jnp.argmax(block_M + noise)
    logits_W = (
        hidden_BD[0]
        @ cached.head_rows(head_UDMW, block[None], model.mesh)[0]
        / (request.temperature or 1.0)
    )
    if request.temperature:
        logits_W = logits_W + jax.random.gumbel(keys[1], logits_W.shape, mode="high")
    best = jnp.sort(logits_W)
    return min(*gaps, float(best[-1] - best[-2]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--benchmark_data", required=True)
    parser.add_argument("--runs", required=True, type=Path)
    arguments = parser.parse_args()
    ours = read(arguments.runs / "one_device")
    scores = {
        name: json.loads((arguments.runs / name / "scores.json").read_text())
        for name in ("one_device", *OTHERS)
    }
    print(
        "same scores.json, killed and resumed:",
        scores["one_device"] == scores["killed_and_resumed"],
    )
    print(
        "entropy:",
        [(r["temperature"], r["mean_token_entropy"]) for r in scores["one_device"]["results"]],
    )
    differing = {}
    for name in OTHERS:
        theirs = read(arguments.runs / name)
        assert theirs.keys() == ours.keys()
        apart = [key for key in ours if ours[key]["completion"] != theirs[key]["completion"]]
        at_one = sum(key[1] > 0 for key in ours)
        print(
            f"{name}: {len(ours) - len(apart)} of {len(ours)} identical ({at_one} sampled,"
            " the rest greedy)"
        )
        differing |= {(name, key): theirs[key] for key in apart}
    if not differing:
        return
    stored = scores["one_device"]["settings"]
    names = {field.name for field in dataclasses.fields(Settings)}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items() if k in names}
    opened = open_lm(arguments.model, compute_dtype="float32")
    plan = planning.plan(
        Settings(**values | {"benchmark_data": arguments.benchmark_data}),
        opened.tokenizer,
        opened.model,
    )
    params = opened.params
    unstacked = jax.jit(functools.partial(cached.unstack, model=opened.model))(params)
    requests = {plan.requests[key]: key for _, key in differing}
    ids_of = {
        requests[completion.request]: completion.ids
        for completion in plan.sampler.sample(params, requests)
    }
    for (name, key), row in differing.items():
        ids = ids_of[key]
        same = next(
            n
            for n in range(len(ids) + 1)
            if not row["completion"].startswith(plan.decode(list(ids[: n + 1])))
        )
        gap = margin(opened, unstacked, plan.requests[key], ids[:same])
        print(f"{name} {key}: first difference at token {same}, margin {gap:.1e} nats")


if __name__ == "__main__":
    main()
