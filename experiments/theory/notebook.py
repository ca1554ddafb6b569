# %% [markdown] # The theory of DFT, made visible Fine-tuning by demonstration (SFT) lowers $-\log
# p$ of each demonstrated token; DFT lowers $-\mathrm{sg}(p)\log p$ (sg: stop-gradient; arXiv
# 2508.05629). This notebook checks the statements behind DFT on a real, if tiny, model: that its
# gradient is that of $-p$; that SFT is a policy gradient with a sparse reward weighted by $1/p$;
# which tokens make the gradient; and what DFT does where demonstrations disagree. It also says what
# all this does not show.
#
# `python experiments/theory/notebook.py [--out=FOLDER]` runs all of it on one CPU core; every check
# is an assertion.

# %%
import argparse
import csv
import os
import re
from pathlib import Path

from dft_jax.data import batches
from dft_jax.data.examples import Examples
from dft_jax.losses import fused
from dft_jax.models.hf.load import load_params
from dft_jax.models.model import build, head, matmul_precision

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # float64 is wanted, and nothing here is large

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from scipy.integrate import solve_ivp
from scipy.special import softmax

from dft_jax import sharding
from dft_jax.analysis.figures import COLOURS
from dft_jax.data import packing
from dft_jax.data.sources import world
from dft_jax.evals import significance
from dft_jax.lab.recipe import lab_config
from dft_jax.lm.checkpoint import open_config
from dft_jax.losses import objectives
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.training import metrics
from dft_jax.training.inputs import load_data

parser = argparse.ArgumentParser()
beside = Path(__file__).parent if "__file__" in globals() else Path.cwd()
parser.add_argument("--out", type=Path, default=beside, help="folder for tables and figures")
parser.add_argument(
    "--small", action="store_true", help="an eighth of the tokens: only to see that all of it runs"
)
OPTIONS = parser.parse_known_args()[0]  # a notebook's kernel has arguments of its own
OUT = OPTIONS.out
OUT.mkdir(parents=True, exist_ok=True)
GREY, BLUE, ORANGE = COLOURS[:3]
CHECKS = []


def check(name: str, value: float, limit: float, why: str) -> None:
    """Notes a check for checks.csv; fails when `value` is above `limit` (or NaN)."""
    CHECKS.append((name, value, limit, why))
    print(f"{name}: {value:.2g} (at most {limit:g})")
    assert value <= limit, f"{name}: {value} is above {limit}"


def write(name: str, **columns) -> None:
    """A CSV with these columns of equal length."""
    with open(OUT / name, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            writer.writerow([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row])


def save(figure, name: str) -> None:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False)
    figure.savefig(OUT / name, dpi=150)


# %% [markdown] ## The model and its demonstrations The laboratory's base model (0.6 M parameters,
# 223 tokens) and 256 solved word problems in which 15 % of the steps go wrong; whole-batch
# gradients are of the first 64. The same weights twice: as training has them (float32), and in
# float64 with a softmax over all logits at once, each example in a row of its own.

# %%
BATCH = 8 if OPTIONS.small else 64
config = lab_config("dft")
config.data.train = "world(split=train, family=chain, levels=2-4, n=256, noise=0.15)"
config.data.heldout = ""
source, model, tokenizer = open_config(config)
examples, _ = load_data(config, source, tokenizer, model)
params = load_params(Checkpoint(source), model)

one_device = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape([1] * 5), sharding.MESH_AXES)


def on_one_device(dtype: str):
    """The model and its parameters in this precision, whatever devices training would take."""
    decoder = build(
        model.config, one_device, param_dtype=dtype, compute_dtype=dtype, attention_block=128
    )
    return decoder, jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), dtype), params)


with jax.enable_x64(True):
    exact, params64 = on_one_device("float64")
plain, params32 = on_one_device("float32")
L = max(packing.slots(example) for example in examples.examples)
rows_BL = packing.fill_rows(examples.examples, [[i] for i in range(len(examples))], L)
first_BL = jax.tree.map(lambda x_BL: x_BL[:BATCH], rows_BL)


def logits(params, batch):
    """Dense logits [B, L, V]: the plain way, which shares nothing with losses.token_stats."""
    return jnp.einsum("BLD,VD->BLV", exact.apply(params, batch), head(params))


