"""The measurements of the GPU table. Each makes its own random weights of the true shape on the
device.

`measure(row, attempt, tiny)` returns {"value", "low", "high", "rounds", "note", "device", …} or
{"gap": why not}. `tiny` shrinks all shapes, to see on any machine that a row works.
"""

import functools
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dft_jax.evals import significance
from dft_jax.models import model as models
from dft_jax.models.hf.locate import read_config
from dft_jax.models.model import matmul_precision
from dft_jax.sampling.sampler import Request, Sampler
from dft_jax.training import metrics, optimizer as optimizer_lib
from dft_jax.training.state import abstract_state
from dft_jax.types import Batch
from experiments.performance import workload
from experiments.performance.contenders import adapter

PEAK = 989e12  # FLOP/s in bf16, of the H100 (SXM) and the H200, dense: NVIDIA's data sheets
# config.json of Qwen2.5-Math-1.5B, Qwen2.5-Math-7B and Llama-3.1-8B: width, layers, heads,
# vocabulary
SHAPES = {
    "1.5b": dict(
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        vocab_size=151_936,
        tie_word_embeddings=True,
    ),
    "7b": dict(
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152_064,
        tie_word_embeddings=False,
    ),
    "8b": dict(
        model_type="llama",
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128_256,
        tie_word_embeddings=False,
        attention_bias=False,
        mlp_bias=False,
        rope_theta=500_000.0,
    ),
    "gate": dict(
        hidden_size=1536,
        intermediate_size=4096,
        num_hidden_layers=2,
        num_attention_heads=12,
        num_key_value_heads=2,
        vocab_size=8192,
        tie_word_embeddings=True,
    ),
}
TINY = dict(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def is_rate(row: str) -> bool:
    """Is more better?"""
    return row not in ("head", "optimizer")


def config_json(shape: str, tiny: bool) -> dict:
    c = workload.SHAPES["T"].config() | SHAPES[shape] | (TINY | {"vocab_size": 512} if tiny else {})
    if c["model_type"] == "llama":
        del c["use_sliding_window"]
    return c


def build(shape: str, tiny: bool, **settings):
    """The model of a shape on one device; `settings` as in models.build."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config_json(shape, tiny)))
        return models.build(read_config(Path(folder)), adapter.one_device_mesh(), **settings)


def timed(work: Callable[[], object], tiny: bool, rounds: int = 9) -> np.ndarray:
    """Seconds of each round; `work` returns arrays to wait for. The first two are dropped."""
    seconds = []
    for _ in range(2 if tiny else rounds + 2):
        start = time.perf_counter()
        jax.block_until_ready(work())
        seconds.append(time.perf_counter() - start)
    return np.array(seconds[1 if tiny else 2 :])


def summary(values: np.ndarray, note: str, **more) -> dict:
    """Median and its 95 % bootstrap interval."""
    low, high = significance.bootstrap_interval(
        lambda index_Rn: np.median(values[index_Rn], axis=1), len(values), n_resamples=5000
    )
    statistics = jax.devices()[0].memory_stats() or {}
    peak = statistics["peak_bytes_in_use"] / 2**30 if "peak_bytes_in_use" in statistics else None
    found = {
        "value": float(np.median(values)),
        "low": low,
        "high": high,
        "rounds": len(values),
    }
    return found | {"note": note, "peak_gib": peak, **more}


# ---- training
# ------------------------------------------------------------------------------------------------


def math_examples(vocab_size: int, tiny: bool) -> workload.Examples:
    """256 examples, as the recipe's step has them: 512 tokens on average, half of them trained."""
    lengths = workload.math_lengths(16 if tiny else 256, 128 if tiny else 2048)
    return workload.random_examples(vocab_size, lengths)


def training(shape: str, rows: int, remat: str, *, tiny: bool) -> dict:
    """tokens/s and MFU of full fine-tuning on packed rows of 2048, DFT, a whole step of 256
    examples.
    """
    param_dtype = "float32" if shape == "1.5b" else "bfloat16"
    row_length = 128 if tiny else 2048
    changes = {
        "model.param_dtype": param_dtype,
        "model.remat": remat,
        "train.loss_chunk_tokens": 4096,
    }
    config = adapter.make_config("bfloat16", **changes)
    model = build(shape, tiny, param_dtype=param_dtype, compute_dtype="bfloat16", remat=remat)
    examples = math_examples(model.config.vocab_size, tiny)
    packed = adapter.lay_out(examples, "packed", row_length, rows)[0]
    trainee = adapter.Trainee(config, model, "dft", None)

    def step():
        trainee.step([packed])
        return trainee.sums

    seconds = timed(step, tiny)
    facts = trainee.facts()
    assert np.isfinite([facts["loss"], facts["gradient_norm"]]).all(), facts
    c, real_tokens = model.config, int((examples.lengths_N - 1).sum())
    n_matmul = (
        models.parameter_count(model.abstract_params)
        - (not c.tie_embeddings) * c.vocab_size * c.hidden_size
    )
    mean_length = float(examples.lengths_N.mean())
    flops = metrics.training_flops_per_token(
        n_matmul, c.num_layers, c.num_heads, c.head_dim, mean_length
    )
    rate = real_tokens / seconds
    note = (
        f"{param_dtype} parameters, {real_tokens} useful tokens a step in"
        f" {packed.tokens_BL.shape} places."
    )
    also = {"mfu": float(np.median(rate)) * flops / PEAK}
    examples_per_s = len(examples.lengths_N) / float(np.median(seconds))
    return summary(rate, note, also=also, examples_per_s=examples_per_s)


def dense_loss(hidden_BLD, head_VD, batch: Batch, objective: str):
    """The mean loss over trained tokens from full logits in float32: the definition, and the
    official code's way.
    """
    logits_BLV = jnp.einsum("BLD,VD->BLV", hidden_BLD, head_VD.astype(hidden_BLD.dtype)).astype(
        jnp.float32
    )
    logp_BLV = jax.nn.log_softmax(logits_BLV)
    logp_BL = jnp.where(
        batch.mask_BL,
        jnp.take_along_axis(logp_BLV, batch.targets_BL[..., None], axis=-1)[..., 0],
        0,
    )
    loss_BL = -logp_BL * (jax.lax.stop_gradient(jnp.exp(logp_BL)) if objective == "dft" else 1.0)
    return jnp.where(batch.mask_BL, loss_BL, 0).sum() / jnp.maximum(batch.mask_BL.sum(), 1)


def begin(model, optimizer) -> tuple[list, tuple]:
    """[params, optimizer state] on the device, and how they are laid out: a step that keeps this
    compiles once.
    """
    abstract = abstract_state(model, optimizer)
    layouts = jax.tree.map(lambda leaf: leaf.sharding, (abstract.params, abstract.opt_state))
    params = model.init(jax.random.key(0))
    return [params, jax.jit(optimizer.init, out_shardings=layouts[1])(params)], layouts


def recipe(shape: str, rows: int, *, tiny: bool) -> dict:
    """samples/s in the style of the authors' code: each example padded to 2048, full logits,
    everything recomputed.
    """
    model = build(shape, tiny, param_dtype="float32", compute_dtype="bfloat16", remat="full")
    every = math_examples(model.config.vocab_size, tiny)
    n = 8 if tiny else 32
    examples = workload.Examples(every.ids_NL[:n], every.lengths_N[:n], every.prompts_N[:n])
    batch = adapter.lay_out(examples, "padded", 128 if tiny else 2048, rows)[0]
    optimizer = optimizer_lib.make_optimizer(adapter.make_config().optimizer)
    state, layouts = begin(model, optimizer)

    def loss(params, micro):
        return dense_loss(model.apply(params, micro), models.head(params), micro, "dft")

    @functools.partial(jax.jit, donate_argnums=(0, 1), out_shardings=(*layouts, None))
    def step(params, opt_state, batch):
        def accumulate(total, micro):
            value, grads = jax.value_and_grad(loss)(params, micro)
            return jax.tree.map(jnp.add, total, grads), value

        grads, values = jax.lax.scan(accumulate, jax.tree.map(jnp.zeros_like, params), batch)
        updates, opt_state = optimizer.update(grads, opt_state, params, rate=1e-5)
        return jax.tree.map(jnp.add, params, updates), opt_state, values.mean()

    on_device, losses = jax.device_put(batch), []

    def once():
        *state[:], loss = step(*state, on_device)
        losses.append(loss)
        return loss

    seconds = timed(once, tiny)
    assert np.isfinite(losses).all(), f"the loss is not finite: {losses}"
    return summary(n / seconds, f"samples/s of {n} examples padded to 2048, {rows} at a time.")


def torch_step(shape: str, rows: int, head: str, *, tiny: bool) -> dict:
    """tokens/s of a PyTorch loop: float32 weights, bf16 autocast, sdpa attention, fused AdamW, full
    rows of 2048.
    """
    needed = ["torch", "trl"] if head == "fused" else ["torch"]
    absent = [name for name in needed if importlib.util.find_spec(name) is None]
    if absent:
        return {"gap": f"{', '.join(absent)} not installed"}
    import torch

    if not torch.cuda.is_available() and not tiny:
        return {"gap": "this PyTorch has no CUDA"}
    from experiments.performance.contenders import torch_gpu

    c, length = config_json(shape, tiny), 128 if tiny else 2048
    ids = workload.random_examples(c["vocab_size"], np.full(rows, length))
    seconds = torch_gpu.step_seconds(c, ids, head, rounds=2 if tiny else 9)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return summary(
        rows * length / seconds, f"torch {torch.__version__} on {device}, {rows} full rows a step."
    )


# ---- parts of a step
# ------------------------------------------------------------------------------------------------


def head_problem(n_tokens: int, width: int, vocab_size: int, dtype) -> tuple:
    """Random hidden states [1, N, D], a head [V, D] in float32, and a batch of which every token is
    trained.
    """
    keys = jax.random.split(jax.random.key(0), 3)
    hidden_BLD = jax.random.normal(keys[0], (1, n_tokens, width), dtype)
    head_VD = jax.random.normal(keys[1], (vocab_size, width), jnp.float32) * width**-0.5
    targets_BL = jax.random.randint(keys[2], (1, n_tokens), 0, vocab_size)
    ones_BL = jnp.ones_like(targets_BL)
    return hidden_BLD, head_VD, Batch(targets_BL, targets_BL, ones_BL > 0, ones_BL, ones_BL)


def head(chunk_tokens: int, *, tiny: bool) -> dict:
    """ms of the head's loss and both gradients, its temporary memory, and DFT's time over SFT's."""
    sizes = (256, 64, 512) if tiny else (16_384, 1536, 151_936)
    problem = head_problem(*sizes, jnp.bfloat16)
    compiled = {}
    for objective in ("dft", "sft"):
        loss = adapter.mean_head_loss(objective, adapter.one_device_mesh(), chunk_tokens)
        compiled[objective] = (
            jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*problem).compile()
        )
    rounds: dict[str, list[float]] = {objective: [] for objective in compiled}
    for _ in range(1 if tiny else 9):  # in turn
        for objective, program in compiled.items():
            rounds[objective].append(
                float(np.median(timed(lambda program=program: program(*problem), tiny, rounds=5)))
            )
    dft, sft = (1e3 * np.array(rounds[objective]) for objective in ("dft", "sft"))
    memory = compiled["dft"].memory_analysis().temp_size_in_bytes / 2**30
    also = {"memory": memory, "dft_over_sft": float(np.median(dft) / np.median(sft))}
    return summary(
        dft, f"{sizes[0]} tokens, D {sizes[1]}, V {sizes[2]}, chunks of {chunk_tokens}.", also=also
    )


