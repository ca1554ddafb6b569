"""Damaged and hostile checkpoints: tensors, the files that hold them, their index; and the sound
ones are accepted.

As in test_bad_checkpoints.py each is refused with exit code 2, by name and with a remedy, before
compiling; only values that are not finite are found when the tensors are read.
"""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dft_jax import assets, main
from dft_jax.models.hf.load import load_params
from dft_jax.models.hf.locate import read_config
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.hf.tensors import tensor_table
from dft_jax.models.model import build
from dft_jax.runtime import errors
from tests.commands import TINY, run_command
from tests.conftest import GOLDEN, make_mesh
from tests.mutations import (
    EMBEDDING,
    HEAD,
    INDEX,
    LFS_POINTER,
    NORM,
    SHARDS,
    SINGLE,
    a_folder,
    both,
    bytes_of,
    cases_of,
    edit,
    header,
    linked,
    moved,
    overrides_for,
    replaced,
    tensors,
    weight_map,
    without,
    written,
)

DOWN = "model.layers.0.mlp.down_proj.weight"
FETCH, REMEDY, WHOLE = (
    "fetch it again",
    "fetch config.json and the weights",
    "not a whole safetensors file",
)
PICKLE = (
    b"\x80\x04\x95\x1d\x00\x01\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R."
)


def renamed(old, new):
    """Every tensor whose name begins with `old`."""

    def change(arrays):
        for name in [name for name in arrays if name.startswith(old)]:
            arrays[new + name.removeprefix(old)] = arrays.pop(name)

    return tensors(change)


def put(name, change):
    """arrays[name] = change(arrays[name])"""
    return tensors(lambda arrays: arrays.update({name: np.ascontiguousarray(change(arrays[name]))}))


def field(name, **changes):
    """Changes to what a header says of a tensor."""
    return header(lambda raw: raw[name].update(changes))


def shifted(by_begin, by_end):
    def change(raw):
        begin, end = raw[DOWN]["data_offsets"]
        raw[DOWN]["data_offsets"] = [begin + by_begin, end + by_end]

    return header(change)


def twice_in_the_header(raw):
    """The same bytes under the same name as another type: the library takes the last."""
    again = json.dumps({NORM: raw[NORM] | {"dtype": "BF16", "shape": [64]}})
    return (again[:-1] + ", " + json.dumps(raw)[1:]).encode()


