"""What the backward pass finds saved on accelerators, and that it changes no number.

The programs of accelerators are traced, and run, on CPUs here: `sharding.platform` is what a model
asks where it will run.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dft_jax import sharding
from dft_jax.models.hf.load import load_params
from dft_jax.models.hf.locate import read_config
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.model import build, cast_layers
from dft_jax.types import Batch
from tests.conftest import GOLDEN
from tests.jaxprs import equations
from tests.marks import slow_but

B, L = 2, 24
# Norms before a layer's parts, and of each head; norms after them, and of the whole width.
FAMILIES = ("qwen3", "olmo2")


@pytest.fixture
def on_accelerators(monkeypatch):
    return lambda: monkeypatch.setattr(sharding, "platform", lambda mesh: "gpu")


def loss_of(model, batch, params):
    return jnp.sin(model.apply(params, batch).astype(jnp.float32)).mean()


def packed():
    tokens_BL = np.random.default_rng(0).integers(1, 90, (B, L)).astype(np.int32)
    segments_BL = np.tile(np.repeat([1, 2], (10, L - 10)), (B, 1)).astype(np.int32)
    positions_BL = np.tile([*range(10), *range(L - 10)], (B, 1)).astype(np.int32)
    return Batch(tokens_BL, tokens_BL, segments_BL > 0, segments_BL, positions_BL)


REMATERIALISED = [(family, remat) for family in FAMILIES for remat in ("none", "dots", "full")]


@pytest.mark.parametrize("family, remat", slow_but([], REMATERIALISED, slow=REMATERIALISED[1::2]))
def test_accelerators_compute_what_cpus_do(family, remat, on_accelerators, mesh1):
    """In float32, up to the order of additions."""

    def run():
        model = build(read_config(GOLDEN / family), mesh1, remat=remat)
        params = load_params(Checkpoint(GOLDEN / family), model)
        return jax.jit(jax.value_and_grad(functools.partial(loss_of, model, packed())))(params)

    expected = run()
    on_accelerators()
    found = run()
    # A mean of sines that cancels: terms of up to 1, whose last bit in float32 is 1.2e-7.
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6, atol=1e-7)
    for one, other in zip(*map(jax.tree.leaves, (found[1], expected[1])), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6 * np.abs(other).max())


def stacked(model, batch, params):
    """What the forward pass keeps of each layer: (dtype, shape) without the layers' axis."""
    program = jax.make_jaxpr(jax.grad(functools.partial(loss_of, model, batch)))(params)
    forward, _ = equations(program, "scan")
    n_layers = forward.params["length"]
    kept = []
    for out in forward.outvars:
        if out.aval.shape[:1] == (n_layers,):
            kept.append((str(out.aval.dtype), out.aval.shape[1:]))
    return kept


def test_what_is_kept_of_a_layer(on_accelerators, mesh1):
    """Of norms their input alone, of the feed-forward what enters silu and its partner, of weights
    cast beforehand nothing: elementwise work is cheap, and memory decides how large a micro-batch
    can be.
    """
    spec = read_config(GOLDEN / "qwen2_untied")
    D, F = spec.hidden_size, spec.intermediate_size

    def model_of():
        return build(spec, mesh1, compute_dtype="bfloat16")

    def kept():
        model = model_of()
        params = jax.eval_shape(functools.partial(cast_layers, model=model), model.abstract_params)
        return stacked(model, packed(), params)

    on_cpus = kept()
    on_accelerators()
    found = kept()
    assert found.count(("bfloat16", (B, L, F))) == 2 == on_cpus.count(("bfloat16", (B, L, F))) - 1
    # the two norms' inputs and outputs
    assert found.count(("bfloat16", (B, L, D))) <= 4
    assert ("float32", (B, L, D)) in on_cpus and ("float32", (B, L, D)) not in found
    weights = {leaf.shape[1:] for leaf in jax.tree.leaves(model_of().abstract_params["layers"])}
    assert not weights & {shape for _, shape in found}


@pytest.mark.slow
def test_layers_are_cast_once_with_the_same_gradients(mesh1):
    """Bit for bit: gradients leave the layers in the compute dtype either way. The tables', sums
    over many tokens, are float32.
    """
    model = build(read_config(GOLDEN / "qwen2_untied"), mesh1, compute_dtype="bfloat16")
    params = load_params(Checkpoint(GOLDEN / "qwen2_untied"), model)
    gradients = jax.jit(jax.grad(functools.partial(loss_of, model, packed())))
    cast = cast_layers(params, model)
    found, expected = gradients(cast), gradients(params)
    assert found["embed"].dtype == jnp.float32 and cast["head"] is params["head"]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found["layers"])} == {"bfloat16"}
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(jnp.float32, found), expected)


@pytest.mark.parametrize("masters, computed", [("float32", "float32"), ("bfloat16", "float32")])
def test_nothing_is_cast_to_what_is_no_narrower(masters, computed, mesh1):
    spec = read_config(GOLDEN / "qwen2_untied")
    model = build(spec, mesh1, param_dtype=masters, compute_dtype=computed)
    assert cast_layers(model.abstract_params, model) is model.abstract_params
