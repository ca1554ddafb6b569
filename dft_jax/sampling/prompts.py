"""Prompts as a sampler runs them: equal ones once, in blocks of few shapes, as arrays."""

import collections
import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from dft_jax.data import image_files, image_rows
from dft_jax.data.image_files import Picture
from dft_jax.data.image_rows import Grid
from dft_jax.models.spec import VisionSpec
from dft_jax.types import Leaf

SMALLEST = 64  # tokens; the lengths of arrays are this times powers of two


@dataclasses.dataclass(frozen=True)
class Request:
    """One completion to be made.

    `problem` names the prompt; with `sample` it determines the noise. A `temperature` of 0 is
    greedy. The completion has at most `max_new_tokens` tokens.

    Of each of the `images`, which are in the order of their tokens, the prompt has an id for every
    unit already (image_rows.expand).
    """

    problem: str
    sample: int
    prompt_ids: tuple[int, ...]
    temperature: float
    max_new_tokens: int
    images: tuple[Picture, ...] = ()


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt and all its requests."""

    ids: tuple[int, ...]
    images: tuple[Picture, ...]
    requests: list[Request]

    @property
    def n_patches(self) -> int:
        return sum(picture.n_patches for picture in self.images)

    @property
    def grids(self) -> list[Grid]:
        return [picture.grid for picture in self.images]

    def delta(self, vision: VisionSpec | None) -> int:
        """Position - place of the tokens behind it; 0 of text."""
        if not self.images:
            return 0
        assert vision is not None, "prompts with images are for models with a tower"
        return image_rows.delta_of(np.array(self.ids), self.grids, vision)


@dataclasses.dataclass(frozen=True, order=True)
class Shape:
    """What prompts that are prefilled together are padded to."""

    length: int
    n_patches: int = 0  # of images; 0 where no prompt has one


@dataclasses.dataclass(frozen=True)
class Block:
    """Prompts that are prefilled together."""

    shape: Shape
    prompts: list[Prompt]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Arrays:
    """A block as `decode.prefill` takes it, padded on the right."""

    tokens_PL: Leaf
    lengths_P: Leaf
    images: Leaf  # ImageBatch; None where no prompt has one


def distinct(requests: Sequence[Request]) -> list[Prompt]:
    """Each prompt once. Two are one where all ids and all images are equal: ids say of an image
    only how large it is.
    """
    requests_of: dict[tuple, list[Request]] = {}
    for request in requests:
        # Of one file, other limits of its size make other patches.
        shown = tuple((picture.sha256, picture.grid) for picture in request.images)
        requests_of.setdefault((request.prompt_ids, shown), []).append(request)
    return [Prompt(found[0].prompt_ids, found[0].images, found) for found in requests_of.values()]


def in_blocks(
    prompts: Sequence[Prompt],
    max_length: int,
    vision: VisionSpec | None,
    n_rows: Callable[[int], int],
) -> collections.deque[Block]:
    """Blocks of prompts that are padded alike, the short ones first.

    Args:
      max_length: of prompt and completion, in tokens.
      vision: of a model with a tower.
      n_rows: of a block whose prompts have so many patches, padding included.
    """
    prompts_of: dict[Shape, list[Prompt]] = {}
    for prompt in prompts:
        shape = Shape(
            bucket(len(prompt.ids), SMALLEST, max_length),
            _patch_bucket(prompt.n_patches, max_length, vision),
        )
        prompts_of.setdefault(shape, []).append(prompt)
    blocks: collections.deque[Block] = collections.deque()
    for shape in sorted(prompts_of):
        of_shape, size = prompts_of[shape], n_rows(shape.n_patches)
        for start in range(0, len(of_shape), size):
            blocks.append(Block(shape, of_shape[start : start + size]))
    return blocks


def fill(prompts: Sequence[Prompt], shape: Shape, n_rows: int, vision: VisionSpec | None) -> Arrays:
    """The NumPy arrays of a block of `n_rows` rows; those beyond the prompts are empty.

    Raises:
      UserError: an image is another one than when it was looked at.
    """
    tokens_PL = np.zeros((n_rows, shape.length), np.int32)
    lengths_P = np.zeros(n_rows, np.int32)
    for row, prompt in enumerate(prompts):
        tokens_PL[row, : len(prompt.ids)] = prompt.ids
        lengths_P[row] = len(prompt.ids)
    images = None
    if shape.n_patches:
        assert vision is not None, "prompts with images are for models with a tower"
        shown = [[(np.array(prompt.ids), prompt.images)] for prompt in prompts]
        images = image_files.fill(tokens_PL, shown, vision, shape.n_patches)
    return Arrays(tokens_PL, lengths_P, images)


def bucket(n: int, smallest: int, largest: int) -> int:
    """The first of smallest · 1, 2, 4, … that is at least n, but not above `largest`.

    Few lengths are few compilations.
    """
    size = smallest
    while size < n:
        size *= 2
    return min(size, largest)


def _patch_bucket(n_patches: int, max_length: int, vision: VisionSpec | None) -> int:
    """What so many patches are padded to: 0, or whole windows."""
    if n_patches == 0:
        return 0
    assert vision is not None, "prompts with images are for models with a tower"
    window = vision.window_patches
    # Those of prompts that are images alone.
    most = -(-max_length * vision.merge**2 // window) * window
    return bucket(n_patches, window, most)
