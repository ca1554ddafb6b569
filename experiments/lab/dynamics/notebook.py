# %% [markdown]
# # b. Training dynamics: accuracy against the step
#
# avg@8 at temperature 1 on 48 problems like the demonstrations, every 10 steps; three seeds, 95 %
# intervals over seeds and problems. The grey line is the base.

# %%
from experiments import common
from experiments.lab import results
from experiments.lab.results import COLOUR_OF

frame, out = results.open_study("dynamics")
base = (
    100
    * frame[
        (frame.objective == "none") & (frame.benchmark == "lab") & (frame.temperature == 1.0)
    ].avg.mean()
)
runs = frame[frame.probe == "curve"]
RATES = sorted(runs.learning_rate.unique())
STEPS = sorted(runs.step.unique())


def curve(objective, rate, schedule):
    rows = runs[
        (runs.objective == objective) & (runs.learning_rate == rate) & (runs.schedule == schedule)
    ]
    return [(step, rows[rows.step == step]) for step in STEPS if (rows.step == step).any()]


# %%
schedules = list(runs.schedule.unique())
figure, axes = common.figure(len(RATES), len(schedules), sharex=True, sharey=True)
for line, schedule in zip(axes, schedules, strict=True):
    for axis, rate in zip(line, RATES, strict=True):
        for objective in ("sft", "dft"):
            points = [
                (step, results.interval(results.shares(rows)))
                for step, rows in curve(objective, rate, schedule)
            ]
            if points:
                steps, triples = zip(*points, strict=True)
                results.errorbar(axis, steps, triples, objective.upper(), COLOUR_OF[objective])
        axis.axhline(base, color=COLOUR_OF["base"], lw=1, label="base")
        axis.set_title(f"{schedule}, learning rate {rate:g}", loc="left", fontsize=9)
    line[0].set_ylabel("avg@8 at T = 1, %")
for axis in axes[-1]:
    axis.set_xlabel("step")
axes[0, 0].legend(frameon=False, fontsize=8)
common.save(figure, out / "curves.png")

# %% [markdown]
# ## Table: where DFT first passes the best that SFT reaches at any step

# %%
table = []
for schedule in schedules:
    for rate in RATES:
        means = {
            o: {step: 100 * rows.avg.mean() for step, rows in curve(o, rate, schedule)}
            for o in ("sft", "dft")
        }
        if not all(means.values()):
            continue
        best, dft_best = max(means["sft"].values()), max(means["dft"].values())
        passed = [step for step, mean in means["dft"].items() if mean > best]
        last = max(means["dft"])
        ours, theirs = (dict(curve(o, rate, schedule))[last] for o in ("dft", "sft"))
        table.append(
            {
                "schedule": schedule,
                "learning rate": f"{rate:g}",
                "SFT's best (step)": f"{best:.1f} ({max(means['sft'], key=means['sft'].get)})",
                "DFT passes it at step": str(passed[0]) if passed else "never",
                "DFT's best (step)": f"{dft_best:.1f} ({max(means['dft'], key=means['dft'].get)})",
                "DFT − SFT at the end": results.text(results.difference(ours, theirs), sign=True),
            }
        )
(out / "table.md").write_text(results.show(table) + "\n")
