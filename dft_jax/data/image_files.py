"""The images of a row: where their bytes are, and what of them is known before they are needed."""

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from dft_jax.data import image_rows, images
from dft_jax.data.image_features import FeatureFile
from dft_jax.data.image_rows import CutImage, Grid
from dft_jax.data.images import Geometry
from dft_jax.data.sources.rows import BadRow
from dft_jax.models.spec import VisionSpec
from dft_jax.runtime import errors, progress
from dft_jax.types import FeatureBatch, ImageBatch


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """An image of a row, as bytes that the row holds, or as a path below a folder."""

    name: str  # for messages: its path, or which of the row's images it is
    content: bytes | None = dataclasses.field(default=None, repr=False)
    folder: Path | None = None  # that the path `name` is looked for in, where there is no content

    def within(self, folder: Path | None) -> "ImageFile":
        """The same; its path, if that is what it has, is one below `folder`."""
        return dataclasses.replace(self, folder=folder)

    def read(self) -> bytes:
        """Its bytes.

        Raises:
          BadRow: as `images.read_file`; or a path, and no folder that it is in.
        """
        if self.content is not None:
            return self.content
        if self.folder is None:
            raise BadRow(
                f"image {self.name!r} is a path, and the dataset is no folder of files; fetch the"
                " images, and set data.image_folder to where they are"
            )
        return images.read_file(self.name, self.folder)


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image that was looked at once, and can be cut: its grid of patches, and its digest."""

    file: ImageFile
    geometry: Geometry
    grid: Grid
    sha256: str  # of the bytes
    is_turned: bool = False  # by EXIF
    n_bytes: int = 0
    height: int = 0  # in pixels, as it is seen, before it is scaled
    width: int = 0
    # Where what a frozen tower makes of it is kept; None where the tower is to see it.
    features: FeatureFile | None = None

    @property
    def n_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def units(self) -> Grid:
        """Rows and columns of its units, each of which is a token."""
        merge = self.geometry.merge
        return self.grid[0] // merge, self.grid[1] // merge

    @property
    def n_tokens(self) -> int:
        n_rows, n_cols = self.units
        return n_rows * n_cols

    def identity(self) -> bytes:
        """Equal for images that are cut to equal patches."""
        return f"{self.grid[0]}x{self.grid[1]} {self.sha256}\n".encode()

    @property
    def feature_file(self) -> FeatureFile:
        """Where its features are kept, of one whose are."""
        assert self.features is not None, "all pictures of a run have features, or none"
        return self.features

    def cut(self) -> CutImage:
        """Its patches, read and decoded now.

        Raises:
          UserError: the file is another one than when it was looked at, or cannot be read any more.
        """
        try:
            content = self.file.read()
            if hashlib.sha256(content).hexdigest() != self.sha256:
                raise BadRow("it has changed since the run began")
            patches_IX = images.patches_of(images.decode(content), self.geometry)
        except BadRow as error:
            raise errors.UserError(f"image {self.file.name!r}: {error}") from error
        return CutImage(patches_IX, self.grid)


# Of each row, the token ids and the pictures of what lies there, one after another.
Rows = Sequence[Sequence[tuple[Int[np.ndarray, " _"], Sequence[Picture]]]]


def fill(
    tokens_BL: Int[np.ndarray, "B L"],
    rows: Rows,
    vision: VisionSpec,
    n_patches: int,
) -> ImageBatch:
    """The images of rows whose tokens are filled already, cut by all processors.

    Args:
      rows: as many as `tokens_BL` has, or fewer: the others have no images.
      n_patches: of each row, padding included.

    Raises:
      UserError: as `Picture.cut`.
    """
    positions_BL3 = _positions(tokens_BL, rows, vision)
    images = _of_rows(rows, Picture.cut)
    return image_rows.image_batch(tokens_BL, positions_BL3, images, vision, n_patches)


def fill_features(
    tokens_BL: Int[np.ndarray, "B L"],
    rows: Rows,
    vision: VisionSpec,
    n_patches: int,
    dtype: str,
) -> FeatureBatch:
    """As `fill`, of pictures whose features are kept: these are read, and no picture.

    Raises:
      UserError: as `FeatureFile.read`.
    """
    positions_BL3 = _positions(tokens_BL, rows, vision)
    features = _of_rows(rows, lambda picture: picture.feature_file.read())
    n_units = n_patches // vision.merge**2
    return image_rows.feature_batch(tokens_BL, positions_BL3, features, vision, n_units, dtype)


def _positions(tokens_BL: np.ndarray, rows: Rows, vision: VisionSpec) -> np.ndarray:
    """Time, row and column [B, L, 3] of each token of `rows`, as `fill` has them."""
    positions_BL3 = np.zeros((*tokens_BL.shape, 3), np.int32)
    for row, contents in enumerate(rows):
        start = 0
        for ids_L, pictures in contents:
            here = slice(start, start + len(ids_L))
            grids = [picture.grid for picture in pictures]
            positions_BL3[row, here] = image_rows.positions_of(ids_L, grids, vision).T
            start = here.stop
    return positions_BL3


def _of_rows(rows: Rows, read: Callable[[Picture], Any]) -> list[list[Any]]:
    """What `read` gives of each picture of each row, by all processors."""
    found = []
    # Pillow lets go of Python's lock where it decodes and scales.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for contents in rows:
            pictures = itertools.chain.from_iterable(pictures for _, pictures in contents)
            found.append([pool.submit(read, picture) for picture in pictures])
        return [[one.result() for one in of_row] for of_row in found]


def look_at(file: ImageFile, geometry: Geometry) -> Picture:
    """Reads and decodes an image once, so that what is wrong with it is known before training.

    Raises:
      BadRow: it cannot be read, or not be decoded.
    """
    content = file.read()
    try:
        header = images.read_header(content)
        picture = images.decode(content)
    except BadRow as error:
        raise BadRow(f"{images.shown(file.name)}: {error}") from error
    height, width = picture.shape[:2]
    return Picture(
        file,
        geometry,
        grid=images.grid_of(height, width, geometry),
        sha256=hashlib.sha256(content).hexdigest(),
        is_turned=header.is_turned,
        n_bytes=len(content),
        height=height,
        width=width,
    )


def look_at_all(files: Sequence[ImageFile], geometry: Geometry) -> list[Picture | BadRow]:
    """As `look_at` for each of them, by all processors: the picture, or what is wrong with it."""

    def look(file: ImageFile) -> Picture | BadRow:
        try:
            return look_at(file, geometry)
        except BadRow as error:
            return error

    return by_all_processors(look, files, "look at images")


def by_all_processors(look: Callable[[Any], Any], files: Sequence[Any], name: str) -> list[Any]:
    """look(one) of each of images or their files, in their order; `name` is shown."""
    if not files:
        return []
    # Pillow lets go of Python's lock where it decodes, and hashes and files do.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looked_at = pool.map(look, files)
        bar = progress.bar(
            looked_at, desc=name, unit="image", total=len(files), leave=False, delay=1
        )
        return list(bar)