# Name -> (checkpoint under tests/golden, or "tiny" with its tokenizer and no weights; mutation;
# what stderr must say).
TENSORS = {
    "missing": ("llama", tensors(lambda t: t.pop(NORM)), [f"1 missing tensors: {NORM}", REMEDY]),
    "unexpected": (
        "llama",
        tensors(lambda t: t.update(extra=t[NORM])),
        ["1 unexpected tensors: extra", REMEDY],
    ),
    "without the prefix": (
        "llama",
        renamed("model.", ""),
        [f"29 missing tensors: {EMBEDDING}", "29 unexpected", REMEDY],
    ),
    "another prefix": (
        "llama",
        renamed("model.layers.0.mlp", "model.layers.0.ffn"),
        [DOWN, "0.ffn.down_proj", REMEDY],
    ),
    "a layer's number": (
        "llama",
        renamed("model.layers.1.", "model.layers.01."),
        ["9 missing", "layers.01.mlp", REMEDY],
    ),
    "no biases": (
        "qwen2_untied",
        tensors(lambda t: [t.pop(name) for name in list(t) if name.endswith(".bias")]),
        ["9 missing tensors: model.layers.0.self_attn.k_proj.bias", REMEDY],
    ),
    "quantised": (
        "llama",
        tensors(lambda t: t.update({f"{DOWN}_scale": t[NORM]})),
        [f"unexpected tensors: {DOWN}_scale"],
    ),
    "one row less": (
        "llama",
        put(NORM, lambda x: x[:-1]),
        [f"{NORM} has shape [31], config.json says [32]", REMEDY],
    ),
    "transposed": (
        "llama",
        put(DOWN, np.transpose),
        [f"{DOWN} has shape [48, 32], config.json says [32, 48]", REMEDY],
    ),
    "flat": (
        "llama",
        put(DOWN, np.ravel),
        [f"{DOWN} has shape [1536], config.json says [32, 48]", REMEDY],
    ),
    "a single one": (
        "llama",
        put(NORM, lambda x: x[:1]),
        [f"{NORM} has shape [1], config.json says [32]", REMEDY],
    ),
    "nothing in it": (
        "llama",
        put(NORM, lambda x: x[:0]),
        [f"{NORM} has shape [0], config.json says [32]", REMEDY],
    ),
    "another vocabulary": (
        "llama",
        edit(vocab_size=97),
        [f"{EMBEDDING} has shape [96, 32], config.json says [97, 32]"],
    ),
    "another vocabulary's head": (
        "llama",
        put(HEAD, lambda x: x[:90]),
        [f"{HEAD} has shape [90, 32]", "[96, 32]"],
    ),
    "fewer layers": (
        "llama",
        edit(num_hidden_layers=2),
        ["9 unexpected tensors: model.layers.2.", REMEDY],
    ),
    "more layers": (
        "llama",
        edit(num_hidden_layers=4),
        ["9 missing tensors: model.layers.3.", REMEDY],
    ),
    "fewer kv heads": (
        "llama",
        edit(num_key_value_heads=2),
        ["k_proj.weight has shape [32, 32], config.json says [16, 32]"],
    ),
    "another head_dim": (
        "llama",
        edit(head_dim=16),
        ["q_proj.weight has shape [32, 32], config.json says [64, 32]"],
    ),
    "another width": (
        "llama",
        edit(intermediate_size=2**31 - 1),
        [DOWN, "config.json says [32, 2147483647]", REMEDY],
    ),
    "float64": (
        "llama",
        put(NORM, np.float64),
        [f"{NORM} has dtype F64", "save it as one of F32, BF16, F16"],
    ),
    "int8": (
        "llama",
        put(DOWN, np.int8),
        [f"{DOWN} has dtype I8", "save it as one of F32, BF16, F16"],
    ),
    "int32": (
        "llama",
        put(NORM, np.int32),
        [f"{NORM} has dtype I32", "save it as one of F32, BF16, F16"],
    ),
    "bool": (
        "llama",
        put(NORM, np.bool_),
        [f"{NORM} has dtype BOOL", "save it as one of F32, BF16, F16"],
    ),
    "float8": (
        "llama",
        both(put(NORM, np.int8), field(NORM, dtype="F8_E4M3")),
        [f"{NORM} has dtype F8_E4M3", "save it as one of F32, BF16, F16"],
    ),
    "three faults": (
        "llama",
        tensors(lambda t: t.update({"extra": t.pop(NORM), EMBEDDING: t[HEAD][:-1].copy()})),
        [f"missing tensors: {NORM}", "unexpected tensors: extra", f"{EMBEDDING} has shape"],
    ),
    "no embedding, to start at random": (
        "tiny",
        lambda folder: save_file({NORM: np.ones(64, np.float32)}, folder / SINGLE),
        [f"{EMBEDDING} is missing; it should be there as one of F32, BF16, F16"],
    ),
}

TIED = {
    "untied, no head": (
        "qwen2_tied",
        edit(tie_word_embeddings=False),
        [f"1 missing tensors: {HEAD}", REMEDY],
    ),
    "tied, another head": (
        "qwen2_untied",
        edit(tie_word_embeddings=True),
        [f"{HEAD} differs from the embedding", "tie_word_embeddings=true; set it to false"],
    ),
    "tied, a head of another shape": (
        "qwen2_tied",
        tensors(lambda t: t.update({HEAD: t[EMBEDDING][:90].copy()})),
        [f"{HEAD} has shape [90, 32], config.json says [96, 32]", REMEDY],
    ),
    "tied, a head of another type": (
        "qwen2_tied",
        tensors(lambda t: t.update({HEAD: t[EMBEDDING].astype(np.float64)})),
        [f"{HEAD} has dtype F64"],
    ),
}

