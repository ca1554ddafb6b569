"""Where the images of a row are: their tokens, their positions, and their patches by windows."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Float, Int, UInt8

from dft_jax import sharding
from dft_jax.data.sources.rows import BadRow
from dft_jax.models.spec import VisionSpec
from dft_jax.types import FeatureBatch, ImageBatch

Grid = tuple[int, int]  # rows and columns of an image's patches


@dataclasses.dataclass(frozen=True)
class CutImage:
    """An image as patches: units row by row, the four of each together (data/images.py)."""

    patches_IX: UInt8[np.ndarray, "I X"]
    grid: Grid


def expand(
    ids_L: Int[np.ndarray, " L"], grids: Sequence[Grid], vision: VisionSpec
) -> Int[np.ndarray, " more"]:
    """Token ids in which each image's one token is repeated, once for each of its units.

    Raises:
      BadRow: there are not as many of these tokens as images, as where somebody wrote one as text;
      or one is not between the tokens that begin and end an image.
    """
    places = np.flatnonzero(ids_L == vision.image_token)
    if len(places) != len(grids):
        raise BadRow(
            f"{len(places)} tokens stand for an image, but the row has {len(grids)} images; its"
            " text may hold the token that stands for one"
        )
    framed = np.concatenate([[-1], ids_L, [-1]])
    for place in places:
        if framed[place] != vision.start_token or framed[place + 2] != vision.end_token:
            raise BadRow(
                "a token of an image is not between those that begin and end one; use the model's"
                " own template"
            )
    counts = np.ones(len(ids_L), int)
    counts[places] = [_n_units(grid, vision) for grid in grids]
    return np.repeat(ids_L, counts)


def _n_units(grid: Grid, vision: VisionSpec) -> int:
    return grid[0] * grid[1] // vision.merge**2


def positions_of(
    ids_L: Int[np.ndarray, " L"], grids: Sequence[Grid], vision: VisionSpec
) -> Int[np.ndarray, "3 L"]:
    """Time, row and column of each token of one example (arXiv 2409.12191, section 2.1).

    In text all three count on. An image stands at one time; its rows and columns begin there, and
    what follows goes on after the longer of its sides. Of a b s [2 × 3 units] e c d:

        time     0 1 2   3 3 3 3 3 3   6 7 8
        row      0 1 2   3 3 3 4 4 4   6 7 8
        column   0 1 2   3 4 5 3 4 5   6 7 8

    The ids are those of `expand`. A token that is sampled next has the largest position + 1 in all
    three.
    """
    is_image_L = ids_L == vision.image_token
    positions_3L = np.empty((3, len(ids_L)), np.int32)
    # `now` is the position of the token at `place`.
    place = now = 0
    for grid in grids:
        n_rows, n_cols = grid[0] // vision.merge, grid[1] // vision.merge
        begin = place + int(np.argmax(is_image_L[place:]))
        end = begin + n_rows * n_cols
        assert is_image_L[begin:end].all(), "the ids are expanded for these grids"
        positions_3L[:, place:begin] = now + np.arange(begin - place)
        now += begin - place
        row, col = np.divmod(np.arange(n_rows * n_cols), n_cols)
        positions_3L[:, begin:end] = now + np.stack([np.zeros_like(row), row, col])
        now += max(n_rows, n_cols)
        place = end
    positions_3L[:, place:] = now + np.arange(len(ids_L) - place)
    return positions_3L


def delta_of(ids_L: Int[np.ndarray, " L"], grids: Sequence[Grid], vision: VisionSpec) -> int:
    """Position - place of the tokens that follow an example: 0 in text, below 0 behind images."""
    return int(positions_of(ids_L, grids, vision).max()) + 1 - len(ids_L)


@dataclasses.dataclass(frozen=True)
class _Order:
    """An image's patches by windows."""

    patches_I: Int[np.ndarray, " I"]  # the patch that comes at each place
    rows_I: Int[np.ndarray, " I"]
    cols_I: Int[np.ndarray, " I"]
    windows_I: Int[np.ndarray, " I"]  # from 0
    places_J: Int[np.ndarray, " J"]  # of each unit, units row by row: its place among units


