"""The laboratory's splits: problems of its world, made and not loaded, the same ones each time.

`lab` is like the demonstrations that a model is trained on; of the others each differs from them in
one way: longer chains, another family, or an operator that is new.
"""

from dft_jax.evals.tasks import fields
from dft_jax.evals.tasks.task import Task


def _split(name: str, split: str, family: str, levels: str, count: int) -> Task:
    source = f"world(split={split}, family={family}, levels={levels}, n={count})"
    return Task(name, source=source, count=count, answer=fields.after_hashes)


TASKS = (
    _split("lab", "test", "chain", "2-4", 200),
    _split("lab_hard", "test", "chain", "5-6", 200),
    _split("lab_expression", "test", "expression", "3-5", 200),
    _split("lab_operator", "test", "operator", "1-2", 100),
    # What training and the choice of settings may see.
    _split("lab_train", "train", "chain", "2-4", 2500),
    _split("lab_validation", "validation", "chain", "2-4", 200),
    _split("lab_operator_validation", "validation", "operator", "1-2", 100),
)
