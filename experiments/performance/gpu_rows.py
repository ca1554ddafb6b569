"""The measurements of the GPU table. Each makes its own random weights of the true shape on the
device.

`measure(row, attempt, tiny)` returns {"value", "low", "high", "rounds", "note", "device", …} or
{"gap": why not}. `tiny` shrinks all shapes, to see on any machine that a row works.
"""

import importlib.util
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dft_jax.evals import significance
from dft_jax.models import model as models
from dft_jax.sampling.sampler import Request, Sampler
from dft_jax.training import metrics, optimizer as optimizer_lib
from experiments.performance import gpu_gate, gpu_process, programs, workload
from experiments.performance.contenders import adapter

PEAK = 989e12  # FLOP/s in bf16, of the H100 (SXM) and the H200, dense: NVIDIA's data sheets


def timed(work: Callable[[], object], tiny: bool, rounds: int = 5) -> np.ndarray:
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
    found = {
        "value": float(np.median(values)),
        "low": low,
        "high": high,
        "rounds": len(values),
    }
    return found | {"note": note, **more}


# ---- training
# ------------------------------------------------------------------------------------------------


def training(
    shape: str,
    rows: int,
    remat: str,
    accumulation: int | None = None,
    *,
    tiny: bool,
    attention: str = "auto",
) -> dict:
    """tokens/s and MFU of full fine-tuning on packed rows of 2048, DFT: a step of 256 examples, or
    of the first `accumulation` micro-batches of them.
    """
    config = programs.training_config(shape, remat, programs.CHUNK_TOKENS)
    model = programs.training_model(config, shape, tiny, None, attention)
    packed = programs.packed_step(model.config.vocab_size, rows, accumulation, tiny)
    trainee = adapter.Trainee(config, model, "dft", None)

    def step():
        trainee.step([packed])
        return trainee.sums

    seconds = timed(step, tiny)
    facts = trainee.facts()
    assert np.isfinite([facts["loss"], facts["gradient_norm"]]).all(), facts
    c, real_tokens = model.config, programs.useful_tokens(packed)
    n_matmul = (
        models.parameter_count(model.abstract_params)
        - (not c.tie_embeddings) * c.vocab_size * c.hidden_size
    )
    n_examples = int(np.asarray(packed.segments_BL).max(axis=-1).sum())
    flops = metrics.training_flops_per_token(
        n_matmul, c.num_layers, c.num_heads, c.head_dim, real_tokens / n_examples
    )
    rate = real_tokens / seconds
    note = (
        f"{config.model.param_dtype} parameters, {real_tokens} useful tokens a step in"
        f" {packed.tokens_BL.shape} places."
    )
    also = {"mfu": float(np.median(rate)) * flops / PEAK}
    more = {
        "attention": model.module.backend,
        "examples_per_s": n_examples / float(np.median(seconds)),
    }
    return summary(rate, note, also=also, **more)


def begin(model, optimizer) -> list:
    """[params, optimizer state] on the device."""
    layouts = programs.layouts_of(model, optimizer)
    params = model.init(jax.random.key(0))
    return [params, jax.jit(optimizer.init, out_shardings=layouts[1])(params)]


def recipe(shape: str, rows: int, *, tiny: bool, attention: str = "auto") -> dict:
    """samples/s in the style of the authors' code: each example padded to 2048, full logits,
    everything recomputed.
    """
    model = programs.recipe_model(shape, tiny, None, attention)
    examples, batch = programs.recipe_batch(model.config.vocab_size, rows, tiny)
    optimizer = optimizer_lib.make_optimizer(adapter.make_config().optimizer)
    state = begin(model, optimizer)
    step = programs.recipe_step(model, optimizer)
    on_device, losses = jax.device_put(batch), []

    def once():
        *state[:], loss = step(*state, on_device)
        losses.append(loss)
        return loss

    seconds = timed(once, tiny)
    assert np.isfinite(losses).all(), f"the loss is not finite: {losses}"
    n = len(examples.lengths_N)
    note = f"samples/s of {n} examples padded to 2048, {rows} at a time."
    return summary(n / seconds, note, attention=model.module.backend)


