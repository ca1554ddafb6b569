"""All benchmarks by name. A new one is an entry of a file here, or a file like these."""

from dft_jax.evals.tasks import code, lab, math
from dft_jax.evals.tasks.task import Problem, Task
from dft_jax.runtime import errors, options

MATH: dict[str, Task] = {task.name: task for task in math.TASKS}
LAB: dict[str, Task] = {task.name: task for task in lab.TASKS}
CODE: dict[str, Task] = {task.name: task for task in code.TASKS}
BENCHMARKS: dict[str, Task] = MATH | LAB | CODE


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
