"""PEFT's files: each row of the table of keys refused by name, and the bytes of a round trip."""

import functools
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dft_jax.models.hf import peft
from dft_jax.models.hf.locate import read_config
from dft_jax.models.lora import MODULES, Lora
from dft_jax.models.model import build
from dft_jax.runtime import errors, files
from tests.conftest import GOLDEN

ADAPTERS = GOLDEN / "lora"
# What PEFT can only do in other ways than ours is written with.
UNEVEN = ("patterns", "bfloat16", "one_layer", "excluded", "odd_names")
EVEN = sorted(folder.name for folder in ADAPTERS.iterdir() if folder.name not in UNEVEN)
LAYER = "base_model.model.model.layers"
Q_A = f"{LAYER}.0.self_attn.q_proj.lora_A.weight"


@functools.cache
def base_model(mesh, name="llama"):
    return build(read_config(GOLDEN / name), mesh)


@pytest.mark.parametrize("case", EVEN)
def test_what_is_written_is_what_peft_wrote(case, mesh1, tmp_path):
    """The same tensors, byte for byte, and the same meaning of every key."""
    source = ADAPTERS / case
    adapter = peft.read_adapter(source)
    lora = peft.as_lora(adapter, base_model(mesh1, adapter.config.base.rpartition("/")[2]))
    base = {"path": adapter.config.base, "revision": "main", "sha256": "5a"}
    peft.write_adapter(adapter.pairs, lora, base, tmp_path)
    one, other = (folder / peft.TENSORS_NAME for folder in (source, tmp_path))
    assert one.read_bytes() == other.read_bytes()
    again = peft.read_adapter(tmp_path)
    assert again.base_sha256 == "5a" and again.config.base == adapter.config.base
    peft.check(again, base_model(mesh1, adapter.config.base.rpartition("/")[2]))
    held, written = (files.read_json(folder / peft.CONFIG_NAME) for folder in (source, tmp_path))
    for key, value in written.items():
        if key not in ("target_modules", "revision"):
            assert held[key] == value, key
    assert written["target_modules"] == sorted({f"{name}_proj" for name in lora.targets})


def config_with(**changes):
    def change(folder):
        file = folder / peft.CONFIG_NAME
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def tensors_with(change):
    def write(folder):
        tensors = load_file(folder / peft.TENSORS_NAME)
        change(tensors)
        save_file(tensors, folder / peft.TENSORS_NAME, metadata={"format": "pt"})

    return write


def renamed(old, new):
    def rename(tensors):
        for name in [name for name in tensors if old in name]:
            tensors[name.replace(old, new)] = tensors.pop(name)

    return tensors_with(rename)


def added(name, shape=(4, 32)):
    return tensors_with(lambda tensors: tensors.update({name: np.zeros(shape, np.float32)}))


def pickled(folder):
    (folder / peft.TENSORS_NAME).rename(folder / "adapter_model.bin")


