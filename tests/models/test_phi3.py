"""Phi-3's own: its config.json, tensors that hold several matrices, frequencies by length, adapters.

Logits, bytes and completions: test_golden, test_export, test_sampler, as of every family.
"""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dft_jax.models.hf import export as exporting, peft
from dft_jax.models.hf.fetch import params_fetch
from dft_jax.models.hf.load import check_tensors, load_params
from dft_jax.models.hf.locate import read_config
from dft_jax.models.hf.rounding import measure
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.hf.tensors import tensor_table
from dft_jax.models.longrope import angles_of_texts, is_in_long_text
from dft_jax.models.lora import Lora
from dft_jax.models.model import build, parameter_count
from dft_jax.models.spec import LongRope, PartialRope, Rope
from dft_jax.runtime import errors
from tests.conftest import GOLDEN

QKV = "model.layers.{}.self_attn.qkv_proj.weight"
GATE_UP = "model.layers.{}.mlp.gate_up_proj.weight"
PHI3 = json.loads((GOLDEN / "phi3/config.json").read_text())
LONG = json.loads((GOLDEN / "phi3_long/config.json").read_text())
# What the file of microsoft/Phi-4-mini-instruct says besides what the golden one has.
PHI4_MINI = {
    "bos_token_id": 199999,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "num_attention_heads": 24,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "original_max_position_embeddings": 4096,
    "rope_scaling": {
        "long_factor": [1, *np.geomspace(1.118320672, 28.64115884, 30).tolist(), *[32.6] * 17],
        "short_factor": [1.0] * 48,
        "type": "longrope",
    },
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "vocab_size": 200064,
}


def read(raw, tmp_path, **changes):
    (tmp_path / "config.json").write_text(json.dumps(raw | changes))
    return read_config(tmp_path)


def test_phi_4_mini(tmp_path):
    """Of 128 dimensions 96 turn; a window beyond the context hides nothing."""
    spec = read(PHI3, tmp_path, **PHI4_MINI)
    (layer,) = set(spec.layers)
    assert (spec.num_layers, spec.head_dim, spec.max_length) == (32, 128, 131072)
    assert layer.rope.width(spec.head_dim) == 96 and layer.sliding_window is None
    assert layer.rope.original_context == 4096 and len(layer.rope.long_factors) == 48
    # 32 times the context: √(1 + ln 2⁵ / ln 2¹²)
    assert layer.rope.attention_factor == pytest.approx(math.sqrt(17 / 12), rel=1e-12)
    assert spec.tie_embeddings and spec.family == "phi3"


def test_every_spelling_of_longrope(tmp_path):
    """As transformers 4 and 5 write it, and as the first files did."""
    expected = read(LONG, tmp_path)
    inner = dict(LONG["rope_parameters"])
    assert expected.layers[0].rope == LongRope(
        1000.0,
        type="longrope",
        factor=8.0,
        original_context=32,
        share=0.75,
        short_factors=tuple(inner["short_factor"]),
        long_factors=tuple(inner["long_factor"]),
        attention_factor=math.sqrt(1 + math.log(8) / math.log(32)),
    )
    old = {
        "rope_parameters": None,
        "rope_theta": inner.pop("rope_theta"),
        "partial_rotary_factor": inner.pop("partial_rotary_factor"),
    }
    del inner["rope_type"], inner["original_max_position_embeddings"]
    for spelling in ({"type": "longrope"}, {"type": "su"}, {"rope_type": "longrope"}):
        assert read(LONG, tmp_path, rope_scaling=inner | spelling, **old) == expected


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"factor": 2.0}, math.sqrt(1 + math.log(2) / math.log(32))),
        ({"factor": 1.0}, 1.0),
        ({"attention_factor": 1.5}, 1.5),
        ({"attention_factor": 1.5, "factor": 2.0}, 1.5),
    ],
)
def test_the_attention_factor_of_longrope(given, expected, tmp_path):
    spec = read(LONG, tmp_path, rope_parameters=LONG["rope_parameters"] | given)
    assert spec.layers[0].rope.attention_factor == pytest.approx(expected, rel=1e-12)