CONTAINER = {
    "no file": (
        "llama",
        without(SINGLE),
        [f"no {SINGLE} and no {INDEX}", "fetch them, or set model.init='random'"],
    ),
    "a folder": ("llama", a_folder(SINGLE), [f"{SINGLE} is missing"]),
    "empty": ("llama", written(SINGLE, b""), [SINGLE, WHOLE, FETCH]),
    "truncated data": ("llama", bytes_of(SINGLE, lambda old: old[:-100]), [SINGLE, WHOLE, FETCH]),
    "truncated header": ("llama", bytes_of(SINGLE, lambda old: old[:200]), [SINGLE, WHOLE, FETCH]),
    "bytes after the end": (
        "llama",
        bytes_of(SINGLE, lambda old: old + b"\0" * 64),
        [SINGLE, WHOLE, FETCH],
    ),
    "zeros": ("llama", bytes_of(SINGLE, lambda old: b"\0" * len(old)), [SINGLE, WHOLE, FETCH]),
    "a huge header": (
        "llama",
        bytes_of(SINGLE, lambda old: b"\xff" * 7 + b"\x7f" + old[8:]),
        [SINGLE, WHOLE, FETCH],
    ),
    "a header past the end": (
        "llama",
        bytes_of(SINGLE, lambda old: len(old).to_bytes(8, "little") + old[8:]),
        [SINGLE, WHOLE, FETCH],
    ),
    "a header that is no JSON": ("llama", header(lambda raw: b"{" * 64), [SINGLE, WHOLE, FETCH]),
    "a header that is a list": (
        "llama",
        header(lambda raw: b"[]" + b" " * 6),
        [SINGLE, WHOLE, FETCH],
    ),
    "no tensors": (
        "llama",
        written(SINGLE, b"\x02\0\0\0\0\0\0\0{}"),
        [f"30 missing tensors: {HEAD}", REMEDY],
    ),
    "a name twice": ("llama", header(twice_in_the_header), [f"key '{NORM}' appears twice", FETCH]),
    "overlapping": ("llama", shifted(-64, -64), [SINGLE, WHOLE, FETCH]),
    "beyond the end": ("llama", shifted(2**40, 2**40), [SINGLE, WHOLE, FETCH]),
    "offsets reversed": ("llama", shifted(6144, -6144), [SINGLE, WHOLE, FETCH]),
    "a negative offset": ("llama", shifted(-(2**40), -(2**40)), [SINGLE, WHOLE, FETCH]),
    "a hole": ("llama", header(lambda raw: raw.pop(DOWN) and None), [SINGLE, WHOLE, FETCH]),
    "more shape than data": ("llama", field(DOWN, shape=[32, 49]), [SINGLE, WHOLE, FETCH]),
    "a negative shape": ("llama", field(DOWN, shape=[-32, -48]), [SINGLE, WHOLE, FETCH]),
    "a shape that overflows": (
        "llama",
        field(DOWN, shape=[2**62, 8, 2**62]),
        [SINGLE, WHOLE, FETCH],
    ),
    "a type of another size": ("llama", field(DOWN, dtype="BF16"), [SINGLE, WHOLE, FETCH]),
    "an unknown type": ("llama", field(DOWN, dtype="F31"), [SINGLE, WHOLE, FETCH]),
    "no type": (
        "llama",
        header(lambda raw: raw[DOWN].pop("dtype") and None),
        [SINGLE, WHOLE, FETCH],
    ),
    "metadata of numbers": (
        "llama",
        header(lambda raw: raw.update(__metadata__={"n": 1})),
        [SINGLE, WHOLE, FETCH],
    ),
    "a pickle in truth": (
        "llama",
        written(SINGLE, PICKLE),
        [SINGLE, "it is a pickle", "convert it to safetensors"],
    ),
    "an archive in truth": (
        "llama",
        written(SINGLE, b"PK\x03\x04" + PICKLE),
        [SINGLE, "it is a pickle", "convert it"],
    ),
    "a pointer in truth": (
        "llama",
        written(SINGLE, LFS_POINTER),
        [f"{SINGLE} is a git-lfs pointer", "run `git lfs pull`"],
    ),
    "a web page in truth": (
        "llama",
        written(SINGLE, b"<!DOCTYPE html><html>"),
        [SINGLE, "a web page", "fetch the file again"],
    ),
    "a link out": (
        "llama",
        linked(SINGLE, "../private/weights.safetensors"),
        [f"{SINGLE} is a link out of its folder"],
    ),
    "pickles alone": (
        "llama",
        both(without(SINGLE), written("pytorch_model.bin", PICKLE)),
        [f"no {SINGLE}", "pytorch_model.bin: pickles are never opened", "convert to safetensors"],
    ),
    "old pickles alone": (
        "llama",
        both(without(SINGLE), written("consolidated.00.pth", PICKLE)),
        ["consolidated.00.pth: pickles are never opened"],
    ),
}


