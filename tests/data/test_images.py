"""Pictures to patches, against transformers' processor; hostile files, each refused by name."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from dft_jax.data import images
from dft_jax.data.images import Geometry, decode, from_base64, patches_of, read_file, read_header
from dft_jax.data.sources.rows import BadRow
from dft_jax.models.vision import MEAN, STD

rng = np.random.default_rng(7)


def picture(height, width, channels=3):
    """Smooth and noisy parts, so that scaling shows."""
    values = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    values[: height // 2] = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None]
    return values


def as_bytes(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_header(width, height):
    """A PNG that says it is so large, with a few bytes of pixels."""
    about = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    made = b"\x89PNG\r\n\x1a\n"
    for chunk in (b"IHDR" + about, b"IDAT" + zlib.compress(b"\0" * 100), b"IEND"):
        made += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return made


@pytest.mark.parametrize(
    "height, width, limits, expected",
    [
        # of the specification
        (77, 133, {}, (84, 140)),
        (1500, 2000, {"max_pixels": 1_003_520}, (840, 1148)),
        # halves to even: 42 = 1.5 units, 70 = 2.5 units
        (42, 70, {}, (56, 56)),
        # below the least area: both sides grow, rounded up
        (20, 20, {}, (56, 56)),
        (28, 84, {}, (56, 112)),
        # a side never shrinks to nothing
        (28, 2800, {"max_pixels": 28 * 28 * 10}, (28, 868)),
        (224, 224, {}, (224, 224)),
    ],
)
def test_sizes(height, width, limits, expected):
    assert images.scaled_size(height, width, Geometry(**limits)) == expected
    grid = images.grid_of(height, width, Geometry(**limits))
    assert grid == (expected[0] // 14, expected[1] // 14)


def test_the_order_of_patches():
    """As the docstring shows it, by what stands in the corner of each patch."""
    values = np.zeros((56, 56, 3), np.uint8)
    for number, (row, col) in enumerate(np.ndindex(4, 4)):
        values[row * 14, col * 14] = number, 100 + number, 200 + number
    cut = patches_of(values, Geometry())
    assert cut.shape == (16, 588) and cut.dtype == np.uint8
    in_units = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    np.testing.assert_array_equal(cut[:, 0], in_units)
    # The next colour comes after 14 × 14 pixels.
    np.testing.assert_array_equal(cut[:, 196], 100 + np.array(in_units))
    np.testing.assert_array_equal(cut[:, 392], 200 + np.array(in_units))
    # Rows before columns.
    values[1, 0] = values[0, 2] = 7
    cut = patches_of(values, Geometry())
    assert cut[0, 14] == 7 and cut[0, 2] == 7


def normalised(patches_IX):
    """As the tower makes them of bytes, in float32, each patch twice after its colour."""
    colours = patches_IX.reshape(-1, 3, 196)
    mean, std = np.float32(MEAN)[None, :, None], np.float32(STD)[None, :, None]
    values = (colours.astype(np.float32) / np.float32(255) - mean) / std
    return np.repeat(values[:, :, None], 2, axis=2).reshape(len(colours), -1)


# The last two are shrunk, to 256 units at most.
MOST = 28 * 28 * 256
SIZES = [(1, 1), (20, 20), (77, 133), (300, 17), (224, 224), (613, 400), (480, 640)]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "LA", "CMYK"])
def test_patches_equal_those_of_transformers(mode):
    """To the last bit of the scaled bytes: what is normalised differs by float32's rounding."""
    # transformers 5.0 has no such class, and earlier ones dropped transparency
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    limits = {"shortest_edge": 3136, "longest_edge": MOST}
    processor = module.Qwen2VLImageProcessorPil(size=limits)
    for height, width in SIZES:
        image = Image.fromarray(picture(height, width, 4), "RGBA").convert(mode)
        content = as_bytes(image, _format_of(mode))
        image = Image.open(io.BytesIO(content))  # JPEG loses some of it
        found = processor(images=[image], return_tensors="np")
        cut = patches_of(decode(content), Geometry(max_pixels=MOST))
        expected = found["pixel_values"]
        assert expected.shape == (len(cut), 1176)
        np.testing.assert_array_equal(found["image_grid_thw"][0], [1, *_grid(height, width)])
        # Bytes are 1/255/0.27 = 0.0145 apart.
        np.testing.assert_allclose(normalised(cut), expected, atol=1e-6, rtol=0)


def _format_of(mode):
    return "JPEG" if mode == "CMYK" else "PNG"


def _grid(height, width):
    return images.grid_of(height, width, Geometry(max_pixels=MOST))


def test_formats_and_modes():
    for mode in ("RGB", "L", "P", "1"):
        image = Image.fromarray(picture(30, 40)).convert(mode)
        found = decode(as_bytes(image))
        np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")))
    exact = picture(30, 40)
    for format in ("PNG", "BMP"):
        np.testing.assert_array_equal(decode(as_bytes(Image.fromarray(exact), format)), exact)
    for format in ("JPEG", "WEBP", "GIF"):
        content = as_bytes(Image.fromarray(exact), format)
        assert decode(content).shape == (30, 40, 3)
    cmyk = Image.fromarray(picture(30, 40, 4), "CMYK")
    assert decode(as_bytes(cmyk, "JPEG")).shape == (30, 40, 3)


