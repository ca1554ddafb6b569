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
