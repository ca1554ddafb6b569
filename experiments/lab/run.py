"""Runs a study of the laboratory, or all of them; what is finished already is skipped.

python -m experiments.lab.run main_comparison
python -m experiments.lab.run all --jobs=2 --root=runs/lab
python -m experiments.lab.run trial --trial=objective=dft,data=noise15,seed=2 --probe=test

The last form is how any row of a results.csv is made again. `--jobs` trials run at once, each on a
core of its own.
"""

import concurrent.futures
import importlib
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from dft_jax.commands import cli
from dft_jax.runtime import errors, files, folders
from experiments.lab import selection
from experiments.lab.trials import PROBES, Trial, is_done, measure, parse, use_cache

HERE = Path(__file__).parent
_JOBS = flags.DEFINE_integer("jobs", os.cpu_count(), "Trials at once.", 1)
_ROOT = flags.DEFINE_string(
    "root", None, "Folder of the trials; runs/lab, or for one trial a new one."
)
_TRIAL = flags.DEFINE_string("trial", "", "Name of one trial; what it leaves out has the default.")
_PROBE = flags.DEFINE_enum("probe", "test", list(PROBES), "What to measure on it.")

Task = tuple[Trial, str]  # and the probe's name


def studies() -> list[str]:
    return sorted(file.parent.name for file in HERE.glob("*/study.py"))


def workers(root: Path, jobs: int) -> concurrent.futures.ProcessPoolExecutor:
    """Processes with a core each, whose logs and compilations are in the folder of the trials."""
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for core in range(jobs):
        cores.put(core)
    return concurrent.futures.ProcessPoolExecutor(jobs, context, _begin, (cores, str(root)))


def _begin(cores, root: str) -> None:
    """Of a worker process: one core of the queue, its own log, the compilations of all."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    core = cores.get()
    _pin(core)
    log = open(Path(root) / f"worker{core}.log", "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (of the process)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    use_cache(Path(root) / "compilations")


def _end_with_parent() -> None:
    """A launcher that is killed takes its workers along: they would write into the folders of the
    next one.
    """
    multiprocessing.parent_process().join()
    os._exit(1)


def _pin(core: int) -> None:
    # not on macOS, where the last digits may then depend on the cores
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(
            0, {sorted(os.sched_getaffinity(0))[core % len(os.sched_getaffinity(0))]}
        )


def carry_out(tasks: Iterable[Task], root: Path, jobs: int, what: str) -> list[dict[str, Any]]:
    """The rows of all tasks, in their order. Those of one trial run one after the other.

    Raises:
      UserError: some trials failed. No table is made of the others: a gap would look like a choice.
    """
    of_trial: dict[Trial, list[str]] = {}
    for trial, probe in tasks:
        of_trial.setdefault(trial, []).append(probe)
    todo = [
        trial
        for trial, probes in of_trial.items()
        if not all(is_done(trial, probe, root) for probe in probes)
    ]
    rows = {trial: _all(trial, of_trial[trial], root) for trial in of_trial.keys() - set(todo)}
    if todo:
        with tqdm(
            total=len(of_trial), initial=len(rows), desc=what, unit="trial", smoothing=0.1
        ) as bar:
            rows |= _in_workers({trial: of_trial[trial] for trial in todo}, root, jobs, bar)
    return [row for trial in of_trial for row in rows[trial]]


def _in_workers(
    of_trial: dict[Trial, list[str]], root: Path, jobs: int, bar: tqdm
) -> dict[Trial, list[dict]]:
    rows, failed = {}, []
    with workers(root, jobs) as pool:
        futures = {
            pool.submit(_all, trial, probes, root): trial for trial, probes in of_trial.items()
        }
        for future in concurrent.futures.as_completed(futures):
            try:
                rows[futures[future]] = future.result()
            except Exception as error:  # the others go on, so that they are done when it is mended
                failed.append(
                    f"{futures[future].name}: {type(error).__name__}: {errors.first_line(error)}"
                )
                tqdm.write(failed[-1])
            bar.update()
    errors.raise_if_any(
        failed and [f"{len(failed)} trials failed; see {root}/worker*.log", *failed]
    )
    return rows


def _all(trial: Trial, probes: list[str], root: Path) -> list[dict[str, Any]]:
    return [row for probe in probes for row in measure(trial, probe, root)]


def write_rows(rows: list[dict[str, Any]], file: Path) -> None:
    """As CSV; numbers with what is needed to read them back."""
    short = [
        {k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()} for row in rows
    ]
    files.write_csv(short, file)


def run_study(name: str, root: Path, jobs: int) -> None:
    """Chooses learning rates on the validation split, measures on the test split, writes the
    study's CSV files.
    """
    study = importlib.import_module(f"experiments.lab.{name}.study")
    first = carry_out(getattr(study, "FIRST", []), root, 1, f"{name}, preparing")
    candidates = carry_out(study.candidates(), root, jobs, f"{name}, choosing learning rates")
    if candidates:
        write_rows(candidates, HERE / name / "validation.csv")
    chosen = selection.chooser(candidates)
    rows = carry_out(study.measurements(chosen), root, jobs, name)
    sheets = (
        study.finish(chosen, root, HERE / name)
        if hasattr(study, "finish")
        else {"results.csv": rows}
    )
    for file, content in sheets.items():
        write_rows(content, HERE / name / file)
    hours = sum(row["seconds"] for row in first + candidates + rows) / 3600
    print(f"{name}: {len(rows)} rows, {hours:.2f} core hours; {HERE / name / 'results.csv'}")


def main() -> None:
    names = cli.parse(
        required=[], positional=f"STUDY … ({', '.join(studies())}, all, or trial with --trial=NAME)"
    )
    names = studies() if names == ["all"] else names
    unknown = [name for name in names if name not in [*studies(), "trial"]]
    if unknown:
        hint = errors.did_you_mean(unknown[0], studies())
        raise errors.UserError(
            f"no study {unknown[0]!r}{hint}; known: {', '.join(studies())}, all, trial"
        )
    trial = parse(_TRIAL.value)
    # A trial by itself is made again, wherever it was made before.
    default = tempfile.mkdtemp(prefix="trial") if names == ["trial"] else "runs/lab"
    root = Path(_ROOT.value or default).expanduser().absolute()
    # two launchers would train the same trial twice, into the same files
    with folders.locked(root, "--root"):
        if names == ["trial"]:
            for row in carry_out([(trial, _PROBE.value)], root, 1, "trial"):
                print(
                    {
                        key: row[key]
                        for key in (
                            "benchmark",
                            "temperature",
                            "step",
                            "avg",
                            "pass",
                            "maj",
                            "correct",
                        )
                    }
                )
            return
        for name in names:
            run_study(name, root, _JOBS.value)


if __name__ == "__main__":
    errors.exit_on_user_error(main)()
