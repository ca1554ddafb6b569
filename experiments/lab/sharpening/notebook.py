# %% [markdown]
# # g. Sharpening or learning
#
# If DFT generalised better, it would be better at the temperature where each does best, at equal
# entropy, and in pass@k. If it only sharpened, a lower temperature would do the same to SFT, or to
# the base. Five seeds.

# %%
import numpy as np

from experiments import common
from experiments.lab import results
from experiments.lab.results import COLOUR_OF

frame, out = results.open_study("sharpening")
frame.loc[frame.probe == "extremes", "probe"] = "temperatures"  # measured apart, read together
WORDS = {"noise0": "all steps right", "noise15": "15 % wrong"}
DATA = {
    data: words
    for data, words in WORDS.items()
    if (frame[frame.objective == "dft"].data == data).any()
}
SPLITS = {"lab": "like the demonstrations", "lab_hard": "longer"}
TEMPERATURES = sorted(frame[frame.probe == "temperatures"].temperature.unique())
KS = (1, 2, 4, 8, 16, 32, 64)
NAMES = {"none": "base", "sft": "SFT", "dft": "DFT"}


def select(objective, data, benchmark, probe, temperature=1.0):
    rows = frame[
        (frame.objective == objective) & (frame.probe == probe) & (frame.benchmark == benchmark)
    ]
    rows = rows if objective == "none" else rows[rows.data == data]
    return rows[rows.temperature == temperature]


def at_entropy(entropy, objective, data, benchmark):
    """Shares [S, P] at the temperature with this mean entropy, between the measured ones; None
    beyond them.

    Linear between the two neighbours. The entropy is the mean over completions of that of the
    distributions they were drawn from, temperature included; it grows with the temperature.
    """
    rows = [select(objective, data, benchmark, "temperatures", t) for t in TEMPERATURES if t > 0]
    entropies = [each.entropy.mean() for each in rows]
    assert entropies == sorted(entropies)
    above = int(np.searchsorted(entropies, entropy))
    if above in (0, len(rows)):
        return None
    low, high = entropies[above - 1], entropies[above]
    share = (entropy - low) / (high - low)
    return (1 - share) * results.shares(rows[above - 1]) + share * results.shares(rows[above])


def against_temperature(objective, data, benchmark):
    """[(temperature, (mean, low, high), entropy)]"""
    found = [(t, select(objective, data, benchmark, "temperatures", t)) for t in TEMPERATURES]
    return [
        (t, results.interval(results.shares(rows)), rows.entropy.mean())
        for t, rows in found
        if len(rows)
    ]


# %% [markdown]
# ## Figures: accuracy against temperature, against entropy, and pass@k

# %%
figure, axes = common.figure(3, len(DATA) * len(SPLITS), size=(3.5, 2.6))
panels = [(data, split) for split in SPLITS for data in DATA]
for line, (data, split) in zip(axes, panels, strict=True):
    for objective, name in NAMES.items():
        points = against_temperature(objective, data, split)
        if not points:
            continue
        temperatures, triples, entropies = zip(*points, strict=True)
        results.errorbar(line[0], temperatures, triples, name, COLOUR_OF[objective])
        results.errorbar(line[1], entropies[1:], triples[1:], name, COLOUR_OF[objective])
        rows = select(objective, data, split, "pass64")
        passes = [results.interval(results.pass_at_k(rows, k)) for k in KS]
        results.errorbar(line[2], KS, passes, name, COLOUR_OF[objective])
    line[0].set(xlabel="temperature (0: greedy)", ylabel="correct, %")
    # T = 2 is beyond
    line[1].set(xlabel="mean entropy of the sampled tokens, nats", xlim=(0, 0.45))
    line[2].set(xlabel="k", ylabel="pass@k at T = 1, %", xscale="log", xticks=KS, xticklabels=KS)
    line[2].minorticks_off()
    line[0].set_title(f"{split} ({SPLITS[split]}); {DATA[data]}", loc="left", fontsize=9)
axes[0, 0].legend(frameon=False, fontsize=8)
common.save(figure, out / "sharpening.png")

# %% [markdown] ## Table: each at temperature 1, greedy, at its own best temperature, at the other's
# entropy, and pass@64
#
# The best temperature is that of the highest mean on these same problems. At matched entropy: DFT
# at temperature 1 against the other at the temperature where its entropy is that of DFT.

# %%
table = []
for data, split in panels:
    row = {"demonstrations": DATA[data], "split": split}
    best = {}
    for objective in NAMES:
        points = against_temperature(objective, data, split)
        best[objective] = max(points, key=lambda point: point[1][0])[0]
    for words, temperature in (
        ("T = 1", {o: 1.0 for o in NAMES}),
        ("greedy", {o: 0.0 for o in NAMES}),
        ("best T", best),
    ):
        rows = {o: select(o, data, split, "temperatures", temperature[o]) for o in NAMES}
        means = " / ".join(f"{100 * rows[o].avg.mean():.1f}" for o in NAMES)
        row[f"{words}: base / SFT / DFT"] = means
        row[f"{words}: DFT − SFT"] = results.text(
            results.difference(rows["dft"], rows["sft"]), sign=True
        )
    row["best T of each"] = " / ".join(f"{best[o]:g}" for o in NAMES)
    _, _, entropy = next(
        point for point in against_temperature("dft", data, split) if point[0] == 1.0
    )
    dft = select("dft", data, split, "temperatures", 1.0)
    dft_SP, samples = results.shares(dft), int(dft.samples.iloc[0])
    for objective in ("none", "sft"):
        matched_SP = at_entropy(entropy, objective, data, split)
        gap = "no such temperature"
        if matched_SP is not None:
            gap = results.text(
                results.interval_of_difference(dft_SP - matched_SP, samples), sign=True
            )
        row[f"DFT at T = 1 − {NAMES[objective]} at its entropy"] = gap
    sft = select("sft", data, split, "temperatures", 1.0)
    heated_SP = at_entropy(sft.entropy.mean(), "dft", data, split)
    gap_SP = None if heated_SP is None else heated_SP - results.shares(sft)
    gap = "no such temperature"
    if gap_SP is not None:
        gap = results.text(results.interval_of_difference(gap_SP, samples), sign=True)
    row["DFT at SFT's entropy − SFT at T = 1"] = gap
    rows = {o: select(o, data, split, "pass64") for o in NAMES}
    means = (f"{100 * results.pass_at_k(rows[o], 64).mean():.1f}" for o in NAMES)
    row["pass@64: base / SFT / DFT"] = " / ".join(means)
    gap = results.difference(
        rows["dft"], rows["sft"], lambda own: results.pass_at_k(own, 64), draws=1
    )
    row["pass@64: DFT − SFT"] = results.text(gap, sign=True)
    table.append(row)
(out / "table.md").write_text(results.show(table) + "\n")
