"""Experts on several devices: a layer is the dense one, a model that of one device, every pair is
multiplied once, and no expert travels.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dft_jax import config as config_lib, sharding
from dft_jax.losses import objectives
from dft_jax.models import model as models, moe
from dft_jax.models.hf.export import export
from dft_jax.models.hf.load import load_params
from dft_jax.models.hf.locate import read_config
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.options import architecture_problems
from dft_jax.sampling.sampler import Request, Sampler
from dft_jax.training.step import make_loss
from tests import jaxprs
from tests.conftest import GOLDEN, make_mesh
from tests.marks import slow_but
from tests.models import test_moe as layers
from tests.models.attention.test_sequence import random_batch
from tests.models.test_moe import platform  # noqa: F401 — a fixture

TWO = (1, 1, 1, 1, 2)
# Of six experts; of the last two meshes the rows do not divide, so all devices have all of them.
OF_LAYERS = [
    TWO,
    (1, 2, 2, 1, 2),
    (1, 1, 1, 2, 2),
    (2, 1, 1, 1, 2),
    (1, 1, 1, 1, 3),
    (1, 1, 2, 1, 3),
]


@pytest.mark.parametrize(
    "sizes",
    slow_but(
        [(TWO,)],
        [(sizes,) for sizes in OF_LAYERS],
        slow=[((1, 2, 2, 1, 2),), ((1, 1, 1, 1, 3),)],
    ),
)
@pytest.mark.usefixtures("platform")
def test_outputs_and_gradients_are_those_of_a_dense_layer(sizes):
    with jax.enable_x64(True):
        arrays = layers.arrays_of()
        layer = layers.in_our_layer(make_mesh(*sizes), layers.EXPERTS, "float64")
        exact = layers.output_and_gradients(layers.dense, *arrays)
        layers.check(layers.output_and_gradients(layer, *arrays), exact, atol=1e-13)


ragged_dot = jax.lax.ragged_dot


def here(x_PI, sizes_E):
    return (jnp.arange(len(x_PI)) < sizes_E.sum())[:, None]


@jax.custom_vjp
def undefined(x_PI, kernel_EIO, sizes_E):
    return jnp.where(here(x_PI, sizes_E), ragged_dot(x_PI, kernel_EIO, sizes_E), jnp.nan)


def undefined_forward(*arguments):
    return undefined(*arguments), arguments


def undefined_backward(kept, dy_PO):
    x_PI, kernel_EIO, sizes_E = kept
    dx_PI = ragged_dot(dy_PO, kernel_EIO.swapaxes(1, 2), sizes_E)
    ends_E, places_1P = jnp.cumsum(sizes_E), jnp.arange(len(x_PI))[None, :]
    is_of_EP = (places_1P < ends_E[:, None]) & (places_1P >= (ends_E - sizes_E)[:, None])
    masked_EPI = jnp.where(is_of_EP[:, :, None], x_PI[None], 0)
    d_kernel_EIO = jnp.einsum("EPI,PO->EIO", masked_EPI, dy_PO)
    return jnp.where(here(x_PI, sizes_E), dx_PI, jnp.nan), d_kernel_EIO, None


undefined.defvjp(undefined_forward, undefined_backward)


def undefined_beyond(x_PI, kernel_EIO, sizes_E):
    """`jax.lax.ragged_dot` whose other rows are NaN, as are those of its gradient; the gradient of
    the kernels reads all rows of one operand, as a compiler without a kernel for it has it.
    """
    # Both then differ along all axes that one does; shard_map adds gradients up along the others.
    zero = jax.lax.stop_gradient(0 * (x_PI[0, 0] + kernel_EIO[0, 0, 0]))
    return undefined(x_PI + zero, kernel_EIO + zero, sizes_E)


@pytest.mark.slow
def test_what_a_product_leaves_undefined_is_not_read(monkeypatch):
    monkeypatch.setattr(sharding, "platform", lambda mesh: "tpu")
    monkeypatch.setattr(jax.lax, "ragged_dot", undefined_beyond)
    with jax.enable_x64(True):
        arrays = layers.arrays_of()
        layer = layers.in_our_layer(make_mesh(*TWO), layers.EXPERTS, "float64")
        exact = layers.output_and_gradients(layers.dense, *arrays)
        layers.check(layers.output_and_gradients(layer, *arrays), exact, atol=1e-13)


@pytest.mark.parametrize("largest", [12, 2])
def test_every_pair_is_multiplied_once(largest):
    """Twelve experts on four devices; also where all tokens choose two of the first device."""
    N, D, S, n_own, mesh = 20, 3, 2, 3, make_mesh(expert=4)
    rng = np.random.default_rng(0)
    chosen_NS = np.argsort(rng.random((N, largest)), axis=1)[:, :S].astype(np.int32)
    seen = []

    def count(x_nD, shares_nS, chosen_nS, some_absent):
        seen.append(x_nD.shape)
        is_here_nS = chosen_nS < n_own
        return jnp.where(is_here_nS, 1 + shares_nS, 0).sum(axis=1)[:, None] + 0 * x_nD

    rows = sharding.P("expert")
    run = jax.shard_map(
        functools.partial(moe.by_all_devices, count, n_own, True),
        mesh=mesh,
        in_specs=(rows, rows, rows),
        out_specs=rows,
    )
    shares_NS = rng.random((N, S)).astype(np.float32)
    y_ND = jax.jit(run)(np.ones((N, D), np.float32), shares_NS, chosen_NS)
    expected_N1 = S + shares_NS.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(y_ND, np.broadcast_to(expected_N1, (N, D)), rtol=1e-6)
    assert set(seen) == {(N // 4, D)}, "tokens of one device at a time"


def loss_on(sizes, family, batch):
    """The model on a mesh, and its loss with a balance, gradients and sums, compiled."""
    spec = read_config(GOLDEN / family)
    model = models.build(
        spec, make_mesh(*sizes), param_dtype="float64", compute_dtype="float64", remat="dots"
    )
    loss = make_loss(model, objectives.make_objective("dft"), 8, balance_weight=0.5)

    def of(params):
        return loss(params, batch, 7.0, None, 50)

    jitted = jax.jit(jax.value_and_grad(of, has_aux=True))
    return model, jitted.lower(model.abstract_params).compile()


@functools.cache
def on_one_device(family):
    """Batch, parameters, and what one device makes of them; to be called with float64."""
    batch = random_batch(read_config(GOLDEN / family), rows=4, length=16)
    batch.segments_BL[:, -3:] = 0
    batch.mask_BL[:, -3:] = False
    model, program = loss_on((1, 1, 1), family, batch)
    params = jax.jit(model.init)(jax.random.key(0))
    return batch, jax.tree.map(np.asarray, params), jax.device_get(program(params))


OF_MODELS = [
    *[("mixtral", sizes) for sizes in (TWO, (1, 1, 1, 1, 4), (1, 2, 1, 1, 2), (1, 1, 2, 1, 2))],
    *[("mixtral", sizes) for sizes in ((1, 1, 1, 2, 2), (2, 1, 1, 1, 2))],
    *[("qwen3_moe", sizes) for sizes in (TWO, (1, 2, 1, 1, 2))],
]


@pytest.mark.parametrize(
    "family, sizes",
    slow_but([], OF_MODELS, slow=[OF_MODELS[1], OF_MODELS[2], OF_MODELS[4]]),
)
def test_loss_and_gradients_are_those_of_one_device(family, sizes):
    """Packed rows with padding, in float64; and of each layer's experts only those of a device are
    ever brought together, over `fsdp`.
    """
    with jax.enable_x64(True):
        batch, params, ((loss, sums), gradients) = on_one_device(family)
        model, program = loss_on(sizes, family, batch)
        laid_out = jax.device_put(params, models.layouts_of(model.abstract_params))
        (found, found_sums), found_gradients = jax.device_get(program(laid_out))
    np.testing.assert_allclose(found, loss, rtol=1e-12)
    np.testing.assert_array_equal(found_sums["expert_pairs"], sums["expert_pairs"])
    n_pairs = (batch.segments_BL > 0).sum() * model.config.experts.per_token
    assert (found_sums["expert_pairs"].sum(axis=1) == n_pairs).all()
    np.testing.assert_allclose(found_sums["balance"], sums["balance"], rtol=1e-12)
    for one, other in zip(
        jax.tree.leaves(found_gradients), jax.tree.leaves(gradients), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)
    assert most_gathered(program, model) == expected_gather(model, sizes)


def most_gathered(program, model):
    """The most elements of experts' weights that an all-gather of the program makes; 0 of none."""
    width = model.config.experts.width // model.mesh.shape["tensor"]
    found = [0]
    for shape in re.findall(r"= \(?\w+\[([\d,]+)\]\S* all-gather\(", program.as_text()):
        sizes = [int(size) for size in shape.split(",")]
        if width in sizes:
            found.append(int(np.prod(sizes)))
    return max(found)


