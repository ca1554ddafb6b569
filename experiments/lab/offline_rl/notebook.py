# %% [markdown]
# # h. Offline RL: what the base's own answers teach
#
# Four answers of the base to each of 2,500 questions; those that the grader accepts are the
# demonstrations of RFT (SFT on them) and DFT; DPO reads a right and a wrong answer to the same
# question; GRPO samples anew at every step. Three seeds.

# %%
from experiments import common
from experiments.lab import results
from experiments.lab.results import COLOURS

frame, out = results.open_study("offline_rl")
NAMES = {"none": "base", "sft": "RFT (SFT)", "dft": "DFT", "dpo": "DPO", "grpo": "GRPO"}
SPLITS = {"lab": "like the questions", "lab_hard": "longer", "lab_expression": "other format"}


def cell(objective, benchmark, temperature):
    return results.cell(frame, benchmark, temperature, objective=objective)


table = []
for benchmark in SPLITS:
    for objective, name in NAMES.items():
        row = {"split": benchmark, "method": name}
        for temperature, words in ((1.0, "avg@8"), (0.0, "greedy")):
            rows, sft = cell(objective, benchmark, temperature), cell("sft", benchmark, temperature)
            if len(rows):
                row["learning rate"] = (
                    "" if objective == "none" else f"{rows.learning_rate.iloc[0]:g}"
                )
                row[words] = results.text(results.interval(results.shares(rows)))
                if objective not in ("none", "sft"):
                    row[f"{words} − RFT"] = results.text(results.difference(rows, sft), sign=True)
                if temperature == 1.0:
                    row["pass@8"] = f"{100 * rows['pass'].mean():.1f}"
                    row["entropy"] = f"{rows.entropy.mean():.3f}"
        table.append(row)
(out / "table.md").write_text(results.show(table) + "\n")

# %%
figure, axes = common.figure(len(SPLITS), size=(3.3, 2.9), sharey=True)
for axis, (benchmark, words) in zip(axes[0], SPLITS.items(), strict=True):
    for number, objective in enumerate(NAMES):
        for offset, temperature, style in ((-0.12, 1.0, {}), (0.12, 0.0, {"mfc": "white"})):
            rows = cell(objective, benchmark, temperature)
            if len(rows):
                triple = results.interval(results.shares(rows))
                label = ("T = 1" if temperature else "greedy") if number == 0 else None
                results.errorbar(
                    axis, [number + offset], [triple], label, COLOURS[number], ls="", ms=6, **style
                )
    axis.set_xticks(range(len(NAMES)), NAMES.values(), rotation=25, ha="right", fontsize=8)
    axis.set_title(f"{benchmark}: {words}", loc="left", fontsize=9)
axes[0, 0].set_ylabel("correct, %")
axes[0, 0].legend(frameon=False, fontsize=8)
common.save(figure, out / "offline_rl.png")
