"""Rows that the mesh cuts along `sequence`: attention is that of whole rows, and so is training."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from dft_jax import sharding
from dft_jax.analysis.token_scores import make_scorer
from dft_jax.losses import fused, objectives
from dft_jax.models import model as models
from dft_jax.models.attention import kernels, sequence
from dft_jax.models.attention.masked import causal_attention
from dft_jax.models.hf.locate import read_config
from dft_jax.models.lora import Lora
from dft_jax.models.spec import DecoderSpec
from dft_jax.study.measures import make_measure
from dft_jax.training.step import make_loss
from dft_jax.types import Adapted
from tests.conftest import GOLDEN, make_mesh
from tests.marks import slow_but
from tests.models.attention.test_masked import dense_attention

B, L, H, G, K = 2, 16, 4, 2, 6


def drawn(length=L, dtype=np.float64):
    """Queries, keys, values, what comes back to the output, and segments that end anywhere."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(B, length, n, K)).astype(dtype) for n in (H, G, G, H)]
    segments_BL = np.sort(rng.integers(1, 4, (B, length)), axis=1).astype(np.int32)
    segments_BL[0, -3:] = 0
    return *arrays, segments_BL


def in_parts(mesh, segments_BL, **given):
    """attend(q, k, v) of rows as they come, which are laid out on the mesh and back."""
    n = sharding.n_parts(segments_BL.shape[1], mesh)
    assert n == mesh.shape["sequence"]

    def attend(*qkv):
        lying = [sharding.in_parts(x_BLXK, n) for x_BLXK in qkv]
        segments = sharding.in_parts(segments_BL, n)
        found = causal_attention(*lying, segments_BL=segments, mesh=mesh, **given)
        return sharding.in_row_order(found, n)

    return attend


def with_gradients(attend, cotangent_BLHK):
    def both(*qkv):
        out_BLHK, gradients = jax.vjp(attend, *qkv)
        return out_BLHK, *gradients(cotangent_BLHK)

    return jax.jit(both)


@pytest.mark.parametrize(
    "sizes, window, block",
    slow_but(
        [((1, 1, 2, 2), None, 3)],
        [
            *[((1, 1, 2, 2), None, 3), ((2, 1, 1, 4), 5, 64), ((1, 1, 1, 8), 1, 2)],
            *[((1, 2, 2, 2), 11, 5), ((1, 1, 4, 2), None, 64)],
        ],
    ),
)
def test_equals_dense(sizes, window, block):
    """In float64; of the last mesh `tensor` does not divide the keys' heads."""
    with jax.enable_x64(True):
        *qkv, cotangent_BLHK, segments_BL = drawn()
        given = dict(segments_BL=segments_BL, window=window, block=block)
        cut = in_parts(make_mesh(*sizes), **given)
        found = with_gradients(cut, cotangent_BLHK)(*qkv)
        whole = functools.partial(causal_attention, **given)
        expected = with_gradients(whole, cotangent_BLHK)(*qkv)
        dense_BLHK = dense_attention(*qkv, segments_BL, window)
        np.testing.assert_allclose(found[0], dense_BLHK, rtol=1e-12, atol=1e-12)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_rows_that_do_not_divide_are_whole():
    mesh = make_mesh(1, 1, 1, 4)
    assert sequence.is_cut(16, mesh) and not sequence.is_cut(20, mesh)
    assert not sequence.is_cut(16, make_mesh(2, 2, 2))
    assert sequence.is_tiled(1024, mesh) and not sequence.is_tiled(512, mesh)
    assert not sequence.is_tiled(768, make_mesh(1, 1, 1, 3))


def test_parts_have_an_early_and_a_late_piece():
    """As the docstring shows them; the way back is the row again."""
    assert sharding.places_in_parts(8, 2).tolist() == [0, 1, 6, 7, 2, 3, 4, 5]
    x_BLX = np.arange(2 * 24 * 3).reshape(2, 24, 3)
    for n in (1, 2, 3):
        lying_BLX = sharding.in_parts(x_BLX, n)
        assert n == 1 or not np.array_equal(lying_BLX, x_BLX)
        np.testing.assert_array_equal(sharding.in_row_order(lying_BLX, n), x_BLX)
        seen_of_device = (1 + sharding.places_in_parts(24, n)).reshape(n, -1).sum(axis=1)
        assert len(set(seen_of_device)) == 1, "all devices see as many keys"


