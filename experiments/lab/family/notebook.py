# %% [markdown]
# # f. The family of objectives, on demonstrations of which 15 % of the steps are wrong
#
# Each with its own learning rate, chosen on the validation split; three seeds; differences to SFT
# are paired, and not corrected for being twelve.

# %%
from experiments import common
from experiments.lab import results
from experiments.lab.results import COLOUR_OF

frame, out = results.open_study("family")
ORDER = list(dict.fromkeys(frame.objective))


def cell(objective, benchmark, temperature):
    return results.cell(frame, benchmark, temperature, objective=objective)


table = []
for objective in ORDER:
    row = {
        "objective": objective,
        "learning rate": f"{cell(objective, 'lab', 1.0).learning_rate.iloc[0]:g}",
    }
    for benchmark in ("lab", "lab_expression"):
        for temperature, words in ((1.0, "avg@8"), (0.0, "greedy")):
            rows, sft = cell(objective, benchmark, temperature), cell("sft", benchmark, temperature)
            row[f"{benchmark}, {words}"] = results.text(results.interval(results.shares(rows)))
            if benchmark == "lab":
                gap = (
                    ""
                    if objective == "sft"
                    else results.text(results.difference(rows, sft), sign=True)
                )
                row[f"{words} − SFT"] = gap
    row["entropy"] = f"{cell(objective, 'lab', 1.0).entropy.mean():.3f}"
    table.append(row)
(out / "table.md").write_text(results.show(table) + "\n")

# %%
figure, axes = common.figure(2, size=(4.2, 4.2), sharey=True)
for axis, benchmark in zip(axes[0], ("lab", "lab_expression"), strict=True):
    for number, objective in enumerate(ORDER):
        for offset, temperature, style in ((-0.12, 1.0, {}), (0.12, 0.0, {"mfc": "white"})):
            triple = results.interval(results.shares(cell(objective, benchmark, temperature)))
            label = ("T = 1" if temperature else "greedy") if number == 0 else None
            colour = COLOUR_OF.get(objective, "#555555")
            place = [number + offset]
            results.errorbar(
                axis, place, [triple], label, colour, across=True, ls="", ms=5, **style
            )
    axis.set_yticks(range(len(ORDER)), ORDER, fontsize=8)
    axis.set_xlabel("correct, %")
    axis.set_title(
        {"lab": "like the demonstrations", "lab_expression": "other format"}[benchmark],
        loc="left",
        fontsize=9,
    )
axes[0, 0].invert_yaxis()
axes[0, 0].legend(frameon=False, fontsize=8)
common.save(figure, out / "family.png")
