"""Every objective pulls the model towards the distribution Q of its definition.

Whatever the loss, its gradient in the logits is π - Q. Here Q is made from full logits by numpy in
float64, by the words of the papers and none of the code's formulas, and π - Q is compared with the
gradient that the fused loss gives. With an identity as head the hidden states are the logits.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from dft_jax import sharding
from dft_jax.losses import devices, fused, objectives
from dft_jax.losses.devices import Inputs, Projection
from dft_jax.types import TokenStats
from tests.conftest import make_mesh
from tests.marks import slow_but

B, V = 8, 64
NAMES = sorted(objectives.OBJECTIVES)
# Parameters besides the published ones.
SPECS = [
    *NAMES,
    "power(alpha=2)",
    "eaft(alpha=2)",
    "asft(kl=0.7)",
    "iw_sft(largest=1.1)",
    "infosft(P=0.7)",
    "cayley(floor=0)",
    "idft(beta=0.5, least=0.8, most=1.2)",
    "trsft(alpha=0.4)",
    "prift_mass(tau=0.1)",
    "gift(beta=3)",
]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Logits of a model and of its reference, [B, L, V], and what is trained."""

    logits_BLV: np.ndarray
    reference_BLV: np.ndarray
    targets_BL: np.ndarray
    mask_BL: np.ndarray
    segments_BL: np.ndarray

    def trained(self):
        """The trained tokens of all rows, one after the other."""
        row_B1 = 1000 * np.arange(len(self.mask_BL))[:, None]
        return Tokens(
            pi_NV=special.softmax(self.logits_BLV[self.mask_BL], axis=-1),
            reference_NV=special.softmax(self.reference_BLV[self.mask_BL], axis=-1),
            onehot_NV=np.eye(V)[self.targets_BL[self.mask_BL]],
            example_N=(row_B1 + self.segments_BL)[self.mask_BL],
        )


@dataclasses.dataclass(frozen=True)
class Tokens:
    """What the model and the reference hold for probable, and what is right."""

    pi_NV: np.ndarray
    reference_NV: np.ndarray
    onehot_NV: np.ndarray
    example_N: np.ndarray

    @property
    def p_N(self):
        return (self.pi_NV * self.onehot_NV).sum(-1)

    @property
    def p_r_N(self):
        return (self.reference_NV * self.onehot_NV).sum(-1)

    def per_example(self, function, values_N):
        """At each token, `function` of the values of its example."""
        of = {e: function(values_N[self.example_N == e]) for e in set(self.example_N)}
        return np.array([of[e] for e in self.example_N])


