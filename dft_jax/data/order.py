"""Which examples each step of a run holds, and how many steps an epoch makes.

The examples of step n follow from (number of examples, global batch, seed, n) alone: the stream
visits every example once an epoch, in an order of that epoch, and a step takes the next `batch`.

How that is done has a version, which a run's checkpoints remember:

1  Runs from before versions were recorded. Epoch e of seed s has the order of epoch 0 of seed
   s + e, so that seeds 0, 1, 2 of several epochs share orders; epochs are rounded down to whole
   batches, at least one.
2  The order of each later epoch is drawn from seed and epoch together; that of epoch 0 is as in
   version 1. Epochs are rounded up: no example is left out.
"""

import dataclasses
import functools
import hashlib
import math
import sys
from typing import Any

import grain

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

    # A step may lie in two epochs, and the threads that make steps ahead in one more.
    @functools.lru_cache(4)
    def order_of(epoch: int) -> grain.MapDataset:
        return grain.MapDataset.range(n_examples).shuffle(seed=epoch_seed(seed, epoch, version))

    def example_at(place: int) -> int:
        epoch, place_in_epoch = divmod(place, n_examples)
        example_id = order_of(epoch)[place_in_epoch]
        assert example_id is not None, "a shuffled range has no gaps"
        return example_id

    stream = grain.MapDataset.range(sys.maxsize).map(example_at)
    return stream.batch(global_batch, batch_fn=list)


def epoch_seed(seed: int, epoch: int, version: int = VERSION) -> int:
    """32 bits that the order of an epoch (from 0) is drawn from."""
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
