"""Examples in memory, and the endless stream of packed steps made from them.

Step n is a function of (data, seed, n) alone: it holds examples n·G … (n+1)·G - 1 of a stream that
visits every example once per epoch (see order.py). So a run resumes exactly by counting, and sees
the same steps on any number of devices and processes; each process fills only the rows it holds.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import grain
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from dft_jax import sharding
from dft_jax.data import formats, order, packing
from dft_jax.data.account import Account
from dft_jax.data.sources import rows as sources
from dft_jax.data.templates import Example, Part, Template
from dft_jax.data.tokenize import tokenize
from dft_jax.runtime import errors
from dft_jax.types import Batch

_TOKENIZE_AT_ONCE = 1024
# whose packing decides the row counts; later steps that need more have counts of their own
_STEPS_AHEAD = 4096


@dataclasses.dataclass
class Examples:
    """All usable examples of a source, with the account of every row and token that was read."""

    examples: list[Example]
    report: dict
    origins: list[str]  # file and line of each

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def mean_length(self) -> float:
        """Tokens of an example, on average."""
        return sum(len(example.ids) for example in self.examples) / len(self.examples)


def row_length(config: ConfigDict) -> int:
    """Positions of a packed row; `config` is `config.data`, of a run that may be older than the
    key.
    """
    return config.get("row_length", 0) or config.max_length


def load_examples(
    path: str,
    config: ConfigDict,
    tokenizer,
    vocab_size: int,
    *,
    split: str = "train",
    max_rows: int = 0,
) -> Examples:
    """Reads, renders and tokenises all of `path`; `config` is `config.data`, `max_rows` 0 for all
    rows.

    The report (account.py) balances: rows read = used whole + truncated + dropped by reason, and
    tokens read = used + cut off by truncation + dropped (a malformed row has no tokens to count).

    Raises:
      UserError: a malformed row while `data.bad_rows` is 'refuse' (the first few, by file:line),
      nothing
        usable at all, or token ids that the model's table does not have.
    """
    template = Template(config.template, tokenizer, date=config.get("date", ""))
    account = Account()
    quiet = jax.process_index() > 0 or None  # None: unless stderr is a terminal
    source = sources.open_rows(path, config, split)
    rows = itertools.islice(source.rows, max_rows or None)

    def conversations() -> Iterator[tuple[str, list[Part]]]:
        for row in tqdm(
            rows, desc=f"read {Path(path).name}", unit="row", leave=False, disable=quiet
        ):
            account.rows_read += 1
            try:
                columns = formats.Columns(row.value)
                messages = formats.ROW_FORMATS[config.rows](columns, config)
                parts = template.parts(messages)
            except sources.BadRow as error:
                account.bad_row(row.where, str(error))
                continue
            account.count_columns(columns)
            account.count_answers(row.where, messages, parts)
            yield row.where, parts

    used: list[tuple[str, Example]] = []
    waiting = conversations()
    while some := list(itertools.islice(waiting, _TOKENIZE_AT_ONCE)):
        used += _tokenize(some, template, config.max_length, account)
    if config.bad_rows == "refuse":
        account.refuse_bad_rows()
    if not used:
        why = (
            ", ".join(f"{n} {reason}" for reason, n in account.dropped.items())
            or "the file has no rows"
        )
        first = f"; first: {account.offenders[0]}" if account.offenders else ""
        raise errors.UserError(
            f"{path}: no example to train on ({why}){first}; mend the rows or raise data.max_length"
        )
    places, examples = [where for where, _ in used], [example for _, example in used]
    largest = max(int(example.ids.max()) for example in examples)
    if largest >= vocab_size:
        raise errors.UserError(
            f"{path}: token id {largest} is beyond the model's {vocab_size} embeddings: the tokenizer is not this"
            " model's; copy the model's own tokenizer files"
        )
    report = account.report(path, config.max_length, places, examples)
    return Examples(examples, report | {"commit": source.commit}, places)


def _tokenize(
    conversations: list[tuple[str, list[Part]]],
    template: Template,
    max_length: int,
    account: Account,
) -> Iterator[tuple[str, Example]]:
    all_parts = [parts for _, parts in conversations]
    examples = tokenize(all_parts, template.tokenizer, template.first_ids, max_length)
    for (where, _), example in zip(conversations, examples, strict=True):
        if isinstance(example, sources.BadRow):
            account.bad_row(where, str(example))
        elif len(example.ids) < 2 or not example.trained[1:].any():
            account.drop(where, "prompt_too_long", len(example.ids) + example.cut_tokens)
        else:
            account.use(where, example)
            yield where, example


@dataclasses.dataclass(frozen=True)
class PackedBatch:
    """The packed rows of one step that this process holds, [A, b, L], out of `n_rows` (B) on all
    processes.
    """

    batch: Batch
    n_rows: int
    real_tokens: int  # positions that hold a token, over all processes
    origins: tuple[str, ...]  # file and line of its examples, those of all processes

    @property
    def efficiency(self) -> float:
        """Fraction of all positions that hold a token."""
        A, _, L = self.batch.tokens_BL.shape
        return self.real_tokens / (A * self.n_rows * L)


class Packer:
    """Turns lists of example numbers into packed steps of few different sizes.

    `ahead` are the steps that are going to be made; the row counts that all steps are padded to
    come from them. With `by_examples` each micro-batch holds its share of the step's examples, as
    replicating a recipe that treats micro-batches one by one needs; else rows are packed together
    and dealt to micro-batches in turn.
    """

    def __init__(
        self,
        examples: Examples,
        mesh: Mesh,
        ahead: list[list[int]],
        *,
        accumulation: int,
        row_length: int,
        by_examples: bool = False,
    ):
        self.examples, self.origins, self.mesh = examples.examples, examples.origins, mesh
        self.accumulation, self.row_length, self.by_examples = accumulation, row_length, by_examples
        self.multiple = accumulation * sharding.batch_shards(mesh)
        watched = tqdm(
            ahead, desc="pack", unit="step", leave=False, delay=2, disable=jax.process_index() > 0
        )
        self.row_counts = packing.row_counts(
            [self._needed(self._rows_of(step)) for step in watched], self.multiple
        )

    def _needed(self, micro_batches: list[list[list[int]]]) -> int:
        return self.accumulation * max(map(len, micro_batches))

    def _rows_of(self, example_ids: list[int]) -> list[list[list[int]]]:
        """Example numbers of each row of each micro-batch."""
        A = self.accumulation
        groups = np.array_split(example_ids, A) if self.by_examples else [example_ids]
        packed = []
        for group in groups:
            rows = packing.best_fit(
                [packing.slots(self.examples[n]) for n in group], self.row_length
            )
            packed.append([[int(group[i]) for i in row] for row in rows])
        return packed if self.by_examples else [packed[0][a::A] for a in range(A)]

    def pack(self, example_ids: list[int]) -> PackedBatch:
        """The step of these examples: the rows that the devices of this process hold."""
        micro_batches = self._rows_of(example_ids)
        needed = packing.round_up(self._needed(micro_batches), self.multiple)
        n_rows = (
            next((count for count in self.row_counts if count >= needed), needed)
            // self.accumulation
        )
        mine = sharding.process_rows(self.mesh, n_rows)
        filled = []
        for rows in micro_batches:
            rows = rows + [[]] * (n_rows - len(rows))
            filled.append(
                packing.fill_rows(self.examples, [rows[b] for b in mine], self.row_length)
            )
        batch = jax.tree.map(lambda *arrays: np.stack(arrays), *filled)
        real_tokens = sum(packing.slots(self.examples[n]) for n in example_ids)
        return PackedBatch(batch, n_rows, real_tokens, tuple(self.origins[n] for n in example_ids))


class TrainBatches:
    """Random access to the packed steps of a run of `steps`: `steps[n]`. `version` is that of
    order.py.
    """

    def __init__(
        self,
        examples: Examples,
        mesh: Mesh,
        *,
        steps: int,
        global_batch: int,
        seed: int,
        version: int = order.VERSION,
        **how_to_pack,
    ):
        self.steps = steps
        self.stream = order.batches(
            len(examples), global_batch=global_batch, seed=seed, version=version
        )
        ahead = [self.stream[n] for n in range(min(steps, _STEPS_AHEAD))]
        self.packer = Packer(examples, mesh, ahead, **how_to_pack)

    def __getitem__(self, step: int) -> PackedBatch:
        return self.packer.pack(self.stream[step])

    def starting_at(self, start: int) -> Iterator[tuple[int, PackedBatch]]:
        """(count of steps with this one, step), after the first `start` and up to the last; made
        ahead of time in threads.
        """
        filled = self.stream.slice(slice(start, None)).map(self.packer.pack)
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        return zip(
            range(start + 1, self.steps + 1), iter(filled.to_iter_dataset(options)), strict=False
        )


class SequentialBatches:
    """The packed steps of one pass in file order, for evaluation; the last may hold fewer examples."""

    def __init__(self, examples: Examples, mesh: Mesh, *, global_batch: int, row_length: int):
        everything = list(range(len(examples)))
        self.batches = [
            everything[i : i + global_batch] for i in range(0, len(everything), global_batch)
        ]
        self.packer = Packer(examples, mesh, self.batches, accumulation=1, row_length=row_length)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[PackedBatch]:
        return map(self.packer.pack, self.batches)
