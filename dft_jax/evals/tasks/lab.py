"""The laboratory's splits: problems of its world, made and not loaded, the same ones each time.

`lab` is like the demonstrations that a model is trained on; of the others each differs from them in
one way: longer chains, another family, or an operator that is new. Those of `lab_vision` show
pictures: a chain whose first number is on a card, a card alone, and two to be added.
"""

import dataclasses
from typing import Any

from dft_jax.data.image_files import ImageFile
from dft_jax.evals.tasks import fields
from dft_jax.evals.tasks.task import Problem, Task


def _split(name: str, split: str, family: str, levels: str, count: int) -> Task:
    source = f"world(split={split}, family={family}, levels={levels}, n={count})"
    return Task(name, source=source, count=count, answer=fields.after_hashes)


@dataclasses.dataclass(frozen=True)
class PictureTask(Task):
    """A benchmark of rows of `cards(…)`."""

    shows_images: bool = True

    def _problem(self, row: dict[str, Any], number: int) -> Problem:
        images = []
        for place, image in enumerate(row["images"]):
            images.append(ImageFile(f"images[{place}]", image["bytes"]))
        return Problem(str(number), row["prompt"], self.answer(row), images=tuple(images))


def _pictures(name: str, split: str, family: str, count: int) -> Task:
    source = f"cards(split={split}, family={family}, levels=2-4, n={count})"
    return PictureTask(name, source=source, count=count, answer=fields.answer_field)


TASKS = (
    _split("lab", "test", "chain", "2-4", 200),
    _split("lab_hard", "test", "chain", "5-6", 200),
    _split("lab_expression", "test", "expression", "3-5", 200),
    _split("lab_operator", "test", "operator", "1-2", 100),
    # What training and the choice of settings may see.
    _split("lab_train", "train", "chain", "2-4", 2500),
    _split("lab_validation", "validation", "chain", "2-4", 200),
    _split("lab_operator_validation", "validation", "operator", "1-2", 100),
    _pictures("lab_vision", "test", "picture_chain", 200),
    _pictures("lab_vision_card", "test", "card", 300),
    _pictures("lab_vision_cards", "test", "cards", 60),
    _pictures("lab_vision_validation", "validation", "picture_chain", 200),
)
