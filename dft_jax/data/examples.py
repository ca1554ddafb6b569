"""Examples in memory: all usable rows of a source, read, rendered and tokenised."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dft_jax.data import image_settings, records, row_sample
from dft_jax.data.account import Account
from dft_jax.data.order import Share
from dft_jax.data.sources import locate
from dft_jax.data.templates import Example, Template
from dft_jax.models.hf.tokenizer import Tokenizer
from dft_jax.models.spec import VisionSpec
from dft_jax.runtime import errors, progress
from dft_jax.runtime.options import Config


@dataclasses.dataclass
class Examples:
    """All usable examples of a source, with the account of every row and token that was read."""

    examples: list[Example]
    report: dict[str, Any]
    origins: list[str]  # file and line of each
    # Of several sources, in the order of their examples; one source has none.
    shares: tuple[Share, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def have_images(self) -> bool:
        return any(example.images for example in self.examples)

    @property
    def pictures(self) -> Iterator[Any]:
        """The image_files.Picture of all examples, one after another."""
        for example in self.examples:
            yield from example.images

    @property
    def features_dtype(self) -> str:
        """Of the kept features of their images; empty where a tower is to see these."""
        first = next(self.pictures, None)
        if first is None or first.features is None:
            return ""
        return first.features.dtype

    @property
    def drawn_in_an_epoch(self) -> dict[str, Any]:
        """Of several sources: source -> examples that there are, and how many an epoch draws."""
        found = {}
        for share in self.shares:
            found[share.name] = {"examples": share.n_examples, "drawn_in_an_epoch": share.quota}
        return found

    @property
    def mean_length(self) -> float:
        """Tokens of an example, on average."""
        return sum(len(example.ids) for example in self.examples) / len(self.examples)


def load_examples(
    path: str,
    config: Config,
    tokenizer: Tokenizer,
    vocab_size: int,
    *,
    vision: VisionSpec | None = None,
    source: Path | None = None,
    split: str = "train",
    max_rows: int = 0,
    sample_rows: int = 0,
    sample_seed: int = 0,
) -> Examples:
    """Reads, renders and tokenises all of `path`; images are looked at, so that none is damaged.

    The report (account.py) balances: rows read = used whole + truncated + dropped by reason, and
    tokens read = used + cut off by truncation + dropped (a malformed row has no tokens to count).

    Args:
      path: file, folder, hub id or excerpt of the lab's world; see sources/locate.py.
      config: `config.data`.
      vocab_size: rows of the model's embedding table.
      vision: of a model that reads images; without it a row with one is malformed.
      source: the checkpoint's folder, of such a model.
      split: of a folder or a hub dataset.
      max_rows: rows to read, from the first on; 0 for all.
      sample_rows: how many of them are drawn by `sample_seed` (data/row_sample.py); 0 for all.

    Raises:
      UserError: a malformed row while `data.bad_rows` is 'refuse' (the first few, by file:line),
        nothing usable at all, fewer rows than are to be drawn, or token ids that the model's table
        does not have.
    """
    # Runs that are older than a key have none.
    date: Any = config.get("date", "")
    prompt_weight: Any = config.get("prompt_weight", 0.0)
    template = Template(config.template, tokenizer, date=date, vision=vision)
    reading = image_settings.of_model(vision, source, config)
    sample = None
    if sample_rows:
        sample = row_sample.draw(
            path, config, split, max_rows=max_rows, sample_rows=sample_rows, seed=sample_seed
        )
    account = Account()
    opened = locate.open_rows(path, config, split)
    rows = itertools.islice(opened.rows, max_rows or None)
    bar = progress.bar(rows, desc=f"read {Path(path).name}", unit="row", leave=False)
    folder = image_settings.folder_of(path, config)
    found = records.read(iter(bar), config, template, account, sample, folder)
    examples: list[Example] = []
    origins: list[str] = []
    for record, example in records.tokenized(found, template, config.max_length, account, reading):
        if record.weight != 1 or prompt_weight:
            example = dataclasses.replace(
                example, weight=record.weight, prompt_weight=prompt_weight
            )
        origins.append(record.origin)
        examples.append(example)
    if config.bad_rows == "refuse":
        account.refuse_bad_rows()
    if not examples:
        raise errors.UserError(_nothing_usable(path, account))
    _require_embeddings(path, examples, vocab_size)
    report = account.report(path, config.max_length, origins, examples)
    report["commit"] = opened.commit
    if sample is not None:
        report["sample"] = sample.report()
    return Examples(examples, report, origins)


def _nothing_usable(path: str, account: Account) -> str:
    """What to say of a source none of whose rows can be trained on."""
    reasons = [f"{n} {reason}" for reason, n in account.dropped.items()]
    why = ", ".join(reasons) or "the file has no rows"
    first = ""
    if account.offenders:
        first = f"; first: {account.offenders[0]}"
    return f"{path}: no example to train on ({why}){first}; fix the rows or raise data.max_length"


def _require_embeddings(path: str, examples: list[Example], vocab_size: int) -> None:
    """UserError where a token has no embedding: JAX would take the last one without a word."""
    largest = max(int(example.ids.max()) for example in examples)
    if largest >= vocab_size:
        raise errors.UserError(
            f"{path}: token id {largest} is beyond the model's {vocab_size} embeddings: the"
            " tokenizer is not this model's; copy the model's own tokenizer files"
        )
