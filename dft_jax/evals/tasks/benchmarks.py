"""All benchmarks by name. A new one is an entry of a file here, or a file like these."""

from collections.abc import Sequence

from dft_jax.evals.tasks import code, lab, math, mathverse, mathvision, wemath
from dft_jax.evals.tasks.task import Problem, Task
from dft_jax.models.spec import VisionSpec
from dft_jax.runtime import errors, options

MATH: dict[str, Task] = {task.name: task for task in math.TASKS}
LAB: dict[str, Task] = {task.name: task for task in lab.TASKS}
CODE: dict[str, Task] = {task.name: task for task in code.TASKS}
PICTURED: dict[str, Task] = {
    task.name: task for task in (*mathverse.TASKS, *mathvision.TASKS, *wemath.TASKS)
}
BENCHMARKS: dict[str, Task] = MATH | LAB | CODE | PICTURED


def find(name: str) -> Task:
    """The benchmark of this name; UserError with the closest names for an unknown one."""
    if name not in BENCHMARKS:
        what = f"benchmark {name!r} is unknown"
        raise errors.UserError(options.unknown(what, name, list(BENCHMARKS)))
    return BENCHMARKS[name]


def load(name: str, path: str = "") -> list[Problem]:
    """The problems of the benchmark of this name, as `Task.load` finds them."""
    return find(name).load(path)


def count_warning(name: str, problems: list[Problem]) -> str:
    """One line where the number of problems is not the published one; else the empty string."""
    expected = find(name).count
    if len(problems) == expected:
        return ""
    return (
        f"{name} has {len(problems)} problems here, {expected} as published:"
        " its scores are those of another set"
    )


def require_tower(names: Sequence[str], tower: VisionSpec | None, setting: str) -> None:
    """Refuses benchmarks that show images to a model that sees none.

    Args:
      names: of benchmarks.
      tower: of the model, None where it has none.
      setting: what the user calls the names, for messages.

    Raises:
      UserError: some of them show images, and there is no tower.
    """
    blind = [name for name in names if find(name).shows_images]
    if blind and tower is None:
        raise errors.UserError(
            f"{setting}: the problems of {', '.join(blind)} show images, and the model has no tower"
            " for them; leave the benchmark out, or take a model such as Qwen2.5-VL"
        )
