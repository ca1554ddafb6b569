"""Live against torch: committed golden logits, and exported folders in `transformers`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dft_jax.models.hf.load import load_params
from dft_jax.models.model import build, head

torch = pytest.importorskip("torch")
import transformers

from dft_jax import assets
from dft_jax.models.hf.config_reader import ConfigReader
from dft_jax.models.hf.export import export
from dft_jax.models.hf.locate import read_config
from dft_jax.models.hf.provenance import Origin
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.layers import rope_frequencies
from dft_jax.types import Batch
from tests.conftest import GOLDEN

CASES = sorted(file.parent.name for file in GOLDEN.glob("*/logits.npz"))
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def one_thread():
    """The threads of torch and of eight jax devices would fight over the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def golden_tokens(case) -> np.ndarray:
    """Token ids [B, L] of a golden case, at most 128 of a row: four times the context of these
    models.
    """
    return np.load(GOLDEN / case / "logits.npz")["token_ids"][:, :128]


def torch_logits(folder, tokens_BL, dtype=torch.float32) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        return (
            model(torch.tensor(tokens_BL, dtype=torch.long), use_cache=False).logits.float().numpy()
        )


def jax_logits(params, model, tokens_BL) -> np.ndarray:
    B, L = tokens_BL.shape
    positions_BL = np.broadcast_to(np.arange(L, dtype=np.int32), (B, L))
    batch = Batch(
        tokens_BL, tokens_BL, np.ones((B, L), bool), np.ones((B, L), np.int32), positions_BL
    )

    @jax.jit
    def run(params):
        return jnp.einsum("BLD,VD->BLV", model.apply(params, batch), head(params))

    return np.asarray(run(params))


YARN = [
    dict(factor=4.0, original_max_position_embeddings=32768),  # Qwen2.5
    dict(
        factor=16.0,
        original_max_position_embeddings=4096,
        truncate=False,
        beta_fast=24,
        beta_slow=2,
    ),
    dict(factor=40.0, original_max_position_embeddings=4096, mscale=1.0, mscale_all_dim=0.707),
    dict(factor=2.0, original_max_position_embeddings=5, attention_factor=1.1),
]


@pytest.mark.parametrize("scaling", YARN)
@pytest.mark.parametrize("theta, head_dim", [(1e6, 128), (1e4, 64), (1e3, 24)])
def test_yarn_frequencies_are_those_of_transformers(scaling, theta, head_dim):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = scaling | {"rope_type": "yarn", "rope_theta": theta}
    sizes = dict(hidden_size=2 * head_dim, num_attention_heads=2, max_position_embeddings=32768)
    theirs, factor = ROPE_INIT_FUNCTIONS["yarn"](
        transformers.Qwen2Config(**sizes, rope_parameters=dict(scaling))
    )
    reader = ConfigReader({"rope_parameters": scaling}, "config.json")
    rope = reader.rope(32768)
    assert not reader.problems
    assert rope.attention_factor == factor
    np.testing.assert_allclose(rope_frequencies(rope, head_dim), theirs.numpy(), rtol=5e-7)


def perturbed_golden(case, mesh):
    """(params, model): a golden checkpoint with every parameter moved, as a fine-tuning run would
    have left it.
    """
    model = build(read_config(GOLDEN / case), mesh)
    params = load_params(Checkpoint(GOLDEN / case), model)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    moved = [
        leaf + 0.05 * jax.random.normal(key, leaf.shape)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.device_put(
        jax.tree.unflatten(tree, moved), jax.tree.map(lambda leaf: leaf.sharding, params)
    ), model


@pytest.mark.parametrize("case", CASES)
def test_committed_golden_logits_are_those_of_transformers(case):
    golden = np.load(GOLDEN / case / "logits.npz")
    fresh_BLV = torch_logits(GOLDEN / case, golden["token_ids"])
    np.testing.assert_allclose(golden["logits"], fresh_BLV, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_an_exported_folder_gives_the_logits_of_the_params_in_memory(case, mesh1, tmp_path):
    tokens_BL = golden_tokens(case)
    params, model = perturbed_golden(case, mesh1)
    export(params, model, GOLDEN / case, tmp_path / "export", dtype="float32")
    found_BLV = torch_logits(tmp_path / "export", tokens_BL)
    assert np.abs(found_BLV - jax_logits(params, model, tokens_BL)).max() <= TOLERANCE
    assert np.abs(found_BLV - torch_logits(GOLDEN / case, tokens_BL)).max() > 0.1, (
        "the golden model itself"
    )


@pytest.mark.parametrize("case", ["qwen2_tied", "llama_attention_bias", "qwen3"])
def test_a_sharded_export_from_eight_devices_gives_the_same_logits(case, mesh1, mesh8, tmp_path):
    tokens_BL = golden_tokens(case)
    params, model = perturbed_golden(case, mesh8)
    export(params, model, GOLDEN / case, tmp_path / "export", dtype="float32", max_shard_gb=2e-5)
    assert len(list((tmp_path / "export").glob("model-*-of-*.safetensors"))) > 2
    single, single_model = perturbed_golden(case, mesh1)
    expected_BLV = jax_logits(single, single_model, tokens_BL)
    assert np.abs(torch_logits(tmp_path / "export", tokens_BL) - expected_BLV).max() <= TOLERANCE


@pytest.mark.parametrize("case", ["qwen2_untied", "qwen2_oldschema", "llama3_oldschema"])
def test_a_bfloat16_export_holds_the_rounded_params_and_says_so(case, mesh1, tmp_path):
    tokens_BL = golden_tokens(case)
    params, model = perturbed_golden(case, mesh1)
    export(params, model, GOLDEN / case, tmp_path / "export", dtype="bfloat16")
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), params)
    found_BLV = torch_logits(tmp_path / "export", tokens_BL)
    assert np.abs(found_BLV - jax_logits(rounded, model, tokens_BL)).max() <= TOLERANCE
    as_named = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype="auto")
    assert as_named.dtype == torch.bfloat16


def test_the_tokenizer_of_an_export_is_that_of_its_source(mesh1, tmp_path):
    model = build(read_config(assets.TINY), mesh1)
    export(
        model.init(jax.random.key(0)),
        model,
        assets.TINY,
        tmp_path / "export",
        origin=Origin(init="random"),
    )
    source = transformers.AutoTokenizer.from_pretrained(assets.TINY)
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    text = "Ada has 12 apples – naïve 'quotes', \n\ttabs and <|endoftext|> 日本"
    messages = [{"role": "user", "content": text}]
    assert exported(text) == source(text)
    assert exported.get_vocab() == source.get_vocab()
    assert (exported.eos_token_id, exported.pad_token_id) == (
        source.eos_token_id,
        source.pad_token_id,
    )
    rendered = [
        t.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for t in (source, exported)
    ]
    assert rendered[0] == rendered[1] and text in rendered[0]
