"""Which examples each step of a run holds, and how many steps an epoch makes.

The examples of step n follow from (number of examples, global batch, seed, n) alone: the stream
visits every example once an epoch, in an order of that epoch, and a step takes the next `batch`.

How that is done has a version, which a run's checkpoints remember:

1  Runs from before versions were recorded. Epoch e of seed s has the order of epoch 0 of seed
   s + e, so that seeds 0, 1, 2 of several epochs share orders; epochs are rounded down to whole
   batches, at least one.
2  The order of each later epoch is drawn from seed and epoch together; that of epoch 0 is as in
   version 1. Epochs are rounded up: no example is left out.

Of a mixture of several sources an epoch draws a number of examples of each, its *quota*. The draws
of a source are spread evenly over the epoch, so that each step has every source's share as nearly
as whole examples allow. Within a source the next example of its own order is drawn: all of them
once, in an order of that round, before any comes again. Rounds of a source and epochs of the
mixture end at different places, and a source may be larger than its quota: the next epoch goes on
where this one has stopped. So step n follows from the sources' sizes and quotas, the seed and n
alone.

    quotas 3 and 1 of 2 and 5 examples      a a b a' | a' a" b a"      the quotes count a's rounds
"""

import dataclasses
import functools
import hashlib
import math
import sys
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

VERSION = 2
FINGERPRINT_KEY = "stream_version"  # where it is absent the version is 1

# What 0.29 * 100 and its like are off by is no part of an epoch.
_SLACK = 1e-9
# Of the epochs asked for; more than this is said.
_WORTH_A_WARNING = 0.05


def version_of(fingerprint: dict[str, Any] | None) -> int:
    """The version of a run by its checkpoint's fingerprint; None is a run without checkpoints."""
    if fingerprint is None:
        return VERSION
    return fingerprint.get(FINGERPRINT_KEY, 1)


def as_fingerprint(version: int) -> dict[str, int]:
    """What a run's fingerprint says of its version: of version 1 nothing, as in old runs."""
    if version == 1:
        return {}
    return {FINGERPRINT_KEY: version}


def batches(
    n_examples: int, *, global_batch: int, seed: int, version: int = VERSION
) -> grain.MapDataset:
    """The example ids of each step: `[n]` are those of step n, from 0, without end."""

    order = _Rounds(n_examples, seed, 0, version)
    stream = grain.MapDataset.range(sys.maxsize).map(order.example_at)
    return stream.batch(global_batch, batch_fn=list)


class _Rounds:
    """All examples of a source, again and again, each round in an order of its own."""

    def __init__(self, n_examples: int, seed: int, source: int, version: int):
        self.n_examples = n_examples

        # A step may lie in two rounds, and the threads that make steps ahead in one more.
        @functools.lru_cache(4)
        def order_of(epoch: int) -> grain.MapDataset:
            drawn_from = epoch_seed(seed, epoch, version, source)
            return grain.MapDataset.range(n_examples).shuffle(seed=drawn_from)

        self._order_of = order_of

    def example_at(self, place: int) -> int:
        """The number of the example at a place, counted from the first round on."""
        epoch, place_in_epoch = divmod(place, self.n_examples)
        example_id = self._order_of(epoch)[place_in_epoch]
        assert example_id is not None, "a shuffled range has no gaps"
        return example_id


@dataclasses.dataclass(frozen=True)
class Share:
    """A source of a mixture: how many examples it has, and how many of them an epoch draws."""

    name: str
    n_examples: int
    quota: int


