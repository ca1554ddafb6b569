"""The family qwen2_5_vl: both layouts of its config.json, both spellings of its tensors, its tower
carried along, and programs of text that are those of Qwen2.
"""

import dataclasses
import hashlib
import json
import re
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dft_jax.models.hf import peft
from dft_jax.models.hf.export import export
from dft_jax.models.hf.load import check_tensors, load_params
from dft_jax.models.hf.locate import read_config
from dft_jax.models.hf.merging import Pair
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.hf.tensors import adaptable_tensors, carried_tensors
from dft_jax.models.lora import Lora
from dft_jax.models.model import build
from dft_jax.models.spec import MRope, Rope
from dft_jax.runtime import errors
from dft_jax.types import Batch
from tests.conftest import GOLDEN

FOLDER = GOLDEN / "qwen2_5_vl"
SPEC = read_config(FOLDER)
NESTED = json.loads((FOLDER / "config.json").read_text())
TEXT, VISION = NESTED["text_config"], NESTED["vision_config"]
# As in the hub's files, with the sizes of the golden model.
FLAT = {
    **{key: NESTED[key] for key in ("architectures", "model_type", "image_token_id")},
    **{key: NESTED[key] for key in ("video_token_id", "vision_start_token_id")},
    **{"vision_end_token_id": NESTED["vision_end_token_id"], "vision_token_id": 292},
    **{key: TEXT[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")},
    **{key: TEXT[key] for key in ("num_attention_heads", "num_key_value_heads", "vocab_size")},
    **{"rms_norm_eps": 1e-6, "rope_theta": 1000.0, "max_position_embeddings": 256},
    **{"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "attention_dropout": 0.0},
    **{"hidden_act": "silu", "initializer_range": 0.02, "tie_word_embeddings": False},
    **{"sliding_window": 32768, "use_sliding_window": False, "max_window_layers": 70},
    **{"torch_dtype": "bfloat16", "transformers_version": "4.41.2", "use_cache": True},
    "vision_config": {
        **{"depth": 4, "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 80},
        **{"num_heads": 4, "in_chans": 3, "out_hidden_size": 64, "patch_size": 14},
        **{"spatial_merge_size": 2, "spatial_patch_size": 14, "window_size": 112},
        **{"fullatt_block_indexes": [1, 3], "tokens_per_second": 2, "temporal_patch_size": 2},
    },
}
# transformers 4.5x wrote the keys of the text in both places.
BOTH = FLAT | {"text_config": {**FLAT, "model_type": "qwen2_5_vl_text", "image_token_id": None}}
del BOTH["text_config"]["vision_config"]
ABSENT = object()


def read(raw, folder):
    (folder / "config.json").write_text(json.dumps(raw))
    return read_config(folder)


def changed(raw, path, value):
    """A copy with another value at a path such as "vision_config.depth"."""
    raw = json.loads(json.dumps(raw))
    *outer, last = path.split(".")
    place = raw
    for key in outer:
        place = place[key]
    if value is ABSENT:
        del place[last]
    else:
        place[last] = value
    return raw


def test_what_is_read(mesh1):
    rope = MRope(1000.0, type="mrope", sections=(2, 3, 3))
    assert {layer.rope for layer in SPEC.layers} == {rope}
    assert rope.axes == (0, 0, 1, 1, 1, 2, 2, 2)
    assert SPEC.layers[0].qkv_bias and not SPEC.layers[0].o_bias and not SPEC.tie_embeddings
    vision = SPEC.vision
    assert (vision.depth, vision.full_blocks, vision.head_dim) == (4, (1, 3), 16)
    assert (vision.window_units, vision.window_patches) == (4, 64)
    assert (vision.image_token, vision.start_token, vision.end_token) == (290, 288, 289)
    assert len({carried.name for carried in carried_tensors(build(SPEC, mesh1))}) == 54


@pytest.mark.parametrize("layout", [FLAT, BOTH], ids=["flat", "both"])
def test_layouts_of_config_json_are_the_same(layout, tmp_path):
    assert read(layout, tmp_path) == SPEC


@pytest.mark.parametrize(
    "path, value",
    [
        ("rope_scaling", {"type": "default", "rope_type": "default", "mrope_section": [2, 3, 3]}),
        ("rope_scaling", {"rope_type": "mrope", "mrope_section": [2, 3, 3]}),
        ("vision_config.in_chans", ABSENT),
        ("vision_config.in_channels", 3),
        ("vision_config.model_type", "qwen2_5_vl"),
        ("vision_config.rope_parameters", {"rope_type": "axial", "rope_theta": 10000.0}),
        ("tie_word_embeddings", ABSENT),
        ("video_token_id", ABSENT),
    ],
)
def test_other_spellings_are_the_same(path, value, tmp_path):
    assert read(changed(FLAT, path, value), tmp_path) == SPEC


def test_absent_sections_are_those_of_the_published_models(tmp_path):
    raw = changed(FLAT, "rope_scaling", ABSENT) | {"head_dim": 128}
    assert read(raw, tmp_path).layers[0].rope.sections == (16, 24, 24)


@pytest.mark.parametrize(
    "raw, path, value, words",
    [
        (FLAT, "rope_scaling.mrope_section", [2, 3, 4], ["mrope_section", "half of head_dim, 8"]),
        (FLAT, "rope_scaling.mrope_section", [8], ["mrope_section=[8]", "three numbers"]),
        (FLAT, "rope_scaling.mrope_section", [4, 4, "0"], ["mrope_section", "three numbers"]),
        (FLAT, "rope_scaling.type", "yarn", ["rope_type='yarn'", "'default', 'mrope'"]),
        (FLAT, "use_sliding_window", True, ["use_sliding_window=True"]),
        (FLAT, "image_token_id", 300, ["image_token_id", "vocab_size=300 has no such token"]),
        (FLAT, "vision_config", ABSENT, ["vision_config", "'depth' is missing"]),
        (FLAT, "vision_config.hidden_act", "gelu", ["vision_config", "hidden_act='gelu'"]),
        (FLAT, "vision_config.in_chans", 1, ["in_chans=1"]),
        (FLAT, "vision_config.spatial_patch_size", 16, ["spatial_patch_size=16"]),
        (FLAT, "vision_config.out_hidden_size", 65, ["out_hidden_size=65"]),
        (FLAT, "vision_config.out_hidden_size", ABSENT, ["out_hidden_size=None"]),
        (FLAT, "vision_config.temporal_patch_size", 1, ["temporal_patch_size=1"]),
        (FLAT, "vision_config.fullatt_block_indexes", [4], ["fullatt_block_indexes=[4]", "to 3"]),
        (FLAT, "vision_config.fullatt_block_indexes", ABSENT, ["fullatt_block_indexes=None"]),
        (FLAT, "vision_config.num_heads", 32, ["hidden_size=64", "4 · num_heads=32"]),
        (FLAT, "vision_config.window_size", 100, ["window_size=100", "whole units"]),
        (BOTH, "text_config.hidden_size", 63, ["hidden_size=64, but text_config has 63"]),
        (BOTH, "text_config.vision_token_id", 7, ["text_config: vision_token_id=7"]),
        (BOTH, "text_config.vocab_size", 301, ["vocab_size=300, but text_config has 301"]),
        (NESTED, "text_config.hidden_act", "gelu", ["text_config: hidden_act='gelu'"]),
        (NESTED, "text_config.model_type", "qwen2", ["text_config: model_type='qwen2'"]),
        (NESTED, "text_config", ABSENT, ["'hidden_size' is missing"]),
    ],
)
def test_what_is_refused(raw, path, value, words, tmp_path):
    with pytest.raises(errors.UserError) as refusal:
        read(changed(raw, path, value), tmp_path)
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_every_key_within_is_used_or_known_or_refused_by_name(part, tmp_path):
    passed = set()
    for key in [*NESTED[part], "a_key_of_tomorrow"]:
        try:
            assert read(changed(NESTED, f"{part}.{key}", {"no": ["value"]}), tmp_path) == SPEC
            passed.add(key)
        except errors.UserError as error:
            name = "rope" if (part, key) == ("text_config", "rope_parameters") else key
            assert name in str(error) and part in str(error), key
    known = {"dtype", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache"}
    known |= {"tokens_per_second", "sliding_window", "max_window_layers"}
    assert passed <= known


# ---- tensors


def respelled(folder):
    """The golden checkpoint, its tensors named as in the memory of transformers 5."""
    folder.mkdir()
    tensors = {}
    for name, value in load_file(FOLDER / "model.safetensors").items():
        if name.startswith("visual."):
            name = f"model.{name}"
        elif name.startswith("model."):
            name = name.replace("model.", "model.language_model.", 1)
        tensors[name] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(FOLDER / "config.json", folder)
    return folder


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_other_spelling_is_read_and_written_byte_for_byte(tmp_path, mesh1):
    """With the processor's files. (The golden test does so for the hub's spelling.)"""
    source = respelled(tmp_path / "source")
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        (source / name).write_text('{"min_pixels": 3136}')
    model = build(SPEC, mesh1)
    checkpoint = Checkpoint(source)
    check_tensors(checkpoint, model)
    params = load_params(checkpoint, model)
    jax.tree.map(np.testing.assert_array_equal, params, load_params(Checkpoint(FOLDER), model))
    export(params, model, source, tmp_path / "out")
    for file in source.iterdir():
        assert digest(tmp_path / "out" / file.name) == digest(file), file.name


def test_a_mixture_of_spellings_is_refused(tmp_path):
    source = respelled(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"] = tensors.pop("model.language_model.norm.weight")
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(errors.UserError, match=r"others as model\.norm\.weight: those are two"):
        Checkpoint(source)


def test_a_spelling_of_images_is_refused_of_a_model_for_text(tmp_path, mesh1):
    """Whose config.json says that it has no images: then it is not the one of these weights."""
    source = respelled(tmp_path / "source")
    with pytest.raises(errors.UserError, match="model_type='qwen2' is not"):
        check_tensors(
            Checkpoint(source), build(dataclasses.replace(SPEC, vision=None, family="qwen2"), mesh1)
        )


@pytest.mark.parametrize(
    "name, words",
    [
        ("visual.blocks.2.attn.qkv.weight", "1 missing tensors: visual.blocks.2.attn.qkv.weight"),
        (
            "visual.merger.mlp.2.bias",
            "visual.merger.mlp.2.bias has shape .1., config.json says .64.",
        ),
    ],
)
def test_tensors_of_the_tower_are_checked(name, words, tmp_path, mesh1):
    tensors = load_file(FOLDER / "model.safetensors")
    if "missing" in words:
        del tensors[name]
    else:
        tensors[name] = tensors[name][:1].copy()
    shutil.copy(FOLDER / "config.json", tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(errors.UserError, match=words):
        check_tensors(Checkpoint(tmp_path), build(SPEC, mesh1))


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_the_tower_keeps_its_bytes_whatever_the_text_is_written_as(dtype, tmp_path, mesh1):
    """Trained by less than bfloat16 can say, so `auto` writes the text as float32."""
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(FOLDER / "model.safetensors", source)
    # Some programs write the dtype in both places.
    raw = changed(NESTED, "text_config.dtype", "bfloat16")
    (source / "config.json").write_text(json.dumps(raw))
    model = build(SPEC, mesh1)
    params = load_params(Checkpoint(source), model)
    params["embed"] = params["embed"] * (1 + 1e-4)
    export(params, model, source, tmp_path / "out", dtype=dtype)
    before = load_file(FOLDER / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, value in after.items():
        if name.startswith("visual."):
            assert value.dtype == ml_dtypes.bfloat16
            np.testing.assert_array_equal(value, before[name])
        else:
            assert value.dtype == np.float32
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == config["text_config"]["dtype"] == "float32"
    check_tensors(Checkpoint(tmp_path / "out"), model)


def test_a_sharded_checkpoint_comes_out_in_its_spelling(tmp_path, mesh1):
    source = respelled(tmp_path / "source")
    model = build(SPEC, mesh1)
    params = load_params(Checkpoint(source), model)
    export(params, model, source, tmp_path / "out", max_shard_gb=2e-4)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    tensors = load_file(source / "model.safetensors")
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in tensors.values())
    again = load_params(Checkpoint(tmp_path / "out"), model)
    jax.tree.map(np.testing.assert_array_equal, again, params)


LORA = Lora(rank=2, alpha=4.0, rslora=False, targets=("q", "gate", "down"))


def made_pairs(mesh, seed=0):
    """An adapter of LORA, random."""
    model = build(SPEC, mesh, lora=LORA)
    rng = np.random.default_rng(seed)
    pairs = {}
    for tensor in adaptable_tensors(model):
        if tensor.path[-2] in LORA.targets:
            O, I = tensor.shape
            a_ZI, b_OZ = rng.normal(size=(2, I)), rng.normal(size=(O, 2))
            pairs[tensor.name] = Pair(np.float32(a_ZI), np.float32(b_OZ), LORA.scale)
    return model, pairs


def test_adapters_are_of_the_text_alone(tmp_path, mesh1):
    """PEFT's names for the text beneath a model with images, and an expression that names no matrix
    of its tower, though that has a gate_proj as well.
    """
    model, pairs = made_pairs(mesh1)
    source = respelled(tmp_path / "source")
    base = {"path": "base", "revision": "main", "sha256": ""}
    peft.write_adapter(pairs, LORA, base, tmp_path, peft.ROOT_WITH_IMAGES)
    names = load_file(tmp_path / peft.TENSORS_NAME)
    one = "base_model.model.model.language_model.layers.1.mlp.gate_proj.lora_B.weight"
    assert one in names and len(names) == 2 * len(pairs)
    expression = json.loads((tmp_path / peft.CONFIG_NAME).read_text())["target_modules"]
    adapted = {name.split(".lora_")[0].removeprefix("base_model.model.") for name in names}
    modules = [name.removesuffix(".weight") for name in load_file(source / "model.safetensors")]
    assert {name for name in modules if re.fullmatch(expression, name)} == adapted

    again = peft.read_adapter(tmp_path)
    peft.check(again, model)
    assert peft.as_lora(again, model) == LORA
    assert again.pairs.keys() == pairs.keys()
    for name, pair in pairs.items():
        np.testing.assert_array_equal(again.pairs[name].b_OZ, pair.b_OZ)


def test_adapters_of_a_tower_are_refused(tmp_path, mesh1):
    model, pairs = made_pairs(mesh1)
    pairs["model.visual.blocks.0.mlp.gate_proj.weight"] = next(iter(pairs.values()))
    base = {"path": "base", "revision": "main", "sha256": ""}
    peft.write_adapter(pairs, LORA, base, tmp_path, peft.ROOT_WITH_IMAGES)
    with pytest.raises(errors.UserError, match="visual.blocks.0.mlp.gate_proj is no module"):
        peft.check(peft.read_adapter(tmp_path), model)


def test_text_runs_the_program_of_qwen2(mesh1):
    """Lowered, not only equal in what it gives: a tower costs rows of text nothing."""
    shapes = jax.ShapeDtypeStruct((2, 16), np.int32)
    batch = Batch(shapes, shapes, shapes, shapes, shapes)

    def lowered(spec):
        model = build(spec, mesh1)
        loss = lambda params, batch: model.apply(params, batch).sum()  # noqa: E731
        return jax.jit(jax.grad(loss)).lower(model.abstract_params, batch).as_text()

    plain = [dataclasses.replace(layer, rope=Rope(1000.0)) for layer in SPEC.layers]
    qwen2 = dataclasses.replace(SPEC, layers=tuple(plain), vision=None, family="qwen2")
    assert lowered(SPEC) == lowered(qwen2)


def test_a_fingerprint_of_text_has_no_vision():
    """Older runs resume; a run of this family is known by its tower, too."""
    assert "vision" not in read_config(GOLDEN / "qwen2_tied").fingerprint()
    found = SPEC.fingerprint()
    assert found["vision"]["full_blocks"] == (1, 3) and found["rope"]["sections"] == (2, 3, 3)
