"""Damaged and hostile checkpoints: config.json, the tokenizer, what lies beside them (tensors:
test_bad_tensors.py).

Each is refused with exit code 2, with the file, the key and the remedy, before compiling.
"""

import json
import shutil

import pytest

from tests.conftest import GOLDEN
from tests.mutations import (
    LFS_POINTER,
    SINGLE,
    a_folder,
    both,
    bytes_of,
    cases_of,
    edit,
    linked,
    overrides_for,
    replaced,
    without,
    written,
)


def without_eos(folder):
    # for Qwen2, transformers has a default
    shutil.copyfile(GOLDEN / "qwen3/config.json", folder / "config.json")
    edit("tokenizer_config.json", eos_token=None)(folder)


def another_id(folder):
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["model"]["vocab"]["1"] = 300
    (folder / "tokenizer.json").write_text(json.dumps(raw))


LLAMA3 = json.loads((GOLDEN / "llama3/config.json").read_text())["rope_parameters"]
YARN = json.loads((GOLDEN / "llama_yarn/config.json").read_text())["rope_parameters"]
LINEAR = json.loads((GOLDEN / "llama_linear/config.json").read_text())["rope_parameters"]
FETCH, USABLE = "fetch the file again", "copy tokenizer.json and tokenizer_config.json"

# Name -> (checkpoint under tests/golden, or "tiny" with its tokenizer and no weights; mutation;
# what stderr must say).
FILES = {
    "no config.json": (
        "llama",
        without("config.json"),
        ["config.json is missing", "fetch it, or put it back"],
    ),
    "a folder for config.json": (
        "llama",
        a_folder("config.json"),
        ["config.json is missing, or no plain file"],
    ),
    "not JSON": (
        "llama",
        replaced("config.json", '"bos', "bos"),
        ["config.json:7: not JSON", FETCH],
    ),
    "cut off": (
        "llama",
        bytes_of("config.json", lambda old: old[:200]),
        ["config.json:", "not JSON", FETCH],
    ),
    "empty": ("llama", written("config.json", b""), ["config.json:1: not JSON", FETCH]),
    "not UTF-8": ("llama", written("config.json", b"\xff"), ["config.json: not UTF-8", FETCH]),
    "a byte order mark": (
        "llama",
        bytes_of("config.json", lambda old: b"\xef\xbb\xbf" + old),
        ["config.json begins with a byte order mark (BOM); re-save it as UTF-8 without one"],
    ),
    "a list": (
        "llama",
        written("config.json", b"[]"),
        ["config.json: expected a JSON object, found list", FETCH],
    ),
    "a key twice": (
        "llama",
        replaced("config.json", '"vocab_size": 96', '"vocab_size": 97, "vocab_size": 96'),
        ["config.json: cannot be read", "key 'vocab_size' appears twice", FETCH],
    ),
    "a rope key twice": (
        "llama",
        replaced("config.json", '"rope_theta": 2000.0', '"rope_theta": 1e6, "rope_theta": 2000.0'),
        ["config.json: cannot be read", "key 'rope_theta' appears twice", FETCH],
    ),
    "NaN": (
        "llama",
        replaced("config.json", "1e-06", "NaN"),
        ["config.json: cannot be read", "NaN is no number", FETCH],
    ),
    "Infinity": (
        "llama",
        replaced("config.json", "2000.0", "-Infinity"),
        ["-Infinity is no number of JSON", FETCH],
    ),
    "5000 digits": (
        "llama",
        replaced("config.json", ": 96", ": " + 5000 * "9"),
        ["config.json: cannot be read", FETCH],
    ),
    "nested too deep": (
        "llama",
        replaced("config.json", '"bos_token_id": 94', '"bos_token_id": ' + 100_000 * "["),
        ["config.json: cannot be read (RecursionError", FETCH],
    ),
    "config.json is a pointer": (
        "llama",
        written("config.json", LFS_POINTER),
        ["config.json is a git-lfs pointer", "run `git lfs pull`"],
    ),
    "config.json is a link out": (
        "llama",
        linked("config.json", "../private/config.json"),
        [
            "model/config.json is a link out of its folder",
            "private/config.json; copy that file here",
        ],
    ),
    "generation_config.json cut off": (
        "llama",
        bytes_of("generation_config.json", lambda old: old[:30]),
        ["generation_config.json:", "not JSON", FETCH],
    ),
    "generation_config.json is a link out": (
        "llama",
        linked("generation_config.json", "../private/token"),
        ["generation_config.json is a link out of its folder"],
    ),
    "an adapter beside its base": (
        "llama",
        written("adapter_config.json", b'{"peft_type": "LORA"}'),
        [
            "adapter_config.json: the folder holds an adapter",
            "merge it into its base model, or remove the file",
        ],
    ),
    "an adapter alone": (
        "llama",
        both(without("config.json", SINGLE), written("adapter_config.json", b"{}")),
        ["adapter_config.json: the folder holds an adapter", "merge it"],
    ),
    "auto_map": (
        "llama",
        edit(auto_map={"AutoModel": "x.y"}),
        ["config.json: 'auto_map' asks to run", "remove the key"],
    ),
    "quantised": (
        "llama",
        edit(quantization_config={"bits": 4}),
        ["'quantization_config'", "use the original"],
    ),
    "quantised, in no way named": (
        "llama",
        edit(quantization_config={}),
        ["'quantization_config'", "the original"],
    ),
}

