"""Several sources in one run: what an epoch draws of each, and the account of it.

A source is drawn in *examples*: with weights 3 and 1, three of four examples are of the first,
however many tokens they have. An epoch draws

- of sources without weight and number, all examples of each, once;
- of a source with `examples`, so many;
- with weights (then every source has one), as many examples as all sources hold, in these shares.

A source with fewer examples than its quota comes again within the epoch, in another order; one with
more goes on in the next. order.py says which example comes when.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np

from dft_jax.data import account, order
from dft_jax.data.examples import Examples, load_examples
from dft_jax.data.order import Draws, Share
from dft_jax.data.source_list import Given, is_several, sources
from dft_jax.data.templates import Example
from dft_jax.models.hf.tokenizer import Tokenizer
from dft_jax.models.spec import VisionSpec
from dft_jax.runtime import errors
from dft_jax.runtime.options import Config


def load(
    given: Any,
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
    """The examples of one path, or of all sources of a list, one source after the other.

    Args:
      given: `data.train` or `data.heldout`, without problems.
      config: `config.data`, which sources may have other values of.
      vision, source: of a model that reads images; as for `load_examples`.
      split, max_rows, sample_rows, sample_seed: of a source that has none of its own; as for
        `load_examples`. A source with sample_rows of its own is drawn from all of its rows, or from
        the max_rows that it has of its own.

    Raises:
      UserError: as `load_examples`; or a source of which an epoch would draw nothing.
    """
    if not is_several(given):
        return load_examples(
            given,
            config,
            tokenizer,
            vocab_size,
            vision=vision,
            source=source,
            split=split,
            max_rows=max_rows,
            sample_rows=sample_rows,
            sample_seed=sample_seed,
        )
    listed = sources(given)
    loaded = []
    for one in listed:
        first_rows = max_rows
        if one.own.get("sample_rows"):
            first_rows = 0
        examples = load_examples(
            one.path,
            one.config(config),
            tokenizer,
            vocab_size,
            vision=vision,
            source=source,
            split=one.own.get("split", split),
            max_rows=one.own.get("max_rows", first_rows),
            sample_rows=one.own.get("sample_rows", sample_rows),
            sample_seed=one.own.get("sample_seed", sample_seed),
        )
        loaded.append(examples)
    found = [len(examples) for examples in loaded]
    shares = []
    for source, size, quota in zip(listed, found, quotas(listed, found), strict=True):
        shares.append(Share(source.name, size, quota))
    return _joined(loaded, tuple(shares))


def quotas(listed: Sequence[Given], held: Sequence[int]) -> list[int]:
    """How many examples an epoch draws of each source; `held` are the examples that there are.

    Weights are rounded to whole examples so that the sum stays, the largest fractions up.

    Raises:
      UserError: a weight so small that nothing would be drawn.
    """
    weights = [source.weight for source in listed if source.weight is not None]
    if not weights:
        return [source.examples or size for source, size in zip(listed, held, strict=True)]
    total = sum(held)
    exact = [total * weight / sum(weights) for weight in weights]
    found = [int(number) for number in exact]
    by_fraction = sorted(range(len(exact)), key=lambda number: found[number] - exact[number])
    for number in by_fraction[: total - sum(found)]:
        found[number] += 1
    for source, quota in zip(listed, found, strict=True):
        if not quota:
            raise errors.UserError(
                f"config.data.train: weight={source.weight!r} of {source.name!r} comes to none of"
                f" {total:,} examples of an epoch; raise it, or leave the source out"
            )
    return found


def draws_of(examples: Examples, *, seed: int, version: int = order.VERSION) -> Draws | None:
    """The draws of a mixture; None of one source, whose epochs are those of data/order.py."""
    if not examples.shares:
        return None
    return Draws(examples.shares, seed=seed, version=version)


def stream(
    examples: Examples,
    draws: Draws | None,
    *,
    global_batch: int,
    seed: int,
    version: int = order.VERSION,
) -> grain.MapDataset:
    """The numbers of the examples of each step: `[n]` are those of step n, from 0, without end.

    `draws` are those of `draws_of`, with the same seed and version.
    """
    if draws is not None:
        return draws.batches(global_batch)
    return order.batches(len(examples), global_batch=global_batch, seed=seed, version=version)


def epoch_of(examples: Examples) -> int:
    """How many examples an epoch draws."""
    if examples.shares:
        return sum(share.quota for share in examples.shares)
    return len(examples)


def sizes(examples: Examples) -> list[tuple[str, int]]:
    """(name, number of examples) of each source in order; one source has no name."""
    if not examples.shares:
        return [("", len(examples))]
    return [(share.name, share.n_examples) for share in examples.shares]


def parts(examples: Examples) -> list[Examples]:
    """The examples of each source by itself; of one source these alone."""
    if not examples.shares:
        return [examples]
    found = []
    start = 0
    for share in examples.shares:
        here = slice(start, start + share.n_examples)
        report = examples.report["sources"][share.name]
        found.append(Examples(examples.examples[here], report, examples.origins[here]))
        start = here.stop
    return found


def note_trained(heldout: Examples, train: Examples) -> None:
    """Writes into the account of each held-out source how many of its rows are trained too."""
    for part in parts(heldout):
        part.report["also_trained"] = account.also_trained(
            part.origins, part.examples, train.origins, train.examples
        )


def refuse_lost(name: str, examples: Examples, most: float) -> None:
    """UserError where more than `most` of the rows of a source are cut or dropped."""
    errors.raise_if_any(account.refusals(name, examples.report, most))


# ---- the account of what is drawn


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What was drawn of a source."""

    examples: int = 0
    tokens: int = 0
    trained_tokens: int = 0

    def __add__(self, other: "Drawn") -> "Drawn":
        return Drawn(
            self.examples + other.examples,
            self.tokens + other.tokens,
            self.trained_tokens + other.trained_tokens,
        )

    def times(self, n: int) -> "Drawn":
        """The same drawn so often."""
        return Drawn(n * self.examples, n * self.tokens, n * self.trained_tokens)


