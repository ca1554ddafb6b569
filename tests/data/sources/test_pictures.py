"""Pictures of cards: the same every time, as large as promised, and legible to a naive reader."""

import collections
import hashlib
import io
import random

import numpy as np
import pytest
from PIL import Image

from dft_jax.data import images
from dft_jax.data.sources import pictures
from tests.marks import slow_but

NUMBERS = range(1, 31)
# As a person would draw two of them; of the others it is enough that they differ.
TWO = """
.###.
#...#
....#
...#.
..#..
.#...
#####
"""
FOUR = """
...#.
..##.
.#.#.
#..#.
#####
...#.
...#.
"""


def drawn(numbers, seed, **options):
    return pictures.draw(numbers, random.Random(seed), **options)


def grey(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("L"), np.float32)


def card_of(number):
    """A card as it should be, 1 where there is ink: digits of 10 × 14 pixels, 2 between them, in
    the middle of 26 × 20.
    """
    digits = []
    for digit in str(number):
        if digits:
            digits.append(np.zeros((14, 2)))
        squares = np.array([[s == "#" for s in row] for row in pictures.GLYPHS[int(digit)]], float)
        digits.append(np.kron(squares, np.ones((2, 2))))
    ink = np.concatenate(digits, axis=1)
    card = np.zeros((20, 26))
    left = (26 - ink.shape[1]) // 2
    card[3:17, left : left + ink.shape[1]] = ink
    return card


CARDS_NX = np.stack([card_of(number).reshape(-1) for number in NUMBERS]).astype(np.float32)
CENTRED_NX = CARDS_NX - CARDS_NX.mean(axis=1, keepdims=True)
TEMPLATES_NX = CENTRED_NX / np.linalg.norm(CENTRED_NX, axis=1, keepdims=True)


def read(content, n_cards=1):
    """The numbers on the cards from left to right: where a template of dark ink correlates best."""
    picture = grey(content)
    windows = np.lib.stride_tricks.sliding_window_view(picture, (20, 26))
    windows_PX = windows.reshape(-1, 20 * 26)
    spread_P = np.maximum(windows_PX.std(axis=1), 1e-3)
    scores_PN = -(windows_PX @ TEMPLATES_NX.T) / spread_P[:, None]
    scores = scores_PN.reshape(*windows.shape[:2], -1)
    found = []
    for _ in range(n_cards):
        row, column, best = np.unravel_index(scores.argmax(), scores.shape)
        found.append((column, NUMBERS[best]))
        # No card is closer to this one than its width.
        scores[:, max(0, column - 25) : column + 26] = -np.inf
    return tuple(number for _, number in sorted(found))


def test_digits_are_ten_different_ones():
    assert len(set(pictures.GLYPHS)) == 10
    for glyph in pictures.GLYPHS:
        assert len(glyph) == 7 and all(len(row) == 5 and set(row) <= {" ", "#"} for row in glyph)
    for digit, text in ((2, TWO), (4, FOUR)):
        assert "\n".join(pictures.GLYPHS[digit]).replace(" ", ".") == text.strip()


@pytest.mark.parametrize("n_cards", [1, 2, 3])
def test_sizes(n_cards):
    content = drawn((7,) * n_cards, 0)
    assert images.decode(content).shape == (56, 28 * n_cards + 28, 3)
    # Whole units of 28 × 28: no picture is scaled.
    assert images.grid_of(56, 28 * n_cards + 28, images.Geometry()) == (4, 2 * n_cards + 2)


@pytest.mark.parametrize("speckles", [0.0, pictures.SPECKLES])
@pytest.mark.parametrize("per_number", slow_but([2], [2, 40]))
def test_every_number_is_legible(speckles, per_number):
    right = collections.Counter()
    for number in NUMBERS:
        for seed in range(per_number):
            content = drawn((number,), f"{number} {seed}", speckles=speckles)
            right[number] += read(content) == (number,)
    assert sum(right.values()) > 0.99 * len(NUMBERS) * per_number
    assert all(right[number] > 0.9 * per_number for number in NUMBERS), right


def test_two_cards_are_legible_from_left_to_right():
    rng = random.Random(0)
    right = 0
    for seed in range(30):
        numbers = (rng.choice(NUMBERS), rng.choice(NUMBERS))
        right += read(drawn(numbers, seed), n_cards=2) == numbers
    assert right == 30


def test_pictures_differ_in_place_and_colours():
    contents = [drawn((12,), seed, speckles=0.0) for seed in range(30)]
    arrays = [images.decode(content) for content in contents]
    assert len(set(contents)) == 30
    corners = set()
    palettes = set()
    for array in arrays:
        colours, counts = np.unique(array.reshape(-1, 3), axis=0, return_counts=True)
        assert len(colours) == 3
        palettes.add(colours.tobytes())
        table = colours[counts.argmax()]
        rows, columns = np.nonzero((array != table).any(axis=2))
        corners.add((rows.min(), columns.min()))
        assert (np.ptp(rows), np.ptp(columns)) == (19, 25)
        # Ink, card and table as bright as promised, by Pillow's own grey.
        by_area = colours[counts.argsort()]
        ink, card, table = np.asarray(Image.fromarray(by_area[None]).convert("L"), int)[0]
        assert card - ink >= 99 and abs(card - table) >= 29
    assert len(palettes) == 30
    # Each a whole number of patches from the first.
    assert corners == {(top, left) for top in (4, 18, 32) for left in (1, 15, 29)}


def test_speckles_are_the_share_of_pixels():
    """Of these a third keeps its colour in the mean."""
    changed = 0
    for seed in range(20):
        plain, speckled = (drawn((8,), seed, speckles=share) for share in (0.0, 0.3))
        changed += (images.decode(plain) != images.decode(speckled)).any(axis=2).mean() / 20
    assert changed == pytest.approx(0.2, abs=0.01)


def test_a_picture_is_the_same_every_time():
    """Its pixels everywhere, which is what the number says; its bytes in one installation."""
    assert drawn((12, 7), 3) == drawn((12, 7), 3) != drawn((12, 7), 4)
    pixels = images.decode(drawn((12, 7), 3))
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == "900b7e209a69e4c7"


@pytest.mark.parametrize("numbers", [(), (100,), (-1,)])
def test_numbers_without_a_card_are_refused(numbers):
    with pytest.raises(AssertionError):
        drawn(numbers, 0)
