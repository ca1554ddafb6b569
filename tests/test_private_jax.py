"""The cache that the tests put around JAX's own, and what becomes of it where JAX has changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dft_jax import sharding
from tests import private_jax


def run(mesh):
    """A program that JAX traces anew in each call."""
    layout = sharding.named(mesh)
    program = jax.jit(lambda x: jnp.cos(x) * 1234.5, in_shardings=layout, out_shardings=layout)
    return program(np.arange(16.0, dtype=np.float32))


def test_equal_programs_of_several_devices_are_compiled_once(mesh8):
    hits = []

    def listen(event: str, **_) -> None:
        hits.append(event == "/jax/compilation_cache/cache_hits")

    first = run(mesh8)
    jax.monitoring.register_event_listener(listen)
    try:
        np.testing.assert_array_equal(run(mesh8), first)
    finally:
        jax.monitoring.unregister_event_listener(listen)
    assert sum(hits) == 1


@pytest.mark.parametrize("change", ["gone", "other arguments"])
def test_where_jax_has_changed_nothing_is_cached(change, monkeypatch):
    compiler = private_jax.compiler()
    if change == "gone":
        monkeypatch.delattr(compiler, "_cache_read")
    else:
        monkeypatch.setattr(compiler, "_cache_read", lambda key, devices: (None, None))
    before = jax.config.jax_enable_compilation_cache
    try:
        assert not private_jax.keep_programs_of_several_devices_in_memory()
        assert not jax.config.jax_enable_compilation_cache
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


@pytest.mark.slow
def test_programs_that_nobody_holds_are_let_go(mesh8):
    """A worker that kept them all ended with a segmentation fault after some thousands."""
    if not private_jax.memory_maps():
        pytest.skip("this system does not say how many memory maps a process has")

    def compile_another(number: int) -> None:
        layout = sharding.named(mesh8)
        program = jax.jit(lambda x: jnp.cos(x) + number, out_shardings=layout)
        program(np.arange(16.0, dtype=np.float32))

    compile_another(-1)
    private_jax.forget_programs(most_maps=0)
    before = private_jax.memory_maps()
    for number in range(20):
        compile_another(number)
    many = private_jax.memory_maps()
    assert many >= before + 20
    private_jax.forget_programs(most_maps=many)
    assert private_jax.memory_maps() >= many
    private_jax.forget_programs(most_maps=many - 1)
    assert private_jax.memory_maps() - before < (many - before) / 2
