"""What a run reads: its model, its examples, and the packed batches in the order of its seed."""

from pathlib import Path

from dft_jax.data import batches, mixture, order
from dft_jax.data.examples import Examples
from dft_jax.lm.checkpoint import open_config
from dft_jax.models.hf.tokenizer import Tokenizer
from dft_jax.models.model import Model, require_of_devices
from dft_jax.runtime.options import Config
from dft_jax.training import adapters, features
from dft_jax.training.programs import compilation_rows


def open_model(config: Config) -> tuple[Path, Model, Tokenizer]:
    """As `lm.open_config`, of a model that can attend as `model.attention` asks and save what
    `model.remat` does, with the adapters of `lora`.

    Raises:
      UserError: as there; or attention or memory that is asked for is not to be had; or adapters
      that do not fit; or a `train.balance_weight` that would balance nothing.
    """
    source, model, tokenizer = open_config(config)
    require_of_devices(model, config.model.attention)
    model = adapters.with_adapters(config, model)
    adapters.refuse_idle_balance(config, model)
    return source, model, tokenizer


def load_data(
    config: Config, source: Path, tokenizer: Tokenizer, model: Model
) -> tuple[Examples, Examples | None]:
    """Training examples, and held-out ones where the config names any.

    `source` is the checkpoint's folder, which says how a model with images reads them.
    """
    data, how = config.data, (config.data, tokenizer, model.config.vocab_size)
    vision = model.config.vision
    train = mixture.load(
        data.train,
        *how,
        vision=vision,
        source=source,
        split=data.split,
        max_rows=data.max_rows,
        # Runs that are older than these keys have none.
        sample_rows=data.get("sample_rows", 0),
        sample_seed=data.get("sample_seed", 0),
    )
    if not data.heldout:
        return train, None
    most = config.eval.max_examples
    heldout = mixture.load(
        data.heldout,
        *how,
        vision=vision,
        source=source,
        split=data.heldout_split,
        max_rows=most,
    )
    mixture.note_trained(heldout, train)
    return train, heldout


def load(
    config: Config, source: Path, tokenizer: Tokenizer, model: Model
) -> tuple[Model, Examples, Examples | None]:
    """As `load_data`, with the model that reads them: with its tower, where there are images.

    With `data.image_features` these know where their features are, which need not be there yet
    (training/features.py).
    """
    train, heldout = load_data(config, source, tokenizer, model)
    have_images = train.have_images or (heldout is not None and heldout.have_images)
    model = adapters.with_images(config, model, have_images)
    # Runs that are older than the key have none.
    folder = config.data.get("image_features", "")
    if folder:
        place = features.place_in(folder, model, source)
        train = features.named(train, place, model)
        if heldout is not None:
            heldout = features.named(heldout, place, model)
    return model, train, heldout


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
        vision=model.config.vision,
        max_patches=config.data.get("image_max_patches", 0),
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