MERGE = "merge it with PEFT (merge_and_unload), and load the result"
CONFIGS = {
    "peft_type": ("IA3", "peft_type='IA3' is not supported: only 'LORA'"),
    "task_type": ("SEQ_CLS", "task_type='SEQ_CLS' is not supported: only 'CAUSAL_LM'"),
    "r": (0, "r=0 should be at least 1"),
    "lora_alpha": (0, "lora_alpha=0.0 should be positive"),
    "use_rslora": ("yes", "use_rslora='yes' should be bool"),
    "rank_pattern": ({"q_proj": 0}, "rank_pattern: q_proj=0 should be at least 1"),
    "alpha_pattern": ({"(": 3}, "alpha_pattern: '(' is no regular expression"),
    "target_modules": ({"q_proj": 1}, "should be names, or an expression"),
    "exclude_modules": (3, "exclude_modules=3 should be names, or an expression"),
    "layers_to_transform": (["one"], "should be numbers of layers"),
    "layers_pattern": ("(", "layers_pattern: '(' is no regular expression"),
    "bias": ("lora_only", "bias='lora_only' is not supported: only 'none'"),
    "modules_to_save": (
        ["embed_tokens"],
        f"trained, such as embeddings) is not supported: {MERGE}",
    ),
    "trainable_token_indices": ([1], f"embedding that were trained) is not supported: {MERGE}"),
    "target_parameters": (["x"], "target_parameters=['x'] (parameters that are no linear"),
    "lora_bias": (True, f"lora_bias=True (biases of the adapter) is not supported: {MERGE}"),
    "use_dora": (True, f"use_dora=True (DoRA) is not supported: {MERGE}"),
    "use_qalora": (True, "use_qalora=True (QALoRA) is not supported"),
    "use_bdlora": ({"nblocks": 2}, "(block-diagonal LoRA) is not supported"),
    "alora_invocation_tokens": ([5], "(an adapter that some tokens switch on) is not supported"),
    "layer_replication": ([[0, 1]], "(layers that are repeated) is not supported"),
    "megatron_config": ({"x": 1}, "(Megatron's parallel layers) is not supported"),
    "velora_config": ({"x": 1}, "(VeLoRA) is not supported"),
    "monteclora_config": ({"x": 1}, "(MonteCLoRA) is not supported"),
    "kasa_config": ({"x": 1}, "(KaSA) is not supported"),
    "arrow_config": ({"x": 1}, "(several adapters at once) is not supported"),
    "loftq_config": ({"loftq_bits": 4}, "(a quantised base) is not supported"),
    "lora_ga_config": ({"x": 1}, "is not a known key of a LoRA adapter; remove it if it has no"),
    "fan_in_fan_out": (True, "fan_in_fan_out=True is not supported: only False"),
    "init_lora_weights": (
        "pissa_niter_4",
        f"changes the base, which is then not the checkpoint: {MERGE}",
    ),
    "lora_dropout": ("much", "lora_dropout='much' should be float"),
    "new_in_2027": (7, "new_in_2027=7 is not a known key of a LoRA adapter"),
}
FOLDERS = {
    "no config": (
        lambda folder: (folder / peft.CONFIG_NAME).unlink(),
        "adapter_config.json is missing",
    ),
    "twice": (
        lambda folder: (folder / peft.CONFIG_NAME).write_text('{"r": 4, "r": 8}'),
        "key 'r' appears twice",
    ),
    "pickle": (pickled, "adapter_model.bin is a pickle, which is never opened"),
    "rank": (config_with(r=8), f"{Q_A} has shape [4, 32], adapter_config.json says rank 8"),
    "half": (
        tensors_with(lambda tensors: tensors.pop(Q_A)),
        "model.layers.0.self_attn.q_proj has no lora_A",
    ),
    "dtype": (
        tensors_with(lambda tensors: tensors.update({Q_A: tensors[Q_A].astype(np.int32)})),
        "has dtype I32; save it as one of F32, BF16, F16",
    ),
    "NaN": (
        tensors_with(lambda tensors: tensors[Q_A].__setitem__((0, 0), np.nan)),
        f"{Q_A} holds NaN or infinity",
    ),
    "embedding": (
        added("base_model.model.model.embed_tokens.weight"),
        "1 tensors are an embedding that was trained, or whose vocabulary was resized",
    ),
    "head": (added("base_model.model.lm_head.lora_A.weight"), "a head that was trained"),
    "embedding's adapter": (
        added("base_model.model.model.embed_tokens.lora_embedding_A"),
        "adapters of embeddings",
    ),
    "DoRA": (added(Q_A.replace("lora_A.weight", "lora_magnitude_vector"), (32,)), "are DoRA"),
    "bias": (added(Q_A.replace("lora_A.weight", "lora_B.bias"), (32,)), "tensors are biases"),
    "no LoRA": (added("base_model.model.model.norm.weight"), "no matrices of LoRA"),
    "no prefix": (renamed("base_model.model.", ""), "no matrices of LoRA"),
    "layer": (
        renamed("layers.2", "layers.3"),
        "model.layers.3.mlp.down_proj is no module of the base",
    ),
    "module": (renamed("q_proj", "w_proj"), "layers.0.self_attn.w_proj is no module of the base"),
    "shape": (
        tensors_with(lambda tensors: tensors.update({Q_A: np.zeros((4, 48), np.float32)})),
        "model.layers.0.self_attn.q_proj: A is [4, 48], B [32, 4], but the base's matrix is [32, 32]",
    ),
    "names without tensors": (
        tensors_with(
            lambda tensors: [tensors.pop(name) for name in list(tensors) if "q_proj" in name]
        ),
        "target_modules names 3 modules that have no tensors",
    ),
    "tensors without names": (
        config_with(target_modules=["q_proj"]),
        "target_modules does not name 18 modules that have tensors",
    ),
    "other layers": (
        config_with(
            layers_to_transform=[0, 1], target_modules=[f"{name}_proj" for name in MODULES]
        ),
        "target_modules does not name 7 modules that have tensors",
    ),
}