def logp(params, batch):
    """Dense log π(target) [B, L]."""
    logp_BLV = jax.nn.log_softmax(logits(params, batch), axis=-1)
    return jnp.take_along_axis(logp_BLV, batch.targets_BL[..., None], axis=-1)[..., 0]


def two_losses(logp):
    """DFT's loss and -p, which should have one gradient; stacked."""
    p = jnp.exp(logp)
    return jnp.stack([-jax.lax.stop_gradient(p) * logp, -p])


def sums(params):
    """The sums of both over the trained tokens of the first examples."""
    return jnp.where(first_BL.mask_BL[None], two_losses(logp(params, first_BL)), 0).sum(axis=(1, 2))


def apart(got, expected) -> float:
    """The largest difference of any entry, relative to the largest entry of its tensor; the worst
    tensor's.
    """
    got, expected = (jax.tree.map(np.float64, tree) for tree in (got, expected))
    return max(
        jax.tree.leaves(
            jax.tree.map(lambda a, b: np.abs(a - b).max() / np.abs(b).max(), got, expected)
        )
    )


# %% [markdown]
# ## 1. The gradient of DFT is that of $-p$
# $\nabla(-\mathrm{sg}(p)\log p) = -p\,\nabla\log p = -\nabla p$. Three ways: automatic
# differentiation of both losses; central differences of $-\sum p$ along random directions, which
# know nothing of a stop-gradient; and the project's own packed rows, chunked loss and `dft`
# objective in float32.

# %%
with jax.enable_x64(True):
    both = jax.jit(jax.jacrev(sums))(params64)
    dft_gradient, p_gradient = (jax.tree.map(lambda leaf, i=i: leaf[i], both) for i in range(2))
    why = "float64: the same sums; in another order they would be 1e-15 apart"
    check(
        "whole batch: grad of -sg(p) log p against grad of -p",
        apart(dft_gradient, p_gradient),
        1e-12,
        why,
    )
    sum_of_minus_p, STEP = jax.jit(lambda params: sums(params)[1]), 1e-4
    for seed in range(3):
        rng = np.random.default_rng(seed)
        way = jax.tree.map(lambda leaf, rng=rng: rng.standard_normal(leaf.shape), params64)
        length = float(optax.tree.norm(way))
        way = jax.tree.map(lambda leaf, length=length: leaf / length, way)
        there, back = (
            jax.tree.map(lambda leaf, d, h=h: leaf + h * d, params64, way) for h in (STEP, -STEP)
        )
        by_difference = float(sum_of_minus_p(there) - sum_of_minus_p(back)) / (2 * STEP)
        slope = sum(jax.tree.leaves(jax.tree.map(np.vdot, way, dft_gradient)))
        why = "step 1e-4 of a unit direction: its square in truncation, some 1e-8 in rounding"
        check(
            f"finite differences of -sum p, direction {seed}",
            abs(by_difference / slope - 1),
            1e-6,
            why,
        )


def project_loss(params, batch):
    inputs = (
        model.apply(params, batch),
        head(params),
        batch.targets_BL,
        batch.mask_BL,
        batch.segments_BL,
    )
    return objectives.make_objective("dft")(
        fused.token_stats(*inputs, chunk_tokens=256, mesh=model.mesh)
    ).sum()


first = Examples(examples.examples[:BATCH], examples.report, examples.origins[:BATCH])
packed = batches.SequentialBatches(
    first, model.mesh, global_batch=BATCH, row_length=config.data.max_length
)
step = next(iter(packed))
packed_BL = jax.tree.map(
    lambda x_ABL: x_ABL[0], sharding.device_batch(step.batch, model.mesh, step.n_rows)
)
with matmul_precision("float32"):
    project_gradient = jax.jit(jax.grad(project_loss))(params, packed_BL)
why = "float32: 1e-7 a rounding, sums over 2,762 tokens that partly cancel"
name = "the project's DFT gradient, float32 and packed, against dense float64"
check(name, apart(project_gradient, p_gradient), 1e-4, why)