def to(file):
    """The index names `file` for one tensor."""
    return weight_map(lambda names: names.update({NORM: file}))


PLAIN = "should be the plain name of a .safetensors file"
SHARDED = {
    "the parent": (
        "qwen2_sharded",
        to("../evil.safetensors"),
        [INDEX, f"{NORM} -> '../evil.safetensors'", PLAIN],
    ),
    "a way round": (
        "qwen2_sharded",
        to(f"x/../{SHARDS[1]}"),
        [INDEX, f"{NORM} -> 'x/../model-00002", PLAIN],
    ),
    "absolute": (
        "qwen2_sharded",
        to("/tmp/evil.safetensors"),
        [f"{NORM} -> '/tmp/evil.safetensors'", PLAIN],
    ),
    "a folder inside": (
        "qwen2_sharded",
        to("sub/evil.safetensors"),
        [f"{NORM} -> 'sub/evil.safetensors'", PLAIN],
    ),
    "backslashes": (
        "qwen2_sharded",
        to("..\\evil.safetensors"),
        [f"{NORM} -> '..\\\\evil.safetensors'", PLAIN],
    ),
    "a drive": (
        "qwen2_sharded",
        to("C:evil.safetensors"),
        [f"{NORM} -> 'C:evil.safetensors'", PLAIN],
    ),
    "a zero byte": (
        "qwen2_sharded",
        to("evil\0.safetensors"),
        [f"{NORM} -> 'evil\\x00.safetensors'", PLAIN],
    ),
    "no name": ("qwen2_sharded", to(""), [f"{NORM} -> ''", PLAIN]),
    "a number": ("qwen2_sharded", to(2), [f"{NORM} -> 2", PLAIN]),
    "a pickle": (
        "qwen2_sharded",
        to("pytorch_model.bin"),
        [f"{NORM} -> 'pytorch_model.bin'", PLAIN],
    ),
    "a link out": (
        "qwen2_sharded",
        linked(SHARDS[1], "../private/x"),
        [f"{SHARDS[1]} is a link out of its folder"],
    ),
    "index without a map": (
        "qwen2_sharded",
        edit(INDEX, weight_map=None),
        [INDEX, "'weight_map' should map tensor names"],
    ),
    "a map of nothing": (
        "qwen2_sharded",
        edit(INDEX, weight_map={}),
        [INDEX, "'weight_map' should map tensor names"],
    ),
    "a map that is a list": (
        "qwen2_sharded",
        edit(INDEX, weight_map=[NORM]),
        [INDEX, "'weight_map' should map"],
    ),
    "a total of text": (
        "qwen2_sharded",
        edit(INDEX, metadata={"total_size": "87168"}),
        [INDEX, "metadata={'total_size': '87168'} should have a number as total_size"],
    ),
    "metadata of text": (
        "qwen2_sharded",
        edit(INDEX, metadata="none"),
        [INDEX, "metadata='none' should have a number"],
    ),
    "index cut off": (
        "qwen2_sharded",
        bytes_of(INDEX, lambda old: old[:200]),
        [INDEX, "not JSON", "fetch the file again"],
    ),
    "a tensor twice in the index": (
        "qwen2_sharded",
        replaced(INDEX, f'"{NORM}": ', f'"{NORM}": "{SHARDS[0]}", "{NORM}": '),
        [INDEX, f"key '{NORM}' appears twice"],
    ),
    "no index": ("qwen2_sharded", without(INDEX), [f"no {SINGLE} and no {INDEX}", "fetch them"]),
    "missing shard": (
        "qwen2_sharded",
        without(SHARDS[1]),
        [f"{SHARDS[1]} is missing", "fetch the checkpoint again"],
    ),
    "empty shard": ("qwen2_sharded", written(SHARDS[1], b""), [SHARDS[1], WHOLE, FETCH]),
    "shard without tensors": (
        "qwen2_sharded",
        written(SHARDS[1], b"\x02\0\0\0\0\0\0\0{}"),
        [
            f"{INDEX} lists 10 tensors that are not where it says: {HEAD} (in {SHARDS[1]})",
            "the shards again",
        ],
    ),
    "truncated shard": (
        "qwen2_sharded",
        bytes_of(SHARDS[0], lambda old: old[:-4]),
        [SHARDS[0], WHOLE, FETCH],
    ),
    "shard is a pickle": (
        "qwen2_sharded",
        written(SHARDS[0], PICKLE),
        [SHARDS[0], "it is a pickle", "convert it"],
    ),
    "shard is a pointer": (
        "qwen2_sharded",
        written(SHARDS[0], LFS_POINTER),
        [f"{SHARDS[0]} is a git-lfs pointer"],
    ),
    "shards exchanged": (
        "qwen2_sharded",
        lambda folder: [
            (folder / a).rename(folder / b)
            for a, b in [(SHARDS[0], "x"), SHARDS[::-1], ("x", SHARDS[1])]
        ],
        [f"{SHARDS[0]}: {INDEX} does not list tensor", "fetch both again"],
    ),
    "a tensor in the other shard": (
        "qwen2_sharded",
        moved(NORM, SHARDS[1], SHARDS[0]),
        [f"{SHARDS[0]}: {INDEX} does not list tensor {NORM} there", "fetch both again"],
    ),
    "a tensor in both shards": (
        "qwen2_sharded",
        tensors(lambda t: t.update({NORM: np.zeros(32, np.float32)}), SHARDS[0]),
        [f"{SHARDS[0]}: {INDEX} does not list tensor {NORM} there", "fetch both again"],
    ),
    "a tensor that the index lacks": (
        "qwen2_sharded",
        weight_map(lambda names: names.pop(NORM)),
        [f"{SHARDS[1]}: {INDEX} does not list tensor {NORM} there", "fetch both again"],
    ),
    "a tensor that no shard has": (
        "qwen2_sharded",
        weight_map(lambda names: names.update(ghost=SHARDS[0])),
        [
            f"{INDEX} lists 1 tensors that are not where it says: ghost (in {SHARDS[0]})",
            "the shards again",
        ],
    ),
    "a shard of another save": (
        "qwen2_sharded",
        lambda folder: shutil.copy(folder / SHARDS[0], folder / "model-00001-of-00003.safetensors"),
        [f"{INDEX} does not name model-00001-of-00003.safetensors, which is there", REMEDY],
    ),
    "one file beside the shards": (
        "qwen2_sharded",
        lambda folder: shutil.copy(GOLDEN / "qwen2_untied" / SINGLE, folder / SINGLE),
        [f"holds both {SINGLE} and {INDEX}", "remove what is not of this model"],
    ),
}