def refused(change, expected, mesh, tmp_path):
    folder = shutil.copytree(ADAPTERS / "all_linear", tmp_path / "adapter")
    change(folder)
    with pytest.raises(errors.UserError) as caught:
        peft.check(peft.read_adapter(folder), base_model(mesh))
    said = str(caught.value)
    assert expected in said and str(folder) in said, said
    return said


@pytest.mark.parametrize("key", CONFIGS)
def test_a_key_that_is_not_supported_is_refused(key, mesh1, tmp_path):
    value, expected = CONFIGS[key]
    assert key in refused(config_with(**{key: value}), expected, mesh1, tmp_path)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_not_whole_is_refused(name, mesh1, tmp_path):
    change, expected = FOLDERS[name]
    refused(change, expected, mesh1, tmp_path)


# Keys with a value that has no effect on what is computed.
HARMLESS = {
    "inference_mode": False,
    "peft_version": "9.9",
    "auto_mapping": {"x": 1},
    "ensure_weight_tying": True,
    "qalora_group_size": 7,
    "megatron_core": "elsewhere",
    "corda_config": {"x": 1},
    "eva_config": {"rho": 2.0},
    "runtime_config": {"x": 1},
    "init_lora_weights": "eva",
    "task_type": None,
    "use_dora": None,
    "new_in_2027": [],
    "lora_dropout": 0.05,
}


@pytest.mark.parametrize("key", HARMLESS)
def test_a_key_without_effect_is_none(key, mesh1, tmp_path):
    folder = shutil.copytree(ADAPTERS / "all_linear", tmp_path / "adapter")
    config_with(**{key: HARMLESS[key]})(folder)
    adapter = peft.read_adapter(folder)
    peft.check(adapter, base_model(mesh1))
    assert adapter.config.rank_of("model.layers.0.self_attn.q_proj") == 4


def test_what_cannot_be_trained_further(mesh1, tmp_path):
    folder = shutil.copytree(ADAPTERS / "all_linear", tmp_path / "adapter")
    config_with(lora_dropout=0.05)(folder)
    with pytest.raises(errors.UserError, match=r"lora_dropout=0.05: training here has no dropout"):
        peft.as_lora(peft.read_adapter(folder), base_model(mesh1))
    uneven = peft.read_adapter(ADAPTERS / "patterns")
    with pytest.raises(
        errors.UserError, match="rank_pattern and alpha_pattern give modules 7 scales"
    ):
        peft.as_lora(uneven, base_model(mesh1, "qwen3"))


def test_ranks_of_one_scale_are_filled_up_with_zeros(mesh1, tmp_path):
    """Ranks 4 and 2, with alphas that make one scale of both."""
    folder = shutil.copytree(ADAPTERS / "all_linear", tmp_path / "adapter")
    config_with(rank_pattern={"o_proj": 2}, alpha_pattern={"o_proj": 3.5})(folder)

    def cut(tensors):
        for name in list(tensors):
            if "o_proj.lora_A" in name:
                tensors[name] = tensors[name][:2].copy()
            if "o_proj.lora_B" in name:
                tensors[name] = tensors[name][:, :2].copy()

    tensors_with(cut)(folder)
    adapter = peft.read_adapter(folder)
    lora = peft.as_lora(adapter, base_model(mesh1))
    assert lora == Lora(4, 7.0, False, MODULES)
    model = build(read_config(GOLDEN / "llama"), mesh1, lora=lora)
    o = peft.load_adapters(adapter, model)["layers"]["attention"]["o"]
    assert not np.asarray(o["a"])[:, 2:].any() and not np.asarray(o["b"])[..., 2:].any()
    for name, pair in peft.pairs_of(peft.load_adapters(adapter, model), model).items():
        np.testing.assert_array_equal(pair.update(), adapter.pairs[name].update())
