"""DPO and GRPO on the laboratory's models, composed of the project's own parts: sampler, grader,
statistics, optimizer.

Both read sequences one to a row. DPO (arXiv 2305.18290, eq. 7) compares a right answer of the base
with a wrong one to the same question. `grpo` samples its own answers at every step and has the
advantages of GRPO (arXiv 2402.03300); with one update to a batch the ratio of policies is 1, so its
loss is the advantage times -log p. Unlike the paper's it has no KL term, and divides by the tokens
of the batch, not of each answer: REINFORCE with a group's mean and deviation.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from dft_jax.data import packing
from dft_jax.data.templates import Example
from dft_jax.evals import planning
from dft_jax.evals.graders import pool
from dft_jax.losses import fused
from dft_jax.models.hf.load import load_params
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.model import Model, head, matmul_precision
from dft_jax.training import optimizer as optimizer_lib
from dft_jax.types import Batch

BETA = 0.1  # of DPO
# the longest of 10,000 answers of the base has 119 tokens with its question; what is longer is cut
ROW_LENGTH = 160
QUESTIONS, SAMPLES = 8, 4  # of a step of GRPO; DPO reads half as many pairs as that makes sequences


def sequence_logp(model: Model, params, batch: Batch, reference=None):
    """Σ log p over each row's trained tokens [B], and of the reference model."""
    pair = None if reference is None else (model.apply(reference, batch), head(reference))
    args = (model.apply(params, batch), head(params), batch.targets_BL, batch.mask_BL, None, pair)
    stats = fused.token_stats(*args, chunk_tokens=1024, mesh=model.mesh)
    return stats.logp_BL.sum(axis=1), 0.0 if reference is None else stats.reference_logp_BL.sum(
        axis=1
    )


def dpo_loss(model: Model, params, batch: Batch, reference):
    """-log σ(β · (log-ratio of the chosen - that of the rejected)); the first half of the rows are
    the chosen.
    """
    logp_B, reference_logp_B = sequence_logp(model, params, batch, reference)
    chosen_B, rejected_B = jnp.split(BETA * (logp_B - reference_logp_B), 2)
    return -jax.nn.log_sigmoid(chosen_B - rejected_B).mean()


def grpo_loss(model: Model, params, batch: Batch, advantage_B):
    """-Σ advantage · log p over the tokens, by their number."""
    logp_B, _ = sequence_logp(model, params, batch)
    return -(advantage_B * logp_B).sum() / jnp.maximum(batch.mask_BL.sum(), 1)


def rows_of(examples: list[Example]) -> Batch:
    """One sequence a row."""
    return jax.tree.map(
        jnp.asarray, packing.fill_rows(examples, [[i] for i in range(len(examples))], ROW_LENGTH)
    )


def example(prompt_ids, completion_ids) -> Example:
    ids = np.array([*prompt_ids, *completion_ids], np.int32)[: ROW_LENGTH + 1]
    return Example(ids, np.arange(len(ids)) >= len(prompt_ids), 0)


def load_pairs(file: Path, tokenizer, plan: planning.Plan) -> list[tuple[Example, Example]]:
    """A right and a wrong completion for every question that has both."""
    stop = plan.sampler.stop_ids[0]
    of_problem: dict[str, dict[str, list[Example]]] = {}
    for line in file.read_text().splitlines():
        row = json.loads(line)
        prompt_ids = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        ids = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
        kind = "right" if row["verdict"] == "correct" else "wrong"
        found = of_problem.setdefault(row["id"], {"right": [], "wrong": []})
        found[kind].append(example(prompt_ids, ids if row["truncated"] else [*ids, stop]))
    return [
        (found["right"][0], found["wrong"][0])
        for found in of_problem.values()
        if all(found.values())
    ]


