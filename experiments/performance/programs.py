"""The programs of the GPU table and of the TPU table: the same functions are measured on a device
(gpu_rows.py) and compiled for one that is not there (aot.py).
"""

import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dft_jax import sharding
from dft_jax.models import cached, model as models
from dft_jax.models.hf.locate import read_config
from dft_jax.sampling import decode as decoding, filters
from dft_jax.training import optimizer as optimizer_lib
from dft_jax.training.state import abstract_state
from dft_jax.types import Batch
from experiments.performance import workload
from experiments.performance.contenders import adapter

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
CHUNK_TOKENS = 4096  # of the head, on a GPU
HEAD_SIZES = (16_384, 1536, 151_936)  # tokens, width, vocabulary of the head's row


@dataclasses.dataclass(frozen=True)
class Compilable:
    """A jitted function and the shapes that it is compiled for.

    `unknown_trips` is how often its loops run whose length is data: chunks of trained tokens.
    """

    function: Any
    arguments: tuple
    unknown_trips: int = 1
    compute_dtype: str = "bfloat16"
    attention: str = ""  # the backend; empty where there is none
    made: int = 0  # by a call: useful tokens, or the samples of the recipe


# ---- models and batches


def config_json(shape: str, tiny: bool) -> dict:
    c = workload.SHAPES["T"].config() | SHAPES[shape] | (TINY | {"vocab_size": 512} if tiny else {})
    if c["model_type"] == "llama":
        del c["use_sliding_window"]
    return c


def build(
    shape: str, tiny: bool, mesh: Mesh | None = None, attention: str = "auto", **settings
) -> models.Model:
    """The model of a shape on one device, or on `mesh`, with the attention backend that `attention`
    comes to there; `settings` as in models.build.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config_json(shape, tiny)))
        spec = read_config(Path(folder))
    built = models.build(spec, mesh or adapter.one_device_mesh(), **settings)
    return models.with_attention(built, attention)


def param_dtype_of(shape: str) -> str:
    """float32 where that fits on one GPU."""
    return "float32" if shape in ("1.5b", "gate") else "bfloat16"


def math_examples(vocab_size: int, tiny: bool) -> workload.Examples:
    """256 examples, as the recipe's step has them: 512 tokens on average, half of them trained."""
    lengths = workload.math_lengths(16 if tiny else 256, 128 if tiny else 2048)
    return workload.random_examples(vocab_size, lengths)


def packed_step(vocab_size: int, rows: int, accumulation: int | None, tiny: bool) -> Batch:
    """A step's examples packed into micro-batches [A, rows, L]: all, or `accumulation` of them, of
    rows from all over the step, because the first rows have the longest examples.
    """
    row_length = 128 if tiny else 2048
    [batch] = adapter.lay_out(math_examples(vocab_size, tiny), "packed", row_length, rows)
    if accumulation is None:
        return batch
    flat = jax.tree.map(lambda array: array.reshape(-1, row_length), batch)
    n_rows = int(flat.segments_BL.any(axis=1).sum())
    chosen = np.linspace(0, n_rows - 1, accumulation * rows).astype(int)
    return jax.tree.map(lambda array: array[chosen].reshape(-1, rows, row_length), flat)


def useful_tokens(batch: Batch) -> int:
    """Places that hold a token of an example."""
    return int((np.asarray(batch.segments_BL) > 0).sum())


# ---- training


def training_config(shape: str, remat: str, chunk_tokens: int, **changes):
    fixed = {"model.param_dtype": param_dtype_of(shape), "model.remat": remat}
    fixed |= {"train.loss_chunk_tokens": chunk_tokens}
    return adapter.make_config("bfloat16", **(fixed | changes))


def training_model(config, shape: str, tiny: bool, mesh: Mesh | None, attention: str):
    settings: dict[str, Any] = {name: config.model[name] for name in models.OPTIONS}
    return build(shape, tiny, mesh, attention, **settings)


