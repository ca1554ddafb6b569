# %% [markdown]
# # The probability of each token, before and after
#
# What does DFT do to the tokens of the demonstrations? The model that ships with the package reads
# 200 held-out ones before and after forty steps. Under two minutes on two CPU cores.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import dft_jax as dft
from dft_jax import assets

CHECKOUT = Path(dft.__file__).parents[1]
HELDOUT = "world(split=validation, family=chain, levels=2-4, n=200)"
base = dft.load(assets.LAB)
before = dft.score(base, HELDOUT, rows="gsm8k", show_progress=False)
print(before)

# %%
config = dft.recipe(CHECKOUT / "configs/lab.py", objective="dft", **{"train.steps": 40})
run = dft.finetune(base, config, workdir="runs/dft", show_progress=False)
after = dft.score(run.lm, HELDOUT, rows="gsm8k", show_progress=False)
print(after)

# %% [markdown]
# ## They move apart
#
# The share of tokens in each bin of p, on a logarithmic scale. Both ends grow, and the middle
# empties.

# %%
edges = np.linspace(0.0, 1.0, 21)
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
for name, scores, offset in (("before", before, 0.0), ("after DFT", after, 0.02)):
    counts, _ = np.histogram(scores.p_T, edges)
    axis.bar(edges[:-1] + 0.015 + offset, counts / counts.sum(), 0.018, label=name)
axis.set(yscale="log", xlabel="p of the demonstrated token", ylabel="share of tokens")
axis.spines[["top", "right"]].set_visible(False)
axis.legend(frameon=False)
plt.show()

# %%
for low, high in ((0.0, 0.01), (0.01, 0.5), (0.5, 0.95), (0.95, 1.01)):
    shares = []
    for scores in (before, after):
        inside = (scores.p_T >= low) & (scores.p_T < high)
        shares.append(100 * np.mean(inside))
    print(f"p from {low:4.2f} to {min(high, 1):4.2f}: {shares[0]:5.1f} % -> {shares[1]:5.1f} %")

# %% [markdown]
# ## Which tokens fall
#
# All steps of these demonstrations are right, so no token is wrong. What falls most are the words
# that the demonstrations choose freely: how a solution begins, and how its steps are joined.

# %%
texts = np.array(before.texts)
changes = []
for text in sorted(set(before.texts)):
    here = texts == text
    if here.sum() >= 20:
        changes.append((after.p_T[here].mean() - before.p_T[here].mean(), text, here))
changes.sort(key=lambda change: change[0])
print("token      times  p before  p after")
for _, text, here in changes[:8]:
    old, new = before.p_T[here].mean(), after.p_T[here].mean()
    print(f"{text!r:10} {here.sum():5}  {old:8.3f} {new:8.3f}")

# %% [markdown]
# The same for larger models, with gradients of each token and a page of coloured tokens:
# `python -m dft_jax.analysis.tokens`.
