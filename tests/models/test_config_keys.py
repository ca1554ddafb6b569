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
            name = "rope" if key == "rope_parameters" else key
            assert name in str(error), key
            refused.add(key)
    assert {"attn_logit_softcapping", "a_key_of_tomorrow", "hidden_size", "hidden_act"} <= refused
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
