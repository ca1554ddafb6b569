"""Adapters in the forward pass: against PEFT's logits, against merged kernels, and against the
gradients of a dense model.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dft_jax.models.adapters import _merged, init_adapters
from dft_jax.models.cached import unstack
from dft_jax.models.hf import peft
from dft_jax.models.hf.load import load_params
from dft_jax.models.hf.locate import read_config
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.lora import MODULES, Lora
from dft_jax.models.model import REMAT_POLICIES, build, head
from dft_jax.runtime import files
from dft_jax.types import Batch
from tests.conftest import GOLDEN
from tests.jaxprs import equations
from tests.marks import slow_but

CASES = sorted(file.parent.name for file in (GOLDEN / "lora").glob("*/logits.npz"))
FEW = ["patterns"]
# Modules with different scales, which a run cannot train.
UNEVEN = ["patterns"]


def one_row(tokens_BL):
    B, L = tokens_BL.shape
    positions_BL = np.broadcast_to(np.arange(L, dtype=np.int32), (B, L))
    ones_BL = np.ones((B, L), np.int32)
    return Batch(tokens_BL, tokens_BL, ones_BL.astype(bool), ones_BL, positions_BL)


def logits(model, params, batch, adapters=None):
    @jax.jit
    def run(params, adapters):
        hidden_BLD = model.apply(params, batch, adapters)
        return jnp.einsum("BLD,VD->BLV", hidden_BLD, head(params).astype(hidden_BLD.dtype))

    return np.asarray(run(params, adapters))


@functools.cache
def golden(case):
    """The folder of an adapter, that of its base, tokens and logits."""
    folder = GOLDEN / "lora" / case
    base = GOLDEN.parents[1] / files.read_json(folder / peft.CONFIG_NAME)["base_model_name_or_path"]
    held = np.load(folder / "logits.npz")
    return folder, base, held["token_ids"], held["logits"]


def adapted(case, mesh, **settings):
    """Model, parameters and adapters of a golden adapter."""
    folder, base, *_ = golden(case)
    adapter = peft.read_adapter(folder)
    architecture = read_config(base)
    lora = peft.as_lora(adapter, build(architecture, mesh))
    model = build(architecture, mesh, lora=lora, **settings)
    peft.check(adapter, model)
    params = load_params(Checkpoint(base), model)
    return model, params, peft.load_adapters(adapter, model)


@pytest.mark.parametrize("case", slow_but(FEW, CASES))
def test_merged_logits_equal_peft(case, mesh1):
    folder, base, tokens_BL, expected_BLV = golden(case)
    model = build(read_config(base), mesh1)
    adapter = peft.read_adapter(folder)
    peft.check(adapter, model)
    params = load_params(Checkpoint(base), model, adapter.pairs)
    found_BLV = logits(model, params, one_row(tokens_BL))
    np.testing.assert_allclose(found_BLV, expected_BLV, atol=1e-4)
    base_BLV = logits(model, load_params(Checkpoint(base), model), one_row(tokens_BL))
    assert np.abs(base_BLV - expected_BLV).max() > 1, "an adapter that changes nothing"


EVEN = [case for case in CASES if case not in UNEVEN]


@pytest.mark.parametrize("case", slow_but(["all_linear"], EVEN, slow=["tied", "periods", "rslora"]))
def test_adapted_logits_equal_peft(case, mesh1):
    *_, tokens_BL, expected_BLV = golden(case)
    model, params, adapters = adapted(case, mesh1)
    found_BLV = logits(model, params, one_row(tokens_BL), adapters)
    np.testing.assert_allclose(found_BLV, expected_BLV, atol=1e-4)


@pytest.mark.parametrize("case", slow_but([], EVEN, slow=["biases", "periods", "all_linear"]))
def test_pairs_are_those_that_were_read(case, mesh8):
    adapter = peft.read_adapter(golden(case)[0])
    model, _, adapters = adapted(case, mesh8)
    pairs = peft.pairs_of(adapters, model)
    assert adapter.pairs.keys() <= pairs.keys()
    for name, pair in pairs.items():
        if name in adapter.pairs:
            np.testing.assert_array_equal(pair.a_ZI, adapter.pairs[name].a_ZI)
            np.testing.assert_array_equal(pair.b_OZ, adapter.pairs[name].b_OZ)
            assert pair.scale == adapter.pairs[name].scale
        else:
            assert not pair.a_ZI.any() and not pair.b_OZ.any()


def random_adapters(model, seed, std=0.3):
    """Both matrices far from zero, of any dtype."""
    numbers = np.random.default_rng(seed)

    def values(leaf):
        host = numbers.normal(0, std, leaf.shape).astype(leaf.dtype)
        return jax.device_put(host, leaf.sharding)

    return jax.tree.map(values, model.abstract_adapters)


def rows(count):
    tokens_BL = np.random.default_rng(0).integers(0, 96, (count, 16)).astype(np.int32)
    return one_row(tokens_BL)


ALL = Lora(rank=4, alpha=7.0, rslora=False, targets=MODULES)


@pytest.mark.parametrize("remat", slow_but(["full"], REMAT_POLICIES))
@pytest.mark.parametrize("size", slow_but([1], [1, 8]))
def test_a_new_adapter_changes_nothing(remat, size, request):
    mesh = request.getfixturevalue(f"mesh{size}")
    model = build(read_config(GOLDEN / "llama"), mesh, lora=ALL, remat=remat)
    params = load_params(Checkpoint(GOLDEN / "llama"), model)
    adapters = init_adapters(jax.random.key(0), model)
    batch = rows(4)
    apply = jax.jit(model.apply)
    np.testing.assert_array_equal(apply(params, batch, adapters), apply(params, batch))


def test_new_adapters_are_uniform_and_their_own(mesh1, mesh8):
    """Within ±1/√inputs, different in every layer and module; on any mesh, with any other targets."""
    architecture = read_config(GOLDEN / "llama")
    model = build(architecture, mesh8, lora=ALL)
    adapters = jax.device_get(init_adapters(jax.random.key(3), model))["layers"]
    most = {"q": 32, "k": 32, "v": 32, "o": 32, "gate": 32, "up": 32, "down": 48}
    seen = []
    for part in adapters.values():
        for name, matrices in part.items():
            a, largest = matrices["a"], 1 / np.sqrt(most[name])
            assert 0.9 * largest < np.abs(a).max() <= largest
            assert abs(a.std() - largest / np.sqrt(3)) < 0.1 * largest
            assert not matrices["b"].any()
            seen += [layer.ravel()[:96] for layer in a]
    assert len(np.unique(np.stack(seen)[:, 0])) == len(seen) == 7 * 3
    few = build(architecture, mesh1, lora=Lora(4, 7.0, False, ("v",)))
    alone = jax.device_get(init_adapters(jax.random.key(3), few))["layers"]
    np.testing.assert_array_equal(alone["attention"]["v"]["a"], adapters["attention"]["v"]["a"])


def merged_params(params, adapters, scale):
    """Every kernel with its adapter, in the precision of both."""

    def merge(node, pair):
        if "a" in pair:
            update = jax.vmap(lambda b, a: jnp.tensordot(b, a, 1))(pair["b"], pair["a"])
            return node | {"kernel": node["kernel"] + scale * update}
        return node | {name: merge(node[name], pair[name]) for name in pair}

    return merge(params, adapters)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_kernels_are_float32_sums(dtype, mesh1):
    """A merged kernel is W + s·BA; numpy's float64 is the oracle."""
    numbers = np.random.default_rng(0)
    W, A, B = (numbers.normal(size=shape) for shape in ((6, 4, 8), (3, 8), (6, 4, 3)))
    kernel = jnp.asarray(W, dtype)
    found = _merged(kernel, jnp.float32(A), jnp.float32(B), 1.75)
    assert found.dtype == jnp.float32
    expected = np.asarray(kernel, np.float64) + 1.75 * np.einsum("HKZ,ZD->HKD", B, A)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_merged_and_adapted_are_the_same_function(mesh1):
    model = build(read_config(GOLDEN / "llama"), mesh1, lora=ALL)
    params = load_params(Checkpoint(GOLDEN / "llama"), model)
    adapters = random_adapters(model, 1, std=0.1)
    merged = merged_params(params, adapters, ALL.scale)
    one = logits(model, params, rows(2), adapters)
    other = logits(model, merged, rows(2))
    # Rounding: in float32 either is as far from float64 as from the other, and so is the base by
    # itself (1.6e-6).
    assert np.abs(one - other).max() <= 3e-6 * np.abs(other).max()


