"""The endless stream of packed steps that is made from examples.

Step n is a function of (data, seed, n) alone: it holds examples n·G … (n+1)·G - 1 of a stream that
visits every example once per epoch (see order.py). So a run resumes exactly by counting, and sees
the same steps on any number of devices and processes; each process fills only the rows it holds.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from dft_jax import sharding
from dft_jax.data import image_rows, mixture, order, packing, source_list
from dft_jax.data.examples import Examples
from dft_jax.data.image_rows import Grid
from dft_jax.models.spec import VisionSpec
from dft_jax.runtime import progress
from dft_jax.runtime.options import Config
from dft_jax.types import MORE_SEGMENTS, Batch, FeatureBatch

# Steps whose packing decides the row counts; later ones that need more have counts of their own.
_STEPS_AHEAD = 4096
# Rows in the time of one compilation, where the model is not asked (training/throughput.py).
_COMPILATION_ROWS = 200.0


def may_weigh(data: Config) -> bool:
    """Whether trained tokens of `config.data` may weigh other than 1, which the rows decide."""
    for _, _, own in source_list.each(data.train, data):
        # Runs that are older than a key have none.
        if own.get("weight_field") or own.get("prompt_weight", 0.0) not in (0, 1):
            return True
    return False


def row_length(config: Config) -> int:
    """Positions of a packed row.

    `config` is `config.data`, of a run that may be older than the key.
    """
    given: Any = config.get("row_length", 0)
    return given or config.max_length


@dataclasses.dataclass(frozen=True)
class PackedBatch:
    """The packed rows of one step that this process holds.

    `batch` is [A, b, L], its b rows out of `n_rows` (B) on all processes.
    """

    batch: Batch
    n_rows: int
    real_tokens: int  # positions that hold a token, over all processes
    origins: tuple[str, ...]  # file and line of its examples, those of all processes
    # Of each micro-batch, the numbers of the examples in each of its rows, those of all processes.
    rows: tuple[list[list[int]], ...]
    # Rows and columns of the patches of each image that the step's tower sees, of all processes;
    # padding has none.
    grids: tuple[Grid, ...] = ()
    # Of a mixture, by source: what this step has drawn, and epochs up to its end.
    drawn: dict[str, mixture.Drawn] = dataclasses.field(default_factory=dict)
    epochs: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def efficiency(self) -> float:
        """Fraction of all positions that hold a token."""
        A, _, L = self.batch.tokens_BL.shape
        return self.real_tokens / (A * self.n_rows * L)


class Packer:
    """Turns lists of example ids into packed steps of few different sizes.

    Args:
      ahead: the example ids of the steps that are going to be made; the row counts that all steps
        are padded to, and the most segments of a row, are chosen from what these need.
      accumulation: micro-batches of a step (A).
      row_length: positions of a row (L).
      compilation_rows: rows that are computed in the time of one compilation; see
        packing.row_counts.
      vision: of the model whose tower sees the images of examples that have some.
      max_patches: of images, that a row has room for; 0 for twice its positions.
      by_examples: each micro-batch holds its share of the step's examples, as replicating a recipe
        needs that treats micro-batches one by one. Otherwise the step's examples are packed
        together, which leaves fewer gaps, and the rows are dealt to micro-batches in turn.
    """

    def __init__(
        self,
        examples: Examples,
        mesh: Mesh,
        ahead: list[list[int]],
        *,
        accumulation: int,
        row_length: int,
        vision: VisionSpec | None = None,
        max_patches: int = 0,
        compilation_rows: float = _COMPILATION_ROWS,
        by_examples: bool = False,
    ):
        self.examples = examples.examples
        self.origins = examples.origins
        self.all = examples
        self.vision = vision
        # All batches of a run have weights or none has: with them the program is another one.
        self.with_weights = not all(example.is_plain for example in self.examples)
        self.mesh = mesh
        self.accumulation = accumulation
        self.row_length = row_length
        self.by_examples = by_examples
        # Of row counts: the rows of each micro-batch are spread evenly over the devices of the
        # batch axes.
        self.multiple = accumulation * sharding.batch_shards(mesh)
        # One example has to fit, however many patches it has.
        most = max((example.n_patches for example in self.examples), default=0)
        self.has_images = most > 0
        # Their tokens would be embedded as text.
        assert vision is not None or not self.has_images, "a model without a tower reads no images"
        self.max_patches = max(most, max_patches or 2 * row_length)
        self.features_dtype = examples.features_dtype
        needed, patches = [], []
        most_segments = 1
        for example_ids in progress.bar(ahead, desc="pack", unit="step", leave=False, delay=2):
            micro_batches = self._micro_batches(example_ids)
            needed.append(self._rows_needed(micro_batches))
            patches.append(self._patches_needed(micro_batches))
            most_segments = max(most_segments, *map(packing.most_segments, micro_batches))
        self.row_counts = packing.row_counts(needed, self.multiple, compilation_rows)
        self.most_segments = most_segments
        # (row count, patches of a row) of each step ahead, and of each count the most.
        self._needed = list(zip(map(self._row_count, needed), patches, strict=True))
        self._most_patches: dict[int, int] = {}
        for count, n_patches in self._needed:
            self._most_patches[count] = max(n_patches, self._most_patches.get(count, 0))

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(rows, patches of a row) of all steps ahead."""
        if not self.has_images:
            return [(count, 0) for count in self.row_counts]
        return sorted({(count, self._patch_count(count, n)) for count, n in self._needed})

    def abstract_batch(self, n_rows: int, n_patches: int, most_segments: int | None) -> Batch:
        """The shapes of a step's batch [A, n_rows, L], with room for so many patches in each row.

        `most_segments` are those of a row.
        """
        shape_ABL = (self.accumulation, n_rows, self.row_length)
        layout = sharding.batch_sharding(self.mesh)
        images = image_rows.abstract_images(
            shape_ABL, layout, self.vision, n_patches, self.features_dtype
        )
        return sharding.abstract_batch(
            shape_ABL, self.mesh, most_segments, self.with_weights, images
        )

    def n_patches(self, batch: Batch) -> int:
        """Patches that each row of a batch has room for."""
        if batch.images is None:
            return 0
        if isinstance(batch.images, FeatureBatch):
            assert self.vision is not None, "whose images these are"
            return batch.images.features_BJD.shape[2] * self.vision.merge**2
        return batch.images.images_BI.shape[2]

    def _patches_needed(self, micro_batches: list[list[list[int]]]) -> int:
        """Patches of a row, padding included: those of the row with the most."""
        if self.vision is None:
            return 0
        most = 0
        for rows in micro_batches:
            for row in rows:
                most = max(most, sum(self.examples[number].n_patches for number in row))
        return packing.round_up(most, self.vision.window_patches)

    def _rows_needed(self, micro_batches: list[list[list[int]]]) -> int:
        """Rows of a step; all its micro-batches have as many as the largest."""
        return self.accumulation * max(len(rows) for rows in micro_batches)

    def _micro_batches(self, example_ids: list[int]) -> list[list[list[int]]]:
        """Example ids of each row of each micro-batch."""
        A = self.accumulation
        if self.by_examples:
            shares = np.array_split(example_ids, A)
            return [self._rows(share.tolist()) for share in shares]
        rows = self._rows(example_ids)
        return [rows[a::A] for a in range(A)]

    def _rows(self, example_ids: list[int]) -> list[list[int]]:
        """Packs examples into rows; the example ids of each row."""
        chosen = [self.examples[example_id] for example_id in example_ids]
        sizes = [packing.slots(example) for example in chosen]
        patches = None
        if self.has_images:
            patches = [example.n_patches for example in chosen]
        packed = packing.pack(sizes, self.row_length, patches, self.max_patches)
        rows = []
        for places in packed:
            rows.append([int(example_ids[place]) for place in places])
        return rows

    def pack(self, example_ids: list[int]) -> PackedBatch:
        """The step of these examples: the rows that the devices of this process hold."""
        micro_batches = self._micro_batches(example_ids)
        count = self._row_count(self._rows_needed(micro_batches))
        n_rows = count // self.accumulation
        n_patches = self._patch_count(count, self._patches_needed(micro_batches))
        held = sharding.process_rows(self.mesh, n_rows)
        most_segments = self.most_segments
        # Of all rows: every process runs the same program.
        if max(map(packing.most_segments, micro_batches)) > most_segments:
            most_segments = MORE_SEGMENTS
        filled = []
        all_rows = []
        for rows in micro_batches:
            # Empty rows up to the count: each count is a compilation.
            padded = rows + [[]] * (n_rows - len(rows))
            all_rows.append(padded)
            held_rows = [padded[b] for b in held]
            filled.append(
                packing.fill_rows(
                    self.examples,
                    held_rows,
                    self.row_length,
                    most_segments,
                    self.with_weights,
                    self.vision,
                    n_patches,
                    self.features_dtype,
                )
            )
        batch = jax.tree.map(lambda *arrays_bL: np.stack(arrays_bL), *filled)
        real_tokens = 0
        origins = []
        grids = []
        for example_id in example_ids:
            example = self.examples[example_id]
            real_tokens += packing.slots(example)
            origins.append(self.origins[example_id])
            if not self.features_dtype:
                grids += [picture.grid for picture in example.images]
        return PackedBatch(
            batch,
            n_rows,
            real_tokens,
            tuple(origins),
            rows=tuple(all_rows),
            grids=tuple(grids),
            drawn=mixture.drawn(self.all, example_ids),
        )

    def _patch_count(self, n_rows: int, needed: int) -> int:
        """Patches of each row of a step: none, or as the step of so many rows with the most."""
        if needed == 0:
            return 0
        return max(needed, self._most_patches.get(n_rows, 0))

    def _row_count(self, needed: int) -> int:
        """The smallest row count that holds so many rows; a new one where none does."""
        rounded = packing.round_up(needed, self.multiple)
        for count in self.row_counts:
            if count >= rounded:
                return count
        return rounded


