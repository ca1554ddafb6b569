# %% [markdown]
# # d. Learning rate × batch size
#
# Every cell reads 1,920 examples, with one seed the same ones; three seeds. avg@8 at temperature 1,
# and greedy, on 64 problems.

# %%
import numpy as np

from experiments import common
from experiments.lab import results

frame, out = results.open_study("learning_rate_batch")
RATES, BATCHES = sorted(frame.learning_rate.unique()), sorted(frame.batch.unique())


def cell(objective, rate, batch, benchmark, temperature):
    where = {"objective": objective, "learning_rate": rate, "batch": batch}
    return results.cell(frame, benchmark, temperature, **where)


# %%
table = []
for benchmark in ("lab", "lab_expression"):
    for batch in BATCHES:
        for rate in RATES:
            row = {"split": benchmark, "batch": str(batch), "learning rate": f"{rate:g}"}
            for temperature, name in ((1.0, "avg@8"), (0.0, "greedy")):
                sft, dft = (cell(o, rate, batch, benchmark, temperature) for o in ("sft", "dft"))
                if len(sft) and len(dft):
                    row[f"{name}: SFT"] = results.text(results.interval(results.shares(sft)))
                    row[f"{name}: DFT"] = results.text(results.interval(results.shares(dft)))
                    row[f"{name}: DFT − SFT"] = results.text(
                        results.difference(dft, sft), sign=True
                    )
            table.append(row)
(out / "table.md").write_text(results.show(table) + "\n")

# %%
figure, axes = common.figure(3, 2, size=(3.3, 2.6))
for line, temperature in zip(axes, (1.0, 0.0), strict=True):
    grids = {
        o: np.array(
            [
                [100 * cell(o, rate, batch, "lab", temperature).avg.mean() for rate in RATES]
                for batch in BATCHES
            ]
        )
        for o in ("sft", "dft")
    }
    low = min(np.nanmin(grid) for grid in grids.values())
    high = max(np.nanmax(grid) for grid in grids.values())
    panels = [(o.upper(), grid, low, high, "viridis") for o, grid in grids.items()]
    gap = grids["dft"] - grids["sft"]
    widest = np.nanmax(np.abs(gap))
    panels.append(("DFT − SFT", gap, -widest, widest, "PuOr_r"))
    for axis, (title, grid, least, most, colours) in zip(line, panels, strict=True):
        axis.imshow(grid, vmin=least, vmax=most, cmap=colours, aspect="auto")
        for (i, j), value in np.ndenumerate(grid):
            share = (value - least) / max(most - least, 1e-9)
            is_dark = share < 0.55 if colours == "viridis" else not 0.15 < share < 0.85
            sign = "+" if title == "DFT − SFT" else ""
            axis.text(
                j,
                i,
                f"{value:{sign}.1f}",
                ha="center",
                va="center",
                color="white" if is_dark else "black",
            )
        axis.set_xticks(range(len(RATES)), [f"{rate:g}" for rate in RATES])
        axis.set_yticks(range(len(BATCHES)), BATCHES)
        axis.set_title(
            f"{title}, {'T = 1' if temperature else 'greedy'}, %", loc="left", fontsize=9
        )
    line[0].set_ylabel("batch, examples")
for axis in axes[-1]:
    axis.set_xlabel("learning rate")
common.save(figure, out / "grid.png")