KEYS = {
    "unknown model_type": (
        "llama",
        edit(model_type="gpt2"),
        ["model_type='gpt2' is not supported", "known: gemma3_text, llama, "],
    ),
    "model_type is a list": (
        "llama",
        edit(model_type=["llama"]),
        ["model_type=['llama'] is not supported"],
    ),
    "no model_type": (
        "llama",
        edit(model_type=None),
        ["model_type=None is not supported", "known: gemma3_text, llama, mistral"],
    ),
    "another family": (
        "llama",
        edit(model_type="qwen3"),
        ["mlp_bias=False is not a known key", "remove it if"],
    ),
    "unknown key": (
        "llama",
        edit(logit_cap=30.0),
        ["logit_cap=30.0 is not a known key", "remove it if it has no effect"],
    ),
    "neighbours rotated": (
        "llama",
        edit(rope_interleaved=True),
        ["rope_interleaved=True", "only False"],
    ),
    "half a rotation": (
        "llama",
        edit(partial_rotary_factor=0.5),
        ["partial_rotary_factor=0.5", "only 1.0"],
    ),
    "a number for a truth": (
        "llama",
        edit(rope_interleaved=0),
        ["rope_interleaved=0 is not supported: only False"],
    ),
    "heads removed": (
        "llama",
        edit(pruned_heads={"0": [1]}),
        ["pruned_heads={'0': [1]} is not supported: only {}"],
    ),
    "noise": (
        "llama",
        edit(neftune_noise_alpha=5.0),
        ["neftune_noise_alpha=5.0 is not supported: only 0.0"],
    ),
    "an old dropout": (
        "llama",
        edit(resid_pdrop=0.1),
        ["resid_pdrop=0.1 is not supported: only 0.0"],
    ),
    "no llama": (
        "llama",
        edit(is_llama_config=False),
        ["is_llama_config=False is not supported: only True"],
    ),
    "two faults": (
        "llama",
        edit(vocab_size=None, hidden_act="gelu"),
        ["'vocab_size' is missing", "hidden_act='gelu'"],
    ),
    "an encoder": (
        "llama",
        edit(is_encoder_decoder=True),
        ["is_encoder_decoder=True is not supported: only False"],
    ),
    "hidden_act gelu": (
        "llama",
        edit(hidden_act="gelu"),
        ["hidden_act='gelu' is not supported", "only 'silu'"],
    ),
    "dropout": (
        "llama",
        edit(attention_dropout=0.1),
        ["attention_dropout=0.1 is not supported: only 0.0"],
    ),
    "tensor slices": (
        "llama",
        edit(pretraining_tp=2),
        ["pretraining_tp=2 is not supported: only 1"],
    ),
    "size of zero": ("llama", edit(hidden_size=0), ["hidden_size=0 should be at least 1"]),
    "negative size": (
        "llama",
        edit(intermediate_size=-48),
        ["intermediate_size=-48 should be at least 1"],
    ),
    "size is text": ("llama", edit(vocab_size="96"), ["vocab_size='96' should be int"]),
    "size is a float": ("llama", edit(vocab_size=96.0), ["vocab_size=96.0 should be int"]),
    "size is true": (
        "llama",
        edit(num_hidden_layers=True),
        ["num_hidden_layers=True should be int"],
    ),
    "size is a list": ("llama", edit(hidden_size=[32]), ["hidden_size=[32] should be int"]),
    "size beyond an index": (
        "llama",
        edit(intermediate_size=2**40),
        [f"{2**40} is more than {2**31 - 1}"],
    ),
    "a billion layers": (
        "llama",
        edit(num_hidden_layers=10**9),
        ["num_hidden_layers=1000000000 is more than 1000"],
    ),
    "no context": (
        "llama",
        edit(max_position_embeddings=0),
        ["max_position_embeddings=0 should be at least 1"],
    ),
    "kv heads do not divide": (
        "llama",
        edit(num_key_value_heads=3),
        ["num_key_value_heads=3 does not divide 4 heads"],
    ),
    "more kv heads": (
        "llama",
        edit(num_key_value_heads=8),
        ["num_key_value_heads=8 does not divide 4 heads"],
    ),
    "heads do not divide": (
        "qwen2_tied",
        edit(num_attention_heads=6),
        ["hidden_size=32 is not a multiple", "head_dim"],
    ),
    "odd head_dim": ("llama", edit(head_dim=7), ["head_dim=7 should be even"]),
    "qwen3 without head_dim": ("qwen3", edit(head_dim=None), ["'head_dim' is missing", "add it"]),
    "epsilon of zero": ("llama", edit(rms_norm_eps=0), ["rms_norm_eps=0.0 should be positive"]),
    "negative epsilon": (
        "llama",
        edit(rms_norm_eps=-1e-6),
        ["rms_norm_eps=-1e-06 should be positive"],
    ),
    "infinite epsilon": (
        "llama",
        replaced("config.json", "1e-06", "1e999"),
        ["rms_norm_eps is beyond what a float holds"],
    ),
    "negative spread": (
        "llama",
        edit(initializer_range=-0.02),
        ["initializer_range=-0.02 should be positive"],
    ),
    "tied is text": (
        "llama",
        edit(tie_word_embeddings="false"),
        ["tie_word_embeddings='false' should be bool"],
    ),
    "tied is a number": (
        "llama",
        edit(tie_word_embeddings=0),
        ["tie_word_embeddings=0 should be bool"],
    ),
    "bias is text": ("llama", edit(attention_bias="no"), ["attention_bias='no' should be bool"]),
    "no word on the window": (
        "mistral",
        edit(sliding_window=None),
        ["'sliding_window' is missing; write null for none"],
    ),
    "window of zero": (
        "mistral",
        edit(sliding_window=0),
        ["sliding_window=0 should be at least 1"],
    ),
    "a window for Qwen": (
        "qwen2_tied",
        edit(use_sliding_window=True),
        ["use_sliding_window=True is not supported"],
    ),
    "a window on a layer": (
        "qwen2_tied",
        edit(layer_types=["full_attention", "sliding_attention", "full_attention"]),
        ["'sliding_attention'", "is not supported: only ['full_attention'"],
    ),
}

