"""Makes the headline rows of the laboratory's studies again, with the code as it is now.

python -m experiments.lab.again.run --jobs=2 --root=runs/lab_again
python -m experiments.lab.again.run main_comparison family

Each trial is that of a row of the study's results.csv, at the rate that was chosen then, and is
trained and sampled anew; no rate is chosen again. results.csv of this folder holds the new rows;
`python -m experiments.lab.again.notebook` sets them beside the old ones.
"""

import os
from pathlib import Path

import pandas as pd

from dft_jax.runtime import errors, folders
from experiments import common
from experiments.lab import results, run as lab
from experiments.lab.trials import Trial, parse

HERE = Path(__file__).parent


# Which rows of a study's results.csv are made again, as a query of pandas.
HEADLINES = {
    "main_comparison": "base == 'lab' and data in ('noise0', 'noise15') and steps == 60",
    "family": "objective in ('sft', 'dft', 'power(alpha=0.5)', 'threshold(tau=0.2)')",
    "granularity": "data == 'noise0'",
    "sharpening": "probe == 'temperatures' and objective != 'none'",
    "dynamics": "learning_rate == 0.001 and schedule == 'cosine' and steps == 60",
    "learning_rate_batch": "learning_rate == 0.001 and batch == 32",
    "offline_rl": "data == 'rejection'",
}


def measured_then(study: str) -> pd.DataFrame:
    """The headline rows of the study, as they are in its results.csv."""
    return results.read(HERE.parent / study / "results.csv").query(HEADLINES[study])


def tasks(study: str) -> list[tuple[Trial, str]]:
    """Trials and probes of the study's headline rows."""
    rows = measured_then(study)[["trial", "probe"]].drop_duplicates()
    return [(parse(row.trial), row.probe) for row in rows.itertuples()]


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=", ".join(HEADLINES))
    parser.add_argument("--root", type=Path, default=Path("runs/lab_again"), help="of the trials")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trials at once")
    options = parser.parse_args()
    for study in options.studies:
        if study not in HEADLINES:
            hint = errors.did_you_mean(study, list(HEADLINES))
            raise errors.UserError(f"no study {study!r}{hint}; known: {', '.join(HEADLINES)}")
    root = options.root.expanduser().absolute()
    file = HERE / "results.csv"
    found = results.records(file)
    with folders.locked(root, "--root"):
        for study in options.studies or HEADLINES:
            rows = lab.carry_out(tasks(study), root, options.jobs, study)
            found = [row for row in found if row["study"] != study]
            found += [{"study": study, **row} for row in rows]
            lab.write_rows(found, file)


if __name__ == "__main__":
    errors.exit_on_user_error(main)()