def test_merged_kernels_are_exactly_the_adapters(mesh1):
    """In float64, where nothing that is wrong can pass for rounding."""
    with jax.enable_x64(True):
        wide = {"param_dtype": "float64", "compute_dtype": "float64"}
        model = build(read_config(GOLDEN / "llama"), mesh1, lora=ALL, **wide)
        params = load_params(Checkpoint(GOLDEN / "llama"), model)
        adapters = random_adapters(model, 1, std=0.1)
        adapters = jax.tree.map(lambda x: x.astype(jnp.float64), adapters)
        merged = merged_params(params, adapters, ALL.scale)
        one = logits(model, params, rows(2), adapters)
        other = logits(model, merged, rows(2))
    assert one.dtype == np.float64
    assert np.abs(one - other).max() <= 1e-13 * np.abs(other).max()


@pytest.mark.parametrize("remat", slow_but([], REMAT_POLICIES, slow=["dots"]))
def test_gradients_follow_from_those_of_the_dense_model(remat, mesh1):
    """dA = s · Bᵀ dW and dB = s · dW Aᵀ in float64, with dW at the merged weights."""
    with jax.enable_x64(True):
        model = build(
            read_config(GOLDEN / "qwen2_untied"),
            mesh1,
            lora=ALL,
            remat=remat,
            param_dtype="float64",
            compute_dtype="float64",
        )
        params = load_params(Checkpoint(GOLDEN / "qwen2_untied"), model)
        adapters = jax.tree.map(lambda x: x.astype(jnp.float64), random_adapters(model, 1, std=0.1))
        batch = rows(1)
        weights_BLD = np.random.default_rng(5).normal(size=(1, 16, 32))

        def loss(adapters, params):
            return (model.apply(params, batch, adapters) * weights_BLD).sum()

        def dense(params):
            return (model.apply(params, batch) * weights_BLD).sum()

        found = jax.jit(jax.grad(loss))(adapters, params)
        merged = merged_params(params, adapters, ALL.scale)
        expected = jax.jit(jax.grad(dense))(merged)
        n_compared = 0
        for part, modules in adapters["layers"].items():
            for name, pair in modules.items():
                for layer in range(3):
                    a_ZI = np.asarray(pair["a"][layer]).reshape(4, -1)
                    b_OZ = np.asarray(pair["b"][layer]).reshape(-1, 4)
                    d_kernel = expected["layers"][part][name]["kernel"][layer]
                    d_OI = np.asarray(d_kernel).reshape(len(b_OZ), -1)
                    d_pair = found["layers"][part][name]
                    d_a_ZI = np.asarray(d_pair["a"][layer]).reshape(4, -1)
                    d_b_OZ = np.asarray(d_pair["b"][layer]).reshape(-1, 4)
                    assert np.abs(d_a_ZI).max() > 1e-3
                    np.testing.assert_allclose(
                        d_a_ZI, ALL.scale * b_OZ.T @ d_OI, rtol=1e-9, atol=1e-10
                    )
                    np.testing.assert_allclose(
                        d_b_OZ, ALL.scale * d_OI @ a_ZI.T, rtol=1e-9, atol=1e-10
                    )
                    n_compared += 1
        assert n_compared == 7 * 3


