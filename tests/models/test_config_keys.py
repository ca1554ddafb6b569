"""Keys of published config.json files that change nothing here: they pass, and the architecture is
the same.
"""

import json
import os
from pathlib import Path

import pytest

from dft_jax.models.hf.locate import read_config
from tests.conftest import GOLDEN

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


def test_real_checkpoints_load():
    """Their config.json, every key accounted for."""
    folder = os.environ.get("DFT_JAX_REAL_MODELS")
    if not folder:
        pytest.skip("DFT_JAX_REAL_MODELS names no folder of real checkpoints")
    checkpoints = sorted(file.parent for file in Path(folder).glob("*/config.json"))
    assert checkpoints
    for checkpoint in checkpoints:
        assert read_config(checkpoint).num_layers > 0