class TrainBatches:
    """Random access to the packed steps of a run of `steps`: `batches[n]`.

    `version` is that of order.py; the other arguments are the Packer's.
    """

    def __init__(
        self,
        examples: Examples,
        mesh: Mesh,
        *,
        steps: int,
        global_batch: int,
        seed: int,
        accumulation: int,
        row_length: int,
        vision: VisionSpec | None = None,
        max_patches: int = 0,
        compilation_rows: float = _COMPILATION_ROWS,
        by_examples: bool = False,
        version: int = order.VERSION,
    ):
        self.steps = steps
        self.global_batch = global_batch
        self._draws = mixture.draws_of(examples, seed=seed, version=version)
        self.stream = mixture.stream(
            examples, self._draws, global_batch=global_batch, seed=seed, version=version
        )
        ahead = [self._example_ids(n) for n in range(min(steps, _STEPS_AHEAD))]
        self.packer = Packer(
            examples,
            mesh,
            ahead,
            accumulation=accumulation,
            row_length=row_length,
            vision=vision,
            max_patches=max_patches,
            # What a count saves is seen in the steps ahead only.
            compilation_rows=compilation_rows * len(ahead) / max(steps, 1),
            by_examples=by_examples,
        )

    def _example_ids(self, step: int) -> list[int]:
        example_ids = self.stream[step]
        assert example_ids is not None, "a stream without filters has no gaps"
        return example_ids

    def __getitem__(self, step: int) -> PackedBatch:
        return self.packer.pack(self._example_ids(step))

    def starting_at(self, start: int) -> Iterator[tuple[int, PackedBatch]]:
        """(count of steps with this one, its batch) after the first `start` and up to the last.

        They are made ahead of time in threads.
        """
        packed = self.stream.slice(slice(start, None)).map(self.packer.pack)
        ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        counts = range(start + 1, self.steps + 1)
        # The counts come first: where they end no batch is taken.
        numbered = zip(counts, iter(packed.to_iter_dataset(ahead)), strict=False)
        return itertools.starmap(self._with_epochs, numbered)

    def _with_epochs(self, step: int, packed: PackedBatch) -> tuple[int, PackedBatch]:
        return step, dataclasses.replace(packed, epochs=self._epochs_after(step))

    def _epochs_after(self, step: int) -> dict[str, float]:
        """Of a mixture, how often each source was gone through in so many steps, on average."""
        if self._draws is None:
            return {}
        found = {}
        n_drawn = self._draws.drawn(step * self.global_batch)
        for share, number in zip(self._draws.shares, n_drawn, strict=True):
            found[share.name] = number / share.n_examples
        return found

    def report(self) -> dict[str, Any]:
        """Of a mixture, what the whole run draws of each source; empty for one source."""
        if self._draws is None:
            return {}
        return mixture.run_report(self.packer.all, self._draws, self.steps * self.global_batch)


class SequentialBatches:
    """The packed steps of one pass in file order, for evaluation; the last may be smaller.

    No step has examples of two sources: `sources` names that of each step, "" where there is one.
    """

    def __init__(
        self,
        examples: Examples,
        mesh: Mesh,
        *,
        global_batch: int,
        row_length: int,
        vision: VisionSpec | None = None,
        max_patches: int = 0,
        compilation_rows: float = _COMPILATION_ROWS,
    ):
        self.batches: list[list[int]] = []
        self.sources: list[str] = []
        first = 0
        for name, n_examples in mixture.sizes(examples):
            past = first + n_examples
            for start in range(first, past, global_batch):
                self.batches.append(list(range(start, min(start + global_batch, past))))
                self.sources.append(name)
            first = past
        self.packer = Packer(
            examples,
            mesh,
            self.batches,
            accumulation=1,
            row_length=row_length,
            vision=vision,
            max_patches=max_patches,
            compilation_rows=compilation_rows,
        )

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[PackedBatch]:
        return map(self.packer.pack, self.batches)