def test_what_is_transparent_is_white():
    for alpha, colour in ((0, [255] * 3), (255, [10, 20, 30]), (128, [132, 137, 142])):
        image = Image.new("RGBA", (30, 30), (10, 20, 30, alpha))
        assert (decode(as_bytes(image)) == colour).all()


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (30, 30), colour) for colour in ("red", "blue")]
    content = as_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(content) == [255, 0, 0]).all()


def test_exif_turns_a_picture():
    exact = picture(30, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its right side: turned by 90° clockwise
    content = as_bytes(Image.fromarray(exact), exif=exif)
    header = read_header(content)
    assert (header.height, header.width, header.is_turned) == (40, 30, True)
    np.testing.assert_array_equal(decode(content), np.rot90(exact, -1))
    plain = read_header(as_bytes(Image.fromarray(exact)))
    assert (plain.height, plain.width, plain.is_turned) == (30, 40, False)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_is_that_of_pillow(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = as_bytes(Image.fromarray(picture(30, 40)), exif=exif)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(decode(content), expected)
    header = read_header(content)
    assert (header.height, header.width) == expected.shape[:2]
    assert header.is_turned == (orientation > 1)


def test_other_exif_may_be_odd():
    """Pillow reads it, but could not write it again: a number as text, in the tag of an offset."""
    exact = picture(30, 40)
    entries = [(0x0112, 3, 6), (0xA005, 2, int.from_bytes(b"0", "little"))]
    tiff = b"II*\0" + struct.pack("<IH", 8, len(entries))
    for tag, kind, value in entries:
        tiff += struct.pack("<HHII", tag, kind, 1, value)
    exif = b"Exif\0\0" + tiff + struct.pack("<I", 0)
    content = as_bytes(Image.fromarray(exact), exif=exif)
    np.testing.assert_array_equal(decode(content), np.rot90(exact, -1))


def test_a_header_is_read_without_decoding(monkeypatch):
    content = as_bytes(Image.new("RGB", (40, 30)))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    assert read_header(content).width == 40


JPEG = as_bytes(Image.fromarray(picture(200, 200)), "JPEG")
HOSTILE = {
    "bomb": (png_header(60_000, 60_000), "60000|DecompressionBomb"),
    "large": (png_header(9_000, 6_000), "9000 × 6000 pixels, more than 50,000,000"),
    "cut off": (JPEG[: len(JPEG) // 2], "truncated"),
    "cut off in its header": (JPEG[:30], "cannot be read"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "cannot be read as"),
    "TIFF": (as_bytes(Image.new("RGB", (30, 30)), "TIFF"), "cannot be read as one of PNG, JPEG"),
    "text": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be read as"),
    "nothing": (b"", "cannot be read as"),
    "no pixels": (png_header(0, 0), "cannot be read|0 × 0"),
    "a line": (as_bytes(Image.new("RGB", (300, 1))), "300 × 1 pixels, sides beyond 200 : 1"),
    "16 bits": (
        as_bytes(Image.fromarray(np.full((30, 30), 40_000, np.uint16))),
        "values beyond a byte",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(case):
    content, words = HOSTILE[case]
    with pytest.raises(BadRow, match=words):
        decode(content)


def test_what_is_refused_by_its_header_is_not_decoded(monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    for case in ("bomb", "large", "a line"):
        with pytest.raises(BadRow):
            decode(HOSTILE[case][0])


def test_too_many_bytes_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(images, "MOST_BYTES", 100)
    (tmp_path / "x.png").write_bytes(b"x" * 101)
    for read in (
        lambda: decode(b"x" * 101),
        lambda: from_base64("x" * 200),
        lambda: read_file("x.png", tmp_path),
    ):
        with pytest.raises(BadRow, match="MiB"):
            read()


def test_base64():
    assert from_base64(base64.b64encode(b"abc").decode()) == b"abc"
    for text in ("YWJj\nYWJj", "data:image/png;base64,YWJj", "YWJ", "ü"):
        with pytest.raises(BadRow, match="no base64"):
            from_base64(text)


def test_paths_stay_in_their_folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"a")
    (tmp_path / "secret.png").write_bytes(b"s")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "within.png").symlink_to(folder / "a.png")
    (folder / "etc").symlink_to("/etc")
    assert read_file("a.png", folder) == b"a"
    assert read_file(str(folder / "a.png"), folder) == b"a"
    assert read_file("within.png", folder) == b"a"
    for outside in ("../secret.png", "link.png", "etc/passwd", "/etc/passwd", "x/../../secret.png"):
        with pytest.raises(BadRow, match="out of the folder"):
            read_file(outside, folder)
    for missing in ("b.png", ".", ""):
        with pytest.raises(BadRow, match="missing"):
            read_file(missing, folder)
    for address in ("http://x/a.png", "https://x/a.png", "s3://b/a.png", "file:a.png", "~/a.png"):
        with pytest.raises(BadRow, match="download the images first"):
            read_file(address, folder)
    with pytest.raises(BadRow, match="cannot be read"):
        read_file("a\0.png", folder)
