"""Every registered objective: finite, zero where masked, and with the weights of its paper."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dft_jax.losses import objectives
from dft_jax.runtime import errors
from dft_jax.types import TokenStats

NAMES = sorted(objectives.OBJECTIVES)
P = np.array([1e-30, 1e-8, 1e-3, 0.1, 0.2, 0.5, 0.9, 1 - 1e-7, 1.0])


def stats_of(logp, **costly):
    """One example a row. The reference is the model itself unless given, so its divergence is 0."""
    logp = jnp.atleast_2d(logp)
    zeros = jnp.zeros_like(logp)
    stats = TokenStats(
        logp_BL=logp,
        entropy_BL=zeros,
        correct_BL=jnp.zeros_like(logp, bool),
        examples_BL=jnp.ones_like(logp, int),
        reference_logp_BL=jax.lax.stop_gradient(logp),
        kl_BL=zeros,
        top_entropy_BL=zeros + 1,
    )
    return dataclasses.replace(stats, **costly)


def weights(spec, p=P):
    """-d loss / d log p: what the objective multiplies SFT's gradient by."""
    with jax.enable_x64(True):
        objective = objectives.make_objective(spec)
        return -np.asarray(jax.grad(lambda logp: objective(stats_of(logp)).sum())(jnp.log(p)))


@pytest.mark.parametrize("name", NAMES)
def test_finite_from_p_near_zero_to_one(name):
    logp = jnp.array([-1e4, -80.0, -5.0, -1e-7, 0.0], jnp.float32)
    objective = objectives.make_objective(name)
    value, gradient = jax.value_and_grad(lambda x: objective(stats_of(x)).sum())(logp)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", NAMES)
def test_only_those_that_say_so_depend_on_other_tokens(name):
    """The others get their gradients token by token, before the rest of the batch is known."""
    objective = objectives.make_objective(name)
    logp = jnp.array([-0.5, -2.0, -0.1, -3.0])
    reference_logp = jnp.full((1, 4), -1.0)
    before = objective(stats_of(logp, reference_logp_BL=reference_logp))
    after = objective(stats_of(logp.at[1].set(-9.0), reference_logp_BL=reference_logp))
    is_same = np.asarray(before == after)[0, [0, 2, 3]]
    depends_on_others = objectives.OTHER_TOKENS in objective.needs
    assert is_same.all() == (not depends_on_others)


@pytest.mark.parametrize("name", NAMES)
def test_zero_where_masked(name):
    """token_stats gives log p = 0 at untrained positions; every objective must be 0 there."""
    np.testing.assert_array_equal(
        objectives.make_objective(name)(stats_of(jnp.zeros((2, 3)))), np.zeros((2, 3))
    )


@pytest.mark.parametrize(
    "spec, expected",
    [
        ("sft", np.ones_like(P)),
        ("dft", P),
        ("power(alpha=0.5)", np.sqrt(P)),
        ("power(alpha=3)", P**3),
        ("threshold(tau=0.2)", (P >= 0.2 * (1 - 1e-12)).astype(float)),
        ("floored_dft(floor=0.1)", np.maximum(P, 0.1)),
        ("mixed(alpha=0.7)", 0.7 * P + 0.3),
        ("asft", P),
        ("iw_sft", np.ones_like(P)),
        ("eaft", np.full_like(P, 1 / np.log(20))),
        ("talr", np.maximum(P ** (-1 / np.log(0.2)), 0.01)),  # 0.2 is the median of P
    ],
)
def test_weights(spec, expected):
    # log then exp must not push 0.2 below the threshold
    p = np.where(P == 0.2, 0.2 * (1 + 1e-12), P)
    np.testing.assert_allclose(weights(spec, p), expected, rtol=1e-10)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 2.0, 10.0])
def test_power_has_the_gradient_of_its_closed_form(alpha):
    with jax.enable_x64(True):
        logp = jnp.log(P[2:])
        closed = jax.grad(lambda x: ((1 - jnp.exp(alpha * x)) / alpha).sum())(logp)
        np.testing.assert_allclose(-weights(f"power(alpha={alpha})", P[2:]), closed, rtol=1e-10)


@pytest.mark.parametrize(
    "spec, same",
    [
        ("power(alpha=0)", "sft"),
        ("power(alpha=1)", "dft"),
        ("mixed(alpha=0)", "sft"),
        ("mixed(alpha=1)", "dft"),
        ("floored_dft(floor=0)", "dft"),
        ("threshold(tau=0)", "sft"),
    ],
)
def test_the_family_meets_at_its_ends(spec, same):
    np.testing.assert_allclose(weights(spec), weights(same), rtol=1e-12)


