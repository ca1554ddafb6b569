"""Layers that differ: how they are cut into loops, and that loops compute what the layers say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dft_jax.models import cached
from dft_jax.models.hf.locate import read_config
from dft_jax.models.model import build
from dft_jax.models.spec import DecoderSpec, LayerSpec, Rope, split_into_loops
from dft_jax.types import Batch
from tests.conftest import GOLDEN
from tests.marks import slow_but

ROTATED = LayerSpec(Rope(100.0))
LAYERS = {
    "r": ROTATED,
    "n": LayerSpec(None),
    "w": LayerSpec(Rope(100.0), sliding_window=5),
    "d": LayerSpec(Rope(300.0), norm="after", qk_norm="width", qkv_bias=True),
}


def layers_of(letters):
    return tuple(LAYERS[letter] for letter in letters)


def decoder(letters):
    return DecoderSpec(
        vocab_size=64,
        hidden_size=16,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=24,
        rms_epsilon=1e-6,
        tie_embeddings=True,
        max_length=64,
        layers=layers_of(letters),
        init_std=0.3,
    )


@pytest.mark.parametrize(
    "letters, expected",
    [
        ("r", [("r", 1)]),
        ("r" * 36, [("r", 36)]),
        ("rrrn" * 9, [("rrrn", 9)]),
        ("rrrn" * 7 + "rr", [("rrrn", 7), ("r", 2)]),
        ("d" + "r" * 5, [("d", 1), ("r", 5)]),
        ("rnwd", [("r", 1), ("n", 1), ("w", 1), ("d", 1)]),
        ("rnrnrwrw", [("rn", 2), ("rw", 2)]),
    ],
)
def test_layers_are_cut_into_loops_over_periods(letters, expected):
    loops = split_into_loops(layers_of(letters))
    assert [(loop.period, loop.times) for loop in loops] == [
        (layers_of(period), times) for period, times in expected
    ]
    unrolled = [layer for loop in loops for layer in loop.period * loop.times]
    assert tuple(unrolled) == layers_of(letters)
    assert loops[0].name == "layers"
    assert [loop.first for loop in loops] == np.cumsum(
        [0] + [len(loop.period) * loop.times for loop in loops[:-1]]
    ).tolist()


def test_every_layer_has_a_place_of_its_own(mesh1):
    spec = decoder("rrrn" * 2 + "dd")
    places = spec.layer_places()
    assert len(set(places)) == spec.num_layers == 10
    assert places[6].path == ("layers", "layer_2") and places[6].trip == 1
    assert places[9].path == ("layers_8",) and places[9].trip == 1
    params = build(spec, mesh1).abstract_params
    assert params["layers"]["layer_3"]["mlp"]["up"]["kernel"].shape == (2, 24, 16)
    assert params["layers_8"]["attention"]["q_norm"]["scale"].shape == (2, 4, 8)


def random_batch(B, L):
    tokens_BL = jax.random.randint(jax.random.key(1), (B, L), 0, 64)
    ones_BL = np.ones((B, L), np.int32)
    positions_BL = np.broadcast_to(np.arange(L, dtype=np.int32), (B, L))
    return Batch(tokens_BL, tokens_BL, ones_BL > 0, ones_BL, positions_BL)


MIXED = [
    ("rn" * 2 + "d", "none"),
    ("rrn" * 2 + "dd", "none"),
    ("rrn" * 2 + "dd", "full"),
    ("wd" * 3 + "r", "full"),
]


# Half a minute each; test_golden has smollm3_window with the fast ones, whose layers differ too.
@pytest.mark.parametrize("letters, remat", slow_but([], MIXED, slow=[MIXED[0], MIXED[-1]]))
def test_loops_compute_what_layer_after_layer_does(letters, remat, mesh1, mesh8):
    """Against each layer by itself, as decoding runs them; on eight devices as on one."""
    batch = random_batch(4, 12)
    model = build(decoder(letters), mesh1, remat=remat, attention_block=4)
    params = model.init(jax.random.key(0))
    hidden_BLD = jax.jit(model.apply)(params, batch)

    @jax.jit
    def layer_after_layer(params, batch):
        apart = cached.unstack(params, model=model)
        last_BD, cache = cached.prefill(apart, model, batch.tokens_BL[:, :-1], jnp.full(4, 11))
        next_BD, _ = cached.decode(
            apart,
            model,
            batch.tokens_BL[:, -1],
            jnp.full(4, 11),
            jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, 1), (0, 0))), cache),
        )
        return last_BD, next_BD

    last_BD, next_BD = layer_after_layer(params, batch)
    np.testing.assert_allclose(hidden_BLD[:, -2], last_BD, atol=2e-5)
    np.testing.assert_allclose(hidden_BLD[:, -1], next_BD, atol=2e-5)

    sharded = build(decoder(letters), mesh8, remat=remat, attention_block=4)
    layouts = jax.tree.map(lambda leaf: leaf.sharding, sharded.abstract_params)
    spread = jax.device_put(params, layouts)
    np.testing.assert_allclose(jax.jit(sharded.apply)(spread, batch), hidden_BLD, atol=2e-5)

    # A sum of squares would be that of normalised vectors, whose gradient is next to nothing.
    direction_BLD = jax.random.normal(jax.random.key(2), hidden_BLD.shape)

    def gradient(model, params):
        def loss(params):
            return (model.apply(params, batch) * direction_BLD).sum()

        return jax.tree.leaves(jax.jit(jax.grad(loss))(params))

    for expected, found in zip(gradient(model, params), gradient(sharded, spread), strict=True):
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("period, tail", [("r", ""), ("rrrn", ""), ("rrrn", "dd")])
def test_the_program_does_not_grow_with_depth(period, tail, mesh1):
    batch = random_batch(1, 8)

    def n_operations(times):
        model = build(decoder(period * times + tail), mesh1)
        gradient = jax.grad(lambda params: model.apply(params, batch).sum())
        return str(jax.make_jaxpr(gradient)(model.abstract_params)).count(" = ")

    assert n_operations(3) == n_operations(30)


@pytest.mark.parametrize("case", ["qwen2_tied", "qwen3", "mistral", "llama_attention_bias"])
def test_a_fingerprint_has_the_keys_of_older_runs(case):
    """Runs from before layers were described one by one have exactly these; they must resume."""
    found = read_config(GOLDEN / case).fingerprint()
    sizes = """vocab_size hidden_size num_layers num_heads num_kv_heads head_dim intermediate_size
        rms_epsilon tie_embeddings max_length init_std"""
    flags = "qkv_bias o_bias mlp_bias qk_norm sliding_window"
    assert found.keys() == {*sizes.split(), *flags.split(), "rope"}
    assert found["rope"].keys() == {field.name for field in dataclasses.fields(Rope)}
    assert found["qkv_bias"] is (case in ("qwen2_tied", "llama_attention_bias"))
    assert found["o_bias"] is found["mlp_bias"] is (case == "llama_attention_bias")
    assert found["qk_norm"] is (case == "qwen3")
    assert found["sliding_window"] == (8 if case == "mistral" else None)


def test_fingerprints_of_layers_that_differ_differ():
    spec = decoder("rrrr")
    fingerprints = [spec.fingerprint(), decoder("rrrn").fingerprint()]
    for change in ({"norm": "after"}, {"qk_norm": "width"}, {"qk_norm": "head"}, {"rope": None}):
        fingerprints.append(spec.with_layers(**change).fingerprint())
    for number, one in enumerate(fingerprints):
        assert one not in fingerprints[:number]