def drawn(examples: Examples, example_ids: Iterable[int]) -> dict[str, Drawn]:
    """Source -> what these are of it, for a mixture; nothing for one source."""
    if not examples.shares:
        return {}
    ends = np.cumsum([share.n_examples for share in examples.shares])
    found = {share.name: Drawn() for share in examples.shares}
    for example_id in example_ids:
        name = examples.shares[int(np.searchsorted(ends, example_id, side="right"))].name
        found[name] += _one(examples.examples[example_id])
    return found


def _one(example: Example) -> Drawn:
    return Drawn(1, len(example.ids), int(example.target_mask().sum()))


def _sum_of(examples: Iterable[Example]) -> Drawn:
    return sum(map(_one, examples), Drawn())


def run_report(examples: Examples, draws: Draws, n_draws: int) -> dict[str, Any]:
    """Source -> what a run of so many draws has of it, for data_report.json."""
    found = {}
    n_drawn_of = draws.drawn(n_draws)
    for source, part in enumerate(parts(examples)):
        share, n_drawn = draws.shares[source], n_drawn_of[source]
        # Whole rounds have all examples; of the last one it depends on which.
        rest = [examples.examples[one] for one in draws.last_round(source, n_drawn)]
        total = _sum_of(part.examples).times(n_drawn // share.n_examples) + _sum_of(rest)
        found[share.name] = {
            "examples": n_drawn,
            "share_of_examples": n_drawn / n_draws,
            "tokens": total.tokens,
            "trained_tokens": total.trained_tokens,
            "epochs": n_drawn / share.n_examples,
        }
    return found


def run_lines(report: dict[str, Any]) -> list[str]:
    """The same for a reader, a line for each source."""
    lines = []
    for name, one in report.items():
        drawn_of = f"{one['examples']:,} examples ({one['share_of_examples']:.1%})"
        tokens = f"{one['tokens']:,} tokens, {one['trained_tokens']:,} trained"
        lines.append(f"data.train {name}: {drawn_of}, {tokens} = {one['epochs']:.2f} epochs of it")
    return lines


# ---- loading


def _joined(loaded: Sequence[Examples], shares: tuple[Share, ...]) -> Examples:
    """One after the other. The report has the sums, and under `sources` the report of each."""
    examples, origins, reports = [], [], {}
    for source, share in zip(loaded, shares, strict=True):
        examples += source.examples
        origins += [f"{share.name} {origin}" for origin in source.origins]
        reports[share.name] = source.report
    report = {
        "path": [one["path"] for one in reports.values()],
        "commit": [one["commit"] for one in reports.values()],
        "sources": reports,
        "sha256": _digest(reports, shares),
    }
    return Examples(examples, report, origins, shares)


def _digest(reports: dict[str, Any], shares: Sequence[Share]) -> str:
    """Of all tokens, masks and weights of each source in their order, and of what is drawn."""
    content = []
    for share in shares:
        content.append([reports[share.name]["sha256"], share.n_examples, share.quota])
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