# %% [markdown] ## Tokens over the whole range of $p$ Most tokens of a demonstration are nearly
# certain. So single tokens are chosen by the paper's bins of $p$, up to 100 of each bin; a token
# then stands for (tokens of its bin) / (chosen of its bin), and sums are weighted so. A digit is
# *wrong* where the result written after an operation is not that of the operation.

# %%
EDGES, MOST_OF_BIN = np.array(metrics.P_BIN_EDGES), 12 if OPTIONS.small else 100
with jax.enable_x64(True):
    logits_BLV = np.asarray(jax.jit(logits)(params64, rows_BL))
PIECES = [tokenizer.decode([token]) for token in range(model.config.vocab_size)]


def wrong_digits(ids: np.ndarray) -> np.ndarray:
    """Which tokens are digits of a result, and not the right result's digit at that place."""
    pieces = [PIECES[token] for token in ids]
    token_of_character = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
    is_wrong = np.zeros(len(ids), bool)
    for match in re.finditer(r"(\d+)([-+*])(\d+)=(\d+)", "".join(pieces)):
        right = str(world.apply(int(match[1]), match[2], int(match[3])))
        for place, digit in enumerate(match[4]):
            is_wrong[token_of_character[match.start(4) + place]] |= (
                right[place : place + 1] != digit
            )
    return is_wrong


row_T, position_T = np.nonzero(rows_BL.mask_BL)
target_T = rows_BL.targets_BL[row_T, position_T]
pi_TV = softmax(logits_BLV[row_T, position_T], axis=-1)
p_T = pi_TV[np.arange(len(row_T)), target_T]
bin_T = np.digitize(p_T, EDGES[1:-1])
wrong_BL = [wrong_digits(example.ids)[1:] for example in examples.examples]
wrong_T = np.array(
    [wrong_BL[row][position] for row, position in zip(row_T, position_T, strict=True)]
)
in_bin = np.bincount(bin_T, minlength=len(EDGES) - 1)

rng = np.random.default_rng(0)
by_bin = [np.flatnonzero(bin_T == i) for i in range(len(in_bin))]
chosen = np.concatenate([np.sort(rng.permutation(own)[:MOST_OF_BIN]) for own in by_bin])
row_N, position_N, target_N, p_N = (x_T[chosen] for x_T in (row_T, position_T, target_T, p_T))
bin_N, wrong_N, pi_NV = bin_T[chosen], wrong_T[chosen], pi_TV[chosen]
weight_N = (in_bin / np.maximum(np.bincount(bin_N, minlength=len(in_bin)), 1))[bin_N]
print(
    f"{len(p_T)} trained tokens, {len(chosen)} chosen."
    f" p < 0.1: {(p_T < 0.1).sum()}, wrong digits: {wrong_T.sum()},"
)
print(
    f"both: {(wrong_T & (p_T < 0.1)).sum()}; median p of a wrong digit"
    f" {np.median(p_T[wrong_T]):.3f}"
)

# %% [markdown]
# The norm of every chosen token's gradient over all parameters under SFT. With the
# derivative of the softmax by hand,
# $\nabla_z\log p = e_{y^*}-\pi$ on the logits $z$, float32 is enough, also where $p$ is almost 1.
# Under DFT the norm is $p$ times that, by the equality; which is then checked on 16 of the tokens,
# in float64.


# %%
def norm_of_token(batch_L, position, d_logits_V):
    """The norm over all parameters of the gradient that one position's `d_logits_V` makes."""

    def logits_V(params):
        batch_1L = jax.tree.map(lambda x_L: x_L[None], batch_L)
        return jnp.einsum("D,VD->V", plain.apply(params, batch_1L)[0, position], head(params))

    return optax.tree.norm(jax.vjp(logits_V, params32)[1](d_logits_V))


def of_rows(row_N):
    return jax.tree.map(lambda x_BL: x_BL[row_N], rows_BL)


d_logits_NV = np.eye(pi_NV.shape[1])[target_N] - pi_NV
norms, chunks = jax.jit(jax.vmap(norm_of_token)), []
for start in range(0, len(chosen), 16):
    index = np.arange(start, start + 16).clip(max=len(chosen) - 1)  # one shape, compiled once
    chunks.append(norms(of_rows(row_N[index]), position_N[index], np.float32(d_logits_NV[index])))