@pytest.mark.parametrize("n", [2, 4])
def test_splash_has_as_many_tiles_on_every_device(n):
    """By the tables of its forward pass and of both backward passes; 16 × 17 / 2 tiles of a row
    have a query that sees one of their keys.
    """
    kernel = kernels.splash_kernel(4096, 2, window=None, block=256, n_parts=n)
    for tables in (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info):
        of_devices = np.split(np.asarray(tables.block_mask), n, axis=1)
        assert [np.count_nonzero(tiles) for tiles in of_devices] == [136 // n] * n


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 100])
def test_splash_equals_plain(window, monkeypatch):
    """Interpreted; each device's tiles are those of its own queries."""
    interpreted = functools.partial(kernels.splash_kernel, interpret=True)
    monkeypatch.setattr(kernels, "splash_kernel", interpreted)
    *qkv, cotangent_BLHK, segments_BL = drawn(512, np.float32)
    given = dict(segments_BL=segments_BL, window=window, block=512)
    cut = in_parts(make_mesh(1, 1, 2, 2), backend="splash", **given)
    found = with_gradients(cut, cotangent_BLHK)(*qkv)
    plain = functools.partial(causal_attention, **given)
    expected = with_gradients(plain, cotangent_BLHK)(*qkv)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def random_batch(spec: DecoderSpec, rows: int, length: int):
    """Packed rows: segments, positions that begin with each, and a third of the tokens trained."""
    rng = np.random.default_rng(1)
    tokens_BL = rng.integers(1, 90, (rows, length)).astype(np.int32)
    segments_BL = np.sort(rng.integers(1, 5, (rows, length)), axis=1).astype(np.int32)
    starts_BL = np.diff(segments_BL, axis=1, prepend=0) != 0
    first_BL = np.maximum.accumulate(np.where(starts_BL, np.arange(length), 0), axis=1)
    positions_BL = (np.arange(length) - first_BL).astype(np.int32)
    mask_BL = rng.random((rows, length)) < 0.3
    return models.Batch(
        tokens_BL, np.roll(tokens_BL, -1, axis=1), mask_BL, segments_BL, positions_BL
    )


def loss_of(spec: DecoderSpec, sizes, batch, objective: str):
    """value_and_grad(params) of the sum of losses on a mesh of these sizes."""
    mesh = make_mesh(*sizes)
    model = models.build(spec, mesh, param_dtype="float64", compute_dtype="float64")

    def loss(params):
        lying = models.balanced(batch, mesh)
        return fused.loss_and_stats(
            model.apply(params, lying),
            models.head(params),
            lying.targets_BL,
            lying.mask_BL,
            lying.segments_BL,
            objective=objectives.make_objective(objective),
            chunk_tokens=8,
            mesh=mesh,
        )[0]

    return model, jax.jit(jax.value_and_grad(loss))


@pytest.mark.parametrize(
    "family, objective",
    slow_but(
        [],
        [
            *[("llama3", "dft"), ("gemma3", "sft"), ("olmo2", "sentence")],
            *[("qwen3_moe", "dft"), ("phi3_long", "dft")],
        ],
        slow=[("gemma3", "sft"), ("qwen3_moe", "dft")],
    ),
)
def test_loss_and_gradients_are_those_of_whole_rows(family, objective):
    """Of 1, 2 and 4 devices along `sequence`, in float64; packed rows, windows, two passes."""
    with jax.enable_x64(True):
        spec = read_config(GOLDEN / family)
        batch = random_batch(spec, rows=2, length=32)
        model, whole = loss_of(spec, (1, 1, 1), batch, objective)
        params = jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(0)))
        expected_loss, expected = whole(params)
        assert expected_loss > 0
        for sizes in ((1, 1, 1, 2), (1, 1, 1, 4), (1, 2, 2, 2)):
            _, cut = loss_of(spec, sizes, batch, objective)
            loss, gradients = cut(params)
            np.testing.assert_allclose(loss, expected_loss, rtol=1e-12)
            for one, other in zip(
                jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True
            ):
                np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_only_keys_and_values_are_gathered():
    """What moves along `sequence` in a compiled forward and backward pass, beside parameters: in
    each layer keys and values of all positions, and their gradients; residual stream and logits
    stay cut.
    """
    n_positions = 8 * 72  # which no parameter has an axis of
    with jax.enable_x64(True):
        spec = read_config(GOLDEN / "llama3")
        batch = random_batch(spec, rows=1, length=n_positions)
        model, cut = loss_of(spec, (1, 1, 1, 4), batch, "dft")
        text = cut.lower(model.abstract_params).compile().as_text()
    gathered = []
    for shape in re.findall(r"= \w+\[([\d,]*)\]\S* all-gather\(", text):
        sizes = [int(size) for size in shape.split(",")]
        if n_positions in sizes:
            gathered.append(sizes)
    assert gathered, "keys come to all queries"
    of_keys = n_positions * spec.num_kv_heads * spec.head_dim
    assert max(np.prod(sizes) for sizes in gathered) == of_keys
    assert " reduce-scatter(" in text, "each device gets the gradients of its own keys alone"
    # Rows are laid out before anything is cut: no part of one changes its device.
    part, piece = n_positions // 4, n_positions // 8
    for shape in re.findall(r"= \(?\w+\[([\d,]*)\]\S* (?:all-to-all|collective-permute)\(", text):
        sizes = [int(size) for size in shape.split(",") if size]
        assert part not in sizes and piece not in sizes, sizes


