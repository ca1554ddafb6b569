# %% [markdown]
# # Every method at its own rate
#
# Accuracy against the learning rate (stage 1, validation problems), then what each method does at
# its own rate and temperature (stage 2, test problems, new seeds). A regime whose seeds are not all
# measured has no verdict.

# %%
from pathlib import Path

import numpy as np
import pandas as pd

from dft_jax.evals import significance
from experiments import common
from experiments.lab import results
from experiments.lab.results import COLOUR_OF
from experiments.rates import inference, measure, plan
from experiments.rates.plan import METHODS, REGIMES

HERE = Path(__file__).parent
out = common.out_folder(HERE)
choosing = results.read(HERE / "choosing.csv")
WORDS = {"strong": "strong prior, 15 % wrong steps", "weak": "an operator it never saw"}


def rows_of(regime):
    return choosing[choosing.data == REGIMES[regime].data].to_dict("records")


failed = set()
if (HERE / "failed.csv").exists():
    failed = set(pd.read_csv(HERE / "failed.csv").trial)
SCORES = {regime: plan.scores(rows_of(regime), regime) for regime in REGIMES}
OPEN = {
    regime: {trial.objective for trial in plan.next_trials(rows_of(regime), failed, regime)}
    for regime in REGIMES
}


def chosen(regime, method):
    """None where stage 1 of the method is not done."""
    if OPEN[regime].intersection(METHODS[method]):
        return None
    return plan.choose(s for s in SCORES[regime] if s.objective in METHODS[method])


# %% [markdown]
# ## Accuracy against the rate
#
# Each at its best temperature, and at temperature 1. A ring marks the rate that was chosen.

# %%
MEASURED = [regime for regime in REGIMES if SCORES[regime]]
for regime in MEASURED:
    rows = choosing[(choosing.data == REGIMES[regime].data) & (choosing["rank"] == 0)]
    figure, axes = common.figure(5, 4, size=(2.5, 2.0), sharex=True, sharey=True)
    for axis, (method, objectives) in zip(axes.flat, METHODS.items(), strict=True):
        for number, objective in enumerate(objectives):
            ours = [s for s in SCORES[regime] if s.objective == objective]
            ours = sorted(ours, key=lambda score: score.rate)
            colour = COLOUR_OF.get(objective, ("#333333", "#888888")[number])
            label = objective if len(objectives) > 1 else "best temperature"
            rates = [score.rate for score in ours]
            values = [100 * score.accuracy for score in ours]
            axis.plot(rates, values, "o-", ms=3, lw=1.2, color=colour, label=label)
            hot = rows[(rows.objective == objective) & (rows.temperature == 1.0)]
            hot = 100 * hot.groupby("learning_rate").avg.mean()
            axis.plot(hot.index, hot, "--", lw=1, color=colour, label="T = 1", alpha=0.7)
        if not any(s.objective in objectives for s in SCORES[regime]):
            middle = dict(transform=axis.transAxes, ha="center", fontsize=8, color="#888888")
            axis.text(0.5, 0.5, "not run yet", **middle)
        best = chosen(regime, method)
        if best is not None:
            axis.plot([best.rate], [100 * best.accuracy], "o", ms=9, mfc="none", mec="#cc3311")
        axis.set_xscale("log")
        axis.set_title(method, fontsize=8, loc="left")
    for axis in axes[-1]:
        axis.set_xlabel("learning rate", fontsize=8)
    for axis in axes[:, 0]:
        axis.set_ylabel("correct, %", fontsize=8)
    axes[0, 0].legend(frameon=False, fontsize=7)
    figure.suptitle(WORDS[regime], fontsize=10)
    common.save(figure, out / f"rates_{regime}.png")

# %% [markdown]
# ## What was chosen
#
# *Over the grid* is the mean over the six rates with seed 0, *worst neighbour* the lower of the
# accuracies one rate beside the best: what a wrong rate costs.

# %%
table = []
for regime in MEASURED:
    alone = plan.scores([row for row in rows_of(regime) if row["seed"] == 0], regime)
    for method in METHODS:
        best = chosen(regime, method)
        if best is None:
            continue
        curve = {s.rate: s.accuracy for s in alone if s.objective == best.objective}
        top = max(curve, key=curve.__getitem__)
        grid = sorted(curve)
        place = grid.index(top)
        of_grid = [curve[rate] for rate in plan.RATES if rate in curve]
        beside = [curve[rate] for rate in grid[max(place - 1, 0) : place + 2] if rate != top]
        table.append(
            {
                "regime": regime,
                "method": best.objective,
                "rate": f"{best.rate:g}",
                "temperature": f"{best.temperature:g}",
                "validation, %": f"{100 * best.accuracy:.1f} ± {100 * best.error:.1f}",
                "best rate of seed 0": f"{top:g}",
                "over the grid, %": f"{100 * np.mean(of_grid):.1f}",
                "worst neighbour, %": f"{100 * min(beside):.1f}",
            }
        )