sft_norm_N = np.float64(np.concatenate(chunks)[: len(chosen)])
dft_norm_N = p_N * sft_norm_N


def three_ways(params, batch_1L, position, target, d_logits_V):
    """Of one token: the loss of DFT, -p, and what has the gradient of -p by hand."""
    logits_V = logits(params, batch_1L)[0, position]
    logp_t = jax.nn.log_softmax(logits_V)[target]
    return jnp.append(two_losses(logp_t), -d_logits_V @ logits_V)


to_p, to_hand, to_norm = [], [], []
with jax.enable_x64(True):
    ways = jax.jit(jax.jacrev(three_ways))
    for n in np.linspace(0, len(chosen) - 1, 16).astype(int):
        token = (of_rows(row_N[n : n + 1]), position_N[n], target_N[n], p_N[n] * d_logits_NV[n])
        found = ways(params64, *token)
        dft, by_p, by_hand = (jax.tree.map(lambda leaf, i=i: leaf[i], found) for i in range(3))
        to_p.append(apart(dft, by_p))
        to_hand.append(apart(dft, by_hand))
        to_norm.append(abs(dft_norm_N[n] / float(optax.tree.norm(dft)) - 1))
check(
    "16 single tokens: grad of -sg(p) log p against grad of -p",
    max(to_p),
    1e-12,
    "float64, as above",
)
why = "float64; where p is almost 1 the derivative keeps all but 1e-16 / (1 - p)"
check(
    "16 single tokens: grad of -sg(p) log p against the derivative by hand", max(to_hand), 1e-8, why
)
check(
    "16 single tokens: norms in float32 against float64",
    max(to_norm),
    1e-5,
    "float32: roundings of 1e-7",
)
tokens = dict(
    example=row_N, position=position_N, token=[repr(PIECES[token]) for token in target_N], p=p_N
)
tokens |= dict(stands_for_tokens=weight_N, is_wrong_digit=wrong_N.astype(int))
write("gradient_norms.csv", **tokens, sft_norm=sft_norm_N, dft_norm=dft_norm_N)

# %% [markdown]
# ## 2. SFT as a policy gradient
# $$-\nabla\log\pi(y^*) =
# -\mathbb{E}_{y\sim\pi}\Big[\tfrac{1}{\pi(y)}\,1[y=y^*]\,\nabla\log\pi(y)\Big]$$
#
# and without the weight $1/\pi(y)$ the right-hand side is $-\nabla\pi(y^*)$, DFT's. First the
# expectation itself, summed over the vocabulary, on the logits of 128 of the tokens.

# %%


def policy_gradients(logits_V, target):
    """[2, V]: the expectation over y ~ π of weight(y) · 1[y = target] · ∇log π(y), weights 1/π
    (SFT) and 1 (DFT).
    """
    pi_V = jax.nn.softmax(logits_V)
    score_YV = jax.jacobian(jax.nn.log_softmax)(logits_V)  # a row of it: ∇log π(y)
    reward_Y = (jnp.arange(len(pi_V)) == target).astype(pi_V.dtype)
    weight_2Y = jnp.stack([1 / pi_V, jnp.ones_like(pi_V)])
    return jnp.einsum("Y,wY,Y,YV->wV", pi_V, weight_2Y, reward_Y, score_YV)


def ascent(logits_V, target):
    """[2, V]: gradients of log p (what SFT climbs) and of p (DFT)."""
    both = (jax.nn.log_softmax, jax.nn.softmax)
    return jnp.stack([jax.grad(lambda z_V, f=f: f(z_V)[target])(logits_V) for f in both])


some = np.linspace(0, len(chosen) - 1, 128).astype(int)
pairs = (logits_BLV[row_N[some], position_N[some]], target_N[some])
with jax.enable_x64(True):
    expected, direct = (
        np.asarray(jax.jit(jax.vmap(f))(*pairs)) for f in (policy_gradients, ascent)
    )
for name, gap_NV in zip(("SFT", "DFT"), np.moveaxis(np.abs(expected - direct), 1, 0), strict=True):
    check(
        f"expectation over the vocabulary against {name}'s gradient",
        gap_NV.max(),
        1e-13,
        "float64, entries up to 1",
    )