ROPE = {
    "no rope_theta": (
        "llama",
        edit(rope_parameters=None),
        ["config.json: rope: 'rope_theta' is missing", "add it"],
    ),
    "theta of zero": (
        "llama",
        edit(rope_parameters={"rope_theta": 0}),
        ["rope: rope_theta=0.0 should be positive"],
    ),
    "negative theta": (
        "qwen2_oldschema",
        edit(rope_theta=-1e4),
        ["rope: rope_theta=-10000.0 should be positive"],
    ),
    "theta is text": (
        "qwen2_oldschema",
        edit(rope_theta="10000"),
        ["rope: rope_theta='10000' should be float"],
    ),
    "theta is true": (
        "qwen2_oldschema",
        edit(rope_theta=True),
        ["rope: rope_theta=True should be float"],
    ),
    "theta beyond floats": (
        "qwen2_oldschema",
        edit(rope_theta=10**400),
        ["rope: rope_theta is beyond what a float holds"],
    ),
    "rope_scaling is text": (
        "qwen2_oldschema",
        edit(rope_scaling="yarn"),
        ["rope_scaling='yarn' should be dict"],
    ),
    "rope_parameters is a list": (
        "llama",
        edit(rope_parameters=[1e4]),
        ["rope_parameters=[10000.0] should be dict"],
    ),
    "type longrope": (
        "llama",
        edit(rope_parameters={"rope_type": "longrope", "rope_theta": 1e4}),
        ["rope_type='longrope' is not supported", "only 'default', 'linear', 'llama3', 'yarn'"],
    ),
    "yarn without a factor": (
        "llama_yarn",
        edit(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}),
        ["rope: 'factor' is missing", "add it"],
    ),
    "yarn with half of a scale": (
        "llama_yarn",
        edit(rope_parameters=YARN | {"mscale_all_dim": None}),
        ["rope: mscale and mscale_all_dim go together", "give both, or neither"],
    ),
    "yarn turned round": (
        "llama_yarn",
        edit(rope_parameters=YARN | {"beta_slow": 4}),
        ["rope: beta_fast=3.0 should be at least beta_slow=4.0"],
    ),
    "yarn of theta 1": (
        "llama_yarn",
        edit(rope_parameters=YARN | {"rope_theta": 1}),
        ["rope: rope_theta=1.0 should be above 1"],
    ),
    "yarn with a factor of attention below zero": (
        "llama_yarn",
        edit(rope_parameters=YARN | {"attention_factor": -1.0}),
        ["rope: attention_factor=-1.0 should be positive"],
    ),
    "yarn with a word for a truth": (
        "llama_yarn",
        edit(rope_parameters=YARN | {"truncate": "no"}),
        ["rope: truncate='no' should be bool"],
    ),
    "yarn with a key more": (
        "llama_yarn",
        edit(rope_parameters=YARN | {"long_factor": [1.0]}),
        ["rope: long_factor=[1.0] is not a known key"],
    ),
    "old spelling of dynamic": (
        "qwen2_oldschema",
        edit(rope_scaling={"type": "dynamic", "factor": 2.0}),
        ["rope_type='dynamic' is not supported"],
    ),
    "type is a number": (
        "llama_linear",
        edit(rope_parameters=LINEAR | {"rope_type": 1}),
        ["rope_type=1 should be str"],
    ),
    "two types": (
        "llama_linear",
        edit(rope_parameters=LINEAR | {"type": "dynamic"}),
        ["rope: type='dynamic' and rope_type='linear' differ", "keep the right one"],
    ),
    "two thetas": (
        "llama",
        edit(rope_theta=1e6),
        ["rope_theta differs from the one inside rope_parameters", "keep the right one"],
    ),
    "a theta inside rope_scaling": (
        "qwen2_oldschema",
        edit(rope_scaling={"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}),
        ["rope_theta differs from the one inside rope_parameters or rope_scaling"],
    ),
    "two schemas": (
        "llama",
        edit(rope_scaling={"rope_type": "linear", "factor": 4.0}),
        ["rope_parameters and rope_scaling are both there", "keep the right one"],
    ),
    "factor of zero": (
        "llama_linear",
        edit(rope_parameters=LINEAR | {"factor": 0}),
        ["factor=0.0 should be positive"],
    ),
    "no factor": (
        "llama3",
        edit(rope_parameters=LLAMA3 | {"factor": None}),
        ["rope: 'factor' is missing", "add it"],
    ),
    "factor without a type": (
        "qwen2_oldschema",
        edit(rope_scaling={"factor": 2.0}),
        ["factor=2.0 is not a known key"],
    ),
    "low frequency of zero": (
        "llama3",
        edit(rope_parameters=LLAMA3 | {"low_freq_factor": 0}),
        ["rope: low_freq_factor=0.0 should be positive"],
    ),
    "low above high": (
        "llama3",
        edit(rope_parameters=LLAMA3 | {"low_freq_factor": 8}),
        ["rope: high_freq_factor should be above low_freq_factor"],
    ),
    "no original context": (
        "llama3",
        edit(rope_parameters=LLAMA3 | {"original_max_position_embeddings": -1}),
        ["original_max_position_embeddings=-1 should be at least 1"],
    ),
    "partial rotary": (
        "llama",
        edit(rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5}),
        ["partial_rotary_factor=0.5 is not supported: only 1.0"],
    ),
}

