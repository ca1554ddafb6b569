"""Evaluations side by side: tables with paired differences to the first, a CSV, and a bar plot.

python -m dft_jax.analysis.compare base=evals/base sft=evals/sft dft=runs/dft --out=comparison

Each argument is the folder of an evaluation, or a run directory, of which the last evaluation is
taken; a name may stand before it. Of the runs' common problems the differences are paired: the two
answer the same problems, with the same sampling noise, so they say more than the two intervals do.
A * marks those that are more than chance when it is counted how many differences there are.
"""

import collections
import sys

from absl import flags

from dft_jax.analysis import comparison_report
from dft_jax.analysis.comparison import compare, read
from dft_jax.commands import cli
from dft_jax.runtime import errors, folders
from dft_jax.runtime.files import write_csv

_OUT = flags.DEFINE_string(
    "out", None, "Folder for comparison.csv and comparison.png.", allow_override=True
)


def main() -> None:
    arguments = cli.parse(required=[], positional="RUN … (folders of evaluations, or name=folder)")
    evaluations = [read(argument) for argument in arguments]
    # A row is found by its run's name.
    count_of = collections.Counter(evaluation.name for evaluation in evaluations)
    twice = sorted(name for name in count_of if count_of[name] > 1)
    if twice:
        raise errors.UserError(f"two runs are called {twice[0]!r}; name them: name=folder")
    made = compare(evaluations)
    # Beside the tables, not in them: stdout may be piped into a file.
    for line in made.warnings:
        print(f"warning: {line}", file=sys.stderr)
    print(comparison_report.text(made))
    if _OUT.value:
        out = folders.local_folder(_OUT.value, "--out")
        with errors.user_errors(f"--out={out}: cannot be made", "give another folder"):
            out.mkdir(parents=True, exist_ok=True)
        write_csv(made.rows, out / "comparison.csv")
        comparison_report.plot(made.rows, out / "comparison.png")
        print(f"{out}/comparison.csv, {out}/comparison.png")


if __name__ == "__main__":
    errors.exit_on_user_error(main)()
