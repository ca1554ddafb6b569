"""Pictures of cards with numbers, for the laboratory: rectangles, and no fonts.

A picture of k cards is 56 pixels high and 28 · k + 28 wide, so whole units of 28 × 28. Cards stand
in a row, each in its 28 pixels and none, half or all of the 28 that are left; so much lower they
may stand too. A digit is 5 × 7 squares of 2 × 2 pixels, darker than its card.

Cards move by whole patches (14 pixels), so that a digit is cut in few ways. A tower of 0.26 M
parameters learned nothing of 38,000 cards that lay anywhere, with ink darker or brighter than they
(experiments/lab_vision_base); of 26,000 that lie so it read 85 %.

    +--------------------------+
    |      +-------+           |
    |      | # ### |  +-----+  |
    |      | #   # |  | ### |  |
    |      | # ### |  |   # |  |
    |      +-------+  |   # |  |
    |                 +-----+  |
    +--------------------------+

What is promised: the same generator gives the same pixels everywhere. The bytes of the file are the
same under the same versions of Pillow and zlib, which choose how to compress it.
"""

import io
import random
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw

LARGEST = 99  # that a card has room for
HEIGHT = 56
SLOT = 28  # across, of a card and what is around it; and left over, in all
CARD_WIDTH = 26
CARD_HEIGHT = 20
SHIFTS = (0, 14, 28)  # of a card, to the right and down
# The share of pixels that have a colour of the picture at random.
SPECKLES = 0.05
# Differences in brightness, of 255.
CONTRAST = 100  # of a card above its number
EDGE = 30  # between a card and the table
GLYPHS = (
    (" ### ", "#   #", "#   #", "#   #", "#   #", "#   #", " ### "),
    ("  #  ", " ##  ", "  #  ", "  #  ", "  #  ", "  #  ", " ### "),
    (" ### ", "#   #", "    #", "   # ", "  #  ", " #   ", "#####"),
    (" ### ", "#   #", "    #", "  ## ", "    #", "#   #", " ### "),
    ("   # ", "  ## ", " # # ", "#  # ", "#####", "   # ", "   # "),
    ("#####", "#    ", "#### ", "    #", "    #", "#   #", " ### "),
    ("  ## ", " #   ", "#    ", "#### ", "#   #", "#   #", " ### "),
    ("#####", "    #", "   # ", "  #  ", "  #  ", " #   ", " #   "),
    (" ### ", "#   #", "#   #", " ### ", "#   #", "#   #", " ### "),
    (" ### ", "#   #", "#   #", " ####", "    #", "   # ", " ##  "),
)
_SQUARE = 2  # pixels along a side of a glyph's squares
_GLYPH_WIDTH = 5 * _SQUARE
_GAP = _SQUARE  # between digits
_TOP = 3  # of a card, above its digits
_MARGIN = 4  # above a card that is not shifted
# Numbers of the colours.
_TABLE, _CARD, _INK = range(3)

Colour = tuple[int, int, int]


def draw(numbers: Sequence[int], rng: random.Random, speckles: float = SPECKLES) -> bytes:
    """A PNG of cards with these numbers, from left to right.

    Args:
      numbers: from 0 to 99, at least one.
      rng: where cards lie, their colours and the speckles are drawn from it.
      speckles: the share of pixels whose colour is one of the picture's at random.
    """
    assert numbers and all(0 <= number <= LARGEST for number in numbers), numbers
    width = SLOT * len(numbers) + SLOT
    image = Image.new("P", (width, HEIGHT), _TABLE)
    image.putpalette([value for colour in _colours(rng) for value in colour])
    canvas = ImageDraw.Draw(image)

    # Sorted, so that no card lies on another.
    shifts = sorted(rng.choice(SHIFTS) for _ in numbers)
    for place, number in enumerate(numbers):
        left = place * SLOT + shifts[place] + (SLOT - CARD_WIDTH) // 2
        top = _MARGIN + rng.choice(SHIFTS)
        _draw_card(canvas, number, left, top)

    pixels: Any = image.load()
    speckled = rng.sample(range(width * HEIGHT), round(speckles * width * HEIGHT))
    colours = rng.choices((_TABLE, _CARD, _INK), k=len(speckled))
    for pixel, colour in zip(speckled, colours, strict=True):
        row, column = divmod(pixel, width)
        pixels[column, row] = colour

    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _draw_card(canvas: ImageDraw.ImageDraw, number: int, left: int, top: int) -> None:
    """A card with its number in the middle."""
    _rectangle(canvas, left, top, CARD_WIDTH, CARD_HEIGHT, _CARD)
    digits = str(number)
    left += (CARD_WIDTH - len(digits) * _GLYPH_WIDTH - (len(digits) - 1) * _GAP) // 2
    for digit in digits:
        for row, squares in enumerate(GLYPHS[int(digit)]):
            for column, square in enumerate(squares):
                if square == "#":
                    across = left + column * _SQUARE
                    down = top + _TOP + row * _SQUARE
                    _rectangle(canvas, across, down, _SQUARE, _SQUARE, _INK)
        left += _GLYPH_WIDTH + _GAP


def _rectangle(
    canvas: ImageDraw.ImageDraw, left: int, top: int, width: int, height: int, colour: int
) -> None:
    # Pillow counts the last row and the last column in.
    canvas.rectangle((left, top, left + width - 1, top + height - 1), fill=colour)


def _colours(rng: random.Random) -> tuple[Colour, Colour, Colour]:
    """Of the table, the cards and the numbers, drawn until they differ enough in brightness."""
    while True:
        table, card, ink = (_colour(rng) for _ in range(3))
        is_legible = brightness(card) - brightness(ink) >= CONTRAST
        if is_legible and abs(brightness(card) - brightness(table)) >= EDGE:
            return table, card, ink


def _colour(rng: random.Random) -> Colour:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def brightness(colour: Colour) -> int:
    """From 0 to 255, as Pillow makes grey of a colour (ITU-R BT.601)."""
    red, green, blue = colour
    return (299 * red + 587 * green + 114 * blue) // 1000
