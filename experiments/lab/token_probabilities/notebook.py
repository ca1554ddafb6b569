# %% [markdown]
# # c. The probability of the demonstrations' tokens, before and after
#
# Every trained token of 800 demonstrations under the base, SFT and DFT; three seeds.

# %%
import numpy as np
import pandas as pd

from experiments import common
from experiments.lab import results
from experiments.lab.results import COLOUR_OF

frame, out = results.open_study("token_probabilities")
BINS = [column for column in frame.columns if column.startswith("from_")]
EDGES = [float(column.removeprefix("from_")) for column in BINS] + [1.0]
DATA = {"noise0": "all steps right", "noise15": "15 % wrong"}

# %%
table = []
for data, words in DATA.items():
    for model in ("base", "sft", "dft"):
        rows = frame[(frame.data == data) & (frame.model == model)]
        spread = {
            name: (rows[name].mean(), rows[name].std(ddof=1))
            for name in ("nll", "mean_p", "entropy")
        }
        row = {"demonstrations": words, "model": model, "seeds": str(len(rows))}
        row |= {
            name: f"{mean:.3f}" + ("" if model == "base" else f" ± {s:.3f}")
            for name, (mean, s) in spread.items()
        }
        middle = rows[[b for b, low in zip(BINS, EDGES, strict=False) if 0.1 <= low < 0.9]].sum(
            axis=1
        )
        row["p < 0.01"] = f"{100 * rows['share_of_p_below_0.01'].mean():.2f} %"
        row["0.1 ≤ p < 0.9"] = f"{100 * middle.mean():.2f} %"
        row["p > 0.95"] = f"{100 * rows['share_of_p_above_0.95'].mean():.2f} %"
        table.append(row)
(out / "table.md").write_text(results.show(table) + "\n")

# %%
figure, axes = common.figure(len(DATA), size=(5.6, 3.2), sharey=True)
for axis, (data, words) in zip(axes[0], DATA.items(), strict=True):
    for number, model in enumerate(("base", "sft", "dft")):
        shares = 100 * frame[(frame.data == data) & (frame.model == model)][BINS].to_numpy()
        x = np.arange(len(BINS)) + (number - 1) * 0.27
        middle = shares.mean(axis=0)
        ends = np.abs([middle - shares.min(axis=0), shares.max(axis=0) - middle])
        label = "base" if model == "base" else f"{model.upper()} (range of seeds)"
        axis.bar(
            x, middle, 0.25, yerr=ends, color=COLOUR_OF[model], label=label, error_kw={"lw": 0.8}
        )
    labels = [f"{low:g}–{high:g}" for low, high in zip(EDGES[:-1], EDGES[1:], strict=True)]
    axis.set_xticks(range(len(BINS)), labels, rotation=45, ha="right", fontsize=7)
    axis.set_yscale("log")
    axis.set_title(words, loc="left", fontsize=9)
axes[0, 0].set_ylabel("tokens of the demonstrations, %")
axes[0, 1].legend(frameon=False, fontsize=8)
common.save(figure, out / "histogram.png")

# %% [markdown]
# ## The tokens that fell most under DFT, and what SFT did to them

# %%
changes = pd.read_csv(results.HERE / "token_probabilities/changed.csv", keep_default_na=False)
fallen = []
for data, words in DATA.items():
    rows = changes[(changes.data == data)]
    means = rows.groupby(["model", "token"])[
        ["count", "p_before", "p_after", "fell_below_0.01"]
    ].mean()
    means = means[means["count"] >= 20]
    dft = means.loc["dft"].assign(change=lambda m: m.p_after - m.p_before).sort_values("change")
    for token, row in dft[dft.change < -0.01].head(12).iterrows():
        line = {"demonstrations": words, "token": f"`{token!r}`", "count": f"{row['count']:.0f}"}
        line |= {"p before": f"{row.p_before:.3f}", "p under DFT": f"{row.p_after:.3f}"}
        line["below 0.01 under DFT"] = f"{row['fell_below_0.01']:.0%}"
        line["p under SFT"] = f"{means.loc['sft', token].p_after:.3f}"
        fallen.append(line)
(out / "fallen.md").write_text(results.show(fallen) + "\n")