# %% [markdown]
# Now the expectation from samples: $10^6$ draws $y\sim\pi$ at each of 49 positions.
# One draw's estimate is
# $w\,1[y=y^*]\,\nabla\log\pi(y^*)$, so its total variance over all parameters is
# $(1/p-1)\,|\nabla\log\pi(y^*)|^2$ with $w=1/p$, and $p(1-p)\,|\nabla\log\pi(y^*)|^2$ with $w=1$.

# %%
DRAWS = 1_000_000
wanted_M = np.geomspace(p_N.min(), 0.98, 60)
at_M = np.unique(np.abs(np.log(p_N)[None, :] - np.log(wanted_M)[:, None]).argmin(axis=1))
p_M, norm_M, target_M = p_N[at_M], sft_norm_N[at_M], target_N[at_M]
rng = np.random.default_rng(1)
count_MV = np.stack([rng.multinomial(DRAWS, pi_V / pi_V.sum()) for pi_V in pi_NV[at_M]])
hits_M = count_MV[np.arange(len(at_M)), target_M] / DRAWS  # the other draws have no reward

variances = {"p": p_M, "norm_of_grad_log_p": norm_M}
standard_errors = []
for name, weight_M in (("sft", 1 / p_M), ("dft", np.ones_like(p_M))):
    sampled_M = (hits_M - hits_M**2) * (weight_M * norm_M) ** 2
    closed_M = (p_M - p_M**2) * (weight_M * norm_M) ** 2
    columns = dict(sampled=sampled_M, closed_form=closed_M, mean=weight_M * p_M * norm_M)
    variances |= {f"{name}_{key}": value_M for key, value_M in columns.items()}
    # Of the share of hits h: h - h² has derivative 1 - 2h, and second-order terms where that is 0.
    expected_M = np.abs(1 - 2 * p_M) / np.sqrt(DRAWS * p_M * (1 - p_M)) + 1 / (
        DRAWS * p_M * (1 - p_M)
    )
    standard_errors.append(np.abs(sampled_M / closed_M - 1) / expected_M)
why = "the largest of 49 normal deviates is above 5 once in 30,000 times; the seed is fixed"
check("variance from draws against closed form, standard errors", np.max(standard_errors), 5, why)
write("variance.csv", **variances)

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name, colour, size, label in (
    ("sft", BLUE, 9, "SFT, weight 1/p"),
    ("dft", ORANGE, 4, "DFT, weight 1"),
):
    sampled_M, mean_M = variances[f"{name}_sampled"], variances[f"{name}_mean"]
    left.plot(p_M, variances[f"{name}_closed_form"], "o", ms=8, mfc="none", color=colour, alpha=0.6)
    left.plot(p_M, sampled_M, ".", ms=5, color=colour, label=label)
    right.plot(p_M, sampled_M / mean_M**2, "o", ms=size, color=colour, label=label)
grid = np.geomspace(p_M.min(), 0.98, 200)
right.plot(grid, 1 / grid - 1, "-", lw=1, color=GREY, label="1/p − 1", zorder=0)
left.set(
    ylabel="total variance of one draw's gradient",
    title="Rings: closed form; dots: a million draws",
)
right.set(ylabel="variance / |mean|²", title="Relative to its own mean: the same")
plt.setp(
    (left, right), xscale="log", yscale="log", xlabel="p, probability of the demonstrated token"
)
save(figure, "variance.png")

# %% [markdown] ## 3. Gradients of single tokens What is really computed in training is not that
# estimate but $\nabla\log p$ of the demonstrated token, without any draw. Its norm over all
# parameters, by bin of $p$: median with a 95 % bootstrap interval, and variance over tokens.

# %%
rng = np.random.default_rng(2)
sampled_bins = np.unique(bin_N)
own_of = [np.flatnonzero(bin_N == i) for i in sampled_bins]
drawn = [own[significance.resample(len(own), 2000, rng)] for own in own_of]  # [R, n] each


def with_interval(name: str, values, resampled) -> dict:
    """Columns `name`, `name_low`, `name_high`: values, and the ends of the bootstrap interval of
    each.
    """
    low, high = np.array([significance.percentile_interval(values_R) for values_R in resampled]).T
    return {name: np.array(values), f"{name}_low": low, f"{name}_high": high}


