"""Damaged checkpoints: exit code 2, with the file, the key or tensor and the remedy, before compiling."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dft_jax import assets
from tests.conftest import GOLDEN


def edit(name="config.json", **changes):
    """A mutation: sets keys of a JSON file of the checkpoint, removes those given as None."""

    def mutate(folder):
        raw = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))

    return mutate


def tensors(change):
    """A mutation: change(dictionary of tensors)."""

    def mutate(folder):
        arrays = load_file(folder / "model.safetensors")
        change(arrays)
        save_file(arrays, folder / "model.safetensors")

    return mutate


def bytes_of(name, change):
    """A mutation: replaces a file's content by change(content); None removes the file."""

    def mutate(folder):
        content = change((folder / name).read_bytes())
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)

    return mutate


def without_eos(folder):
    shutil.copyfile(GOLDEN / "qwen3/config.json", folder / "config.json")  # for Qwen2, transformers has a default
    edit("tokenizer_config.json", eos_token=None)(folder)


def to_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


NORM, INDEX = "model.norm.weight", "model.safetensors.index.json"

# Name -> (checkpoint under tests/golden, or "tiny" with its tokenizer and no weights; mutation; what stderr must say).
CHECKPOINTS = {
    "no config.json": (
        "llama",
        bytes_of("config.json", lambda _: None),
        ["config.json is missing", "fetch it, or put it back"],
    ),
    "config.json not JSON": (
        "llama",
        bytes_of("config.json", lambda old: old.replace(b'"bos', b"bos", 1)),
        ["config.json:7: not JSON", "fetch the file again"],
    ),
    "config.json not UTF-8": (
        "llama",
        bytes_of("config.json", lambda _: b"\xff"),
        ["config.json: not UTF-8", "fetch the file again"],
    ),
    "config.json is a list": (
        "llama",
        bytes_of("config.json", lambda _: b"[]"),
        ["config.json: expected a JSON object, found list", "fetch the file again"],
    ),
    "unknown model_type": (
        "llama",
        edit(model_type="gpt2"),
        ["model_type='gpt2' is not supported", "known: llama, mistral, qwen2"],
    ),
    "model_type is a list": (
        "llama",
        edit(model_type=["llama"]),
        ["model_type=['llama'] is not supported", "known: llama"],
    ),
    "auto_map": (
        "llama",
        edit(auto_map={"AutoModel": "x.y"}),
        ["config.json: 'auto_map' asks to run code", "remove the key"],
    ),
    "quantised": ("llama", edit(quantization_config={"bits": 4}), ["'quantization_config'", "use the original"]),
    "unknown key": (
        "llama",
        edit(logit_cap=30.0),
        ["logit_cap=30.0 is not a known key", "remove it if it has no effect"],
    ),
    "no rope_theta": ("llama", edit(rope_parameters=None), ["config.json: rope: 'rope_theta' is missing", "add it"]),
    "rope type yarn": (
        "llama",
        edit(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}),
        ["rope_type='yarn' is not supported", "only 'default', 'linear', 'llama3'"],
    ),
    "rope_scaling is text": ("llama", edit(rope_scaling="yarn"), ["rope_scaling='yarn' should be dict"]),
    "hidden_act gelu": ("llama", edit(hidden_act="gelu"), ["hidden_act='gelu' is not supported", "only 'silu'"]),
    "kv heads do not divide": ("llama", edit(num_key_value_heads=3), ["num_key_value_heads=3 does not divide 4 heads"]),
    "size of zero": ("llama", edit(hidden_size=0), ["hidden_size=0 should be at least 1"]),
    "size is text": ("llama", edit(vocab_size="96"), ["vocab_size='96' should be int"]),
    "two faults in config.json": (
        "llama",
        edit(vocab_size=None, hidden_act="gelu"),
        ["'vocab_size' is missing", "hidden_act='gelu'"],
    ),
    "missing tensor": (
        "llama",
        tensors(lambda t: t.pop(NORM)),
        [f"1 missing tensors: {NORM}", "fetch config.json and the weights"],
    ),
    "unexpected tensor": (
        "llama",
        tensors(lambda t: t.update(extra=t[NORM])),
        ["1 unexpected tensors: extra", "fetch config.json and the weights"],
    ),
    "mis-shaped tensor": (
        "llama",
        tensors(lambda t: t.update({NORM: t[NORM][:-1].copy()})),
        [f"{NORM} has shape [31], config.json says [32]", "fetch config.json and the weights"],
    ),
    "integer tensor": (
        "llama",
        tensors(lambda t: t.update({NORM: t[NORM].astype(np.int32)})),
        [f"{NORM} has dtype I32", "save it as one of F32, BF16, F16"],
    ),
    "three faults in the tensors": (
        "llama",
        tensors(
            lambda t: t.update({"extra": t.pop(NORM), "model.embed_tokens.weight": t["lm_head.weight"][:-1].copy()})
        ),
        [f"missing tensors: {NORM}", "unexpected tensors: extra", "model.embed_tokens.weight has shape"],
    ),
    "truncated safetensors": (
        "llama",
        bytes_of("model.safetensors", lambda old: old[:-100]),
        ["model.safetensors: not a whole safetensors file", "fetch it again"],
    ),
    "empty safetensors": (
        "llama",
        bytes_of("model.safetensors", lambda _: b""),
        ["not a whole safetensors file", "fetch it again"],
    ),
    "pickle only": (
        "llama",
        to_pickle,
        ["no model.safetensors", "pytorch_model.bin: pickles are never opened", "convert to safetensors"],
    ),
    "no weights": (
        "llama",
        bytes_of("model.safetensors", lambda _: None),
        [f"no model.safetensors and no {INDEX}", "fetch them, or set model.init='random'"],
    ),
    "shard outside the folder": (
        "qwen2_sharded",
        edit(INDEX, weight_map={NORM: "../evil.safetensors"}),
        [INDEX, f"{NORM} -> '../evil.safetensors'", "should be the plain name"],
    ),
    "index without a map": (
        "qwen2_sharded",
        edit(INDEX, weight_map=None),
        [INDEX, "'weight_map' should map tensor names"],
    ),
    "missing shard": (
        "qwen2_sharded",
        bytes_of("model-00002-of-00002.safetensors", lambda _: None),
        ["model-00002-of-00002.safetensors is missing", "fetch the checkpoint again"],
    ),
    "tied, with another head": (
        "qwen2_untied",
        edit(tie_word_embeddings=True),
        ["lm_head.weight differs from the embedding", "tie_word_embeddings=true; set it to false"],
    ),
    "no tokenizer": (
        "llama",
        lambda folder: None,
        ["no usable tokenizer", "copy tokenizer.json and tokenizer_config.json"],
    ),
    "broken tokenizer": (
        "tiny",
        bytes_of("tokenizer.json", lambda old: old[:100]),
        ["no usable tokenizer", "copy tokenizer.json and tokenizer_config.json"],
    ),
    "no end of text": ("tiny", without_eos, ["no eos_token", "set it in tokenizer_config.json"]),
    "no chat template": (
        "tiny",
        edit("tokenizer_config.json", chat_template=None),
        ["data.template='tokenizer'", "no chat template", "choose one of plain, qwen-boxed"],
    ),
    "token ids beyond the table": (
        "tiny",
        edit(vocab_size=100),
        ["beyond the model's 100 embeddings", "the tokenizer is not this model's"],
    ),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoint(case, refused, tmp_path):
    source, mutate, expected = CHECKPOINTS[case]
    folder = tmp_path / "model"
    shutil.copytree(assets.TINY if source == "tiny" else GOLDEN / source, folder)
    mutate(folder)
    init = "random" if source == "tiny" else "checkpoint"
    (tmp_path / "a.jsonl").write_text('{"prompt": "1+1?", "completion": "2"}\n')
    overrides = [
        f"--config.data.train={tmp_path}/a.jsonl",
        f"--config.model.path={folder}",
        f"--config.model.init={init}",
    ]
    refused([*overrides, "--config.data.max_length=32"], expected)
