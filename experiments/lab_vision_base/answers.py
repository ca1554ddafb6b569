"""Draws pictures of the validation split with what the base says of them, greedily.

python -m experiments.lab_vision_base.answers runs/lab_vision_base_2/eval/400/predictions.jsonl
"""

import json
import sys
import textwrap
from pathlib import Path

from dft_jax.data import images
from dft_jax.data.sources import cards
from dft_jax.evals.tasks import benchmarks
from experiments import common

HERE = Path(__file__).parent
COLUMNS, LINES = 6, 3


def sheet(predictions: Path, file: Path) -> None:
    """The first problems; what is wrong has a red title."""
    source = cards.parse(benchmarks.find("lab_vision_validation").source)
    answered = {}
    for line in predictions.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["temperature"] == 0:
            answered[row["id"]] = row
    figure, axes = common.figure(COLUMNS, LINES, size=(2.0, 2.7))
    for number, (problem, axis) in enumerate(zip(source.rows(), axes.flat, strict=False)):
        answer = answered[str(number)]
        axis.imshow(images.decode(problem["images"][0]["bytes"]), interpolation="nearest")
        axis.set_axis_off()
        title = f"{problem['numbers'][0]}, so {problem['answer']}"
        is_right = answer["verdict"] == "correct"
        axis.set_title(title, fontsize=9, pad=2, color="black" if is_right else "tab:red")
        asked = textwrap.fill(problem["prompt"], 38)
        said = textwrap.fill(answer["completion"].replace("\n", " "), 38)
        axis.text(0, 59, f"{asked}\n\n{said}", fontsize=5, va="top")
    common.save(figure, file)


if __name__ == "__main__":
    sheet(Path(sys.argv[1]), HERE / "answers.png")