(out / "chosen.md").write_text(results.show(table) + "\n")

# %% [markdown]
# ## Stage 2

# %%
measuring = heldout = None
if (HERE / "measuring.csv").exists():
    measuring = results.read(HERE / "measuring.csv")
    heldout = pd.read_csv(HERE / "heldout.csv")


def at_temperatures(rows, regime):
    """Those that were sampled at given temperatures, on the regime's test problems."""
    names = rows.probe.str.split("@").str[0]  # also of no rows
    return rows[(names == REGIMES[regime].measuring) & rows.equal.isna()]


def measured(regime, method, equal=None, temperature=None, clip_norm=1.0):
    """Rows of one method, a row for each seed: at a temperature, or at an equal entropy."""
    best = chosen(regime, method)
    about = REGIMES[regime]
    rows = measuring[(measuring.data == about.data) & (measuring.objective == best.objective)]
    rows = rows[(rows.clip_norm == clip_norm) & (rows["rank"] == 0)]
    if equal is not None:
        return rows[rows.equal == equal]
    rows = at_temperatures(rows, regime)
    return rows[rows.temperature == (best.temperature if temperature is None else temperature)]


def is_measured(regime):
    """Every method's ten seeds are there, but for those that failed."""
    if measuring is None or any(chosen(regime, method) is None for method in METHODS):
        return False
    for method in METHODS:
        best = chosen(regime, method)
        seeds = plan.MEASURING_SEEDS
        asked = {plan.trial(regime, best.objective, best.rate, seed).name for seed in seeds}
        if not asked - failed <= set(measured(regime, method).trial):
            return False
    return True


def paired(ours, theirs):
    """Differences of shares over the seeds that both have, [S, P]."""
    seeds = sorted(set(ours.seed) & set(theirs.seed))
    return results.shares(ours[ours.seed.isin(seeds)]) - results.shares(
        theirs[theirs.seed.isin(seeds)]
    )


def families(regime):
    """p of every method against sft, and against dft, and whether Holm's rule marks it."""
    found = {}
    for other in ("sft", "dft"):
        p_of = {}
        for method in METHODS:
            if method in ("sft", other, plan.PLACEBO, *plan.EXPLORATORY):
                continue
            difference_SP = paired(measured(regime, method), measured(regime, other))
            p_of[method] = inference.sign_flip_p(difference_SP.mean(axis=1))
        marks = significance.holm(list(p_of.values()))
        found[other] = {name: (p_of[name], mark) for name, mark in zip(p_of, marks, strict=True)}
    return found


DONE = [regime for regime in MEASURED if is_measured(regime)]
table = []
for regime in DONE:
    tested = families(regime)
    for method in METHODS:
        row = {"regime": regime, "method": method}
        own = measured(regime, method)
        row["own temperature, %"] = f"{100 * results.shares(own).mean():.1f}"
        for other in ("sft", "dft"):
            if method != other:
                triple = inference.interval(paired(own, measured(regime, other)))
                row[f"− {other}"] = results.text(triple, sign=True)
                p, is_marked = tested[other].get(method, (None, False))
                row[f"p against {other}"] = "" if p is None else f"{p:.4f}{' *' * is_marked}"
        equal = measured(regime, method, equal=measure.AT_1)
        reference = measured(regime, "sft", equal=measure.AT_1)
        if method != "sft" and len(equal):
            triple = inference.interval(paired(equal, reference))
            row["at equal entropy − sft"] = results.text(triple, sign=True)
        for words, temperature in (("greedy, %", 0.0), ("T = 1, %", 1.0)):
            rows = measured(regime, method, temperature=temperature)
            row[words] = f"{100 * results.shares(rows).mean():.1f}"
        table.append(row)
if table:
    (out / "table.md").write_text(results.show(table) + "\n")

