"""Every architecture against `transformers`: logits, bytes out again, causality, packing, eight
devices.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dft_jax.models.families import FAMILIES
from dft_jax.models.hf.load import check_tensors, load_params
from dft_jax.models.hf.locate import read_config
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.model import build, head
from dft_jax.runtime import files
from dft_jax.types import Batch
from tests.conftest import GOLDEN
from tests.marks import slow_but

CASES = sorted(file.parent.name for file in GOLDEN.glob("*/logits.npz"))


def logits_of(case, mesh, tokens_BL, segments_BL=None, positions_BL=None, **options):
    """Logits [B, L, V] of a golden checkpoint, all kinds of options at their defaults."""
    config = read_config(GOLDEN / case)
    model = build(config, mesh, **options)
    checkpoint = Checkpoint(GOLDEN / case)
    check_tensors(checkpoint, model)
    params = load_params(checkpoint, model)
    B, L = tokens_BL.shape
    if segments_BL is None:
        segments_BL = np.ones((B, L), np.int32)
        positions_BL = np.broadcast_to(np.arange(L, dtype=np.int32), (B, L))
    batch = Batch(tokens_BL, tokens_BL, np.ones((B, L), bool), segments_BL, positions_BL)

    @jax.jit
    def run(params, batch):
        hidden_BLD = model.apply(params, batch)
        return jnp.einsum("BLD,VD->BLV", hidden_BLD, head(params).astype(hidden_BLD.dtype))

    return np.asarray(run(params, batch))


@pytest.fixture(scope="module")
def golden():
    return {case: dict(np.load(GOLDEN / case / "logits.npz")) for case in CASES}


def test_there_are_cases_for_every_family():
    found = {files.read_json(GOLDEN / case / "config.json")["model_type"] for case in CASES}
    assert found == set(FAMILIES)


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case, golden, mesh1):
    tokens_BL, expected_BLV = golden[case]["token_ids"], golden[case]["logits"]
    found_BLV = logits_of(case, mesh1, tokens_BL, attention_block=64)
    context = 32  # original context of the golden models: 1e-4 to four times it, 1e-3 beyond
    error_L = np.abs(found_BLV - expected_BLV).max(axis=(0, 2))
    assert np.abs(expected_BLV).max() > 1.0, "logits too small for the comparison to mean anything"
    assert error_L[: 4 * context].max() <= 1e-4
    if len(error_L) > 4 * context:
        assert error_L[4 * context :].max() <= 1e-3


# One case of each family, which has the family's name unless another says more: a tied head, scaled
# positions.
_OTHER_NAMES = {"qwen2": "qwen2_tied", "llama": "llama3", "gemma3_text": "gemma3"}
FAMILY_CASES = [_OTHER_NAMES.get(family, family) for family in FAMILIES]


@pytest.mark.parametrize(
    "case",
    slow_but(["qwen3", "qwen3_moe"], FAMILY_CASES, slow=["qwen2_5_vl", "smollm3", "mixtral"]),
)
def test_eight_devices_give_the_same_logits(case, golden, mesh8):
    tokens_BL = np.tile(golden[case]["token_ids"][:1, :48], (4, 1))
    found_BLV = logits_of(case, mesh8, tokens_BL, attention_block=32)
    np.testing.assert_allclose(found_BLV[0], golden[case]["logits"][0, :48], atol=1e-4)
    np.testing.assert_allclose(found_BLV[3], found_BLV[0], atol=1e-5)


@pytest.mark.parametrize(
    "case",
    slow_but(["mistral"], FAMILY_CASES, slow=["qwen2_5_vl", "qwen3_moe"]),
)
def test_packed_equals_separate(case, golden, mesh1):
    """Rows `a a a a a b b b - -` against a and b alone: same logits, whatever the padding holds."""
    tokens_L = golden[case]["token_ids"][0]
    first, second, length = 21, 14, 40
    packed_BL = np.full((1, length), 5, np.int32)
    packed_BL[0, :first], packed_BL[0, first : first + second] = (
        tokens_L[:first],
        tokens_L[100 - second : 100] if len(tokens_L) >= 100 else tokens_L[-second:],
    )
    segments_BL = np.array([[1] * first + [2] * second + [0] * (length - first - second)], np.int32)
    positions_BL = np.concatenate([np.arange(first), np.arange(second), np.zeros(5)])[None].astype(
        np.int32
    )
    together_BLV = logits_of(case, mesh1, packed_BL, segments_BL, positions_BL, attention_block=16)
    alone_BLV = logits_of(case, mesh1, packed_BL[:, :first], attention_block=16)
    np.testing.assert_allclose(together_BLV[:, :first], alone_BLV, atol=2e-5)
    alone_BLV = logits_of(case, mesh1, packed_BL[:, first : first + second], attention_block=16)
    np.testing.assert_allclose(together_BLV[:, first : first + second], alone_BLV, atol=2e-5)


@pytest.mark.parametrize("case", slow_but(["llama3"], FAMILY_CASES, slow=["mistral", "smollm3"]))
def test_causal(case, golden, mesh1):
    tokens_BL = golden[case]["token_ids"][:1, :40].copy()
    before_BLV = logits_of(case, mesh1, tokens_BL, attention_block=16)
    tokens_BL[0, 25] = (tokens_BL[0, 25] + 1) % 90
    after_BLV = logits_of(case, mesh1, tokens_BL, attention_block=16)
    np.testing.assert_array_equal(before_BLV[:, :25], after_BLV[:, :25])
    assert np.abs(before_BLV[:, 25] - after_BLV[:, 25]).max() > 0.1


@pytest.mark.parametrize("remat", slow_but([], ["dots", "full"], slow=["full"]))
def test_rematerialisation_changes_nothing(remat, golden, mesh1):
    tokens_BL = golden["qwen2_tied"]["token_ids"][:, :24]
    config = read_config(GOLDEN / "qwen2_tied")
    segments_BL = np.ones_like(tokens_BL)
    positions_BL = np.arange(24, dtype=np.int32)[None]
    batch = Batch(tokens_BL, tokens_BL, segments_BL > 0, segments_BL, positions_BL)
    results = []
    for policy in ("none", remat):
        model = build(config, mesh1, remat=policy)
        params = load_params(Checkpoint(GOLDEN / "qwen2_tied"), model)
        results.append(
            jax.jit(jax.grad(lambda p, model=model: (model.apply(p, batch) ** 2).sum()))(params)
        )
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)


def test_factors_of_longrope_follow_from_each_example_alone(golden, mesh1):
    """Examples of 20 to 48 tokens in one row, on both sides of the original context of 32: each has
    the logits that transformers gives for it alone, and so in a row by itself.
    """
    texts = dict(np.load(GOLDEN / "phi3_long/texts.npz"))
    lengths = [48, 20, 33, 32]
    tokens_L = golden["phi3_long"]["token_ids"][0]
    padding = 7
    rows = [[tokens_L[:length] for length in lengths], *([tokens_L[:length]] for length in lengths)]
    shape = (len(rows), sum(lengths) + padding)
    tokens_BL, segments_BL, positions_BL = np.zeros((3, *shape), np.int32)
    for row, examples in enumerate(rows):
        start = 0
        for number, example in enumerate(examples):
            here = slice(start, start + len(example))
            tokens_BL[row, here], segments_BL[row, here] = example, number + 1
            positions_BL[row, here] = np.arange(len(example))
            start = here.stop
    found_BLV = logits_of(
        "phi3_long", mesh1, tokens_BL, segments_BL, positions_BL, attention_block=16
    )
    start = 0
    for row, length in enumerate(lengths, start=1):
        expected_LV = texts[f"logits_{length}"]
        np.testing.assert_allclose(found_BLV[0, start : start + length], expected_LV, atol=1e-4)
        np.testing.assert_allclose(found_BLV[row, :length], expected_LV, atol=1e-4)
        start += length
    # Else the comparison would say nothing: one token more changes what all others give.
    assert np.abs(texts["logits_33"][:32] - texts["logits_32"]).max() > 0.1


def test_rope_scaling_in_both_schemas_is_the_same():
    old, new = read_config(GOLDEN / "llama3_oldschema"), read_config(GOLDEN / "llama3")
    assert old == new
    rope = old.layers[0].rope
    assert rope.type == "llama3" and rope.factor == 8.0
