"""Draws docs/generate.png from the text of a session in a terminal, docs/generate.txt.

python docs/draw_generate.py
"""

import pathlib
import re

from dft_jax.analysis.figures import pyplot

FOLDER = pathlib.Path(__file__).parent
PAPER, INK, DIM, TYPED = "#1c1f26", "#dfe3ea", "#7d8594", "#8fc7ff"
LINE = 0.19  # inches
# What the command says itself, and not the model.
_NOTES = re.compile(r"\$ |model: |prompt: |a chat with |\d+ tokens")


def colour(line: str) -> str:
    """Of a line of the session."""
    if line.startswith("you> "):
        return TYPED
    return DIM if _NOTES.match(line) else INK


def main() -> None:
    lines = (FOLDER / "generate.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    plt = pyplot()
    height = LINE * (len(lines) + 1.5)
    figure = plt.figure(figsize=(8.2, height), facecolor=PAPER)
    for number, line in enumerate(lines):
        figure.text(
            0.02,
            1 - LINE * (number + 1.4) / height,
            line.replace("$", r"\$"),
            family="monospace",
            fontsize=9.5,
            color=colour(line),
        )
    figure.savefig(FOLDER / "generate.png", dpi=150, facecolor=PAPER)


if __name__ == "__main__":
    main()
