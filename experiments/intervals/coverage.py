"""How often 95 % intervals hold the truth: those of evaluations, of paired differences, and of the
laboratory's seeds.

python -m experiments.intervals.coverage

"before" is the percentile bootstrap that stood in their place; both are applied to the same
simulated sets.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dft_jax.evals import scores, significance
from dft_jax.runtime import files
from experiments.lab import results

HERE = Path(__file__).parent
RESAMPLES = 1000
PROBLEMS, MEANS, SAMPLES = (30, 40, 272, 500), (0.015, 0.05, 0.1, 0.3, 0.5), (1, 16)
SEEDS, LAB_PROBLEMS = (3, 5), 48
# Of the laboratory's seeds: samples, and standard deviations of problems and of seeds, in logits.
LAB_CASES = {
    "seeds alike": (8, 1.5, 0.0),
    "seeds differ a little": (8, 1.5, 0.3),
    "seeds dominate": (8, 1.5, 1.0),
    "seeds dominate, greedy": (1, 0.5, 1.0),
    "seeds alone, 10 to 99 %": (8, 0.2, 1.5),
}

Interval = tuple[float, float]


def bootstrap(value_NP: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The percentile bootstrap's interval of means over problems, [N, 2]; all share the draws."""
    n_problems = value_NP.shape[1]
    counts_RP = _counts(n_problems, random)
    return significance.percentile_interval(value_NP @ counts_RP.T / n_problems, axis=1).T


def _counts(n: int, random: np.random.Generator) -> np.ndarray:
    """How often each of `n` is drawn in each resample, [R, n]: a mean is then one product."""
    drawn = significance.resample(n, RESAMPLES, random)
    return np.array([np.bincount(index, minlength=n) for index in drawn])