def optimizer(shape: str, *, tiny: bool) -> dict:
    """ms of clip, AdamW and the application of its update, float32."""
    model = build(shape, tiny)
    chain = optimizer_lib.make_optimizer(adapter.make_config().optimizer)
    state, layouts = begin(model, chain)
    grads = jax.jit(lambda tree: jax.tree.map(lambda p: p * 1e-3, tree))(state[0])

    @functools.partial(jax.jit, donate_argnums=(0, 1), out_shardings=layouts)
    def update(params, opt_state, grads):
        updates, opt_state = chain.update(grads, opt_state, params, rate=1e-5)
        return jax.tree.map(jnp.add, params, updates), opt_state

    def once():
        state[:] = update(*state, grads)
        return state

    return summary(
        1e3 * timed(once, tiny),
        f"{models.parameter_count(model.abstract_params) / 1e9:.2f} G parameters.",
    )


def decode(shape: str, batch: int, *, tiny: bool) -> dict:
    """New tokens/s of the sampler, prefill included: 16 samples of each prompt, contexts of 600 to
    800 tokens.
    """
    prompt, new = (24, 8) if tiny else (600, 200)
    batch = 16 if tiny else batch
    dtype = "float32" if tiny else "bfloat16"
    model = build(shape, tiny, param_dtype=dtype, compute_dtype=dtype)
    params = model.init(jax.random.key(0))
    ids_NL = workload.random_examples(model.config.vocab_size, np.full(batch // 16, prompt)).ids_NL
    sampler = Sampler(model, stop_ids=[], max_length=prompt + new, slots=batch)
    asked = [
        Request(str(i), k, tuple(ids.tolist()), 1.0, new)
        for i, ids in enumerate(ids_NL)
        for k in range(16)
    ]

    def once():
        made = sum(
            len(completion.ids) for completion in sampler.sample(params, asked, progress=False)
        )
        assert made == batch * new, made

    return summary(
        batch * new / timed(once, tiny, rounds=7),
        f"batch {batch}, prompts of {prompt}, {new} new tokens.",
    )


# ---- the gate
# ------------------------------------------------------------------------------------------------


def relative(found, expected) -> float:
    """The largest difference in a tree, relative to the largest number of each leaf."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(float(jnp.abs(f - e).max() / jnp.abs(e).max()) for f, e in pairs)


def gate(*, tiny: bool) -> dict:
    """The head against full logits, and packed against separate examples: values and gradients."""
    lines = []

    def line(case, difference, limit):
        verdict = "equal" if difference <= limit else "differs"
        lines.append(
            {"contender": "ours", "case": case, "loss_difference": difference, "verdict": verdict}
        )

    sizes = (256, 64, 512) if tiny else (4096, 1536, 32_768)
    for objective in ("sft", "dft"):
        with matmul_precision("float32"):
            hidden_BLD, head_VD, batch = head_problem(*sizes, jnp.float32)
            ours = adapter.mean_head_loss(objective, adapter.one_device_mesh(), sizes[0] // 4)
            dense = functools.partial(dense_loss, objective=objective)
            found, expected = (
                jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(hidden_BLD, head_VD, batch)
                for loss in (ours, dense)
            )
        line(f"head against full logits, {objective}, float32", relative(found, expected), 1e-4)
    for dtype, limit in (("float32", 1e-4), ("bfloat16", 3e-2)):
        facts = packed_and_separate(dtype, tiny)
        differences = [
            abs(facts[0][name] / facts[1][name] - 1) for name in ("loss", "gradient_norm")
        ]
        line(f"packed against separate examples, {dtype}", max(differences), limit)
    versions = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    return {"gate": lines, "versions": {"gpu": versions}}


def packed_and_separate(dtype: str, tiny: bool) -> list[dict]:
    """Loss and gradient norm of the first step on the same examples, packed and one to a row."""
    config = adapter.make_config(dtype)
    model = build("gate", tiny, compute_dtype=dtype)
    examples = math_examples(model.config.vocab_size, tiny)
    few = workload.Examples(examples.ids_NL[:8], examples.lengths_N[:8], examples.prompts_N[:8])
    facts = []
    for layout in ("packed", "padded"):
        trainee = adapter.Trainee(config, model, "sft", None)
        trainee.step(adapter.lay_out(few, layout, 128 if tiny else 2048))
        facts.append(trainee.facts())
    return facts


def measure(row: str, attempt: list, tiny: bool) -> dict:
    """What a row's measurement finds, with the device's name."""
    functions = {
        "train": training,
        "torch": torch_step,
        "decode": decode,
        "recipe": recipe,
        "head": head,
    }
    functions |= {"optimizer": optimizer, "gate": gate}
    found = functions[row.split("_")[0]](*attempt, tiny=tiny)
    return found | {"device": jax.devices()[0].device_kind}
