"""Pictures to patches, as Qwen2.5-VL's processor makes them, and a guard against hostile files.

Nothing here runs on a device or needs torch: Pillow decodes and scales, and the result is that of
transformers' processor with Pillow to the last bit (tests/data/test_images.py). What travels on is
bytes: the processor's normalised values are made of them on the device (models/vision.py).
"""

import base64
import binascii
import contextlib
import dataclasses
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from dft_jax.data.sources.rows import BadRow

# Formats that are looked for, and no other: EPS would start Ghostscript, and each decoder more is
# one more that a file of unknown origin can attack.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MOST_BYTES = 64 * 2**20  # of a file
MOST_PIXELS = 50_000_000  # of a picture, by its header
MOST_RATIO = 200  # of its sides, as the processor has it
# Modes whose values go beyond a byte: Pillow would cut them off at 255, so all would be white.
_WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_ORIENTATION = 0x0112  # of EXIF
# What makes a picture of each orientation upright; of 1 and of all that is none nothing does.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_REMEDY = "fix the image or remove the row"


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How pictures are cut: `patch` pixels a side, `merge` × `merge` patches a unit.

    Pictures are scaled to between `min_pixels` and `max_pixels`; the defaults are those of
    preprocessor_config.json of the published checkpoints.
    """

    patch: int = 14
    merge: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 16384

    @property
    def unit(self) -> int:
        """Pixels along a side of a unit."""
        return self.patch * self.merge


@dataclasses.dataclass(frozen=True)
class Header:
    """What is known of a picture before it is decoded."""

    height: int  # as it is seen: EXIF may turn it
    width: int
    turn: Image.Transpose | None  # by EXIF

    @property
    def is_turned(self) -> bool:
        return self.turn is not None


def refuse_address(file: str) -> None:
    """BadRow where what should be a path is an address, or begins at somebody's home."""
    if "://" in file or file.startswith(("file:", "data:", "~")):
        raise BadRow(
            f"image {shown(file)}: addresses are not fetched; download the images first, and give"
            " their paths"
        )


def read_file(file: str, folder: Path) -> bytes:
    """The bytes of a picture of a row; its path is relative to `folder`, or absolute within.

    Raises:
      BadRow: an address, a file that is not there or too large, or one outside of the folder: a
      data set must not be able to read this machine's files, links included.
    """
    refuse_address(file)
    inside = Path(os.path.realpath(folder))
    try:
        found = Path(os.path.realpath(inside / file))
        is_inside = found.is_relative_to(inside)
        if is_inside and found.is_file() and found.stat().st_size <= MOST_BYTES:
            return found.read_bytes()
        is_there = found.is_file()
    except (OSError, ValueError) as error:
        raise BadRow(f"image {shown(file)}: cannot be read ({error}); {_REMEDY}") from error
    if not is_inside:
        raise BadRow(
            f"image {shown(file)} leads out of the folder of the images; copy the file there"
        )
    if not is_there:
        raise BadRow(f"image {shown(file)} is missing, or no plain file; fetch it")
    raise BadRow(f"image {shown(file)} has more than {MOST_BYTES // 2**20} MiB; {_REMEDY}")


def from_base64(text: str) -> bytes:
    """The bytes that a row holds as text.

    Raises:
      BadRow: it is no base64, line breaks included, or too large.
    """
    # Four characters are three bytes; before decoding, so that nothing large is made of it.
    if len(text) > MOST_BYTES // 3 * 4 + 4:
        raise BadRow(f"an image in base64 has more than {MOST_BYTES // 2**20} MiB; {_REMEDY}")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRow(f"an image is no base64 ({error}); {_REMEDY}") from error


def read_header(content: bytes) -> Header:
    """Sizes of a picture, of which nothing is decoded.

    Raises:
      BadRow: it is none of FORMATS, or beyond the limits above.
    """
    with _opened(content) as image:
        return _header(image)