# %%
if DONE:
    figure, axes = common.figure(len(DONE), 1, size=(5.2, 5.2), sharey=True)
    for axis, regime in zip(axes[0], DONE, strict=True):
        for number, method in enumerate(METHODS):
            if method == "sft":
                continue
            pairs = (
                (measured(regime, method), measured(regime, "sft"), {}),
                (
                    measured(regime, method, equal=measure.AT_1),
                    measured(regime, "sft", equal=measure.AT_1),
                    {"mfc": "white"},
                ),
            )
            for offset, (ours, theirs, style) in zip((-0.14, 0.14), pairs, strict=True):
                if not len(ours):
                    continue
                triple = inference.interval(paired(ours, theirs))
                label = None
                if method == "dft":
                    label = "equal entropy" if style else "own temperature"
                colour = COLOUR_OF.get(method, "#555555")
                place = [number + offset]
                results.errorbar(
                    axis, place, [triple], label, colour, across=True, ls="", ms=4, **style
                )
        axis.axvline(0, color="#bbbbbb", lw=0.8)
        axis.set_yticks(range(len(METHODS)), METHODS, fontsize=8)
        axis.set_xlabel("points above SFT")
        axis.set_title(WORDS[regime], loc="left", fontsize=9)
    axes[0, 0].invert_yaxis()
    axes[0, 0].legend(frameon=False, fontsize=8)
    common.save(figure, out / "measured.png")

# %% [markdown]
# ## The second part: adapters


# %%
def adapted(objective, rank):
    """The rate chosen for adapters of a rank; None where it is not."""
    found = plan.scores(rows_of("strong"), "strong", rank)
    ours = [score for score in found if score.objective == objective]
    expected = {trial.learning_rate for trial in plan.adapter_trials(full(objective), objective, 1)}
    return plan.choose(ours) if len(ours) == len(expected) else None


def full(objective):
    return chosen("strong", objective)


def of_adapters(objective, rank):
    best = adapted(objective, rank)
    rows = measuring[(measuring.objective == objective) & (measuring["rank"] == rank)]
    rows = at_temperatures(rows, "strong")
    return rows[rows.temperature == best.temperature]


table = []
if "strong" in DONE:
    for objective in plan.ADAPTED:
        for rank in plan.RANKS:
            best = adapted(objective, rank)
            rows = None if best is None else of_adapters(objective, rank)
            if rows is None or len(rows) < len(plan.ADAPTED_SEEDS):
                continue
            difference_SP = paired(rows, measured("strong", objective))
            low, high = inference.interval(difference_SP, level=0.90)[1:]
            factor = best.rate / full(objective).rate
            table.append(
                {
                    "objective": objective,
                    "rank": rank,
                    "rate": f"{best.rate:g} ({factor:.0f} ×)",
                    "temperature": f"{best.temperature:g}",
                    "own temperature, %": f"{100 * results.shares(rows).mean():.1f}",
                    "− full": results.text(inference.interval(difference_SP), sign=True),
                    "within ±2 points": "yes" if low > -0.02 and high < 0.02 else "not shown",
                    "rate at least 3 ×": "yes" if factor > 2.9 else "no",
                }
            )
if table:
    (out / "adapters.md").write_text(results.show(table) + "\n")

# %% [markdown]
# ## The hypotheses


# %%
def first_hypothesis(regime):
    """H1: the largest lead over the best simple weight at equal entropy, with its interval."""
    best = max(plan.SINGLE_BEST, key=lambda method: chosen(regime, method).accuracy)
    theirs = measured(regime, best, equal=measure.AT_1)
    leads = {}
    for method in METHODS:
        if method in (best, plan.PLACEBO, *plan.EXPLORATORY):
            continue
        ours = measured(regime, method, equal=measure.AT_1)
        if len(ours):
            leads[method] = inference.interval(paired(ours, theirs))
    ahead = max(leads, key=lambda method: leads[method][0])
    refuted = [method for method, (_, low, _) in leads.items() if low > 0.01]
    lead = f"ahead of it most: {ahead} {results.text(leads[ahead], sign=True)}"
    against = f"refuted by: {', '.join(refuted) or 'none'}"
    return f"H1, {regime}: best simple weight {best}; {lead}; {against}"


def second_hypothesis(regime):
    difference_SP = paired(measured(regime, "prift_prob"), measured(regime, "dft"))
    mean, low, high = inference.interval(difference_SP, level=0.90)
    is_within = low > -0.01 and high < 0.01
    verdict = "within ±1 point" if is_within else "not shown to be within ±1 point"
    difference = results.text((mean, low, high), sign=True)
    return f"H2, {regime}: prift_prob − dft {difference} (90 %): {verdict}"


def third_hypothesis():
    above = []
    for method, (_, is_marked) in families("weak")["sft"].items():
        mean = paired(measured("weak", method), measured("weak", "sft")).mean()
        if is_marked and mean > 0:
            above.append(f"{method} ({100 * mean:+.1f})")
    return f"H3, weak: above sft after Holm: {', '.join(above) or 'none'}"


lines = []
for regime in DONE:
    lines += [first_hypothesis(regime), second_hypothesis(regime)]
if "weak" in DONE:
    lines.append(third_hypothesis())
if lines:
    text = "\n".join(f"- {line}" for line in lines)
    print(text)
    (out / "hypotheses.md").write_text(text + "\n")
