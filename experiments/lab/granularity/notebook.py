# %% [markdown]
# # e. Weights by the token, by the sentence, and the geometric mean
#
# The paper's ablation: p of each token (DFT), Π p of the whole answer, and its geometric mean.
# Three seeds.

# %%
from experiments import common
from experiments.lab import results

frame, out = results.open_study("granularity")
NAMES = {
    "sft": "SFT: 1",
    "dft": "token: p",
    "sentence": "sentence: Π p",
    "geometric": "geometric mean",
}


def cell(objective, benchmark, temperature):
    return results.cell(frame, benchmark, temperature, objective=objective)


table = []
for benchmark in ("lab", "lab_expression"):
    for objective, name in NAMES.items():
        row = {"split": benchmark, "weight": name}
        for temperature, words in ((1.0, "avg@8"), (0.0, "greedy")):
            rows, sft = cell(objective, benchmark, temperature), cell("sft", benchmark, temperature)
            if len(rows):
                row["learning rate"] = f"{rows.learning_rate.iloc[0]:g}"
                row[words] = results.text(results.interval(results.shares(rows)))
                row[f"{words} − SFT"] = (
                    "" if objective == "sft" else results.text(results.difference(rows, sft), True)
                )
        table.append(row)
(out / "table.md").write_text(results.show(table) + "\n")

# %%
figure, axes = common.figure(2, size=(3.6, 2.8), sharey=True)
colours = ("#1f77b4", "#d95f02", "#7570b3", "#1b9e77")
for axis, benchmark in zip(axes[0], ("lab", "lab_expression"), strict=True):
    for number, objective in enumerate(NAMES):
        for offset, temperature, style in ((-0.1, 1.0, {}), (0.1, 0.0, {"mfc": "white"})):
            rows = cell(objective, benchmark, temperature)
            if len(rows):
                triple = results.interval(results.shares(rows))
                label = ("T = 1" if temperature else "greedy") if number == 0 else None
                results.errorbar(
                    axis, [number + offset], [triple], label, colours[number], ls="", ms=6, **style
                )
    axis.set_xticks(range(len(NAMES)), NAMES.values(), rotation=20, ha="right", fontsize=8)
    axis.set_title(
        {"lab": "like the demonstrations", "lab_expression": "other format"}[benchmark],
        loc="left",
        fontsize=9,
    )
axes[0, 0].set_ylabel("correct, %")
axes[0, 0].legend(frameon=False, fontsize=8)
common.save(figure, out / "granularity.png")
