"""Keys of published config.json files that change nothing here: they pass, and the architecture is
the same.
"""

import json
import os
from pathlib import Path

import pytest

from dft_jax.models.hf import config_reader
from dft_jax.models.hf.locate import read_config
from dft_jax.runtime import errors
from tests.conftest import GOLDEN
from tests.models.test_golden import FAMILY_CASES

# What programs leave in a config.json. Values with an effect: test_bad_checkpoints.
SMOLLM2 = {
    "is_llama_config": True,
    "rope_interleaved": False,
    "transformers.js_config": {
        "dtype": "q4",
        "kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"},
    },
}
UNSLOTH = {"unsloth_fixed": True, "unsloth_version": "2025.3.19", "quantization_config": None}
VLM_TEXT = {
    "neftune_noise_alpha": 0.0,
    "use_reentrant_checkpointing": False,
    "is_llama_config": True,
}
# transformers 4 wrote these where a file was saved whole instead of as its differences.
WHOLE = {
    **{"add_cross_attention": False, "cross_attention_hidden_size": None, "is_decoder": True},
    **{
        "tie_encoder_decoder": False,
        "torchscript": False,
        "use_bfloat16": False,
        "pruned_heads": {},
    },
    **{
        "bad_words_ids": None,
        "do_sample": False,
        "max_length": 20,
        "min_length": 0,
        "num_beams": 1,
        "top_k": 50,
    },
    **{
        "temperature": 1.0,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
        "finetuning_task": None,
        "prefix": None,
    },
    **{
        "task_specific_params": None,
        "tokenizer_class": None,
        "sep_token_id": None,
        "output_scores": False,
    },
}
NULLS = {"rope_scaling": None, "final_logit_softcapping": None, "sliding_window": None}
PLAIN = {
    "partial_rotary_factor": 1,
    "embd_pdrop": 0.0,
    "alibi": False,
    "_attn_implementation": "sdpa",
}


@pytest.mark.parametrize("extra", [SMOLLM2, UNSLOTH, VLM_TEXT, WHOLE, NULLS, PLAIN])
def test_keys_without_effect_pass(extra, tmp_path):
    raw = json.loads((GOLDEN / "llama" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | extra))
    assert read_config(tmp_path) == read_config(GOLDEN / "llama")


@pytest.mark.parametrize("case", FAMILY_CASES)
def test_every_key_is_used_or_known_or_refused_by_name(case, tmp_path):
    """A value that no key can have is refused under the key's name, or changes nothing at all."""
    raw = json.loads((GOLDEN / case / "config.json").read_text())
    expected = read_config(GOLDEN / case)
    refused = set()
    for key in [*raw, "attn_logit_softcapping", "a_key_of_tomorrow"]:
        (tmp_path / "config.json").write_text(json.dumps(raw | {key: {"no": ["value"]}}))
        try:
            assert read_config(tmp_path) == expected, key
        except errors.UserError as error:
            name = "rope" if key in ("rope_parameters", "rope_scaling") else key
            assert name in str(error), key
            refused.add(key)
    assert {"attn_logit_softcapping", "a_key_of_tomorrow"} <= refused
    # Where they stand within a part, test_qwen2_5_vl.py looks at them.
    assert {"hidden_size", "hidden_act"} & raw.keys() <= refused
    passed = raw.keys() - refused
    without_effect = {"sliding_window", "max_window_layers", "pretraining_tp"}
    assert passed <= config_reader._IRRELEVANT | without_effect, passed


def test_real_checkpoints_load():
    """Their config.json, every key accounted for."""
    folder = os.environ.get("DFT_JAX_REAL_MODELS")
    if not folder:
        pytest.skip("DFT_JAX_REAL_MODELS names no folder of real checkpoints")
    checkpoints = sorted(file.parent for file in Path(folder).glob("*/config.json"))
    assert checkpoints
    for checkpoint in checkpoints:
        assert read_config(checkpoint).num_layers > 0


FULL, SLIDING = "full_attention", "sliding_attention"


def read_smollm3(tmp_path, **changes):
    raw = json.loads((GOLDEN / "smollm3" / "config.json").read_text())
    del raw["no_rope_layers"], raw["layer_types"]
    (tmp_path / "config.json").write_text(json.dumps(raw | changes))
    return read_config(tmp_path)


@pytest.mark.parametrize(
    "changes, rotated, windows",
    [
        ({}, [True, False, True, False], [None] * 4),
        ({"no_rope_layer_interval": 3}, [True, True, False, True], [None] * 4),
        # transformers' default
        ({"no_rope_layer_interval": None}, [True, True, True, False], [None] * 4),
        # the list is what counts
        ({"no_rope_layers": [0, 1, 1, 1]}, [False, True, True, True], [None] * 4),
        # a window that is not switched on
        ({"sliding_window": 8}, [True, False, True, False], [None] * 4),
        (
            {"sliding_window": 8, "use_sliding_window": True},
            [True, False, True, False],
            [None, 8, None, 8],
        ),
        (
            {
                "sliding_window": 8,
                "use_sliding_window": True,
                "layer_types": [SLIDING] + [FULL] * 3,
            },
            [True, False, True, False],
            [8, None, None, None],
        ),
    ],
)
def test_layers_of_smollm3(changes, rotated, windows, tmp_path):
    spec = read_smollm3(tmp_path, **changes)
    assert [layer.rope is not None for layer in spec.layers] == rotated
    assert [layer.sliding_window for layer in spec.layers] == windows


