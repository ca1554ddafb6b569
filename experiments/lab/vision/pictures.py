"""Draws the first pictures of the laboratory's cards, each with what is asked and answered.

python -m experiments.lab.vision.pictures
"""

import textwrap
from pathlib import Path

from dft_jax.data import images
from dft_jax.data.sources import cards
from experiments import common

HERE = Path(__file__).parent
COLUMNS = 8
# Family -> the number of its lines.
FAMILIES = {"card": 3, "cards": 1, "picture_chain": 2}


def sheet(file: Path) -> None:
    """Pictures of all families from the test split, the right answers below them."""
    lines = sum(FAMILIES.values())
    figure, axes = common.figure(COLUMNS, lines, size=(1.3, 1.6))
    places = iter(axes.flat)
    for family, n_lines in FAMILIES.items():
        for row in cards.Excerpt("test", family, n=n_lines * COLUMNS).rows():
            axis = next(places)
            axis.imshow(images.decode(row["images"][0]["bytes"]), interpolation="nearest")
            axis.set_axis_off()
            numbers = " and ".join(map(str, row["numbers"]))
            axis.set_title(numbers, fontsize=9, pad=2)
            if family == "picture_chain":
                text = f"{row['prompt']} {row['answer']}"
                axis.text(0, 60, textwrap.fill(text, 26), fontsize=4.2, va="top")
    common.save(figure, file)


if __name__ == "__main__":
    sheet(common.out_folder(HERE) / "pictures.png")