def decode(content: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """The picture as it is seen: turned as EXIF says, its first frame, colours in RGB.

    What is transparent is white, as to transformers 5.24; before, it was whatever colour the file
    has beneath, which is black in many drawings.

    Raises:
      BadRow: as `read_header`; or the file is cut off or damaged, or has 16 bits a colour.
    """
    with _opened(content) as image:
        header = _header(image)
        if image.mode in _WIDE_MODES:
            raise BadRow(
                f"an image has values beyond a byte (mode {image.mode}), which would be cut off at"
                " 255; save it with 8 bits a colour"
            )
        image.load()
        # Not by ImageOps.exif_transpose, which writes all other EXIF anew, and fails where a camera
        # has put a number as text.
        if header.turn is not None:
            image = image.transpose(header.turn)
        return np.asarray(_opaque(image).convert("RGB"))


@contextlib.contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
    """The picture, its header read; all that decoders raise is a BadRow."""
    if len(content) > MOST_BYTES:
        raise BadRow(f"an image has more than {MOST_BYTES // 2**20} MiB; {_REMEDY}")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            yield image
    except BadRow:
        raise
    # A decoder is fed with what anybody may have written: they raise nearly every type.
    except Exception as error:
        why = f" ({type(error).__name__}: {error})"
        # What it is not says nothing but the address of our buffer.
        if isinstance(error, UnidentifiedImageError):
            why = ""
        known = ", ".join(FORMATS)
        raise BadRow(f"an image cannot be read as one of {known}{why}; {_REMEDY}") from error


def _header(image: Image.Image) -> Header:
    """What the file says of itself, within the limits."""
    width, height = image.size
    if min(width, height) < 1:
        raise BadRow(f"an image is {width} × {height} pixels; {_REMEDY}")
    if width * height > MOST_PIXELS:
        raise BadRow(
            f"an image is {width} × {height} pixels, more than {MOST_PIXELS:,}; scale it down"
        )
    _require_ratio(height, width)
    # Of a PNG the method of its class would decode the pixels, to look for EXIF behind them. There
    # it is ignored, here and in `decode`.
    orientation = Image.Image.getexif(image).get(_ORIENTATION, 1)
    if orientation in (5, 6, 7, 8):
        # These lay it on its side.
        width, height = height, width
    return Header(height, width, _TURNS.get(orientation))


def _require_ratio(height: int, width: int) -> None:
    if max(width, height) > MOST_RATIO * min(width, height):
        raise BadRow(
            f"an image is {width} × {height} pixels, sides beyond {MOST_RATIO} : 1; {_REMEDY}"
        )


def _opaque(image: Image.Image) -> Image.Image:
    """The picture on white, where parts of it are transparent."""
    has_alpha = "A" in image.getbands() or image.info.get("transparency") is not None
    if not has_alpha:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def shown(file: str) -> str:
    """A path in a message, which may be a whole picture by mistake."""
    return repr(file if len(file) <= 80 else file[:80] + "…")


def scaled_size(height: int, width: int, geometry: Geometry) -> tuple[int, int]:
    """(height, width) that a picture is scaled to: whole units, its area within the limits.

    Sides are rounded to the nearest unit, halves to even, as Python does; where the area is then
    outside the limits, both are scaled alike and rounded so that it is not.

    133 × 77  ->  140 × 84

    Raises:
      BadRow: sides beyond 200 : 1.
    """
    _require_ratio(height, width)
    unit, area = geometry.unit, height * width
    high, wide = round(height / unit) * unit, round(width / unit) * unit
    if high * wide > geometry.max_pixels:
        shrink = math.sqrt(area / geometry.max_pixels)
        high = max(unit, math.floor(height / shrink / unit) * unit)
        wide = max(unit, math.floor(width / shrink / unit) * unit)
    elif high * wide < geometry.min_pixels:
        grow = math.sqrt(geometry.min_pixels / area)
        high = math.ceil(height * grow / unit) * unit
        wide = math.ceil(width * grow / unit) * unit
    return high, wide


def grid_of(height: int, width: int, geometry: Geometry) -> tuple[int, int]:
    """Rows and columns of patches of a picture of this size; a quarter as many are tokens."""
    high, wide = scaled_size(height, width, geometry)
    return high // geometry.patch, wide // geometry.patch


def patches_of(
    picture: UInt8[np.ndarray, "height width 3"], geometry: Geometry
) -> UInt8[np.ndarray, "I X"]:
    """A picture scaled and cut into patches, units row by row and the four of each together.

    A patch is its colours, of each the rows, of each the columns. Of two rows of two units:

        patches   0  1 |  4  5        a picture of 4 × 4 patches
                  2  3 |  6  7
                  -----+------
                  8  9 | 12 13
                 10 11 | 14 15
    """
    height, width = picture.shape[:2]
    high, wide = scaled_size(height, width, geometry)
    image = Image.fromarray(picture).resize((wide, high), Image.Resampling.BICUBIC)
    patch, merge = geometry.patch, geometry.merge
    n_rows, n_cols = high // geometry.unit, wide // geometry.unit
    # unit row, row in the unit, row in the patch; the same of columns; colour
    cut = np.asarray(image).reshape(n_rows, merge, patch, n_cols, merge, patch, 3)
    ordered = cut.transpose(0, 3, 1, 4, 6, 2, 5)
    return ordered.reshape(n_rows * n_cols * merge**2, 3 * patch**2)
