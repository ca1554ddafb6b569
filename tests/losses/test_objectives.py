"""Every registered objective: finite, zero where masked, and with the weights of its paper."""

import dataclasses
import inspect
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dft_jax.losses import objectives
from dft_jax.runtime import calls, errors
from dft_jax.types import TokenStats
from tests.losses.test_fused import PRODUCTS

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
        concentration_BL=zeros + 0.5,
        # No token is less probable than the target.
        reference_mass_BL=jax.lax.stop_gradient(jnp.exp(logp)),
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
        ("eaft(alpha=2)", np.full_like(P, 1 / np.log(20) ** 2)),
        ("eaft(alpha=0)", np.ones_like(P)),
        ("talr", np.maximum(P ** (-1 / np.log(0.2)), 0.01)),  # 0.2 is the median of P
        ("chord_phi", P * (1 - P)),
        ("deft", np.sqrt(P)),  # the concentration is 0.5
        ("idft", np.where(P <= 0.5, P**2, P ** (1 / P))),  # the entropy is 0
        ("trsft", np.minimum(1, P / 0.1)),
        ("trsft(alpha=0.4)", np.minimum(1, P / 0.4)),
        ("prift_prob", P),  # the reference is the model itself
        ("prift_mass", (P >= 0.5).astype(float)),
        ("prift_mass(tau=0.1)", (P >= 0.1).astype(float)),
    ],
)
def test_weights(spec, expected):
    # log then exp must not push 0.2 below the threshold
    p = np.where(P == 0.2, 0.2 * (1 + 1e-12), P)
    np.testing.assert_allclose(weights(spec, p), expected, rtol=1e-10)


def test_infosft_has_the_weights_of_its_paper():
    """Worked out by hand from logit(0.93) = 2.5867; 0 from 0.93 on, and no NaN at p = 1."""
    p = np.array([1e-30, 1e-4, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.92999])
    values = [2.8e-29, 4.6e-4, 0.0278, 0.185, 0.398, 0.5, 0.471, 0.136, 5.5e-5]
    np.testing.assert_allclose(weights("infosft", p), values, rtol=0.02)
    found = weights("infosft", np.array([0.93, 0.930001, 0.94, 0.95, 0.97, 0.99, 0.999, 1, 1]))
    np.testing.assert_array_equal(found, np.zeros(9))
    # Its largest is 0.508, at p = 0.568.
    found = weights("infosft", 0.568 + 0.001 * np.arange(-4, 5))
    assert found.argmax() == 4 and round(found.max(), 3) == 0.508


def test_cayley_without_a_floor_is_nearly_sft():
    """Its smallest weight is 0.793 (p = 0.464); with a floor rare tokens lose theirs."""
    found = weights("cayley(floor=0)", 0.464 + 0.01 * np.arange(-4, 5))
    assert found.argmin() == 4 and round(found.min(), 3) == 0.793
    assert (weights("cayley(floor=0)") >= 0.793).all()
    # The mean of p is 0.8, so the floor is at 0.4.
    found = weights("cayley", np.array([0.001, *[1.0] * 7, 0.199]))
    np.testing.assert_allclose(found[0], 0.063, atol=6e-4)


def test_cayley_knows_no_untrained_tokens():
    """The mean is over the trained ones, and a batch with none is no NaN."""
    logp_BL = jnp.log(jnp.array([[0.2, 0.6, 1.0, 1.0]]))
    stats = dataclasses.replace(stats_of(logp_BL), examples_BL=jnp.array([[1, 2, 0, 0]]))
    alone = objectives.make_objective("cayley")(stats_of(logp_BL[:, :2]))
    found = objectives.make_objective("cayley")(stats)
    np.testing.assert_allclose(found[:, :2], alone, rtol=1e-6)
    nothing = dataclasses.replace(stats_of(jnp.zeros((1, 3))), examples_BL=jnp.zeros((1, 3), int))
    np.testing.assert_array_equal(objectives.make_objective("cayley")(nothing), np.zeros((1, 3)))


def test_deft_weights_by_how_sure_the_model_is():
    """A hard token is learned where the rest is spread over 1,000, and not against a sure model."""
    stats = stats_of(jnp.log(jnp.array([1e-4, 1e-4])), concentration_BL=jnp.array([[1e-3, 1.0]]))
    weight = objectives.make_objective("deft")(stats) / -stats.logp_BL
    np.testing.assert_allclose(weight, [[10 ** (-0.004), 1e-4]], rtol=1e-5)