CASES = cases_of(tensors=TENSORS, tied=TIED, container=CONTAINER, sharded=SHARDED)


@pytest.mark.parametrize("case", CASES)
def test_tensors(case, refused, tmp_path):
    source, mutate, expected = CASES[case]
    refused(overrides_for(source, mutate, tmp_path), expected)


# ---- what is not to be refused
# --------------------------------------------------------------------------------------


def as_in_the_hubs_cache(folder):
    """snapshots/<revision>/<name> -> ../../blobs/<hash>."""
    cache = folder.parent / "models--owner--name"
    (cache / "snapshots").mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        linked(file.name, f"../models--owner--name/blobs/{number:040x}")(folder)


SOUND = {
    folder.parent.name: (folder.parent.name, lambda folder: None)
    for folder in GOLDEN.glob("*/config.json")
} | {
    "tied, the same head": ("qwen2_tied", tensors(lambda t: t.update({HEAD: t[EMBEDDING].copy()}))),
    "a buffer of old Llama files": (
        "llama",
        tensors(
            lambda t: t.update(
                {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
            )
        ),
    ),
    "in the hub's cache": ("qwen2_sharded", as_in_the_hubs_cache),
    "a link inside": ("llama", linked(SINGLE, "weights/all.safetensors")),
    "no generation_config.json": ("llama", without("generation_config.json")),
}


@pytest.mark.parametrize("case", SOUND)
def test_sound_checkpoints_are_accepted(case, refused, tmp_path):
    """The same command on them has one complaint only, which comes after the tensors': they have no
    tokenizer.
    """
    source, mutate = SOUND[case]
    refused(overrides_for(source, mutate, tmp_path), ["no usable tokenizer"])
    folder = tmp_path / "model"
    load_params(Checkpoint(folder), build(read_config(folder), make_mesh()))


def test_there_are_enough_cases():
    from tests import test_bad_checkpoints

    assert len(CASES) + len(test_bad_checkpoints.CASES) + len(SPOILT) >= 66


@pytest.fixture(scope="module")
def weights():
    """A whole checkpoint's tensors for the architecture of the tiny tokenizer."""
    model = build(read_config(assets.TINY), make_mesh())
    rng = np.random.default_rng(0)
    return {
        tensor.name: rng.normal(0, 0.02, tensor.shape).astype(np.float32)
        for tensor in tensor_table(model)
    }


def with_weights(weights, spoil=lambda arrays: None, dtype=np.float32):
    def mutate(folder):
        arrays = {name: array.astype(dtype) for name, array in weights.items()}
        spoil(arrays)
        save_file(arrays, folder / SINGLE)

    return mutate


def command(mutate, folder, capfd, monkeypatch):
    rest = {"model.init": "checkpoint", "data.heldout": "", "data.rows": "fields", "train.steps": 1}
    overrides = overrides_for("tiny", mutate, folder, **rest)
    return run_command(main.main, [TINY, f"--workdir={folder}/run", *overrides], capfd, monkeypatch)


SPOILT = {  # tensor, its type, the one value
    "nan": (NORM, np.float32, np.nan),
    "infinity": ("model.layers.1.mlp.up_proj.weight", np.float32, np.inf),
    "infinity in bfloat16": (EMBEDDING, jax.numpy.bfloat16, -np.inf),
    "nan in float16": ("model.layers.0.self_attn.q_proj.bias", np.float16, np.nan),
}


@pytest.mark.parametrize("case", SPOILT)
def test_values_that_are_not_finite(case, weights, tmp_path, capfd, monkeypatch):
    name, dtype, value = SPOILT[case]

    def spoil(arrays):
        arrays[name].flat[-1] = value

    outcome = command(with_weights(weights, spoil, dtype), tmp_path, capfd, monkeypatch)
    assert outcome.code == errors.EXIT_USER_ERROR
    error = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and f"{SINGLE}: {name} holds NaN or infinity; fetch it again" in error[0]
    assert not list((tmp_path / "run").rglob("model*")), "something was trained"


@pytest.mark.slow
def test_finite_values_are_trained_on(weights, tmp_path, capfd, monkeypatch):
    outcome = command(with_weights(weights), tmp_path, capfd, monkeypatch)
    assert outcome.code == 0, outcome.stderr
    trained = load_file(tmp_path / "run" / "export" / SINGLE)
    assert trained.keys() == weights.keys() and all(
        np.isfinite(array).all() for array in trained.values()
    )