bins = dict(p_from=EDGES[sampled_bins], p_to=EDGES[sampled_bins + 1], tokens=in_bin[sampled_bins])
bins |= dict(
    chosen=[len(own) for own in own_of], median_p=np.array([np.median(p_N[own]) for own in own_of])
)
norm_of = {"sft": sft_norm_N, "dft": dft_norm_N}
for name, norm_N in norm_of.items():
    for word, statistic in (("median", np.median), ("variance", np.var)):
        resampled = [statistic(norm_N[own_Rn], axis=1) for own_Rn in drawn]
        bins |= with_interval(
            f"{name}_{word}", [statistic(norm_N[own]) for own in own_of], resampled
        )
write("bins.csv", **bins)

# %% [markdown]
# Who makes the total? The share of $\sum_t|\nabla_t|^2$, over all tokens, that comes
# from the tokens below 0.1, from wrong digits, and so on (a sum of squares, not the square of the
# sum: tokens may also pull together or apart).

# %%
groups = {
    "p < 0.1": (0, 0.1),
    "0.1 ≤ p < 0.5": (0.1, 0.5),
    "0.5 ≤ p < 0.9": (0.5, 0.9),
    "p ≥ 0.9": (0.9, 2),
}
group_T = {name: (p_T >= low) & (p_T < high) for name, (low, high) in groups.items()} | {
    "wrong digits": wrong_T
}
shares = {
    "tokens": list(group_T),
    "of_all_tokens": [is_in_T.mean() for is_in_T in group_T.values()],
}
index_RN = np.concatenate(drawn, axis=1)
is_in_GN = [is_in_T[chosen] for is_in_T in group_T.values()]
for name, norm_N in norm_of.items():
    square_N = weight_N * norm_N**2
    square_RN = square_N[index_RN]
    resampled = [
        (square_RN * own_N[index_RN]).sum(axis=1) / square_RN.sum(axis=1) for own_N in is_in_GN
    ]
    shares |= with_interval(
        f"{name}_share", [square_N[own_N].sum() / square_N.sum() for own_N in is_in_GN], resampled
    )
write("shares.csv", **shares)


# %%
def whiskers(table: dict, name: str) -> np.ndarray:
    """[2, …]: how far the interval's ends are below and above."""
    return np.maximum([table[name] - table[f"{name}_low"], table[f"{name}_high"] - table[name]], 0)


figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
enough = np.array(bins["chosen"]) >= 10  # of two tokens there is no median worth drawing
place_B, x_G = np.arange(enough.sum()), np.arange(len(shares["tokens"]))
for side, name, colour in ((-1, "sft", BLUE), (1, "dft", ORANGE)):
    style = dict(
        fmt="o", ms=5, lw=1.2, capsize=2.5, color=colour, mec="white", mew=0.6, label=name.upper()
    )
    left.plot(p_N, norm_of[name], ".", ms=3, alpha=0.25, color=colour)
    for axis, x_B, value in (
        (left, bins["median_p"][enough], "median"),
        (middle, place_B + 0.12 * side, "variance"),
    ):
        axis.errorbar(
            x_B,
            bins[f"{name}_{value}"][enough],
            whiskers(bins, f"{name}_{value}")[:, enough],
            **style,
        )
    height_G, ends_2G = 100 * shares[f"{name}_share"], 100 * whiskers(shares, f"{name}_share")
    right.bar(
        x_G + 0.135 * (1 + side),
        height_G,
        0.26,
        yerr=ends_2G,
        color=colour,
        label=name.upper(),
        capsize=2,
    )