def problem(length=6):
    """Two examples a row. Half of the targets are what the model prefers, so that p is from nearly
    0 to nearly 1.
    """
    rng = np.random.default_rng(0)
    logits_BLV = 3 * rng.normal(size=(B, length, V))
    reference_BLV = logits_BLV + rng.normal(size=logits_BLV.shape)
    is_best_BL = rng.random((B, length)) < 0.5
    targets_BL = np.where(is_best_BL, logits_BLV.argmax(-1), rng.integers(V, size=(B, length)))
    # Sharper in some places than in others, and once so sharp that p is 1 to the last digit.
    logits_BLV *= rng.uniform(0.3, 2, size=(B, length, 1))
    logits_BLV[0, 0] *= 1000
    mask_BL = rng.random((B, length)) < 0.7
    mask_BL[0, 0], targets_BL[0, 0] = True, logits_BLV[0, 0].argmax()
    mask_BL[1] = False  # a row without trained tokens
    segments_BL = np.broadcast_to(1 + 2 * np.arange(length) // length, mask_BL.shape)
    targets_BL = targets_BL.astype(np.int32)
    return Problem(logits_BLV, reference_BLV, targets_BL, mask_BL, segments_BL)


# ---- the oracle: weights and distributions as the papers write them


def entropy(p_NV):
    return special.entr(p_NV).sum(-1)


def weight_eaft(t, alpha=1.0):
    top_NK = np.sort(t.pi_NV, axis=-1)[:, -20:]
    return (entropy(top_NK / top_NK.sum(-1, keepdims=True)) / np.log(20)) ** alpha


def weight_infosft(t, P=0.93):
    with np.errstate(divide="ignore"):
        return t.p_N * np.maximum(0, 1 - special.logit(t.p_N) / special.logit(P))


def weight_cayley(t, floor=0.5):
    d_N = 1 - t.p_N
    least = floor * t.p_N.mean()
    return t.p_N ** (least + (1 - least) * (1 - d_N) / (1 + d_N))


def weight_idft(t, beta=1.0, least=0.1, most=2.0):
    phi_N = np.log(t.p_N) + entropy(t.pi_NV)
    return t.p_N ** np.clip(np.exp(-phi_N / beta), least, most)


def weight_prift_mass(t, tau=0.5):
    mass_N = []
    for reference_V, p_r in zip(t.reference_NV, t.p_r_N, strict=True):
        mass_N.append(sum(sorted(p for p in reference_V if p < p_r)) + p_r)
    return np.array(mass_N) >= tau


def weight_iw_sft(t, largest=16.0):
    return np.minimum(t.per_example(geometric_mean, t.p_N / t.p_r_N), largest)


def geometric_mean(values):
    return np.prod(values) ** (1 / len(values))


WEIGHTS = {
    "sft": lambda t: np.ones_like(t.p_N),
    "dft": lambda t: t.p_N,
    "power": lambda t, alpha=0.5: t.p_N**alpha,
    "threshold": lambda t, tau=0.2: t.p_N >= tau,
    "floored_dft": lambda t, floor=0.1: np.maximum(t.p_N, floor),
    "mixed": lambda t, alpha=0.75: alpha * t.p_N + 1 - alpha,
    "sentence": lambda t: t.per_example(np.prod, t.p_N),
    "geometric": lambda t: t.per_example(geometric_mean, t.p_N),
    "iw_sft": weight_iw_sft,
    "eaft": weight_eaft,
    "talr": lambda t, floor=0.01: np.maximum(t.p_N ** (-1 / np.median(np.log(t.p_N))), floor),
    "infosft": weight_infosft,
    "deft": lambda t: t.p_N ** (t.pi_NV**2).sum(-1),
    "cayley": weight_cayley,
    "idft": weight_idft,
    "trsft": lambda t, alpha=0.1: t.p_N / np.maximum(t.p_N, alpha),
    "chord_phi": lambda t: t.p_N * (1 - t.p_N),
    "prift_prob": lambda t: t.p_r_N,
    "prift_mass": weight_prift_mass,
}


def target_asft(t, kl=0.05):
    """DFT's share of the target, and kl of the reference."""
    p_N1 = t.p_N[:, None]
    return p_N1 * t.onehot_NV + kl * t.reference_NV + (1 - p_N1 - kl) * t.pi_NV


def target_gift(t, beta=20.0):
    return special.softmax(np.log(t.reference_NV) + beta * t.onehot_NV, axis=-1)


TARGETS = {"asft": target_asft, "gift": target_gift}


def expected(spec, problem):
    """π - Q at the trained tokens, 0 elsewhere: [B, L, V]."""
    name, _, arguments = spec.partition("(")
    parameters = {}
    for part in arguments.rstrip(")").split(","):
        if part:
            key, _, value = part.partition("=")
            parameters[key.strip()] = float(value)
    tokens = problem.trained()
    if name in TARGETS:
        target_NV = TARGETS[name](tokens, **parameters)
    else:
        weight_N1 = WEIGHTS[name](tokens, **parameters)[:, None]
        target_NV = weight_N1 * tokens.onehot_NV + (1 - weight_N1) * tokens.pi_NV
    np.testing.assert_allclose(target_NV.sum(-1), 1, rtol=1e-12)  # it is a distribution
    gradient_BLV = np.zeros_like(problem.logits_BLV)
    gradient_BLV[problem.mask_BL] = tokens.pi_NV - target_NV
    return gradient_BLV


# ---- what is tested


def test_every_objective_has_a_target():
    assert sorted(WEIGHTS | TARGETS) == NAMES


def test_the_problem_has_tokens_of_every_kind():
    """On both sides of every threshold; else the comparisons below would pass over a branch."""
    tokens = problem().trained()
    p_N, mass_N = tokens.p_N, weight_prift_mass(tokens)
    assert p_N.min() < 1e-4 and p_N.max() == 1.0
    for edge in (0.01, 0.1, 0.2, 0.4, 0.5, 0.7, 0.93):
        assert (p_N < edge).any() and (p_N > edge).any()
    assert mass_N.any() and not mass_N.all()
    exponent_N = np.exp(-np.log(p_N) - entropy(tokens.pi_NV))
    assert (exponent_N > 2).any() and ((exponent_N > 0.8) & (exponent_N < 1.2)).any()


@pytest.mark.parametrize("spec", SPECS)
def test_pulls_towards_its_target(spec):
    """From statistics that numpy makes: the objective alone, at no cost of compiling the loss."""
    given = problem()
    tokens = given.trained()
    with np.errstate(divide="ignore"), jax.enable_x64(True):
        logp_N, reference_N = np.log(tokens.p_N), np.log(tokens.p_r_N)
        kl_N = special.rel_entr(tokens.reference_NV, tokens.pi_NV).sum(-1)
        top_NK = np.sort(tokens.pi_NV, axis=-1)[:, -objectives.TOP_TOKENS :]
        is_lower_NV = tokens.reference_NV < tokens.p_r_N[:, None]
        values = dict(
            logp_BL=logp_N,
            entropy_BL=entropy(tokens.pi_NV),
            correct_BL=logp_N > np.log(0.5),
            examples_BL=given.segments_BL[given.mask_BL],
            reference_logp_BL=reference_N,
            kl_BL=np.minimum(kl_N, 1e300),
            top_entropy_BL=entropy(top_NK / top_NK.sum(-1, keepdims=True)),
            concentration_BL=(tokens.pi_NV**2).sum(-1),
            reference_mass_BL=tokens.p_r_N + (tokens.reference_NV * is_lower_NV).sum(-1),
        )
        whole = {}
        for name, value_N in values.items():
            whole[name] = (
                jnp.zeros(given.mask_BL.shape, value_N.dtype).at[given.mask_BL].set(value_N)
            )
        stats = TokenStats(**whole)
        objective = objectives.make_objective(spec)

        def loss(logp_BL, kl_BL):
            seen = dataclasses.replace(stats, logp_BL=logp_BL, kl_BL=kl_BL)
            return jnp.where(given.mask_BL, objective(seen), 0).sum()

        d_logp_BL, d_kl_BL = jax.grad(loss, argnums=(0, 1))(stats.logp_BL, stats.kl_BL)
    d_logp_N1 = np.asarray(d_logp_BL)[given.mask_BL][:, None]
    d_kl_N1 = np.asarray(d_kl_BL)[given.mask_BL][:, None]
    found_NV = d_logp_N1 * (tokens.onehot_NV - tokens.pi_NV)
    found_NV += d_kl_N1 * (tokens.pi_NV - tokens.reference_NV)
    np.testing.assert_allclose(found_NV, expected(spec, given)[given.mask_BL], atol=1e-12)


# Mesh and length of a row: devices along `fsdp` share their rows where these are short.
LAYOUTS = {(1, 1, 1): 6, (2, 2, 2): 16, (1, 4, 2): 6}
SHARES_ROWS = {(1, 1, 1): False, (2, 2, 2): False, (1, 4, 2): True}
FAST = [
    ("deft", (2, 2, 2), "cpu"),
    ("deft", (1, 4, 2), "gpu"),
    ("prift_mass", (1, 4, 2), "cpu"),
    ("cayley", (2, 2, 2), "cpu"),
    ("gift", (1, 1, 1), "cpu"),
]
# Each objective on another mesh and platform than its neighbours.
SLOW = [
    (name, list(LAYOUTS)[number % 3], ("cpu", "gpu")[number % 2])
    for number, name in enumerate(NAMES)
]


@pytest.mark.parametrize(
    "name, mesh, platform",
    slow_but(
        FAST,
        [(name, mesh, on) for name in NAMES for mesh in LAYOUTS for on in ("cpu", "gpu")],
        slow=SLOW,
    ),
)
def test_pulls_towards_its_target_on_every_mesh(name, mesh, platform, monkeypatch):
    """Through the fused loss, by the program of CPUs and TPUs and by that of GPUs."""
    monkeypatch.setattr(sharding, "platform", lambda mesh: platform)
    given, devices_of = problem(LAYOUTS[mesh]), make_mesh(*mesh)
    arguments = (given.targets_BL, given.mask_BL, given.segments_BL)
    with jax.enable_x64(True):
        head_VD = jnp.eye(V, dtype=np.float64)
        hidden_BLD = jnp.asarray(given.logits_BLV)
        inputs = Inputs(Projection(hidden_BLD, head_VD), None, *arguments[:2])
        assert devices.layout_of(inputs, devices_of).shares_rows == SHARES_ROWS[mesh]

        def loss(hidden_BLD):
            return fused.loss_and_stats(
                hidden_BLD,
                head_VD,
                *arguments,
                (jnp.asarray(given.reference_BLV), head_VD),
                objective=objectives.make_objective(name),
                chunk_tokens=5,
                mesh=devices_of,
            )[0]

        found_BLV = jax.jit(jax.grad(loss))(hidden_BLD)
    np.testing.assert_allclose(found_BLV, expected(name, given), rtol=1e-9, atol=1e-12)
