# %% [markdown]
# # The headline rows of the laboratory, made again
#
# Each objective's difference from SFT, then and now, with 95 % intervals over seeds and problems.
# A verdict is `above`, `below`, or `open` where the interval holds 0.

# %%
import pandas as pd

from experiments.lab import results
from experiments.lab.again.run import HEADLINES, measured_then

again, out = results.open_study("again")
MADE = [study for study in HEADLINES if study in set(again.study)]
THEN = {study: measured_then(study) for study in MADE}
NOW = {study: again[again.study == study] for study in MADE}
# Objectives have their own rates.
SETTING = ["data", "batch", "benchmark", "temperature", "step"]


def differences(rows):
    """Setting and objective -> difference from SFT in the same setting."""
    found = {}
    for setting, of_setting in rows.groupby(SETTING):
        sft = of_setting[of_setting.objective == "sft"]
        for objective, ours in of_setting.groupby("objective"):
            if objective != "sft":
                found[(*setting, objective)] = results.difference(ours, sft)
    return found


def verdict(triple):
    _, low, high = triple
    return "above" if low > 0 else "below" if high < 0 else "open"


# %%
table = []
for study in MADE:
    then, now = differences(THEN[study]), differences(NOW[study])
    for place in sorted(then):
        data, _, benchmark, temperature, step, objective = place
        verdicts = verdict(then[place]), verdict(now[place])
        table.append(
            {
                "study": study,
                "demonstrations": data,
                "split": benchmark,
                "temperature": f"{temperature:g}",
                "step": step,
                "objective": f"{objective} − sft",
                "then": results.text(then[place], sign=True),
                "now": results.text(now[place], sign=True),
                "verdict": " → ".join(dict.fromkeys(verdicts)),
            }
        )
moved = [line for line in table if "→" in line["verdict"]]
(out / "table.md").write_text(results.show(table) + "\n")
(out / "moved.md").write_text((results.show(moved) if moved else "None.") + "\n")

# %%
KEYS = ["trial", "probe", "benchmark", "temperature", "step"]
for study in MADE:
    pairs = pd.merge(THEN[study], NOW[study], on=KEYS, suffixes=("_then", "_now"))
    lines = [line for line in table if line["study"] == study]
    stays = sum(line not in moved for line in lines)
    same = (pairs.correct_now == pairs.correct_then).sum()
    shift = 100 * (pairs.avg_now - pairs.avg_then).abs()
    print(
        f"{study}: {stays} of {len(lines)} verdicts stay; {same} of {len(pairs)} rows are the same"
        f" to the last sample; a row moved by {shift.mean():.2f} points, {shift.max():.1f} at most"
    )