def by_windows(grid: Grid, vision: VisionSpec) -> _Order:
    """Windows row by row, within them units row by row, each with its patches.

    Windows at the right and lower edge are cut off.
    """
    n_rows, n_cols = grid[0] // vision.merge, grid[1] // vision.merge
    row_J, col_J = np.divmod(np.arange(n_rows * n_cols), n_cols)
    windows_across = -(-n_cols // vision.window_units)
    window_J = row_J // vision.window_units * windows_across + col_J // vision.window_units
    # Stable: units of a window stay row by row.
    order_J = np.argsort(window_J, kind="stable")
    n_in_unit = vision.merge**2
    # Patches of a unit, row by row.
    in_row, in_col = np.divmod(np.arange(n_in_unit), vision.merge)
    rows_J4 = row_J[order_J][:, None] * vision.merge + in_row[None, :]
    cols_J4 = col_J[order_J][:, None] * vision.merge + in_col[None, :]
    patches_J4 = order_J[:, None] * n_in_unit + np.arange(n_in_unit)[None, :]
    return _Order(
        patches_I=patches_J4.reshape(-1),
        rows_I=rows_J4.reshape(-1),
        cols_I=cols_J4.reshape(-1),
        windows_I=np.repeat(window_J[order_J], n_in_unit),
        places_J=np.argsort(order_J, kind="stable"),
    )


def image_batch(
    tokens_BL: Int[np.ndarray, "B L"],
    positions_BL3: Int[np.ndarray, "B L 3"],
    images: Sequence[Sequence[CutImage]],
    vision: VisionSpec,
    n_patches: int,
) -> ImageBatch:
    """The images of packed rows, as types.ImageBatch shows them.

    Args:
      tokens_BL: with the tokens of each image of the row, one for each unit, in order.
      positions_BL3: those of `positions_of`, from 0 on in each example.
      images: of each row.
      n_patches: of each row, padding included; a whole number of windows.
    """
    assert n_patches % vision.window_patches == 0, "attention goes by whole windows"
    B, L = tokens_BL.shape
    made = ImageBatch(
        patches_BIX=np.zeros((B, n_patches, vision.patch_values), np.uint8),
        rows_BI=np.zeros((B, n_patches), np.int32),
        cols_BI=np.zeros((B, n_patches), np.int32),
        images_BI=np.zeros((B, n_patches), np.int32),
        windows_BI=np.zeros((B, n_patches), np.int32),
        units_BL=np.zeros((B, L), np.int32),
        positions_BL3=positions_BL3.astype(np.int32),
    )
    for b, of_row in enumerate(images):
        units = [np.zeros(0, np.int32)]
        place = n_windows = 0
        for number, image in enumerate(of_row):
            order = by_windows(image.grid, vision)
            here = slice(place, place + len(order.patches_I))
            made.patches_BIX[b, here] = image.patches_IX[order.patches_I]
            made.rows_BI[b, here] = order.rows_I
            made.cols_BI[b, here] = order.cols_I
            made.images_BI[b, here] = 1 + number
            made.windows_BI[b, here] = 1 + n_windows + order.windows_I
            units.append(1 + place // vision.merge**2 + order.places_J)
            place, n_windows = here.stop, n_windows + int(order.windows_I.max()) + 1
        is_image_L = tokens_BL[b] == vision.image_token
        made.units_BL[b, is_image_L] = np.concatenate(units)
    return made


def feature_batch(
    tokens_BL: Int[np.ndarray, "B L"],
    positions_BL3: Int[np.ndarray, "B L 3"],
    features: Sequence[Sequence[Float[np.ndarray, "units D"]]],
    vision: VisionSpec,
    n_units: int,
    dtype: str,
) -> FeatureBatch:
    """The same of images whose features are kept, as types.FeatureBatch shows them.

    Args:
      features: of each image of each row, its units row by row.
      n_units: of each row, padding included.
      dtype: of the features.
    """
    B, _ = tokens_BL.shape
    made = FeatureBatch(
        features_BJD=np.zeros((B, n_units, vision.out_size), jnp.dtype(dtype)),
        units_BL=np.zeros(tokens_BL.shape, np.int32),
        positions_BL3=positions_BL3.astype(np.int32),
    )
    for b, of_row in enumerate(features):
        place = 0
        for units_JD in of_row:
            made.features_BJD[b, place : place + len(units_JD)] = units_JD
            place += len(units_JD)
        made.units_BL[b, tokens_BL[b] == vision.image_token] = 1 + np.arange(place)
    return made


def abstract_images(
    shape_ABL: tuple[int, int, int],
    layout: NamedSharding | None,
    vision: VisionSpec | None,
    n_patches: int,
    features_dtype: str = "",
) -> ImageBatch | FeatureBatch | None:
    """The shapes of a step's images, or of their features; None where rows have no patches.

    Args:
      shape_ABL: of the step's tokens.
      layout: of every array; None for no devices.
      n_patches: that each row has room for.
      features_dtype: of kept features; empty where the tower sees the images.
    """
    if n_patches == 0:
        return None
    assert vision is not None, "only a model with a tower reads images"
    if features_dtype:
        features_JD = (n_patches // vision.merge**2, vision.out_size)
        return sharding.abstract_features(shape_ABL, layout, features_JD, features_dtype)
    patches_IX = (n_patches, vision.patch_values)
    return sharding.abstract_images(shape_ABL, layout, patches_IX)