def expected_gather(model, sizes):
    _, fsdp, tensor, sequence, expert = sizes
    if fsdp * sequence == 1:
        return 0
    experts = model.config.experts
    return experts.count // expert * experts.width // tensor * model.config.hidden_size


@pytest.mark.parametrize("policy", ["none", "dots", "full"])
def test_nothing_is_kept_of_pairs(policy):
    """Of all devices' they would take M times as much as of a device's own. The three products are
    made again: twelve for nine.
    """
    program = layers.program_of(policy, "tpu", TWO)
    spec, n_pairs = read_config(GOLDEN / "mixtral"), 8 * 2
    for scan in jaxprs.equations(program, "scan"):
        for out in scan.outvars:
            assert out.aval.shape[-2:] != (n_pairs, spec.experts.width)
    assert len(list(jaxprs.equations(program, "ragged_dot_general"))) == 12


def test_parameters_are_cut():
    """Experts by their number; all others over `expert` as over `fsdp`, where they were copies."""
    spec = read_config(GOLDEN / "mixtral")
    params = models.build(spec, make_mesh(1, 2, 1, 1, 4)).abstract_params
    mlp, E, F, D = params["layers"]["mlp"], 4, spec.experts.width, spec.hidden_size

    def part(leaf):
        return leaf.sharding.shard_shape(leaf.shape)[-3:]

    assert part(mlp["expert_gate"]) == (1, F, D // 2)
    assert part(mlp["expert_down"]) == (1, D // 2, F)
    assert part(mlp["router"]["kernel"])[1:] == (E, D // 8)
    assert part(params["embed"]) == (spec.vocab_size, D // 8)
    params = models.build(spec, make_mesh(1, 2, 2)).abstract_params
    assert params["embed"].sharding.spec == sharding.P("tensor", "fsdp")


@pytest.mark.slow
def test_import_sampling_and_export(tmp_path):
    """The checkpoint's own bytes, and the tokens that transformers takes."""
    source, mesh = GOLDEN / "mixtral", make_mesh(1, 2, 1, 1, 2)
    model = models.build(read_config(source), mesh)
    params = load_params(Checkpoint(source), model)
    export(params, model, source, tmp_path / "out")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    prompt = np.load(source / "logits.npz")["token_ids"][0]
    asked = [Request("p", n, tuple(prompt[:n].tolist()), 0.0, 40) for n in (5, 16)]
    for completion in Sampler(model, stop_ids=[], max_length=150, slots=4).sample(params, asked):
        expected = np.load(source / "greedy.npz")[f"after_{completion.request.sample}"]
        assert list(completion.ids) == expected.tolist()


@pytest.mark.parametrize(
    "family, expert, words",
    [
        ("llama3", 2, ["config.mesh.expert=2", "has none", "mesh.fsdp=2"]),
        ("mixtral", 3, ["config.mesh.expert=3", "4 experts", "legal here: 1, 2, 4"]),
        ("mixtral", 4, []),
        ("llama3", 1, []),
    ],
)
def test_what_does_not_fit_is_refused(family, expert, words):
    mesh = config_lib.get_default().mesh
    mesh.expert = expert
    found = architecture_problems(mesh, 8, read_config(GOLDEN / family), expert)
    assert len(found) == bool(words)
    for word in words:
        assert word in found[0]