class Draws:
    """Which example each draw of a mixture is.

    The examples of all sources have numbers in the order of the sources.
    """

    def __init__(self, shares: Sequence[Share], *, seed: int, version: int = VERSION):
        self.shares = tuple(shares)
        self.n_an_epoch = sum(share.quota for share in self.shares)
        self._rounds = []
        for source, share in enumerate(self.shares):
            self._rounds.append(_Rounds(share.n_examples, seed, source, version))
        sizes = [share.n_examples for share in self.shares]
        self._first_ids = np.cumsum([0, *sizes]).tolist()
        # Draw k of q lies at (k + 1/2)/q of the epoch. Where two lie at the same place the earlier
        # source comes first.
        at = [(np.arange(share.quota) + 0.5) / share.quota for share in self.shares]
        in_turn = np.argsort(np.concatenate(at), kind="stable")
        # Source of each place of an epoch, and which of the source's draws it is.
        quotas = [share.quota for share in self.shares]
        self._source_of = np.repeat(np.arange(len(quotas), dtype=np.int32), quotas)[in_turn]
        self._draw_of = np.concatenate([np.arange(quota) for quota in quotas])[in_turn]
        self._places = [np.flatnonzero(self._source_of == n) for n in range(len(quotas))]

    def example_at(self, place: int) -> int:
        """The number of the example that draw `place` (from 0) is."""
        epoch, place_in_epoch = divmod(place, self.n_an_epoch)
        source = int(self._source_of[place_in_epoch])
        draw = epoch * self.shares[source].quota + int(self._draw_of[place_in_epoch])
        return self._first_ids[source] + self._rounds[source].example_at(draw)

    def drawn(self, n_draws: int) -> list[int]:
        """How many of the first `n_draws` are of each source."""
        epochs, rest = divmod(n_draws, self.n_an_epoch)
        counts = []
        for share, places in zip(self.shares, self._places, strict=True):
            counts.append(epochs * share.quota + int(np.searchsorted(places, rest)))
        return counts

    def last_round(self, source: int, n_drawn: int) -> list[int]:
        """The examples of a source's round that its first `n_drawn` draws leave unfinished."""
        n_examples = self.shares[source].n_examples
        first = n_drawn - n_drawn % n_examples
        found = []
        for draw in range(first, n_drawn):
            found.append(self._first_ids[source] + self._rounds[source].example_at(draw))
        return found

    def batches(self, global_batch: int) -> grain.MapDataset:
        """The example ids of each step: `[n]` are those of step n, from 0, without end."""
        stream = grain.MapDataset.range(sys.maxsize).map(self.example_at)
        return stream.batch(global_batch, batch_fn=list)


def epoch_seed(seed: int, epoch: int, version: int = VERSION, source: int = 0) -> int:
    """32 bits that the order of an epoch (from 0) of a source is drawn from.

    Sources of one size would else be read in one order, and what stands in the same line of two
    files would always be trained together.
    """
    if source:
        digest = hashlib.sha256(f"{seed} {epoch} source {source}".encode()).digest()
        return int.from_bytes(digest[:4], "little")
    if version == 1:
        return (seed + epoch) % 2**32
    # As in version 1, so that runs of one epoch saw the same order before and after.
    if epoch == 0:
        return seed
    digest = hashlib.sha256(f"{seed} {epoch}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


@dataclasses.dataclass(frozen=True)
class Length:
    """How long a run is. `asked_epochs` is None where the number of steps was given instead."""

    steps: int
    global_batch: int
    n_examples: int
    asked_epochs: float | None

    @property
    def epochs(self) -> float:
        """How often each example is trained, on average."""
        return self.steps * self.global_batch / self.n_examples

    def report(self) -> dict[str, Any]:
        """For data_report.json."""
        return dataclasses.asdict(self) | {"epochs": self.epochs}

    def line(self) -> str:
        """For a reader, as in `2 steps of 256 examples = 1.00 epochs of 511`."""
        steps = f"{self.steps} steps"
        if self.steps == 1:
            steps = "1 step"
        epochs = f"{self.epochs:.2f} epochs of {self.n_examples}"
        return f"{steps} of {self.global_batch} examples = {epochs}"

    def warnings(self) -> list[str]:
        """What differs from what was asked for by more than a reader would expect."""
        found = []
        asked = self.asked_epochs
        if asked is not None and abs(self.epochs / asked - 1) > _WORTH_A_WARNING:
            found.append(
                f"config.train.epochs={asked:g} becomes {self.epochs:.2f}, in whole batches;"
                " a smaller train.global_batch comes closer"
            )
        if self.n_examples < self.global_batch:
            found.append(
                f"config.train.global_batch={self.global_batch} is more than the"
                f" {self.n_examples} examples: some are in one update several times"
            )
        return found


def length(
    *, steps: int, epochs: float, global_batch: int, n_examples: int, version: int = VERSION
) -> Length:
    """The length of a run: `steps`, or where that is 0 the global batches that hold `epochs`."""
    if steps:
        return Length(steps, global_batch, n_examples, None)
    exact = epochs * n_examples / global_batch
    whole = math.ceil(exact - _SLACK)
    if version == 1:
        whole = math.floor(exact)
    return Length(max(whole, 1), global_batch, n_examples, epochs)
