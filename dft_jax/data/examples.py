"""Examples in memory: all usable rows of a source, read, rendered and tokenised."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dft_jax.data import formats, row_sample
from dft_jax.data.account import Account
from dft_jax.data.order import Share
from dft_jax.data.row_sample import RowSample
from dft_jax.data.sources import locate
from dft_jax.data.sources.rows import BadRow, NothingToTrain, Row
from dft_jax.data.templates import Example, Part, Template
from dft_jax.data.tokenize import tokenize
from dft_jax.models.hf.tokenizer import Tokenizer
from dft_jax.runtime import errors, progress
from dft_jax.runtime.options import Config

# The tokenizer's threads need some hundred texts to be busy; more only hold memory.
_TOKENIZE_AT_ONCE = 1024


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


@dataclasses.dataclass(frozen=True)
class _Record:
    """One usable row: its conversation as text, and its origin (file and line)."""

    origin: str
    parts: list[Part]
    weight: float


def load_examples(
    path: str,
    config: Config,
    tokenizer: Tokenizer,
    vocab_size: int,
    *,
    split: str = "train",
    max_rows: int = 0,
    sample_rows: int = 0,
    sample_seed: int = 0,
) -> Examples:
    """Reads, renders and tokenises all of `path`.

    The report (account.py) balances: rows read = used whole + truncated + dropped by reason, and
    tokens read = used + cut off by truncation + dropped (a malformed row has no tokens to count).

    Args:
      path: file, folder, hub id or excerpt of the lab's world; see sources/locate.py.
      config: `config.data`.
      vocab_size: rows of the model's embedding table.
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
    template = Template(config.template, tokenizer, date=date)
    sample = None
    if sample_rows:
        sample = row_sample.draw(
            path, config, split, max_rows=max_rows, sample_rows=sample_rows, seed=sample_seed
        )
    account = Account()
    source = locate.open_rows(path, config, split)
    bar = progress.bar(
        itertools.islice(source.rows, max_rows or None),
        desc=f"read {Path(path).name}",
        unit="row",
        leave=False,
    )
    examples: list[Example] = []
    origins: list[str] = []
    records = _records(iter(bar), config, template, account, sample)
    # In blocks: the texts of a file of 10 GB would not fit beside its tokens.
    while block := list(itertools.islice(records, _TOKENIZE_AT_ONCE)):
        for record, example in _tokenize(block, template, config.max_length, account):
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
    report["commit"] = source.commit
    if sample is not None:
        report["sample"] = sample.report()
    return Examples(examples, report, origins)


def _records(
    rows: Iterable[Row],
    config: Config,
    template: Template,
    account: Account,
    sample: RowSample | None,
) -> Iterator[_Record]:
    """The rows as conversations under the template; malformed ones are counted and left out."""
    for number, row in enumerate(rows):
        account.rows_read += 1
        try:
            read = formats.read(row, config)
            # Before it is rendered: most rows of a large file may not be drawn.
            if sample is not None and read.weight > 0 and number not in sample.numbers:
                account.leave_out(formats.NOT_DRAWN)
                continue
            parts = template.parts(read.messages)
        except NothingToTrain:
            account.leave_out(formats.NO_ANSWER)
            continue
        except BadRow as error:
            account.bad_row(row.origin, str(error))
            continue
        account.count_columns(read.columns)
        # It would add nothing to the loss, nor to what the loss is divided by.
        if read.weight == 0:
            account.leave_out(formats.WEIGHT_0)
            continue
        account.count_answers(row.origin, read.messages, parts)
        yield _Record(row.origin, parts, read.weight)


def _tokenize(
    records: list[_Record], template: Template, max_length: int, account: Account
) -> Iterator[tuple[_Record, Example]]:
    """Each record of which an answer is trained, with its example; the others are counted."""
    all_parts = [record.parts for record in records]
    examples = tokenize(all_parts, template.tokenizer, template.first_ids, max_length)
    for record, example in zip(records, examples, strict=True):
        if isinstance(example, BadRow):
            account.bad_row(record.origin, str(example))
        elif len(example.ids) < 2 or not example.trained[1:].any():
            n_tokens = len(example.ids) + example.cut_tokens
            account.drop(record.origin, "prompt_too_long", n_tokens)
        else:
            account.use(record.origin, example)
            yield record, example


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
