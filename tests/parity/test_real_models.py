"""Real pretrained checkpoints against `transformers`, live: logits, greedy text, and an export
after training.

DFT_JAX_REAL_MODELS names a folder of Hugging Face folders; without it all of this is skipped.
Minutes on two cores, and 8 GB of memory for a model of 0.5 B parameters.
"""

import functools
import gc
import os
import pathlib

import jax
import numpy as np
import pytest

from dft_jax import api
from dft_jax.models.hf.load import load_params
from dft_jax.models.model import build

torch = pytest.importorskip("torch")
import transformers

from dft_jax import config as config_lib
from dft_jax.data.templates import Template
from dft_jax.models.hf.export import export
from dft_jax.models.hf.locate import load_tokenizer, read_config
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.sampling.sampler import Request, Sampler
from tests.conftest import make_mesh
from tests.parity.test_transformers import jax_logits, torch_logits

pytestmark = pytest.mark.slow

VARIABLE = "DFT_JAX_REAL_MODELS"
FOLDERS = sorted(pathlib.Path(os.environ[VARIABLE]).glob("*/")) if VARIABLE in os.environ else []
TOLERANCE = 1.5e-4  # of a logit; float32 on both sides, sums in another order over 24 to 30 layers
NEW = 64  # greedy tokens
QUESTIONS = [
    "What is 17 * 23?",
    "Natalia sold 48 clips in April and half as many in May. How many did she sell in all?",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Name three rivers of Europe.",
    "A train goes 60 km in 45 minutes. How far does it go in 2 hours?\n\nThink step by step.",
]

if not FOLDERS:
    pytest.skip(f"{VARIABLE} names no folder of real checkpoints", allow_module_level=True)


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name, scope="module")
def real(request):
    """(folder, model, params, tokenizer) in float32 on one device; freed before the next one is
    loaded.
    """
    model = build(read_config(request.param), make_mesh())
    params = load_params(Checkpoint(request.param), model)
    yield request.param, model, params, load_tokenizer(request.param)
    jax.tree.map(lambda leaf: leaf.delete(), params)
    gc.collect()


def prompts(folder, tokenizer) -> list[tuple[int, ...]]:
    template = Template("tokenizer", tokenizer)
    return [tuple(template.prompt_ids(question)) for question in QUESTIONS]


def torch_model(folder):
    kind = transformers.AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@functools.cache
def torch_greedy(folder) -> tuple[tuple[int, ...], ...]:
    """What `transformers` writes greedily after each prompt, at most NEW tokens, up to its first
    stop token.
    """
    model, made = torch_model(folder), []
    for ids in prompts(folder, load_tokenizer(folder)):
        text = model.generate(
            torch.tensor([ids]),
            max_new_tokens=NEW,
            do_sample=False,
            use_cache=True,
            repetition_penalty=1.0,
        )
        made.append(tuple(text[0, len(ids) :].tolist()))
    return tuple(made)


def test_logits(real):
    folder, model, params, tokenizer = real
    for ids in prompts(folder, tokenizer):
        tokens_BL = np.array([ids], np.int32)
        expected_BLV, found_BLV = (
            torch_logits(folder, tokens_BL),
            jax_logits(params, model, tokens_BL),
        )
        assert np.abs(found_BLV - expected_BLV).max() <= TOLERANCE
        np.testing.assert_array_equal(found_BLV.argmax(-1), expected_BLV.argmax(-1))


def test_greedy_text(real):
    """Token for token, through the sampler's cache, with the model's own template and stop tokens."""
    folder, model, params, tokenizer = real
    sampler = Sampler(
        model, stop_ids=[tokenizer.eos_token_id], max_length=512, slots=len(QUESTIONS)
    )
    asked = [
        Request(question, 0, ids, 0.0, NEW)
        for question, ids in zip(QUESTIONS, prompts(folder, tokenizer), strict=True)
    ]
    found = {c.request.problem: c.ids for c in sampler.sample(params, asked, progress=False)}
    for question, expected in zip(QUESTIONS, torch_greedy(folder), strict=True):
        assert found[question] == expected, tokenizer.decode(found[question])


def test_an_export_after_training_gives_the_logits_of_the_run(real, shared, tmp_path):
    """Ten steps of DFT at 1e-5, exported as float32, loaded by `transformers`."""
    folder, _, _, tokenizer = real
    config = config_lib.get_default()
    config.update_from_flattened_dict(
        {
            "objective": "dft",
            "model.path": str(folder),
            "model.compute_dtype": "float32",
            "mesh.data": 1,
            "mesh.fsdp": -1,
            "data.train": str(shared / "data/gsm8k_train.jsonl"),
            "data.rows": "gsm8k",
            "data.template": "tokenizer",
            "data.max_rows": 80,
            "data.max_length": 256,
            "optimizer.learning_rate": 1e-5,
            "train.global_batch": 8,
            "train.steps": 10,
            "log.tensorboard": False,
        }
    )
    run = api.train(config, tmp_path / "run")
    assert int(run.state.step) == 10
    export(run.state.params, run.model, folder, tmp_path / "export", dtype="float32")
    for ids in prompts(folder, tokenizer)[:2]:
        tokens_BL = np.array([ids], np.int32)
        # In float64, so that what is measured is our rounding alone: in float32 each side adds its
        # own.
        found_BLV = torch_logits(tmp_path / "export", tokens_BL, torch.float64)
        expected_BLV = jax_logits(run.state.params, run.model, tokens_BL)
        assert np.abs(found_BLV - expected_BLV).max() <= TOLERANCE
        assert np.abs(found_BLV - torch_logits(folder, tokens_BL)).max() > 0.1, (
            "training changed nothing"
        )