right.bar(
    x_G - 0.27, 100 * np.array(shares["of_all_tokens"]), 0.26, color=GREY, label="of the tokens"
)
right.set_xticks(
    x_G, [name.replace(" ≤ p < ", "–").replace(" d", "\nd") for name in shares["tokens"]]
)
right.set(ylabel="% of the sum of squared norms", title="Who makes the gradient", ylim=(0, 119))
left.set(
    xlabel="p, probability of the demonstrated token",
    xscale="logit",
    yscale="log",
    ylim=(1e-5, None),
)
left.set(
    ylabel="|gradient| of one token, all parameters", title="Norm; medians by bin, 95 % intervals"
)
ticks = {
    0.001: ".001",
    0.01: ".01",
    0.1: ".1",
    0.5: ".5",
    0.9: ".9",
    0.99: ".99",
    0.9999: ".9999",
    1 - 1e-6: "1−1e-6",
}
left.set_xticks(list(ticks), list(ticks.values()), fontsize=8)
left.xaxis.set_minor_locator(plt.NullLocator())
labels = [
    f"{low:g}–{high:g}"
    for low, high in zip(bins["p_from"][enough], bins["p_to"][enough], strict=True)
]
middle.set_xticks(place_B, labels, rotation=40, ha="right", fontsize=8)
middle.set(
    yscale="log",
    ylabel="variance of the norm within a bin of p",
    title="Variance of the norm over tokens",
)
save(figure, "gradient_norms.png")

# %% [markdown]
# ## 4. Frankly
# - **An identity, not a discovery of noise.** The $1/\pi$ of section 2 comes from multiplying and
#   dividing by $\pi$.
# Nobody draws $y\sim\pi$ in SFT: the token is given, and the variance of $1/p-1$ is that of an
# estimator that is never run. A constant factor per token cannot mend it either: relative to its
# own mean, DFT's is as noisy (right panel of `variance.png`).
# - **Nor do SFT's gradients explode.** On the logits $|\nabla\log p|\le\sqrt2$, and over all
#   parameters the median norm
# is 2.7 times larger at 0.007 than at one half, where $1/p$ is seventy times larger
# (`gradient_norms.png`).
# - **What is real** is the weighting between tokens. Those below 0.1 make 31 % of SFT's sum of
#   squares and 0.6 % of
# DFT's, and 82 of these 136 are wrong digits. They are taken out because they are unlikely, not
# because they are wrong; a digit that is rare but right goes too. And what is left is no less
# arbitrary: seven tenths are of
#   $0.1\le p<0.5$, mostly choices of words (" Next", " Then", " So"), half of that a single token.
# - **DFT sharpens.** If the same context is continued in several ways, with shares $q$, SFT's
#   minimiser is $p=q$. DFT
# climbs $\sum_v q_v p_v$, which is linear in $p$: its maximum is all mass on the most frequent
# continuation.
#
# The last point as gradient flow of one softmax of five classes, $\dot z=q-p$ (SFT) and
# $\dot z_v=p_v(q_v-\sum_u q_u p_u)$ (DFT). Class a is the most frequent, b the wrong one that some
# starts prefer.

# %%
Q = np.array([0.5, 0.3, 0.1, 0.06, 0.04])
STARTS = {"uniform": [0.2] * 5, "prefers b": [0.05, 0.5] + [0.15] * 3}
STARTS |= {"90 % b": [0.04, 0.9] + [0.02] * 3, "99 % b": [0.004, 0.99] + [0.002] * 3}
FLOWS = {"sft": lambda p: Q - p, "dft": lambda p: p * (Q - Q @ p)}
LAST_T = 1e5


def flow(name: str, start, times):
    """p [T, 5] at `times`, and the times at which a and b change places."""
    rules = dict(events=lambda t, z: z[0] - z[1] - 1e-9, rtol=1e-9, atol=1e-11)
    solved = solve_ivp(
        lambda t, z: FLOWS[name](softmax(z)), (0, LAST_T), np.log(start), "LSODA", times, **rules
    )
    return softmax(solved.y.T, axis=-1), solved.t_events[0]


times = np.concatenate([[0.0], np.geomspace(1e-2, LAST_T, 141)])
paths = {
    (name, label): flow(name, start, times)[0] for name in FLOWS for label, start in STARTS.items()
}
columns = {
    name: [key[i] for key in paths for _ in times] for i, name in enumerate(("objective", "start"))
}
columns |= dict(
    t=np.tile(times, len(paths)),
    **dict(zip("abcde", np.concatenate(list(paths.values())).T, strict=True)),
)
write("flow.csv", **columns)
settled = np.abs(times - 20).argmin()
for label in STARTS:
    sft_TV, dft_TV = paths["sft", label], paths["dft", label]
    print(
        f"{label}: p of a and b at t = 20: SFT {sft_TV[settled, :2].round(3)}, DFT"
        f" {dft_TV[settled, :2].round(4)}"
    )
    check(
        f"flow from {label}: SFT ends at q",
        np.abs(sft_TV[-1] - Q).max(),
        1e-6,
        "it gets there exponentially",
    )
    why = "1 - p(a) falls as 1 / t: of four classes, each at least as 1 / (2 (0.5 - 0.3) t)"
    check(f"flow from {label}: DFT ends at class a", 1 - dft_TV[-1, 0], 4 / (2 * 0.2 * LAST_T), why)

