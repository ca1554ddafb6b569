# %% [markdown]
# # i. SFT and DFT where the answers are programs
#
# Five seeds with 95 % intervals over seeds and problems; differences are paired. Beside them the
# same cells of the word problems, from study a.

# %%
import numpy as np

from experiments import common
from experiments.lab import results
from experiments.lab.results import COLOUR_OF

frame, out = results.open_study("code")
words = results.read(results.HERE / "main_comparison/results.csv")
words = words[words.base == "lab"]
# A domain: its rows, its benchmark, and its demonstrations without and with wrong steps.
DOMAINS = {
    "programs": (frame, "lab_code", {"code0": "all steps right", "code15": "15 % wrong"}),
    "word problems": (words, "lab", {"noise0": "all steps right", "noise15": "15 % wrong"}),
}
N_SAMPLES = 8


def select(domain, objective, data, temperature):
    """The rows of one cell; the base's own are read by both kinds of demonstrations."""
    rows, benchmark, _ = DOMAINS[domain]
    rows = rows[(rows.objective == objective) & rows.probe.isin(("test", "code"))]
    if objective != "none":
        rows = rows[rows.data == data]
    return results.cell(rows, benchmark, temperature)


def pass_at_8(rows):
    return results.pass_at_k(rows, N_SAMPLES)


# %% [markdown]
# ## Table: temperature 1 (avg@8), greedy, pass@8

# %%
SCORES = {
    "avg@8 at T = 1": (1.0, results.shares, None),
    "greedy": (0.0, results.shares, None),
    "pass@8": (1.0, pass_at_8, 1),
}


def line(domain, data, score):
    temperature, value, draws = SCORES[score]
    base, sft, dft = (select(domain, o, data, temperature) for o in ("none", "sft", "dft"))
    return {
        "domain": domain,
        "demonstrations": DOMAINS[domain][2][data],
        "score": score,
        "base": results.text(results.interval(value(base))),
        "SFT": results.text(results.interval(value(sft))),
        "DFT": results.text(results.interval(value(dft))),
        "DFT − SFT": results.text(results.difference(dft, sft, value, draws), sign=True),
    }


table = []
for domain, (_, _, data_of_domain) in DOMAINS.items():
    for data in data_of_domain:
        for score in SCORES:
            table.append(line(domain, data, score))
(out / "table.md").write_text(results.show(table) + "\n")

# %% [markdown]
# ## Does the gap grow with wrong steps, and is training better than none?


# %%
def differences(domain, data, temperature):
    """DFT − SFT by seed and problem, [S, P]."""
    dft, sft = (select(domain, o, data, temperature) for o in ("dft", "sft"))
    return results.shares(dft) - results.shares(sft)


checks = []
for domain, (_, _, data_of_domain) in DOMAINS.items():
    right, wrong = data_of_domain
    grown_SP = differences(domain, wrong, 1.0) - differences(domain, right, 1.0)
    row = {"domain": domain}
    # Each is a difference of differences: as of half the samples.
    triple = results.interval_of_difference(grown_SP, N_SAMPLES / 2)
    row["gap with 15 % wrong − gap without"] = results.text(triple, sign=True)
    base = results.shares(select(domain, "none", right, 1.0))
    for data, text in data_of_domain.items():
        for objective in ("sft", "dft"):
            tuned_SP = results.shares(select(domain, objective, data, 1.0))
            against_SP = tuned_SP - np.repeat(base, len(tuned_SP), axis=0)
            triple = results.interval_of_difference(against_SP, N_SAMPLES)
            row[f"{objective.upper()} − base, {text}"] = results.text(triple, sign=True)
    checks.append(row)
(out / "checks.md").write_text(results.show(checks) + "\n")

# %% [markdown]
# ## Figure: each score in both domains

# %%
figure, axes = common.figure(len(DOMAINS), size=(4.4, 3.0), sharey=True)
for axis, (domain, (_, _, data_of_domain)) in zip(axes[0], DOMAINS.items(), strict=True):
    ticks = []
    for data, text in data_of_domain.items():
        for score, (temperature, value, _) in SCORES.items():
            for offset, objective in ((-0.2, "none"), (0.0, "sft"), (0.2, "dft")):
                rows = select(domain, objective, data, temperature)
                triple = results.interval(value(rows))
                label = {"none": "base"}.get(objective, objective.upper()) if not ticks else None
                place = len(ticks) + offset
                results.errorbar(axis, [place], [triple], label, COLOUR_OF[objective], ls="")
            ticks.append(f"{score}\n{text}")
    axis.set_xticks(range(len(ticks)), ticks, rotation=40, ha="right", fontsize=7)
    axis.set_title(domain, loc="left", fontsize=9)
axes[0, 0].set_ylabel("correct, %")
axes[0, 0].legend(frameon=False, fontsize=8)
common.save(figure, out / "code.png")