@pytest.mark.parametrize(
    "spec, words",
    [
        ("dtf", "did you mean 'dft'"),
        ("power(beta=1)", "no parameter 'beta'; known: alpha"),
        ("power(alpha=-1)", "at least 0"),
        ("power(alpha=nan)", "alpha must be"),
        ("mixed(alpha=2)", "between 0 and 1"),
        ("mixed(alpha=)", "alpha must be"),
        ("dft(", "expected a name"),
        ("sft(alpha=1)", "known: none"),
    ],
)
def test_bad_specs(spec, words):
    with pytest.raises(errors.UserError, match=words.replace("(", r"\(")):
        objectives.make_objective(spec)


@pytest.mark.parametrize("spec", ["sentence", "geometric"])
def test_weights_of_whole_examples(spec):
    """Two examples in a row, an untrained token between them, and another row beside it."""
    logp_BL = jnp.array([[-1.0, -2.0, 0.0, -3.0, -1.0], [-0.5, 0.0, 0.0, 0.0, 0.0]])
    examples_BL = jnp.array([[1, 1, 0, 2, 2], [3, 0, 0, 0, 0]])
    stats = dataclasses.replace(stats_of(logp_BL), examples_BL=examples_BL)
    weight_BL = -jax.grad(
        lambda x: objectives.make_objective(spec)(dataclasses.replace(stats, logp_BL=x)).sum()
    )(logp_BL)
    share = 1.0 if spec == "sentence" else 0.5
    expected = np.exp([[-3 * share, -3 * share, 0, -4 * share, -4 * share], [-0.5, 0, 0, 0, 0]])
    trained = np.asarray(examples_BL) > 0
    np.testing.assert_allclose(np.asarray(weight_BL)[trained], expected[trained], rtol=1e-6)


def test_asft_adds_the_divergence():
    kl_BL = jnp.array([[0.0, 2.0]])
    logp = jnp.array([-1.0, -0.5])
    stats = stats_of(logp, kl_BL=kl_BL)
    with_divergence = objectives.make_objective("asft(kl=0.3)")(stats)
    found = with_divergence - objectives.make_objective("dft")(stats)
    np.testing.assert_allclose(found, 0.3 * kl_BL, rtol=1e-6)


# What a name alone stands for: the values that the papers run with, or that method overviews name
# first.
DEFAULTS = {
    "sft": {},
    "dft": {},
    "power": {"alpha": 0.5},
    "threshold": {"tau": 0.2},
    "floored_dft": {"floor": 0.1},
    "mixed": {"alpha": 0.75},
    "sentence": {},
    "geometric": {},
    "asft": {"kl": 0.05},
    "iw_sft": {"largest": 16.0},
    "eaft": {},
    "talr": {"floor": 0.01},
}


def test_defaults_are_those_that_were_published():
    found = {}
    for name, registered in objectives.OBJECTIVES.items():
        parameters = inspect.signature(registered.loss).parameters
        found[name] = {key: parameters[key].default for key in parameters if key != "stats"}
        assert found[name].keys() >= registered.ranges.keys()
    assert found == DEFAULTS


@pytest.mark.parametrize("ratio, expected", [(0.5, np.exp(0.5)), (-2.0, np.exp(-2.0)), (5.0, 16.0)])
def test_iw_sft_weights_by_the_mean_ratio_of_the_sequence(ratio, expected):
    """Ratios of a token vary around their mean; exp(5) is beyond the clip at 16."""
    logp = jnp.array([-1.0, -2.0, -3.0])
    stats = stats_of(
        logp, reference_logp_BL=jnp.atleast_2d(logp - ratio + jnp.array([-1.0, 0.0, 1.0]))
    )
    np.testing.assert_allclose(
        objectives.make_objective("iw_sft")(stats), -expected * stats.logp_BL, rtol=1e-6
    )


def test_talr_knows_no_untrained_tokens():
    """The median is over the trained ones, and a batch with none is no NaN."""
    logp_BL = jnp.array([[-1.0, -2.0, -3.0, 0.0, 0.0, 0.0]])
    stats = dataclasses.replace(stats_of(logp_BL), examples_BL=jnp.array([[1, 1, 2, 0, 0, 0]]))
    expected = -jnp.exp(logp_BL / 2) * logp_BL
    np.testing.assert_allclose(objectives.make_objective("talr")(stats), expected, rtol=1e-6)
    nothing = dataclasses.replace(stats_of(jnp.zeros((1, 3))), examples_BL=jnp.zeros((1, 3), int))
    np.testing.assert_array_equal(objectives.make_objective("talr")(nothing), np.zeros((1, 3)))