def test_positions_without_factors(tmp_path):
    """Phi-3-mini-4k, and the same with a part of each head; a window is kept where it hides
    something.
    """
    folder = GOLDEN / "phi3_window"
    raw = json.loads((folder / "config.json").read_text())
    spec = read_config(folder)
    assert spec.layers[0].rope == Rope(1000.0) and spec.layers[0].sliding_window == 8
    assert read(raw, tmp_path, sliding_window=None).layers[0].sliding_window is None
    assert read(raw, tmp_path, sliding_window=32).layers[0].sliding_window is None
    assert read(raw, tmp_path, sliding_window=31).layers[0].sliding_window == 31
    half = {"rope_parameters": raw["rope_parameters"] | {"partial_rotary_factor": 0.5}}
    assert read(raw, tmp_path, **half).layers[0].rope == PartialRope(1000.0, share=0.5)


def changed(**values):
    return {"rope_parameters": LONG["rope_parameters"] | values}


REFUSED = {
    "attention_bias": ({"attention_bias": True}, ["attention_bias=True", "only False"]),
    "mlp_bias": ({"mlp_bias": True}, ["mlp_bias=True"]),
    "lm_head_bias": ({"lm_head_bias": True}, ["lm_head_bias=True"]),
    "dropout": ({"resid_pdrop": 0.1}, ["resid_pdrop=0.1", "only 0.0"]),
    "dropout of the embedding": ({"embd_pdrop": 0.1}, ["embd_pdrop=0.1"]),
    "dropout of attention": ({"attention_dropout": 0.1}, ["attention_dropout=0.1"]),
    "activation": ({"hidden_act": "gelu"}, ["hidden_act='gelu'"]),
    "full_attn_mod": ({"full_attn_mod": 2}, ["full_attn_mod=2", "only 1"]),
    "interpolate_factor": ({"interpolate_factor": 4}, ["interpolate_factor=4"]),
    "window": ({"sliding_window": 0}, ["sliding_window=0 should be at least 1"]),
    "yarn": (changed(rope_type="yarn"), ["rope_type='yarn'", "'longrope'"]),
    "linear": (changed(rope_type="linear"), ["rope_type='linear'"]),
    "no original context": (
        {"original_max_position_embeddings": None},
        ["original_max_position_embeddings is missing", "4096"],
    ),
    "two original contexts": (
        changed(original_max_position_embeddings=64),
        ["original_max_position_embeddings=64, but outside it is 32"],
    ),
    "original context of one": (
        changed(original_max_position_embeddings=1) | {"original_max_position_embeddings": 1},
        ["original_max_position_embeddings=1 should be at least 2"],
    ),
    "a factor too few": (changed(short_factor=[1.0] * 8), ["short_factor has 8 numbers, and 9"]),
    "no long factors": (changed(long_factor=None), ["rope: 'long_factor' is missing; it has"]),
    "a factor of text": (changed(long_factor=["1"] * 9), ["long_factor[0]='1' should be float"]),
    "a factor of zero": (changed(long_factor=[0] * 9), ["long_factor[8]=0.0 should be positive"]),
    "factor": (changed(factor=-1), ["rope: factor=-1.0 should be positive"]),
    "attention_factor": (changed(attention_factor=0), ["attention_factor=0.0 should be positive"]),
    "more than all": (changed(partial_rotary_factor=1.5), ["partial_rotary_factor=1.5"]),
    "nothing turns": (changed(partial_rotary_factor=0.01), ["turns 0 of head_dim=24"]),
    "an odd width": (changed(partial_rotary_factor=0.63), ["turns 15 of head_dim=24"]),
    "two shares": ({"partial_rotary_factor": 0.5}, ["=0.75, but outside it is 0.5; keep one"]),
    "unknown": (changed(mscale=1.0), ["rope: mscale=1.0 is not a known key"]),
    "other code": ({"auto_map": {"AutoConfig": "configuration_x.X"}}, ["'auto_map' asks to run"]),
    "more code": (
        {"auto_map": {"AutoModel": "modeling_phi3.Phi3ForCausalLM"}},
        ["'auto_map' asks to run"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name, tmp_path):
    changes, words = REFUSED[name]
    with pytest.raises(errors.UserError) as refusal:
        read(LONG, tmp_path, **changes)
    for word in words:
        assert word in str(refusal.value)


def test_code_of_other_families_is_refused(tmp_path):
    raw = json.loads((GOLDEN / "llama/config.json").read_text())
    with pytest.raises(errors.UserError, match="'auto_map' asks to run"):
        read(raw, tmp_path, auto_map=PHI3["auto_map"])
    from_hub = {key: f"microsoft/x--{code}" for key, code in PHI3["auto_map"].items()}
    assert read(PHI3, tmp_path, auto_map=from_hub) == read_config(GOLDEN / "phi3")


def test_which_tokens_are_of_a_long_text():
    """The docstring's rows, and a row that ends in the middle of what may be a long one."""
    segments_BL = np.array([[1, 1, 1, 2, 2, 0], [1, 2, 2, 2, 2, 2], [0] * 6, [1, 1, 2, 2, 3, 3]])
    positions_BL = np.array([[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 4], [0] * 6, [0, 1] * 3])
    found_BL = is_in_long_text(segments_BL, positions_BL, 2)
    assert found_BL.astype(int).tolist() == [[1, 1, 1, 0, 0, 0], [0] + [1] * 5, [0] * 6, [0] * 6]
    assert not is_in_long_text(segments_BL, positions_BL, 6).any()


def test_angles_in_float64():
    """Position · theta^(-2i/K) / factor, of the list that the text's length asks for."""
    rope = read_config(GOLDEN / "phi3_long").long_rope
    positions_BL = np.array([[0, 7, 31], [5, 100, 159]], np.int32)
    is_long_BL = np.array([[False] * 3, [True] * 3])
    found_BLk = np.asarray(angles_of_texts(rope, 24, positions_BL, is_long_BL))
    assert found_BLk.shape == (2, 3, 9)
    for row, factors in enumerate((rope.short_factors, rope.long_factors)):
        for i, factor in enumerate(factors):
            expected_L = positions_BL[row] * rope.theta ** (-2 * i / 18) / factor
            np.testing.assert_allclose(found_BLk[row, :, i], expected_L, rtol=1e-6)


def test_tensors_that_hold_several_matrices(mesh1):
    """q, k and v, or gate and up, one after another; each is read without the others."""
    model = build(read_config(GOLDEN / "phi3_long"), mesh1)
    params = load_params(Checkpoint(GOLDEN / "phi3_long"), model)
    tensors = load_file(GOLDEN / "phi3_long/model.safetensors")
    attention, mlp = params["layers"]["attention"], params["layers"]["mlp"]
    for layer in range(2):
        qkv = tensors[QKV.format(layer)]
        for name, rows in (("q", slice(48)), ("k", slice(48, 72)), ("v", slice(72, 96))):
            kernel = np.asarray(attention[name]["kernel"][layer])
            np.testing.assert_array_equal(kernel.reshape(-1, 48), qkv[rows])
        gate, up = np.split(tensors[GATE_UP.format(layer)], 2)
        np.testing.assert_array_equal(mlp["gate"]["kernel"][layer], gate)
        np.testing.assert_array_equal(mlp["up"]["kernel"][layer], up)
    table = [tensor for tensor in tensor_table(model) if tensor.rows is not None]
    assert len(table) == 2 * 5 and {tensor.rows.of for tensor in table} == {96}
    checkpoint = Checkpoint(GOLDEN / "phi3_long")
    for tensor in table:
        assert checkpoint.read(tensor.name, tensor.row_slice).shape == tensor.shape
        assert tensor.whole_shape == (96, 48)


@pytest.mark.slow
def test_shards_and_their_index(mesh8, tmp_path):
    """Three files in, many small ones out: names, values and index are those of joined tensors."""
    source = GOLDEN / "phi3_window"
    model = build(read_config(source), mesh8)
    params = load_params(Checkpoint(source), model)
    exporting.export(params, model, source, tmp_path / "out", max_shard_gb=2e-5)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    before = {}
    for file in source.glob("*.safetensors"):
        before |= load_file(file)
    assert index["weight_map"].keys() == before.keys()
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in before.values())
    for name, file in index["weight_map"].items():
        np.testing.assert_array_equal(load_file(tmp_path / "out" / file)[name], before[name])


def test_what_is_wrong_with_joined_tensors_is_said_by_their_names(mesh1, tmp_path):
    model = build(read_config(GOLDEN / "phi3_long"), mesh1)
    tensors = load_file(GOLDEN / "phi3_long/model.safetensors")
    tensors[GATE_UP.format(0)] = tensors[GATE_UP.format(0)][:-1]
    tensors["model.layers.1.self_attn.q_proj.weight"] = tensors.pop(QKV.format(1))[:48]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(errors.UserError) as refusal:
        check_tensors(Checkpoint(tmp_path), model)
    said = str(refusal.value)
    assert f"1 missing tensors: {QKV.format(1)}" in said
    assert "1 unexpected tensors: model.layers.1.self_attn.q_proj.weight" in said
    assert f"{GATE_UP.format(0)} has shape [95, 48], config.json says [96, 48]" in said
    tensors = load_file(GOLDEN / "phi3_long/model.safetensors")
    tensors[QKV.format(1)][80] = np.nan
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(errors.UserError, match=r"1\.self_attn\.qkv_proj\.weight holds NaN"):
        load_params(Checkpoint(tmp_path), model)


def test_a_change_of_one_matrix_is_measured_and_written_in_its_rows(mesh1, tmp_path):
    source = GOLDEN / "phi3_long"
    model = build(read_config(source), mesh1)
    params = load_params(Checkpoint(source), model)
    v = params["layers"]["attention"]["v"]
    v["kernel"] = v["kernel"].at[1].add(1.0)
    found = measure(params_fetch(params, model), model, Checkpoint(source), "float32")
    assert (found.weights, found.changed) == (parameter_count(params), 24 * 48)
    exporting.export(params, model, source, tmp_path / "out")
    before = load_file(source / "model.safetensors")
    after = load_file(tmp_path / "out/model.safetensors")
    for name, array in before.items():
        expected = array.copy()
        if name == QKV.format(1):
            expected[72:] += 1
        np.testing.assert_array_equal(after[name], expected)


def adapted(mesh, **changes):
    """A model with adapters of random numbers, and them."""
    lora = Lora(**{"rank": 2, "alpha": 4.0, "rslora": False, "targets": ("q", "v", "o", "up")})
    lora = dataclasses.replace(lora, **changes)
    model = build(read_config(GOLDEN / "phi3_long"), mesh, lora=lora)
    leaves, structure = jax.tree.flatten(model.abstract_adapters)
    random = np.random.default_rng(0)
    made = [jnp.asarray(random.normal(size=leaf.shape), leaf.dtype) for leaf in leaves]
    return model, jax.tree.unflatten(structure, made)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"rslora": True}, marks=pytest.mark.slow),
        pytest.param(
            {"targets": ("q", "k", "v", "o", "gate", "up", "down")}, marks=pytest.mark.slow
        ),
    ],
)
def test_adapters_are_written_as_peft_has_them(changes, mesh1, tmp_path):
    """One pair for a joined tensor: base + s · B A of the files is what each matrix comes to."""
    model, adapters = adapted(mesh1, **changes)
    base = {"path": "x", "revision": "main", "sha256": ""}
    peft.write_adapter(peft.pairs_of(adapters, model), model.lora, base, tmp_path)
    config = json.loads((tmp_path / peft.CONFIG_NAME).read_text())
    tensors = load_file(tmp_path / peft.TENSORS_NAME)
    n_joined = 3 if "k" in model.lora.targets else 2
    assert config["r"] == 2 * n_joined and not config["rank_pattern"]
    assert set(config["target_modules"]) >= {"qkv_proj", "gate_up_proj", "o_proj"}
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config["use_rslora"] else config["r"])
    before = load_file(GOLDEN / "phi3_long/model.safetensors")[QKV.format(1)]
    module = "base_model.model.model.layers.1.self_attn.qkv_proj"
    a, b = tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"]
    assert a.shape == (config["r"], 48) and b.shape == (96, config["r"])
    found = before + scale * b.astype(np.float64) @ a
    rows = {"q": slice(48), "k": slice(48, 72), "v": slice(72, 96)}
    for name, here in rows.items():
        expected = before[here].astype(np.float64)
        if name in model.lora.targets:
            node = adapters["layers"]["attention"][name]
            b_of, a_of = np.asarray(node["b"][1], np.float64), np.asarray(node["a"][1], np.float64)
            expected = expected + model.lora.scale * b_of.reshape(-1, 2) @ a_of
        np.testing.assert_allclose(found[here], expected, rtol=1e-6, atol=1e-6)
    # Read and merged, it is the same in the place of each matrix.
    bare = build(model.config, mesh1)
    adapter = peft.read_adapter(tmp_path)
    peft.check(adapter, bare)
    merged = load_params(Checkpoint(GOLDEN / "phi3_long"), bare, adapter.pairs)
    kernel = np.asarray(merged["layers"]["attention"]["v"]["kernel"][1]).reshape(-1, 48)
    np.testing.assert_allclose(kernel, found[rows["v"]], rtol=1e-5, atol=1e-5)
    if "k" not in model.lora.targets:
        k = np.asarray(merged["layers"]["attention"]["k"]["kernel"][1]).reshape(-1, 48)
        assert k.tobytes() == before[rows["k"]].tobytes()
    with pytest.raises(errors.UserError, match="one for each matrix in it"):
        peft.as_lora(adapter, bare)