def test_an_absent_tie_word_embeddings_means_a_tied_head_to_smollm3_alone(tmp_path):
    """As in the published file, which has no such key and no head among its tensors."""
    assert read_smollm3(tmp_path, tie_word_embeddings=None).tie_embeddings
    for family in ("llama", "olmo2"):
        raw = json.loads((GOLDEN / family / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(raw | {"tie_word_embeddings": None}))
        assert not read_config(tmp_path).tie_embeddings


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"no_rope_layers": [1, 0, 1]}, ["no_rope_layers=[1, 0, 1]", "each of the 4 layers"]),
        ({"no_rope_layers": [1, 0, 1, 2]}, ["no_rope_layers=[1, 0, 1, 2]"]),
        ({"no_rope_layers": [True, False] * 2}, ["no_rope_layers"]),
        ({"no_rope_layer_interval": 0}, ["no_rope_layer_interval=0 should be at least 1"]),
        ({"layer_types": [FULL]}, ["layer_types", "each of the 4 layers"]),
        ({"layer_types": ["chunked_attention"] * 4}, ["layer_types=['chunked_attention'"]),
        ({"layer_types": [SLIDING] * 4}, ["use_sliding_window=False", "sliding_window=None"]),
        (
            {"layer_types": [SLIDING] * 4, "sliding_window": 8},
            ["use_sliding_window=False", "sliding_window=8"],
        ),
        ({"sliding_window": 0}, ["sliding_window=0 should be at least 1"]),
    ],
)
def test_layers_of_smollm3_that_are_refused(changes, words, tmp_path):
    with pytest.raises(errors.UserError) as refusal:
        read_smollm3(tmp_path, **changes)
    for word in words:
        assert word in str(refusal.value)


# The keys of the published google/gemma-3-270m, apart from sizes: transformers 4 wrote it.
GEMMA_270M = {
    "rope_parameters": None,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "rope_scaling": None,
    "_sliding_window_pattern": 6,
    "layer_types": [SLIDING] * 5 + [FULL],
    "use_bidirectional_attention": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "dtype": None,
    "torch_dtype": "bfloat16",
}


def read_gemma3(tmp_path, **changes):
    raw = json.loads((GOLDEN / "gemma3" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | changes))
    return read_config(tmp_path)


@pytest.mark.parametrize(
    "changes, windows",
    [
        ({}, [8, 8, None, 8, 8, None]),
        (GEMMA_270M, [8, 8, 8, 8, 8, None]),
        # gemma-3-1b-it: no list
        (
            GEMMA_270M
            | {
                "layer_types": None,
                "_sliding_window_pattern": None,
                "sliding_window_pattern": 2,
                "cache_implementation": "hybrid",
            },
            [8, None] * 3,
        ),
        ({"layer_types": None}, [8, 8, 8, 8, 8, None]),
    ],
)
def test_layers_of_gemma3(changes, windows, tmp_path):
    spec = read_gemma3(tmp_path, **changes)
    assert [layer.sliding_window for layer in spec.layers] == windows
    local, whole = (10_000.0, 1_000_000.0) if "rope_theta" in changes else (100.0, 3000.0)
    for layer in spec.layers:
        assert layer.rope.theta == (local if layer.sliding_window else whole)
        assert layer.norm == "both" and layer.feed_forward == "geglu"
    assert spec.scales_embeddings and spec.tie_embeddings
    assert spec.query_factor == pytest.approx(4 / 3), "heads are 16 wide, and the file says 9"


ROPES = {"rope_type": "default", "rope_theta": 100.0}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"final_logit_softcapping": 30.0}, ["final_logit_softcapping=30.0"]),
        ({"attn_logit_softcapping": 50.0}, ["attn_logit_softcapping=50.0"]),
        ({"use_bidirectional_attention": True}, ["use_bidirectional_attention=True"]),
        ({"hidden_activation": "silu"}, ["hidden_activation='silu'", "gelu_pytorch_tanh"]),
        ({"head_dim": None}, ["'head_dim' is missing"]),
        ({"sliding_window": None}, ["'sliding_window' is missing"]),
        ({"layer_types": [FULL]}, ["layer_types", "each of the 6 layers"]),
        ({"sliding_window_pattern": 0}, ["sliding_window_pattern=0 should be at least 1"]),
        ({"rope_local_base_freq": 7.0}, ["rope_local_base_freq=7.0", "100.0"]),
        ({"rope_theta": 5.0}, ["rope_theta differs"]),
        ({"rope_parameters": {FULL: ROPES}}, ["rope_theta", SLIDING]),
        ({"rope_parameters": {SLIDING: ROPES}}, ["rope_theta"]),
        ({"rope_parameters": {FULL: ROPES, SLIDING: ROPES, "other": ROPES}}, ["'other'"]),
        (
            {
                "rope_parameters": {
                    FULL: ROPES,
                    SLIDING: ROPES | {"rope_type": "linear", "factor": 2.0},
                }
            },
            ["rope_type='linear'", SLIDING],
        ),
    ],
)
def test_layers_of_gemma3_that_are_refused(changes, words, tmp_path):
    with pytest.raises(errors.UserError) as refusal:
        read_gemma3(tmp_path, **changes)
    for word in words:
        assert word in str(refusal.value)
