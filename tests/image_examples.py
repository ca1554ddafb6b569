"""Examples with images of noise, for the golden checkpoint of Qwen2.5-VL."""

import io

import numpy as np
from PIL import Image

from dft_jax.data.examples import Examples
from dft_jax.data.image_files import ImageFile, look_at
from dft_jax.data.image_rows import expand
from dft_jax.data.images import Geometry
from dft_jax.data.templates import Example
from dft_jax.models.hf.locate import read_config
from tests.conftest import GOLDEN

FOLDER = GOLDEN / "qwen2_5_vl"
SPEC = read_config(FOLDER)
GEOMETRY = Geometry(min_pixels=28 * 28, max_pixels=28 * 28 * 40)
# (height, width) in pixels of the images of each example; windows are whole and cut off.
SIZES = (
    ((56, 84),),
    (),
    ((280, 168),),
    ((56, 84), (140, 224)),
    ((28, 28),),
    ((224, 224),),
    (),
    ((84, 56),),
)


def png_of(height: int, width: int, seed: int) -> bytes:
    """A picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def example_of(sizes, seed: int) -> Example:
    """Some text, the images, and an answer of four tokens, which alone is trained."""
    vision, rng = SPEC.vision, np.random.default_rng(seed)
    pictures = []
    ids = rng.integers(1, 200, 3).tolist()
    for number, size in enumerate(sizes):
        file = ImageFile(f"image {number}", png_of(*size, seed=10 * seed + number))
        pictures.append(look_at(file, GEOMETRY))
        ids += [vision.start_token, vision.image_token, vision.end_token]
    ids += rng.integers(1, 200, 5).tolist()
    ids_L = expand(np.array(ids, np.int32), [picture.grid for picture in pictures], vision)
    trained = np.arange(len(ids_L)) >= len(ids_L) - 4
    return Example(ids_L, trained, cut_tokens=0, images=tuple(pictures))


def image_examples() -> Examples:
    examples = [example_of(sizes, seed) for seed, sizes in enumerate(SIZES)]
    origins = [f"made:{number}" for number in range(len(examples))]
    return Examples(examples, {"sha256": ""}, origins)
