"""A jitted function whose programs can be compiled ahead, from shapes."""

from collections.abc import Callable
from typing import Any

import jax


class Programs:
    """A jitted function with its compiled programs, one for each shape of its arguments.

    `jax.jit` keeps programs too, but only a call with arrays makes them, which a sampler would have
    to allocate.

    Args:
      function: its arguments are positional, those that are static are keywords. All calls with
        one shape have one layout on the devices.
      options: of `jax.jit`.
    """

    def __init__(self, function: Callable, **options: Any):
        self._jitted = jax.jit(function, **options)
        self._programs: dict[Any, Any] = {}

    def __call__(self, *arguments: Any, **static: Any) -> Any:
        """Calls the function; a shape that was not foreseen is compiled now."""
        return self._program(arguments, static)(*arguments)

    def compile(self, *arguments: Any, **static: Any) -> Any:
        """Compiles the function, and runs nothing.

        Args:
          arguments: arrays, or shapes with dtypes and layouts in their place.

        Returns:
          Shapes, dtypes and layouts of what the function gives.
        """
        program = self._program(arguments, static)
        return jax.tree.map(_shape_of, program.out_info, program.output_shardings)

    def _program(self, arguments: tuple, static: dict[str, Any]) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        key = (structure, shapes, tuple(sorted(static.items())))
        if key not in self._programs:
            self._programs[key] = self._jitted.lower(*arguments, **static).compile()
        return self._programs[key]


def _shape_of(value: Any, layout: Any) -> jax.ShapeDtypeStruct:
    # Without the order of axes in memory, which `value` has too: an argument with it is a demand.
    return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=layout)
