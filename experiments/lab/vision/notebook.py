# %% [markdown]
# # j. SFT and DFT where a number is read from a picture
#
# Five seeds with 95 % intervals over seeds and problems; differences are paired.

# %%
import numpy as np
import pandas as pd

from dft_jax.data.sources import cards
from dft_jax.evals import scores
from dft_jax.evals.tasks import benchmarks
from experiments import common
from experiments.lab import results
from experiments.lab.results import COLOUR_OF
from experiments.lab.vision import pictures

frame, out = results.open_study("vision")
updates = pd.read_csv(results.HERE / "vision/updates.csv")
DATA = {"read0": "all read rightly", "read15": "15 % misread"}
PARTS = {"text": "text", "all": "all parts"}
BENCHMARKS = {"lab_vision": "chains", "lab_vision_cards": "sums", "lab_vision_card": "card"}
TEMPERATURES = {1.0: "T = 1", 0.0: "greedy"}
CARD = "lab_vision_card"
# The number on each card of the benchmark, in the order of its problems.
NUMBERS = np.array([row["numbers"][0] for row in cards.parse(benchmarks.find(CARD).source).rows()])


def select(benchmark, temperature, objective, data, parts):
    """The rows of one cell; the base's own are the same whatever is trained."""
    rows = results.cell(frame, benchmark, temperature, objective=objective)
    if objective != "none":
        rows = rows[(rows.data == data) & (rows.parts == parts)]
    return rows


def of_numbers(is_meant):
    """The shares of the problems whose numbers are meant, [S, P]."""
    return lambda rows: results.shares(rows)[:, is_meant]


def cells(benchmark, temperature, data, parts, value):
    """Base, SFT, DFT and their difference as text."""
    base, sft, dft = (
        select(benchmark, temperature, objective, data, parts)
        for objective in ("none", "sft", "dft")
    )
    against_SP = value(sft) - np.repeat(value(base), len(sft), axis=0)
    n_samples = int(sft.samples.iloc[0])
    return {
        "base": results.text(results.interval(value(base))),
        "SFT": results.text(results.interval(value(sft))),
        "DFT": results.text(results.interval(value(dft))),
        "DFT − SFT": results.text(results.difference(dft, sft, value), sign=True),
        "SFT − base": results.text(
            results.interval_of_difference(against_SP, n_samples), sign=True
        ),
    }


# %% [markdown]
# ## Table: accuracy (H1 to H3, H5)

# %%
table = []
for parts, of_parts in PARTS.items():
    for benchmark, kind in BENCHMARKS.items():
        for data, demonstrations in DATA.items():
            for temperature, how in TEMPERATURES.items():
                row = {"trained": of_parts, "problems": kind, "demonstrations": demonstrations}
                row["score"] = how
                table.append(row | cells(benchmark, temperature, data, parts, results.shares))
(out / "table.md").write_text(results.show(table) + "\n")

# %% [markdown]
# ## Does the gap grow with misread demonstrations? (H2)

# %%
grown = []
for parts, of_parts in PARTS.items():
    gaps = []
    for data in DATA:
        dft, sft = (select("lab_vision", 1.0, o, data, parts) for o in ("dft", "sft"))
        gaps.append(results.shares(dft) - results.shares(sft))
    # A difference of differences: as of half the samples.
    triple = results.interval_of_difference(gaps[1] - gaps[0], int(dft.samples.iloc[0]) / 2)
    grown.append({"trained": of_parts, "gap grows by": results.text(triple, sign=True)})

# %% [markdown]
# ## Numbers that are rare in the demonstrations (H4)

# %%
is_rare = NUMBERS > cards.COMMON
groups = {"1 to 20": ~is_rare, "21 to 30 (rare)": is_rare}
by_number = []
for parts, of_parts in PARTS.items():
    for data, demonstrations in DATA.items():
        for temperature, how in TEMPERATURES.items():
            for group, is_meant in groups.items():
                row = {"trained": of_parts, "demonstrations": demonstrations, "score": how}
                row["numbers"] = group
                by_number.append(row | cells(CARD, temperature, data, parts, of_numbers(is_meant)))
(out / "rare.md").write_text(results.show(by_number) + "\n")

# %% [markdown]
# ## How far the tower moves (H6)


# %%
def mean_of_seeds(values_S):
    """Mean and 95 % interval, by Student's t."""
    half = scores.t_quantile(len(values_S) - 1) * values_S.std(ddof=1) / np.sqrt(len(values_S))
    return f"{values_S.mean():.4f} [{values_S.mean() - half:.4f}, {values_S.mean() + half:.4f}]"


moved = []
for data, demonstrations in DATA.items():
    sft, dft = (
        updates[(updates.data == data) & (updates.objective == objective)].sort_values("seed")
        for objective in ("sft", "dft")
    )
    for name, of_update in {
        "tower": lambda rows: rows.tower,
        "tower / text": lambda rows: rows.tower / rows.text,
    }.items():
        ours, theirs = of_update(dft).to_numpy(), of_update(sft).to_numpy()
        row = {"demonstrations": demonstrations, "norm of the update": name}
        row |= {"SFT": mean_of_seeds(theirs), "DFT": mean_of_seeds(ours)}
        moved.append(row | {"DFT − SFT": mean_of_seeds(ours - theirs)})
(out / "checks.md").write_text(results.show(grown) + "\n\n" + results.show(moved) + "\n")

# %% [markdown]
# ## Figure: reading of each number

# %%
figure, axes = common.figure(len(DATA), size=(5.2, 2.8), sharey=True)
for axis, (data, demonstrations) in zip(axes[0], DATA.items(), strict=True):
    for objective in ("none", "sft", "dft"):
        shares_P = results.shares(select(CARD, 1.0, objective, data, "text")).mean(axis=0)
        numbers = np.unique(NUMBERS)
        means = [100 * shares_P[number == NUMBERS].mean() for number in numbers]
        label = {"none": "base"}.get(objective, objective.upper())
        axis.plot(numbers, means, marker="o", ms=3, color=COLOUR_OF[objective], label=label)
    axis.axvspan(cards.COMMON + 0.5, 30.5, color="0.93", zorder=0)
    axis.set_title(f"{demonstrations} (grey: rare)", loc="left", fontsize=9)
    axis.set_xlabel("number on the card")
axes[0, 0].set_ylabel("read rightly at T = 1, %")
axes[0, 0].legend(frameon=False, fontsize=8)
common.save(figure, out / "vision.png")

# %%
pictures.sheet(out / "pictures.png")