# %% [markdown]
# Nothing but class a attracts for ever: a linear function over the simplex has no
# second maximum. But leaving the wrong class takes DFT a time of $1/p_a$, for its gradient carries
# $p_a$. With two classes of shares $q_a > q_b$ the log odds
# $\ell$ obey $\dot\ell=2p_a p_b(q_a-q_b)$, so from $p_a=\varepsilon$ class a overtakes b after
# $\big(\tfrac1\varepsilon-\tfrac1{1-\varepsilon}+2\ln\tfrac{1-\varepsilon}\varepsilon\big)
# /2(q_a-q_b)$;
# SFT needs about $\ln\tfrac1\varepsilon$. Stopped before that, as every training is, DFT is left
# with what the model believed before. A single, undisputed demonstration ($q_a=1$) is learnt that
# slowly too.

# %%
epsilons = np.geomspace(0.1, 1e-4, 7)
closed = (1 / epsilons - 1 / (1 - epsilons) + 2 * np.log((1 - epsilons) / epsilons)) / (
    2 * (Q[0] - Q[1])
)
overtaking = {name: [] for name in FLOWS}
for e in epsilons:
    start = np.array([e, 1 - e - 0.03 * e, 0.01 * e, 0.01 * e, 0.01 * e])  # nearly two classes
    for name, found in overtaking.items():
        found.append(flow(name, start, [LAST_T])[1][0])
write("overtaking.csv", p_a_at_start=epsilons, dft_closed_form=closed, **overtaking)
gap = np.abs(np.array(overtaking["dft"]) / closed - 1).max()
check(
    "time until a overtakes b against the closed form",
    gap,
    0.03,
    "three more classes start with 3 % of p(a)",
)

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
styles = dict(zip(STARTS, ("-", "--", "-.", ":"), strict=True))
for (name, label), p_TV in paths.items():
    colour, wide = {"sft": (BLUE, 1.3), "dft": (ORANGE, 1.8)}[name]
    left.plot(p_TV[:, 0], p_TV[:, 1], styles[label], lw=wide, color=colour)
    left.plot(*p_TV[0, :2], "o", color="0.2", ms=4)
    middle.plot(times[1:], p_TV[1:, 0], styles[label], lw=wide, color=colour)
for label, style in styles.items():
    middle.plot([], [], style, color="0.3", label=label)
left.plot([0, 1], [1, 0], color="0.8", lw=1, zorder=0)
ends = (("SFT ends at q", Q[:2], (0.68, 0.8), BLUE), ("DFT ends at a", (1, 0), (0.75, 0.5), ORANGE))
for name, end, text_at, colour in ends:
    left.plot(*end, "*", ms=13, color=colour, zorder=5)
    left.annotate(
        name, end, text_at, color=colour, arrowprops=dict(arrowstyle="-", color="0.6", shrinkB=8)
    )
for name, colour in (("sft", BLUE), ("dft", ORANGE)):
    right.plot(epsilons, overtaking[name], "o", color=colour, label=name.upper())
right.plot(epsilons, closed, "-", lw=1, color=ORANGE, label="closed form, two classes")
left.set(xlabel="p of a, the most frequent", ylabel="p of b", title="Paths (SFT blue, DFT orange)")
middle.set(xscale="log", xlabel="time", ylabel="p of a", title="The same over time")
right.set(
    xlabel="p of a at the start", ylabel="time until a overtakes b", title="Leaving the wrong class"
)
right.loglog()
save(figure, "flow.png")
names, values, limits, whys = zip(*CHECKS, strict=True)
write(
    "checks.csv",
    check=names,
    value=[f"{value:.2g}" for value in values],
    at_most=limits,
    because=whys,
)