def dpo_steps(pairs, seed: int) -> Iterator[list[Example]]:
    """Batches without end: the chosen, then the rejected, in an order drawn from the seed."""
    rng, n = np.random.default_rng(seed), QUESTIONS * SAMPLES // 2
    while True:
        for numbers in np.array_split(rng.permutation(len(pairs)), len(pairs) // n):
            batch = [pairs[i] for i in numbers[:n]]
            yield [chosen for chosen, _ in batch] + [rejected for _, rejected in batch]


class Rollouts:
    """Answers of the model as it is now, to questions in an order drawn from the seed, with their
    advantages.
    """

    def __init__(self, plan: planning.Plan, benchmark: str, seed: int):
        self.plan, self.benchmark = plan, benchmark
        self.problems = plan.problems[benchmark]
        self.order = np.random.default_rng(seed).permutation(len(self.problems))
        self.grader = pool.Grader(workers=1)
        self.seed = seed

    def step(self, number: int, params) -> tuple[list[Example], np.ndarray]:
        """Examples and advantages: (reward - the question's mean) / its standard deviation, 0 where
        all are equal.
        """
        places = range(number * QUESTIONS, (number + 1) * QUESTIONS)
        chosen = [self.problems[i] for i in self.order.take(places, mode="wrap")]
        prompt = {p.id: self.plan.requests[self.benchmark, 1.0, p.id, 0] for p in chosen}
        # A sample's noise follows from its problem and number: new ones at every step and for every
        # seed.
        first = (self.seed * 1000 + number) * SAMPLES
        requests = [
            dataclasses.replace(prompt[p.id], sample=first + i)
            for p in chosen
            for i in range(SAMPLES)
        ]
        done = {c.request: c for c in self.plan.sampler.sample(params, requests, progress=False)}
        completions = [done[request] for request in requests]
        texts = [self.plan.decode(list(c.ids if c.is_cut else c.ids[:-1])) for c in completions]
        answers = [p.answer for p in chosen for _ in range(SAMPLES)]
        graded = self.grader.grade(list(zip(texts, answers, strict=True)), progress=False)
        reward_QS = np.array([g.verdict == "correct" for g in graded], np.float32).reshape(
            QUESTIONS, SAMPLES
        )
        centred_QS = reward_QS - reward_QS.mean(axis=1, keepdims=True)
        advantage_QS = centred_QS / (reward_QS.std(axis=1, keepdims=True) + 1e-6)
        examples = [example(c.request.prompt_ids, c.ids) for c in completions]
        return examples, advantage_QS.reshape(-1)


def run(objective: str, config, model: Model, tokenizer, plan: planning.Plan, sampled: Path) -> Any:
    """Trains the base with `dpo` on the pairs in `sampled`, or with `grpo`; returns the parameters.

    Schedule, optimizer, steps and seed are those of the config; the data and the batch are as said
    above.
    """
    params = load_params(Checkpoint(Path(config.model.path)), model)
    reference = jax.tree.map(jnp.copy, params)
    rates_U = optimizer_lib.rates(config.optimizer, config.train.steps)
    optimizer = optimizer_lib.make_optimizer(config.optimizer)
    loss = {"dpo": dpo_loss, "grpo": grpo_loss}[objective]

    @jax.jit
    def step(params, opt_state, batch, other, rate):
        value, grads = jax.value_and_grad(lambda p: loss(model, p, batch, other))(params)
        updates, opt_state = optimizer.update(grads, opt_state, params, rate=rate)
        return optax.apply_updates(params, updates), opt_state, value

    opt_state = optimizer.init(params)
    if objective == "dpo":
        batches = dpo_steps(load_pairs(sampled, tokenizer, plan), config.train.seed)
    else:
        rollouts = Rollouts(plan, "lab_train", config.train.seed)
    with matmul_precision(config.model.compute_dtype):
        for number in tqdm(range(config.train.steps), desc=objective, unit="step"):
            if objective == "dpo":
                examples, other = next(batches), reference
            else:
                examples, other = rollouts.step(number, params)
            params, opt_state, value = step(
                params, opt_state, rows_of(examples), other, rates_U[number]
            )
            assert np.isfinite(value), f"{objective}: loss {value} at step {number}"
    return params