@pytest.mark.parametrize(
    "p, entropy, weight",
    [
        (np.exp(-2.0), 2.0, np.exp(-2.0)),  # as likely as the model's own are: DFT
        (np.exp(-9.0), 2.0, np.exp(-18.0)),  # p², not p^exp(7)
        (np.exp(-0.1), 2.0, np.exp(-0.1 * np.exp(-1.9))),  # 0.985
        (np.exp(-0.1), 5.0, np.exp(-0.01)),  # p^0.1, not p^exp(-4.9)
    ],
)
def test_idft_weights_by_how_typical_a_token_is(p, entropy, weight):
    stats = stats_of(jnp.log(jnp.array([p])), entropy_BL=jnp.array([[entropy]]))
    found = objectives.make_objective("idft")(stats) / -stats.logp_BL
    np.testing.assert_allclose(found, [[weight]], rtol=1e-5)


@pytest.mark.parametrize(
    "beta, p_r, share", [(20, 2e-9, 0.5), (20, 1e-6, 0.998), (10, 1e-4, 0.69), (5, 0.1, 0.94)]
)
def test_gift_imitates_what_the_reference_holds_for_possible(beta, p_r, share):
    """λ of the target and 1 - λ of the divergence, whatever p."""
    stats = stats_of(
        jnp.array([-1.0, -7.0]),
        reference_logp_BL=jnp.log(jnp.full((1, 2), p_r)),
        kl_BL=jnp.array([[0.5, 3.0]]),
    )
    found = objectives.make_objective(f"gift(beta={beta})")(stats)
    expected = share * -stats.logp_BL + (1 - share) * stats.kl_BL
    np.testing.assert_allclose(found, expected, rtol=0.015)


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
        ("eaft(alpha=0)", "sft"),
        ("trsft(alpha=1)", "dft"),
        ("trsft(alpha=1e-40)", "sft"),
        ("prift_mass(tau=0)", "sft"),
        ("idft(least=1, most=1)", "dft"),
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
        ("infosft(P=0.5)", "P must be above 0.5 and below 1, not '0.5'"),
        ("infosft(P=1)", "above 0.5 and below 1"),
        ("infosft(p=0.9)", "no parameter 'p'"),
        ("cayley(floor=1.1)", "between 0 and 1"),
        ("idft(beta=0)", "beta must be between 1e-6 and 1e6"),
        ("idft(least=1.5)", "between 0 and 1"),
        ("idft(most=0.9)", "most must be a finite number of at least 1"),
        ("trsft(alpha=0)", "above 0 and at most 1"),
        ("prift_mass(tau=1)", "at least 0 and below 1"),
        ("gift(beta=0)", "above 0 and at most 80"),
        ("gift(beta=81)", "above 0 and at most 80"),
        ("eaft(alpha=-1)", "at least 0"),
        ("deft(a=1)", "known: none"),
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
    "eaft": {"alpha": 1.0},
    "talr": {"floor": 0.01},
    "infosft": {"P": 0.93},
    "chord_phi": {},
    "deft": {},
    "cayley": {"floor": 0.5},
    "idft": {"beta": 1.0, "least": 0.1, "most": 2.0},
    "trsft": {"alpha": 0.1},
    "prift_prob": {},
    "prift_mass": {"tau": 0.5},
    "gift": {"beta": 20.0},
}


def test_the_page_of_objectives_names_each_with_defaults_ranges_and_cost():
    page = pathlib.Path(__file__).parents[2] / "docs/objectives.md"
    rows = {}
    for line in page.read_text("utf-8").splitlines():
        if line.startswith("| `"):
            spec, _, legal, cost, _ = [cell.strip() for cell in line.strip("|").split("|")]
            call = calls.parse(spec.strip("`"))
            rows[call.name] = call.arguments, legal, cost
    assert rows.keys() == objectives.OBJECTIVES.keys()
    for name, (arguments, legal, cost) in rows.items():
        registered = objectives.OBJECTIVES[name]
        assert {key: float(value) for key, value in arguments.items()} == DEFAULTS[name]
        words = [f"`{key}` {range_.words}" for key, range_ in registered.ranges.items()]
        assert legal == "; ".join(words)
        assert cost.startswith(str(PRODUCTS[name]))
        assert ("a reference" in cost) == (objectives.REFERENCE in registered.needs)
        one_more = {objectives.CONCENTRATION, objectives.REFERENCE_MASS} & set(registered.needs)
        assert ("one more sum" in cost) == bool(one_more)


def test_defaults_are_those_that_were_published():
    found = {}
    for name, registered in objectives.OBJECTIVES.items():
        parameters = inspect.signature(registered.loss).parameters
        found[name] = {key: parameters[key].default for key in parameters if key != "stats"}
        assert found[name].keys() >= registered.ranges.keys()
        for key, legal in registered.ranges.items():
            assert legal.is_legal(found[name][key])
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