def train(
    shape: str,
    rows: int,
    remat: str,
    accumulation: int | None = None,
    *,
    tiny: bool = False,
    mesh: Mesh | None = None,
    attention: str = "auto",
    chunk_tokens: int = CHUNK_TOKENS,
    **changes,
) -> Compilable:
    """The training step; `rows` are those of one device in a micro-batch."""
    config = training_config(shape, remat, chunk_tokens, **changes)
    model = training_model(config, shape, tiny, mesh, attention)
    optimizer, step = adapter.make_step(config, model, "dft")
    shards = sharding.batch_shards(model.mesh)
    batch = packed_step(model.config.vocab_size, rows * shards, accumulation, tiny)
    return Compilable(
        step,
        adapter.step_shapes(model, optimizer, batch),
        _chunks(batch, shards, chunk_tokens),
        attention=model.module.backend,
        made=useful_tokens(batch),
    )


def _chunks(batch: Batch, shards: int, chunk_tokens: int) -> int:
    """Chunks of trained tokens that one device has in a micro-batch."""
    places = batch.mask_BL[0].size // shards
    trained = np.asarray(batch.mask_BL).sum(axis=(1, 2)).mean() / shards
    return max(1, round(trained / min(chunk_tokens, max(places // 4, 128))))


# ---- the official recipe's style


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


def layouts_of(model, optimizer) -> tuple:
    """How parameters and optimizer state are laid out: a step that keeps this compiles once."""
    abstract = abstract_state(model, optimizer)
    return jax.tree.map(lambda leaf: leaf.sharding, (abstract.params, abstract.opt_state))


def recipe_step(model, optimizer) -> Callable:
    """(params, opt_state, batch [A, B, L]) -> (params, opt_state, loss), with full logits."""

    def loss(params, micro):
        return dense_loss(model.apply(params, micro), models.head(params), micro, "dft")

    @functools.partial(
        jax.jit, donate_argnums=(0, 1), out_shardings=(*layouts_of(model, optimizer), None)
    )
    def step(params, opt_state, batch):
        def accumulate(total, micro):
            value, grads = jax.value_and_grad(loss)(params, micro)
            return jax.tree.map(jnp.add, total, grads), value

        grads, values = jax.lax.scan(accumulate, jax.tree.map(jnp.zeros_like, params), batch)
        updates, opt_state = optimizer.update(grads, opt_state, params, rate=1e-5)
        return jax.tree.map(jnp.add, params, updates), opt_state, values.mean()

    return step


def recipe_model(shape: str, tiny: bool, mesh: Mesh | None = None, attention: str = "auto"):
    return build(shape, tiny, mesh, attention, compute_dtype="bfloat16", remat="full")


def recipe_batch(vocab_size: int, rows: int, tiny: bool) -> tuple[workload.Examples, Batch]:
    """A few of the step's examples, each padded to 2048."""
    every, n = math_examples(vocab_size, tiny), 8 if tiny else 32
    few = workload.Examples(every.ids_NL[:n], every.lengths_N[:n], every.prompts_N[:n])
    return few, adapter.lay_out(few, "padded", 128 if tiny else 2048, rows)[0]


def recipe(
    shape: str, rows: int, *, tiny: bool = False, mesh: Mesh | None = None, attention: str = "auto"
) -> Compilable:
    model = recipe_model(shape, tiny, mesh, attention)
    optimizer = optimizer_lib.make_optimizer(adapter.make_config().optimizer)
    examples, batch = recipe_batch(model.config.vocab_size, rows, tiny)
    abstract = abstract_state(model, optimizer)
    shapes = sharding.abstract_batch(batch.tokens_BL.shape, model.mesh, batch.most_segments)
    step = recipe_step(model, optimizer)
    arguments = (abstract.params, abstract.opt_state, shapes)
    about = {"attention": model.module.backend, "made": len(examples.lengths_N)}
    return Compilable(step, arguments, **about)


# ---- parts of a step


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


def head_sizes(tiny: bool) -> tuple[int, int, int]:
    return (256, 64, 512) if tiny else HEAD_SIZES


def head_function(objective: str, chunk_tokens: int, mesh: Mesh | None = None):
    """(hidden, head, batch) -> loss and both gradients."""
    loss = adapter.mean_head_loss(objective, mesh or adapter.one_device_mesh(), chunk_tokens)
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def head(
    chunk_tokens: int, objective: str = "dft", *, tiny: bool = False, mesh: Mesh | None = None
) -> Compilable:
    n_tokens, width, vocab_size = head_sizes(tiny)
    make = functools.partial(head_problem, n_tokens, width, vocab_size, jnp.bfloat16)
    shapes = on_mesh(jax.eval_shape(make), mesh or adapter.one_device_mesh())
    trips = -(-n_tokens // min(chunk_tokens, n_tokens // 4))
    return Compilable(head_function(objective, chunk_tokens, mesh), shapes, trips, made=n_tokens)


def update_function(model, optimizer) -> Callable:
    """(params, opt_state, grads) -> (params, opt_state): clip, AdamW, and its application."""

    @functools.partial(jax.jit, donate_argnums=(0, 1), out_shardings=layouts_of(model, optimizer))
    def update(params, opt_state, grads):
        updates, opt_state = optimizer.update(grads, opt_state, params, rate=1e-5)
        return jax.tree.map(jnp.add, params, updates), opt_state

    return update


def optimizer(shape: str, *, tiny: bool = False, mesh: Mesh | None = None) -> Compilable:
    model = build(shape, tiny, mesh, "blocked")
    chain = optimizer_lib.make_optimizer(adapter.make_config().optimizer)
    abstract = abstract_state(model, chain)
    arguments = (abstract.params, abstract.opt_state, abstract.params)
    return Compilable(update_function(model, chain), arguments, compute_dtype="float32")


# ---- sampling


def lengths_of_decoding(tiny: bool) -> tuple[int, int]:
    """Tokens of a prompt, and of a completion."""
    return (24, 8) if tiny else (600, 200)


def decode_model(shape: str, tiny: bool, mesh: Mesh | None = None):
    dtype = "float32" if tiny else "bfloat16"
    return build(shape, tiny, mesh, "blocked", param_dtype=dtype, compute_dtype=dtype)


def decode(shape: str, batch: int, *, tiny: bool = False, mesh: Mesh | None = None) -> Compilable:
    """The loop that makes tokens, its cache at full length; one trip is one token of each slot."""
    prompt, new = lengths_of_decoding(tiny)
    model = decode_model(shape, tiny, mesh)
    run = functools.partial(
        decoding.decode,
        model=model,
        stop_ids=(),
        vocab_size=model.config.vocab_size,
        filters=filters.make(0, 1.0),
    )
    params = jax.eval_shape(functools.partial(cached.unstack, model=model), model.abstract_params)
    make = functools.partial(decoding.empty, n_slots=batch, size=prompt + new, n_outputs=256)
    slots = jax.eval_shape(functools.partial(make, model=model))
    least = jax.ShapeDtypeStruct((), jnp.int32)
    arguments = on_mesh((params, slots, least), model.mesh)
    dtype = str(model.module.compute_dtype)
    about = {"compute_dtype": dtype, "attention": "cached", "made": batch}
    return Compilable(jax.jit(run, donate_argnums=1), arguments, **about)


def on_mesh(shapes: Any, mesh: Mesh) -> Any:
    """Shapes as arrays that every device of the mesh has whole."""
    whole = sharding.named(mesh)

    def place(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)

    return jax.tree.map(place, shapes)


ROWS: dict[str, Callable[..., Compilable]] = {
    "train": train,
    "recipe": recipe,
    "head": head,
    "optimizer": optimizer,
    "decode": decode,
}


def of(row: str) -> Callable[..., Compilable] | None:
    """What makes the program of a row of the table: `train_1.5b` is a row of `train`."""
    return ROWS.get(row.split("_")[0])
