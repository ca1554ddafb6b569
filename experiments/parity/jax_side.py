"""The first step of `dft_jax` on a batch: loss and gradient norm of SFT and DFT, and the same
examples for TRL.

    python experiments/parity/jax_side.py --checkpoint=HF_FOLDER --data=train.jsonl --out=FOLDER
    [--examples=8]
        [--max-length=640] [--rows=gsm8k] [--micro-batches=1]

The batch is what `dft_jax.main` would train on first: rows rendered with the checkpoint's own
template, tokenised, shuffled and packed by `batches.TrainBatches`, then given to the step of
`training.step.make_train_step` as it is. Without `--data` the examples are random token ids (a
checkpoint without a tokenizer has no text to read), packed the same way. Written:

    jax.json    loss (mean over trained tokens), gradient norm before clipping, mean p;
                counts; versions
    batch.npz   the same examples unpacked, as Hugging Face takes them. Ids p p c e, the
                last two trained:
                  token_ids       p p c e 0 0
                  attention_mask  1 1 1 1 0 0
                  labels          . . c e . .     (. = -100)
"""

import argparse
import json
import pathlib

import jax
import numpy as np

import dft_jax
from dft_jax import config as config_lib, sharding
from dft_jax.data import batches
from dft_jax.data.examples import Examples
from dft_jax.data.templates import Example
from dft_jax.lm.checkpoint import open_config
from dft_jax.losses import objectives
from dft_jax.models.hf.load import check_tensors
from dft_jax.models.hf.locate import read_config, resolve
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.model import build, matmul_precision
from dft_jax.training import metrics, optimizer as optimizer_lib
from dft_jax.training.inputs import load_data
from dft_jax.training.state import init_params, init_state
from dft_jax.training.step import StepOptions, make_hyperparameters, make_train_step
from dft_jax.types import Frozen

IGNORED = -100


def make_config(arguments: argparse.Namespace):
    config = config_lib.get_default()
    config.model.path = arguments.checkpoint
    config.model.compute_dtype = "float32"
    config.data.train = arguments.data or "random.jsonl"
    config.data.rows = arguments.rows
    config.data.max_length = arguments.max_length
    config.train.global_batch = arguments.examples
    config.train.accumulation = arguments.micro_batches
    config.train.loss_chunk_tokens = 256
    return config


def random_examples(vocab_size: int, max_length: int, n: int) -> Examples:
    """`n` examples of a third to the whole of `max_length` random ids, a random head of each not
    trained.
    """
    generator = np.random.default_rng(0)
    examples = []
    for _ in range(n):
        length = generator.integers(max_length // 3, max_length, endpoint=True)
        prompt = generator.integers(1, length // 2, endpoint=True)
        ids = generator.integers(vocab_size, size=length, dtype=np.int32)
        examples.append(Example(ids, np.arange(length) >= prompt, 0))
    return Examples(examples, {}, [""] * len(examples))


def load(arguments: argparse.Namespace, config):
    """(checkpoint folder, model, examples): through `dft_jax.training.loop` for real data, else
    without a tokenizer.
    """
    if arguments.data:
        source, model, tokenizer = open_config(config)
        return source, model, load_data(config, source, tokenizer, model)[0]
    source = resolve(config.model.path, config.model.revision)
    model = build(read_config(source), sharding.make_mesh(data=-1, fsdp=1, tensor=1))
    check_tensors(Checkpoint(source), model)
    return (
        source,
        model,
        random_examples(model.config.vocab_size, config.data.max_length, 4 * arguments.examples),
    )


def pad(examples: list[Example]) -> dict[str, np.ndarray]:
    """The examples one to a row, right-padded with id 0; the module's docstring shows them."""
    shape = (len(examples), max(len(example.ids) for example in examples))
    batch = {"token_ids": np.zeros(shape, np.int32), "attention_mask": np.zeros(shape, np.int32)}
    batch["labels"] = np.full(shape, IGNORED, np.int32)
    for row, example in enumerate(examples):
        length = len(example.ids)
        batch["token_ids"][row, :length] = example.ids
        batch["attention_mask"][row, :length] = 1
        is_target = example.trained & (np.arange(length) > 0)  # nothing predicts the first token
        batch["labels"][row, :length] = np.where(is_target, example.ids, IGNORED)
    return batch


def first_step(
    config, objective: str, source: pathlib.Path, model, step: batches.PackedBatch
) -> dict[str, float]:
    """Loss per trained token, gradient norm and mean p of the real training step, from the
    checkpoint's weights.
    """
    optimizer = optimizer_lib.make_optimizer(config.optimizer)
    given = make_hyperparameters(config.optimizer, config.train.seed, 100, model.mesh)
    params = init_params(config.model.init, config.train.seed, source, model)
    state = init_state(params, model, optimizer)
    made = objectives.make_objective(objective)
    train_step = make_train_step(
        model, made, optimizer, StepOptions.of(config.train, config.optimizer)
    )
    with matmul_precision(config.model.compute_dtype):
        batch = sharding.device_batch(step.batch, model.mesh, step.n_rows)
        sums = jax.device_get(train_step(Frozen(given), state, batch)[1])
    means = metrics.per_token(sums, "train")
    return {
        "loss": means["train/loss"],
        "grad_norm": float(sums["gradient_norm"]),
        "mean_p": means["train/mean_p"],
        "trained_tokens": means["train/supervised_tokens"],
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="HF folder")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder to write to")
    parser.add_argument("--data", help="file of rows; without it, random token ids")
    parser.add_argument("--rows", default="gsm8k", help="data.rows")
    parser.add_argument("--examples", type=int, default=8, help="train.global_batch")
    parser.add_argument(
        "--max-length", type=int, default=640, help="data.max_length, which is the packed row's too"
    )
    parser.add_argument("--micro-batches", type=int, default=1, help="train.accumulation")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    config = make_config(arguments)
    source, model, examples = load(arguments, config)
    steps = batches.TrainBatches(
        examples,
        model.mesh,
        steps=1,
        global_batch=config.train.global_batch,
        accumulation=config.train.accumulation,
        row_length=config.data.max_length,
        seed=config.train.seed,
    )
    step = steps[0]
    arguments.out.mkdir(parents=True, exist_ok=True)
    np.savez(
        arguments.out / "batch.npz",
        **pad([examples.examples[number] for number in steps.stream[0]]),
    )

    result = {name: first_step(config, name, source, model, step) for name in ("sft", "dft")}
    result["packed_rows"] = step.n_rows * config.train.accumulation
    result["versions"] = {"dft_jax": dft_jax.__version__, "jax": jax.__version__}
    (arguments.out / "jax.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