TOKENIZER = {
    "no tokenizer": ("llama", lambda folder: None, ["no usable tokenizer", USABLE]),
    "none for Qwen2": (
        "qwen2_tied",
        lambda folder: None,
        ["no usable tokenizer (no tokenizer.json", USABLE],
    ),
    "Mistral's tekken": (
        "tiny",
        both(without("tokenizer.json"), written("tekken.json", b"{}")),
        ["no usable tokenizer (no tokenizer.json; tekken.json alone is not read", USABLE],
    ),
    "settings with a byte order mark": (
        "tiny",
        bytes_of("tokenizer_config.json", lambda old: b"\xef\xbb\xbf" + old),
        [
            "tokenizer_config.json begins with a byte order mark (BOM); re-save it as UTF-8 without one"
        ],
    ),
    "a tokenizer with a byte order mark": (
        "tiny",
        bytes_of("tokenizer.json", lambda old: b"\xef\xbb\xbf" + old),
        ["tokenizer.json begins with a byte order mark (BOM); re-save it as UTF-8 without one"],
    ),
    "a template with a byte order mark": (
        "tiny",
        written("chat_template.jinja", b"\xef\xbb\xbf{{ messages }}"),
        ["chat_template.jinja begins with a byte order mark (BOM)"],
    ),
    "settings alone": (
        "tiny",
        without("tokenizer.json"),
        ["no usable tokenizer (no tokenizer.json", USABLE],
    ),
    "broken": (
        "tiny",
        bytes_of("tokenizer.json", lambda old: old[:100]),
        ["no usable tokenizer", USABLE],
    ),
    "tokenizer.json is a list": (
        "tiny",
        written("tokenizer.json", b"[]"),
        ["no usable tokenizer", USABLE],
    ),
    "unknown model": (
        "tiny",
        replaced("tokenizer.json", '"BPE"', '"Magic"'),
        ["no usable tokenizer", USABLE],
    ),
    "tokenizer.json is a pointer": (
        "tiny",
        written("tokenizer.json", LFS_POINTER),
        ["tokenizer.json is a git-lfs pointer", "run `git lfs pull`"],
    ),
    "a key where the export would carry it": (
        "tiny",
        both(
            written("tokenizer_notes.txt", b"secret"),
            linked("tokenizer_notes.txt", "../.ssh/id_ed25519"),
        ),
        ["tokenizer_notes.txt is a link out of its folder", "id_ed25519"],
    ),
    "code of its own": (
        "tiny",
        edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_x.X", None]}),
        ["tokenizer_config.json: 'auto_map' asks to run code", "remove the key"],
    ),
    "tokenizer_config.json cut off": (
        "tiny",
        bytes_of("tokenizer_config.json", lambda old: old[:50]),
        ["tokenizer_config.json:", "not JSON", FETCH],
    ),
    "an end of text twice": (
        "tiny",
        replaced("tokenizer_config.json", '"eos_token"', '"eos_token": "<|im_end|>", "eos_token"'),
        ["tokenizer_config.json: cannot be read", "key 'eos_token' appears twice"],
    ),
    "special tokens cut off": (
        "tiny",
        written("special_tokens_map.json", b'{"eos_token": '),
        ["special_tokens_map.json:1: not JSON", FETCH],
    ),
    "added tokens are a list": (
        "tiny",
        written("added_tokens.json", b"[1]"),
        ["added_tokens.json: expected a JSON object"],
    ),
    "no end of text": ("tiny", without_eos, ["no eos_token", "set it in tokenizer_config.json"]),
    "an end of text that the model lacks": (
        "tiny",
        both(edit(vocab_size=259), edit("tokenizer_config.json", eos_token="<|the end|>")),
        [
            "eos_token='<|the end|>' of tokenizer_config.json is no token",
            "take both files from the same model",
        ],
    ),
    "token ids beyond the table": (
        "tiny",
        edit(vocab_size=100),
        ["beyond the model's 100 embeddings", "the tokenizer is not this model's"],
    ),
    "a digit beyond the table": (
        "tiny",
        another_id,
        ["token id 300 is beyond the model's 264 embeddings"],
    ),
    "no chat template": (
        "tiny",
        edit("tokenizer_config.json", chat_template=None),
        ["data.template='tokenizer'", "no chat template", "choose one of plain, raw, qwen-boxed"],
    ),
    "a chat template that is no program": (
        "tiny",
        edit("tokenizer_config.json", chat_template="a\n{% for %}"),
        ["data.template='tokenizer':2: ", "fix it"],
    ),
}

CASES = cases_of(files=FILES, keys=KEYS, rope=ROPE, tokenizer=TOKENIZER)


@pytest.mark.parametrize("case", CASES)
def test_checkpoint(case, refused, tmp_path):
    source, mutate, expected = CASES[case]
    refused(overrides_for(source, mutate, tmp_path), expected)
