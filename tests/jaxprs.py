"""What a traced program contains, for tests of what is saved, called or compiled."""

from collections.abc import Iterator
from typing import Any

from jax.extend import core
from jax.interpreters import partial_eval


def needed(program: Any) -> Any:
    """The program without what nobody reads the results of, as XLA would run it."""
    jaxpr = program.jaxpr
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def equations(program: Any, name: str) -> Iterator[Any]:
    """The equations of this primitive, in calls and loops too; each body once."""
    for equation in getattr(program, "jaxpr", program).eqns:
        if equation.primitive.name == name:
            yield equation
        for inner in core.jaxprs_in_params(equation.params):
            yield from equations(inner, name)
