"""Prompts that show images: their text, their tokens, and how large pictures are to a model."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dft_jax.data import image_rows, image_settings, images
from dft_jax.data.image_files import ImageFile, Picture
from dft_jax.data.images import Geometry
from dft_jax.data.messages import Message
from dft_jax.data.sources.rows import BadRow
from dft_jax.models.spec import VisionSpec
from dft_jax.runtime import errors, files


def file_at(path: str | Path) -> ImageFile:
    """The image that a user names, wherever it is; data may name only those of its own folder.

    Raises:
      UserError: it cannot be read, or is too large.
    """
    place = files.named(path)
    if not place.is_file():
        raise errors.UserError(f"image {path}: no such file (looked from {Path.cwd()})")
    with errors.user_errors(f"image {path}: cannot be read", "change its mode"):
        if place.stat().st_size > images.MOST_BYTES:
            most = images.MOST_BYTES // 2**20
            raise errors.UserError(f"image {path} has more than {most} MiB; scale it down")
        return ImageFile(str(path), content=place.read_bytes())


def asked(question: str, shown: Sequence[ImageFile] = ()) -> Message:
    """What a user asks, after images, if there are any."""
    if not shown:
        return {"role": "user", "content": question}
    parts: list[dict[str, Any]] = [{"type": "image", "image": file} for file in shown]
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}


def geometry_of(
    source: Path, vision: VisionSpec, min_pixels: int = 0, max_pixels: int = 0
) -> Geometry:
    """How pictures are cut for a checkpoint.

    Args:
      source: its folder, of which a file says how large pictures are.
      min_pixels, max_pixels: count in place of what is said there; 0 for none.

    Raises:
      UserError: as `image_settings.read_geometry`; or no picture can be within the limits.
    """
    own = image_settings.read_geometry(source, vision)
    least, most = min_pixels or own.min_pixels, max_pixels or own.max_pixels
    if least > most:
        raise errors.UserError(
            f"images should have at least {least:,} and at most {most:,} pixels, by"
            f" {image_settings.said_in(source)} and the limits that were given; give others"
        )
    return dataclasses.replace(own, min_pixels=least, max_pixels=most)


def readable(looked_at: Sequence[Picture | BadRow]) -> tuple[Picture, ...]:
    """The pictures; the first that is none is raised."""
    found = []
    for picture in looked_at:
        if isinstance(picture, BadRow):
            raise picture
        found.append(picture)
    return tuple(found)


def expanded(
    ids: Sequence[int], pictures: Sequence[Picture], vision: VisionSpec | None
) -> tuple[int, ...]:
    """The tokens of a prompt, of each image as many as it has units.

    Raises:
      BadRow: as `image_rows.expand`; so is a text in which somebody wrote the token of an image.
    """
    if vision is None:
        return tuple(ids)
    grids = [picture.grid for picture in pictures]
    found = image_rows.expand(np.array(ids, np.int32), grids, vision)
    return tuple(found.tolist())