@pytest.mark.parametrize("objective", slow_but([], ["asft(kl=1)", "talr"], slow=["talr"]))
def test_losses_with_adapters_and_weights_are_those_of_whole_rows(objective):
    """As the step makes them, in float64: value, sums and the adapters' gradients, of objectives
    that compare with what is beneath, and that look at all tokens of a micro-batch.
    """
    lora = Lora(rank=2, alpha=4.0, rslora=False, targets=("q", "v", "down"))
    with jax.enable_x64(True):
        spec = read_config(GOLDEN / "llama")
        batch = random_batch(spec, rows=2, length=32)
        weights_BL = np.random.default_rng(2).random(batch.mask_BL.shape) * batch.mask_BL
        batch = dataclasses.replace(batch, weights_BL=weights_BL)

        def on(*sizes):
            dtypes = dict(param_dtype="float64", compute_dtype="float64")
            model = models.build(spec, make_mesh(*sizes), lora=lora, **dtypes)
            loss = make_loss(model, objectives.make_objective(objective), 8)

            def of_adapters(adapters, params):
                return loss(Adapted(params, adapters), batch, 7.0)

            return model, jax.jit(jax.value_and_grad(of_adapters, has_aux=True))

        model, whole = on(1, 1, 1)
        params = jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(0)))
        rng = np.random.default_rng(3)
        adapters = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape), model.abstract_adapters)
        (expected_loss, expected_sums), expected = whole(adapters, params)
        (loss, sums), gradients = on(1, 2, 1, 4)[1](adapters, params)
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-12)
        for name in expected_sums:  # which are float32
            np.testing.assert_allclose(sums[name], expected_sums[name], rtol=1e-6, err_msg=name)
        for one, other in zip(*map(jax.tree.leaves, (gradients, expected)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_scores_are_in_the_order_of_the_row():
    """Of every token, as the host places them; tokens of a study are found by their places."""
    spec = read_config(GOLDEN / "llama3")
    batch = jax.tree.map(lambda x_BL: x_BL[None], random_batch(spec, rows=2, length=32))
    index_P = np.resize(np.array([0, 5, 20, 31, 32, 40, 63], np.int32), 256)
    found = []
    for sizes in ((1, 1, 1), (1, 1, 1, 4)):
        model = models.build(spec, make_mesh(*sizes))
        params = model.init(jax.random.key(0))
        scores = make_scorer(model, 16)(params, batch)
        found.append((scores, make_measure(model)(params, batch, index_P)))
    assert len(np.unique(found[0][0].logp_BL)) > 10
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_rows_that_are_not_balanced_are_refused():
    """Attention would take the order of the row for that of the parts, silently."""
    spec = read_config(GOLDEN / "llama3")
    model = models.build(spec, make_mesh(1, 1, 1, 2))
    batch = random_batch(spec, rows=1, length=16)
    with pytest.raises(AssertionError, match="balanced"):
        jax.eval_shape(model.apply, model.abstract_params, batch)
    lying = models.balanced(batch, model.mesh)
    assert jax.eval_shape(model.apply, model.abstract_params, lying).shape[:2] == (1, 16)
    assert models.balanced(batch, make_mesh(1, 2)) is batch


def test_parameters_are_cut_too():
    """Over `sequence` as over `fsdp`: copies would take the memory that shorter rows save."""
    spec = read_config(GOLDEN / "llama3")
    embed = models.build(spec, make_mesh(1, 2, 1, 4)).abstract_params["embed"]
    assert embed.sharding.shard_shape(embed.shape) == (spec.vocab_size, spec.hidden_size // 8)
    embed = models.build(spec, make_mesh(1, 2, 2)).abstract_params["embed"]
    assert embed.sharding.spec == sharding.P("tensor", "fsdp")
