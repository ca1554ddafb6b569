"""What a run reads: its model, its examples, and the packed batches in the order of its seed."""

from pathlib import Path

from dft_jax.data import batches, mixture, order
from dft_jax.data.examples import Examples
from dft_jax.lm.checkpoint import open_config
from dft_jax.models.attention import select
from dft_jax.models.hf.tokenizer import Tokenizer
from dft_jax.models.model import Model
from dft_jax.runtime import errors
from dft_jax.runtime.options import Config
from dft_jax.training import adapters
from dft_jax.training.programs import compilation_rows


def open_model(config: Config) -> tuple[Path, Model, Tokenizer]:
    """As `lm.open_config`, of a model that can attend as `model.attention` asks, with the adapters
    of `lora`.

    Raises:
      UserError: as there; or the attention that is asked for is not to be had; or adapters that do
      not fit.
    """
    source, model, tokenizer = open_config(config)
    errors.raise_if_any(
        select.problems(
            config.model.attention, model.config, model.mesh, config.model.compute_dtype
        )
    )
    return source, adapters.with_adapters(config, model), tokenizer


def load_data(
    config: Config, tokenizer: Tokenizer, model: Model
) -> tuple[Examples, Examples | None]:
    """Training examples, and held-out ones where the config names any."""
    data, how = config.data, (config.data, tokenizer, model.config.vocab_size)
    train = mixture.load(
        data.train,
        *how,
        split=data.split,
        max_rows=data.max_rows,
        # Runs that are older than these keys have none.
        sample_rows=data.get("sample_rows", 0),
        sample_seed=data.get("sample_seed", 0),
    )
    if not data.heldout:
        return train, None
    most = config.eval.max_examples
    heldout = mixture.load(data.heldout, *how, split=data.heldout_split, max_rows=most)
    mixture.note_trained(heldout, train)
    return train, heldout


def make_steps(
    config: Config, examples: Examples, model: Model, version: int = order.VERSION
) -> batches.TrainBatches:
    """The packed steps of the run; `version` is that of data/order.py."""
    t, row_length = config.train, batches.row_length(config.data)
    return batches.TrainBatches(
        examples,
        model.mesh,
        steps=length_of(config, examples, version).steps,
        global_batch=t.global_batch,
        seed=t.seed,
        version=version,
        accumulation=t.accumulation,
        row_length=row_length,
        compilation_rows=compilation_rows(model, row_length),
        by_examples=t.loss_normalization == "official",
    )


def length_of(config: Config, train: Examples, version: int = order.VERSION) -> order.Length:
    """`train.steps`, or what `train.epochs` passes over the data take; `version` is that of
    data/order.py.
    """
    t = config.train
    return order.length(
        steps=t.steps,
        epochs=t.epochs,
        global_batch=t.global_batch,
        n_examples=mixture.epoch_of(train),
        version=version,
    )


def refuse_lost(config: Config, train: Examples) -> None:
    """UserError where more of the training data is lost than `data.max_lost_fraction`."""
    mixture.refuse_lost("data.train", train, config.data.max_lost_fraction)