def bootstrap_of_both(value_NSP: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """As `bootstrap`, with seeds drawn too."""
    _, n_seeds, n_problems = value_NSP.shape
    seeds_RS = _counts(n_seeds, random)
    problems_RP = _counts(n_problems, random)
    counts_RX = (seeds_RS[:, :, None] * problems_RP[:, None, :]).reshape(RESAMPLES, -1)
    means_NR = value_NSP.reshape(len(value_NSP), -1) @ counts_RX.T / (n_seeds * n_problems)
    return significance.percentile_interval(means_NR, axis=1).T


def row(
    kind: str, case: dict, truth: float, before_N2: np.ndarray, after: list[Interval | None]
) -> dict:
    """Coverage and mean width, in percent. An interval that is not given (None) makes no claim, and
    is counted.
    """
    given = np.array([interval for interval in after if interval is not None])
    made = {"kind": kind, **case, "truth": round(100 * truth, 2)}
    for name, ends in (("before", before_N2), ("after", given)):
        held = (ends[:, 0] <= truth) & (truth <= ends[:, 1])
        made[f"{name}_coverage"] = round(100 * float(held.mean()), 1)
        made[f"{name}_width"] = round(100 * float((ends[:, 1] - ends[:, 0]).mean()), 1)
    made["not_given"] = round(100 * (1 - len(given) / len(after)), 1)
    return made


def of_evaluations(n_sets: int, random: np.random.Generator) -> list[dict]:
    """avg@k, of problems whose chances are beta(mean, 1 − mean): most are nearly never or nearly
    always solved.
    """
    rows = []
    for samples in SAMPLES:
        for problems in PROBLEMS:
            for mean in MEANS:
                chance_NP = random.beta(mean, 1 - mean, size=(n_sets, problems))
                share_NP = random.binomial(samples, chance_NP) / samples
                after = [scores.mean_of_shares(share_P).interval_95 for share_P in share_NP]
                case = {"samples": samples, "problems": problems}
                rows.append(row("avg@k", case, mean, bootstrap(share_NP, random), after))
    return rows


def of_differences(n_sets: int, random: np.random.Generator) -> list[dict]:
    """Two models on the same problems, one better by half a logit on average, with a spread of half
    a logit.
    """

    def chances(mean, shape):
        base = np.clip(random.beta(mean, 1 - mean, size=shape), 1e-9, 1 - 1e-9)
        logit = np.log(base / (1 - base)) + 0.5 + 0.5 * random.normal(size=shape)
        return base, 1 / (1 + np.exp(-logit))

    rows = []
    for samples in SAMPLES:
        for problems in PROBLEMS:
            for mean in MEANS:
                base, better = chances(mean, 500_000)
                truth = float((better - base).mean())
                drawn = [
                    random.binomial(samples, p) / samples for p in chances(mean, (n_sets, problems))
                ]
                difference_NP = drawn[1] - drawn[0]
                found = [scores.mean_of_differences(each_P, samples) for each_P in difference_NP]
                case = {"samples": samples, "problems": problems}
                before = bootstrap(difference_NP, random)
                rows.append(
                    row("difference", case, truth, before, [each.interval_95 for each in found])
                )
    return rows


def of_seeds(n_sets: int, random: np.random.Generator) -> list[dict]:
    """The laboratory's: P problems, each seed with an accuracy of its own; shares, and differences
    of two settings.
    """
    rows = []
    for n_seeds in SEEDS:
        for words, (samples, problem_sd, seed_sd) in LAB_CASES.items():

            def sigmoid(logits):
                return 1 / (1 + np.exp(-logits))

            def chances(n_sets, n_seeds, n_problems, problem_sd=problem_sd, seed_sd=seed_sd):
                """Of two settings, [N, S, P]: the second is better by half a logit."""
                problem = 1 + problem_sd * random.normal(size=(n_sets, 1, n_problems))
                seed = seed_sd * random.normal(size=(2, n_sets, n_seeds, 1))
                return sigmoid(problem + seed[0]), sigmoid(problem + 0.5 + seed[1])

            truths = [float(each.mean()) for each in chances(1000, 1000, 1)]
            drawn = [
                random.binomial(samples, p) / samples
                for p in chances(n_sets, n_seeds, LAB_PROBLEMS)
            ]
            case = {"samples": samples, "problems": LAB_PROBLEMS, "seeds": n_seeds, "case": words}
            after = [results.interval(share_SP)[1:] for share_SP in drawn[0]]
            rows.append(
                row("lab, share", case, truths[0], bootstrap_of_both(drawn[0], random), after)
            )
            difference_NSP = drawn[1] - drawn[0]
            after = [
                results.interval_of_difference(each_SP, samples)[1:] for each_SP in difference_NSP
            ]
            before = bootstrap_of_both(difference_NSP, random)
            rows.append(row("lab, difference", case, truths[1] - truths[0], before, after))
    return rows


def table(rows: list[dict]) -> str:
    """Markdown: coverage before → after, and the mean width in points behind it."""
    lines = []
    for kind in ("avg@k", "difference"):
        own = [each for each in rows if each["kind"] == kind]
        lines += [
            f"\n**{kind}**\n",
            "| problems | samples | " + " | ".join(f"{100 * m:g} %" for m in MEANS) + " |",
        ]
        lines.append("| --- " * (2 + len(MEANS)) + "|")
        for start in range(0, len(own), len(MEANS)):
            group = own[start : start + len(MEANS)]
            cells = [_cell(each) for each in group]
            lines.append(
                f"| {group[0]['problems']} | {group[0]['samples']} | " + " | ".join(cells) + " |"
            )
    lines += [
        "\n**The laboratory's seeds**\n",
        "| seeds | case | shares | differences |",
        "| --- " * 4 + "|",
    ]
    shares = [each for each in rows if each["kind"] == "lab, share"]
    differences = [each for each in rows if each["kind"] == "lab, difference"]
    for one, other in zip(shares, differences, strict=True):
        lines.append(f"| {int(one['seeds'])} | {one['case']} | {_cell(one)} | {_cell(other)} |")
    return "\n".join(lines).strip() + "\n"


def _cell(each: dict) -> str:
    before, after = (f"{each[f'{name}_coverage']:.0f}" for name in ("before", "after"))
    return f"{before} → {after} ({each['before_width']:.1f} → {each['after_width']:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--out", type=Path, default=HERE, help="folder for results.csv and table.md"
    )
    parser.add_argument("--sets", type=int, default=2000, help="simulated sets of each case")
    options = parser.parse_args()
    parts: list[Callable] = [of_evaluations, of_differences, of_seeds]
    rows = [each for part in parts for each in part(options.sets, np.random.default_rng(0))]
    columns = "kind samples problems seeds case truth before_coverage after_coverage before_width"
    columns += " after_width not_given"
    files.write_csv(rows, options.out / "results.csv", columns.split())
    (options.out / "table.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
