"""The loss that balances experts, against transformers' and in training; and what is reported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dft_jax import config as config_lib, sharding
from dft_jax.losses import objectives
from dft_jax.models import model as models, moe, routing
from dft_jax.models.hf.locate import read_config
from dft_jax.runtime import errors
from dft_jax.training import adapters, metrics
from dft_jax.training.step import make_loss
from tests.conftest import GOLDEN
from tests.models.attention.test_sequence import random_batch

E, S, LAYERS = 6, 2, 3
# Of the logits and mask of `drawn`, by load_balancing_loss_func of transformers 5.24 (Mixtral's).
BY_TRANSFORMERS, WITHOUT_MASK = 2.0628843, 2.1166830


def drawn():
    """Router logits of each layer, and which positions are no padding."""
    rng = np.random.default_rng(3)
    logits = [rng.normal(size=(2 * 5, E)) * 2 for _ in range(LAYERS)]
    return np.array(logits).reshape(LAYERS, 2, 5, E), np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])


def by_loops(logits_XBLE, is_token_BL, per_token):
    """As transformers has it, in numpy: all tokens of all layers together."""
    n_experts = logits_XBLE.shape[-1]
    pairs_E, shares_E, n_tokens = np.zeros(n_experts), np.zeros(n_experts), 0
    for logits_BLE in logits_XBLE:
        for logits_E in logits_BLE[np.asarray(is_token_BL, bool)]:
            exp_E = np.exp(np.float64(logits_E) - logits_E.max())
            share_E = exp_E / exp_E.sum()
            pairs_E[np.argsort(-share_E)[:per_token]] += 1
            shares_E += share_E
            n_tokens += 1
    return n_experts * np.sum(pairs_E / n_tokens * shares_E / n_tokens)


def ours(logits_XBLE, is_token_BL):
    sums = []
    for logits_BLE in logits_XBLE:
        chosen_BLS = jax.lax.top_k(logits_BLE, S)[1]
        sums.append(routing.row_sums(jnp.asarray(logits_BLE), chosen_BLS, is_token_BL))
    pairs_XBE, shares_XBE = (jnp.stack(each) for each in zip(*sums, strict=True))
    return routing.balance(routing.Routing(pairs_XBE, shares_XBE), S)


def test_balance_is_that_of_transformers():
    with jax.enable_x64(True):
        logits_XBLE, is_token_BL = drawn()
        everywhere_BL = np.ones_like(is_token_BL)
        for mask_BL, expected in ((is_token_BL, BY_TRANSFORMERS), (everywhere_BL, WITHOUT_MASK)):
            assert by_loops(logits_XBLE, mask_BL, S) == pytest.approx(expected, rel=1e-6)
            found = ours(jnp.asarray(logits_XBLE), jnp.asarray(mask_BL, bool))
            np.testing.assert_allclose(found, by_loops(logits_XBLE, mask_BL, S), rtol=1e-12)


def test_balance_of_even_and_of_one_sided_routing():
    even = routing.Routing(jnp.full((2, 1, 4), 6), jnp.full((2, 1, 4), 3.0))
    assert routing.balance(even, 2) == pytest.approx(2)
    one_sided = routing.Routing(jnp.array([[[12, 0, 0, 0]]]), jnp.array([[[12.0, 0, 0, 0]]]))
    assert routing.balance(one_sided, 1) == pytest.approx(4)
    assert routing.balance(routing.Routing(0 * even.pairs_XBE, 0 * even.shares_XBE), 2) == 0


def test_what_is_reported():
    sums = {
        "expert_pairs": np.array([[4, 0, 0, 4], [2, 2, 2, 2]], np.int32),
        "balance": np.float32(10.0),
        "routed_tokens": np.float32(4.0),
    }
    found = metrics.of_experts(sums)
    expected = {"busiest_load": 1.5, "idle_share": 0.25, "balance": 2.5}
    assert found == {f"experts/{name}": value for name, value in expected.items()}
    assert metrics.of_experts({"loss": 1.0}) == {}


@pytest.mark.parametrize(
    "family, rank, words",
    [("llama3", 0, "no experts"), ("mixtral", 2, "routers are frozen"), ("mixtral", 0, "")],
)
def test_what_would_balance_nothing_is_refused(family, rank, words):
    config = config_lib.get_default()
    config.train.balance_weight, config.lora.rank = 0.1, rank
    model = models.build(read_config(GOLDEN / family), sharding.abstract_mesh((1, 1, 1)))
    model = adapters.with_adapters(config, model)
    if not words:
        adapters.refuse_idle_balance(config, model)
        return
    with pytest.raises(errors.UserError, match=words) as refusal:
        adapters.refuse_idle_balance(config, model)
    assert "config.train.balance_weight=0.1" in str(refusal.value)


@pytest.mark.slow
def test_a_balanced_step_adds_the_mean_over_its_micro_batches(mesh1, monkeypatch):
    """The router's logits are caught, and put together by loops; a weight of 0 adds nothing."""
    caught = []
    summed = routing.row_sums

    def catching(logits_BLE, chosen_BLS, is_token_BL):
        jax.debug.callback(lambda *x: caught.append(x), logits_BLE, is_token_BL, ordered=False)
        return summed(logits_BLE, chosen_BLS, is_token_BL)

    monkeypatch.setattr(moe.routing, "row_sums", catching)
    with jax.enable_x64(True):
        spec = read_config(GOLDEN / "mixtral")
        model = models.build(spec, mesh1, param_dtype="float64", compute_dtype="float64")
        params = jax.jit(model.init)(jax.random.key(0))
        params = jax.tree.map(lambda x: 20 * x, params)  # else all experts are about the same
        caught.clear()
        batch = random_batch(spec, rows=2, length=16)
        batch.segments_BL[:, -5:] = 0
        dft = objectives.make_objective("dft")
        n_tokens, found = (batch.segments_BL > 0).sum(), []
        for weight in (0.0, 0.3):
            loss = jax.jit(make_loss(model, dft, 8, weight))
            found.append(loss(params, batch, 1.0, None, 5 * n_tokens))
            jax.effects_barrier()
        (plain, plain_sums), (balanced, sums) = found
    layers = caught[: spec.num_layers]
    logits_XBLE = np.array([logits for logits, _ in layers])
    expected = by_loops(logits_XBLE, layers[0][1], spec.experts.per_token)
    np.testing.assert_allclose(balanced - plain, 0.3 * expected / 5, rtol=1e-9)
    # A callback hands the logits over in float32 (jax 0.10.2).
    np.testing.assert_allclose(sums["balance"], expected * n_tokens, rtol=1e-9)
    assert plain_sums["loss"] == sums["loss"] == plain
