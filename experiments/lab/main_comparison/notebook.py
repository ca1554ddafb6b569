# %% [markdown]
# # a. SFT and DFT over bases and demonstrations
#
# Accuracy of five seeds with 95 % intervals over seeds and problems; differences are paired. `lab`
# is like the demonstrations, `lab_hard` has longer chains, `lab_expression` is another format,
# which no demonstration has.

# %%
from experiments import common
from experiments.lab import results
from experiments.lab.results import COLOUR_OF

frame, out = results.open_study("main_comparison")
DATA = {
    "noise0": "all steps right",
    "noise5": "5 % wrong",
    "noise15": "15 % wrong",
    "noise30": "30 % wrong",
    "one_style": "one style",
    "operator": "new operator",
}
SPLITS = {"lab": "like the demonstrations", "lab_hard": "longer", "lab_expression": "other format"}


def select(base, objective, data, benchmark, temperature):
    """The rows of one cell; the base's own are read by every kind of demonstrations."""
    rows = frame[(frame.base == base) & (frame.objective == objective)]
    if objective == "none":
        rows = rows[rows.probe == ("operator" if data == "operator" else "test")]
    else:
        rows = rows[rows.data == data]
    return rows[(rows.benchmark == benchmark) & (rows.temperature == temperature)]


# %% [markdown]
# ## Table: temperature 1 (avg@8), greedy, pass@8


# %%
def line(base, data, benchmark):
    cells = {"base": base, "demonstrations": DATA[data], "split": benchmark}
    for temperature, name in ((1.0, "avg@8"), (0.0, "greedy")):
        sft, dft = (select(base, o, data, benchmark, temperature) for o in ("sft", "dft"))
        if len(sft) == 0 or len(dft) == 0:
            continue  # a gap
        untouched = select(base, "none", data, benchmark, temperature)
        cells[f"{name}: base"] = f"{100 * untouched.avg.mean():.1f}"
        cells[f"{name}: SFT"] = results.text(results.interval(results.shares(sft)))
        cells[f"{name}: DFT"] = results.text(results.interval(results.shares(dft)))
        cells[f"{name}: DFT − SFT"] = results.text(results.difference(dft, sft), sign=True)
        if temperature == 1.0:
            values = (f"{100 * rows['pass'].mean():.1f}" for rows in (untouched, sft, dft))
            cells["pass@8: base / SFT / DFT"] = " / ".join(values)
    return cells


table = []
for base in frame.base.unique():
    for data in DATA:
        for split in ("lab_operator", "lab") if data == "operator" else SPLITS:
            table.append(line(base, data, split))
(out / "table.md").write_text(results.show(table) + "\n")

# %% [markdown]
# ## Figures: the accuracy of each, and the paired difference

# %%
bases = list(frame.base.unique())
chains = [data for data in DATA if data != "operator"]


def panels(file, draw, label):
    """A line for each base, a panel for each split; `draw(axis, base, split)` fills it."""
    figure, axes = common.figure(
        len(SPLITS), len(bases), size=(3.6, 2.5), sharex=True, sharey="col"
    )
    for line, base in zip(axes, bases, strict=True):
        for axis, (split, words) in zip(line, SPLITS.items(), strict=True):
            draw(axis, base, split)
            axis.set_title(f"{base}: {words}", loc="left", fontsize=9)
            axis.set_xticks(
                range(len(chains)),
                [DATA[data] for data in chains],
                rotation=35,
                ha="right",
                fontsize=8,
            )
        line[0].set_ylabel(label)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, frameon=False, fontsize=8, ncols=len(labels), loc="outside upper center"
    )
    common.save(figure, out / file)


STYLES = {1.0: {"ls": ""}, 0.0: {"ls": "", "mfc": "white"}}
WORDS = {1.0: "T = 1", 0.0: "greedy"}


def means(axis, base, split):
    for i, (temperature, objective) in enumerate((t, o) for t in STYLES for o in ("sft", "dft")):
        found = [
            (x, select(base, objective, data, split, temperature)) for x, data in enumerate(chains)
        ]
        points = [
            (x + 0.16 * (i - 1.5), results.interval(results.shares(rows)))
            for x, rows in found
            if len(rows)
        ]
        if points:
            name = f"{objective.upper()}, {WORDS[temperature]}"
            x, triples = zip(*points, strict=True)
            results.errorbar(axis, x, triples, name, COLOUR_OF[objective], **STYLES[temperature])
    for temperature, style in ((1.0, "-"), (0.0, ":")):
        level = 100 * select(base, "none", "noise0", split, temperature).avg.mean()
        axis.axhline(
            level, color=COLOUR_OF["base"], lw=1, ls=style, label=f"base, {WORDS[temperature]}"
        )


def differences(axis, base, split):
    axis.axhline(0, color=COLOUR_OF["base"], lw=1)
    for i, temperature in enumerate(STYLES):
        pairs = [
            [select(base, o, data, split, temperature) for o in ("dft", "sft")] for data in chains
        ]
        found = [
            (x + 0.2 * (i - 0.5), results.difference(*pair))
            for x, pair in enumerate(pairs)
            if all(map(len, pair))
        ]
        if found:
            x, triples = zip(*found, strict=True)
            results.errorbar(
                axis, x, triples, WORDS[temperature], COLOUR_OF["dft"], **STYLES[temperature]
            )


panels("conditions.png", means, "correct, %")
panels("differences.png", differences, "DFT − SFT, points")

# %% [markdown]
# ## Figure: the operator that the base never saw

# %%
figure, axes = common.figure(2, size=(3.6, 2.8), sharey=True)
for axis, split in zip(axes[0], ("lab_operator", "lab"), strict=True):
    for number, base in enumerate(bases):
        for offset, objective in ((-0.2, "none"), (0.0, "sft"), (0.2, "dft")):
            rows = select(base, objective, "operator", split, 1.0)
            if len(rows):
                triple = results.interval(results.shares(rows))
                label = {"none": "base"}.get(objective, objective.upper()) if number == 0 else None
                results.errorbar(
                    axis, [number + offset], [triple], label, COLOUR_OF[objective], ls="", ms=6
                )
    axis.set_xticks(range(len(bases)), bases)
    axis.set_title(
        {"lab_operator": "the new operator", "lab": "chains, as before"}[split],
        loc="left",
        fontsize=9,
    )
axes[0, 0].set_ylabel("avg@8 at T = 1, %")
axes[0, 1].legend(frameon=False, fontsize=8)
common.save(figure, out / "operator.png")