def torch_step(shape: str, rows: int, head: str, *, tiny: bool) -> dict:
    """tokens/s of a PyTorch loop: float32 weights, bf16 autocast, sdpa attention, fused AdamW, full
    rows of 2048.
    """
    needed = ["torch", "trl"] if head == "fused" else ["torch"]
    absent = [name for name in needed if importlib.util.find_spec(name) is None]
    if absent:
        return {"gap": f"{', '.join(absent)} {gpu_process.ABSENT}"}
    import torch

    if not torch.cuda.is_available() and not tiny:
        return {"gap": "this PyTorch has no CUDA"}
    from experiments.performance.contenders import torch_gpu

    c, length = programs.config_json(shape, tiny), 128 if tiny else 2048
    ids = workload.random_examples(c["vocab_size"], np.full(rows, length))
    seconds = torch_gpu.step_seconds(c, ids, head, rounds=2 if tiny else 5)
    about = {"device": "cpu"}
    if torch.cuda.is_available():
        about["device"] = torch.cuda.get_device_name()
        about["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    note = f"torch {torch.__version__}, {rows} full rows a step."
    return summary(rows * length / seconds, note, **about)


# ---- parts of a step
# ------------------------------------------------------------------------------------------------


def head(chunk_tokens: int, *, tiny: bool) -> dict:
    """ms of the head's loss and both gradients, its temporary memory, and DFT's time over SFT's."""
    sizes = programs.head_sizes(tiny)
    problem = programs.head_problem(*sizes, jnp.bfloat16)
    compiled = {}
    for objective in ("dft", "sft"):
        function = programs.head_function(objective, chunk_tokens)
        compiled[objective] = function.lower(*problem).compile()
    rounds: dict[str, list[float]] = {objective: [] for objective in compiled}
    for _ in range(1 if tiny else 5):  # in turn
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
    model = programs.build(shape, tiny, attention="blocked")
    chain = optimizer_lib.make_optimizer(adapter.make_config().optimizer)
    state = begin(model, chain)
    grads = jax.jit(lambda tree: jax.tree.map(lambda p: p * 1e-3, tree))(state[0])
    update = programs.update_function(model, chain)

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
    prompt, new = programs.lengths_of_decoding(tiny)
    batch = 16 if tiny else batch
    model = programs.decode_model(shape, tiny)
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
        batch * new / timed(once, tiny),
        f"batch {batch}, prompts of {prompt}, {new} new tokens.",
    )


def ceilings(*, tiny: bool) -> dict:
    """What the device reaches at best here, and how much memory JAX may take: TFLOP/s of an 8192³
    product in bfloat16, GB/s of a copy of 2 GiB, read and written.
    """
    n, n_bytes = (256, 2**20) if tiny else (8192, 2**31)
    keys = jax.random.split(jax.random.key(0), 3)
    left, right = (jax.random.normal(key, (n, n), jnp.bfloat16) for key in keys[:2])
    much = jax.random.normal(keys[2], (n_bytes // 4,), jnp.float32)
    product, copy = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1)
    tflops = 2 * n**3 / timed(lambda: product(left, right), tiny) / 1e12
    gbs = 2 * n_bytes / timed(lambda: copy(much), tiny) / 1e9
    statistics = jax.devices()[0].memory_stats() or {}
    limit = statistics.get("bytes_limit")
    also = {"copy": float(np.median(gbs))}
    return summary(tflops, f"{n}³ in bfloat16.", also=also, limit_gib=limit and limit / 2**30)


# ---- all of them
# ------------------------------------------------------------------------------------------------


_MEASURES: dict[str, Callable[..., dict]] = {
    "train": training,
    "torch": torch_step,
    "decode": decode,
    "recipe": recipe,
    "head": head,
    "optimizer": optimizer,
    "gate": gpu_gate.gate,
    "ceilings": ceilings,
}


def measure(row: str, attempt: list, tiny: bool, attention: str = "auto") -> dict:
    """What a row's measurement finds, with the device's name and the seconds spent on compiling;
    `attention` is for the rows whose model has a choice.
    """
    kind, compile_s = row.split("_")[0], []

    def listen(event: str, seconds: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compile_s.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    more = {"attention": attention} if kind in ("train", "recipe") else {}
    found = _MEASURES[kind](*attempt, tiny=tiny, **more)
    # JAX would take the memory that PyTorch has.
    if kind == "torch":
        return found
    statistics = jax.devices()[0].memory_stats() or {}
    about = {"device": jax.devices()[0].device_kind, "compile_s": round(sum(compile_s), 1)}
    if "peak_bytes_in_use" in statistics:
        about["peak_gib"] = statistics["peak_bytes_in_use"] / 2**30
    return found | about