def test_no_product_makes_a_gradient_of_the_base(mesh1):
    """Not even one that nobody reads, which the planner would count."""
    model = build(read_config(GOLDEN / "llama"), mesh1, lora=ALL)

    def loss(adapters, params):
        return model.apply(params, rows(1), adapters).sum()

    program = jax.make_jaxpr(jax.grad(loss))(model.abstract_adapters, model.abstract_params)
    shapes = [equation.outvars[0].aval.shape for equation in equations(program, "dot_general")]
    kernels = [leaf.shape[1:] for leaf in jax.tree.leaves(model.abstract_params["layers"])]
    kernels = {shape for shape in kernels if len(shape) > 1}
    kernels |= {shape[::-1] for shape in kernels}
    assert shapes and not kernels & set(shapes)


@pytest.mark.parametrize("case", slow_but([], ["all_linear", "periods", "one_layer"]))
def test_what_samples_is_merged(case, mesh1):
    """Adapters that are unstacked for decoding, and PEFT's pairs merged as they are read."""
    folder, base, *_ = golden(case)
    model, params, adapters = adapted(case, mesh1)
    found = jax.jit(functools.partial(unstack, model=model))(model.join(adapters, params))
    plain = build(read_config(base), mesh1)
    merged = load_params(Checkpoint(base), plain, peft.read_adapter(folder).pairs)
    expected = jax.jit(functools.partial(unstack, model=plain))(merged)
    unmerged = jax.jit(functools.partial(unstack, model=plain))(params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), found, expected)
    moved = jax.tree.map(lambda one, other: np.abs(one - other).max(), found, unmerged)
    assert max(jax.tree.leaves(moved)) > 0.5
