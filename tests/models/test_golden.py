"""Every architecture against `transformers`: logits, bytes out again, causality, packing, eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dft_jax import models
from dft_jax.models import hf
from dft_jax.types import Batch
from tests.conftest import GOLDEN

CASES = sorted(file.parent.name for file in GOLDEN.glob("*/logits.npz"))


def logits_of(case, mesh, tokens_BL, segments_BL=None, positions_BL=None, **options):
    """Logits [B, L, V] of a golden checkpoint, all kinds of options at their defaults."""
    config = hf.read_config(GOLDEN / case)
    model = models.build(config, mesh, **options)
    checkpoint = hf.Checkpoint(GOLDEN / case)
    hf.check_tensors(checkpoint, model)
    params = hf.load_params(checkpoint, model)
    B, L = tokens_BL.shape
    if segments_BL is None:
        segments_BL = np.ones((B, L), np.int32)
        positions_BL = np.broadcast_to(np.arange(L, dtype=np.int32), (B, L))
    batch = Batch(tokens_BL, tokens_BL, np.ones((B, L), bool), segments_BL, positions_BL)

    @jax.jit
    def run(params, batch):
        hidden_BLD = model.apply(params, batch)
        return jnp.einsum("BLD,VD->BLV", hidden_BLD, models.head(params).astype(hidden_BLD.dtype))

    return np.asarray(run(params, batch))


@pytest.fixture(scope="module")
def golden():
    return {case: dict(np.load(GOLDEN / case / "logits.npz")) for case in CASES}


def test_there_are_cases_for_every_family():
    families = {hf.read_json(GOLDEN / case / "config.json")["model_type"] for case in CASES}
    assert families == set(models.hf.FAMILIES)


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
