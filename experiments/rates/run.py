"""Runs the study of rates: chooses a rate for every method, then measures on new seeds.

python -m experiments.rates.run --hours=2 --jobs=2

Goes on where it ended: what choosing.csv, measuring.csv and failed.csv have is not made again (to
make a row again, delete it, or the file). It ends by itself after --hours, and says what is still
to do. Trained models are kept under --root; all rows are written after every trial.
"""

import concurrent.futures
import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dft_jax.runtime import errors, folders
from experiments import common
from experiments.lab import results, run as lab
from experiments.lab.trials import Trial
from experiments.rates import measure, plan
from experiments.rates.plan import MEASURING_SEEDS, METHODS, REGIMES, WIDE_SEEDS, Row

HERE = Path(__file__).parent
NO_CLIP = 1e9


class Sheet:
    """The rows of a CSV file, written again after each that is added."""

    def __init__(self, file: Path):
        self.file = file
        self.rows: list[Row] = results.records(file)

    def add(self, rows: list[Row]) -> None:
        self.rows += rows
        lab.write_rows(self.rows, self.file)

    @property
    def trials(self) -> set[str]:
        return {row["trial"] for row in self.rows}


@dataclasses.dataclass(frozen=True)
class Task:
    """A function of the module `measure` with its arguments, about one trial."""

    trial: Trial
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class Study:
    """What is done, what comes next, and where the results go."""

    def __init__(self, out: Path, root: Path):
        self.root = root
        self.choosing = Sheet(out / "choosing.csv")
        self.measuring = Sheet(out / "measuring.csv")
        self.heldout = Sheet(out / "heldout.csv")
        self.failed = Sheet(out / "failed.csv")

    def next_tasks(self) -> list[Task]:
        """Those that can begin now: first a rate for each method of a regime, then its seeds."""
        for regime in REGIMES:
            wanted = plan.next_trials(self.choosing.rows, self.failed.trials, regime)
            if wanted:
                return [self._task(each, measure.choosing, regime) for each in wanted]
            tasks = self._measurements(regime)
            if tasks:
                return tasks
            if regime == "strong" and (tasks := self._of_adapters()):
                return tasks
        return []

    def _measurements(self, regime: str) -> list[Task]:
        """SFT and the base first, with which all others are compared."""
        chosen = self.chosen(regime)
        base = Trial(objective="none", data=REGIMES[regime].data, steps=0, seed=100)
        sft = chosen["sft"]
        first, others = [], [self._measurement(regime, sft, base, sft.temperature)]
        for seed in MEASURING_SEEDS:
            for method, score in chosen.items():
                trial = plan.trial(regime, score.objective, score.rate, seed)
                found = first if method == "sft" else others
                found.append(self._measurement(regime, sft, trial, score.temperature))
                if method in ("sft", "dft") and seed in WIDE_SEEDS:
                    unclipped = dataclasses.replace(trial, clip_norm=NO_CLIP)
                    others.append(self._measurement(regime, sft, unclipped, score.temperature))
        return self._open(first) or self._open(others)

    def _of_adapters(self) -> list[Task]:
        """The second part, both stages."""
        chosen = self.chosen("strong")
        choosing, measuring = [], []
        for objective in plan.ADAPTED:
            for rank in plan.RANKS:
                trials = plan.adapter_trials(chosen[objective], objective, rank)
                choosing += [self._task(each, measure.choosing, "strong") for each in trials]
                found = plan.scores(self.choosing.rows, "strong", rank)
                ours = [score for score in found if score.objective == objective]
                if any(score.seeds == plan.TUNING_SEEDS for score in ours):
                    best = plan.choose(ours)
                    for seed in plan.ADAPTED_SEEDS:
                        trial = plan.trial("strong", objective, best.rate, seed, rank)
                        task = self._measurement("strong", chosen["sft"], trial, best.temperature)
                        measuring.append(task)
        done = self.choosing.trials | self.failed.trials
        return [each for each in choosing if each.trial.name not in done] or self._open(measuring)

    def _open(self, tasks: list[Task]) -> list[Task]:
        """Measurements that are not done yet."""
        done = self.heldout.trials | self.failed.trials
        return [each for each in tasks if each.trial.name not in done]

    def _measurement(self, regime: str, sft: plan.Score, trial: Trial, temperature: float) -> Task:
        """Of a trial at the temperature of its method, beside the run of `sft` of its seed."""
        paired = plan.trial(regime, "sft", sft.rate, trial.seed)
        reference = measure.Reference(paired, sft.temperature)
        return self._task(trial, measure.measuring, regime, temperature, reference)

    def chosen(self, regime: str) -> dict[str, plan.Score]:
        """Of each method its objective, rate and temperature."""
        found = plan.scores(self.choosing.rows, regime)
        best = {}
        for method, objectives in METHODS.items():
            ours = [score for score in found if score.objective in objectives]
            if any(score.seeds == plan.TUNING_SEEDS for score in ours):
                best[method] = plan.choose(ours)
        return best

    def _task(self, trial: Trial, function: Callable[..., Any], *arguments: Any) -> Task:
        return Task(trial, function, (trial, *arguments, self.root))

    def record(self, task: Task, result: Any) -> None:
        if task.function is measure.choosing:
            self.choosing.add(result)
            return
        rows, heldout = result
        # The held-out row comes last: it says that the trial is done.
        self.measuring.add(rows)
        self.heldout.add([heldout])

    def record_failure(self, task: Task, error: Exception) -> None:
        words = f"{type(error).__name__}: {errors.first_line(error)}"
        tqdm.write(f"{task.trial.name}: {words}")
        self.failed.add([{"trial": task.trial.name, "error": words}])


def carry_on(study: Study, jobs: int, until: float) -> None:
    """Trial after trial, `jobs` at once, each on a core of its own, until the time is over."""
    with lab.workers(study.root, jobs) as pool, tqdm(unit="trial", smoothing=0.05) as bar:
        running: dict[concurrent.futures.Future, Task] = {}
        while True:
            tasks = study.next_tasks() if time.time() < until else []
            names = {task.trial.name for task in running.values()}
            waiting = [task for task in tasks if task.trial.name not in names]
            bar.total = bar.n + len(running) + len(waiting)
            for task in waiting[: jobs - len(running)]:
                running[pool.submit(task.function, *task.arguments)] = task
            if not running:
                return
            done, _ = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in done:
                task = running.pop(future)
                try:
                    study.record(task, future.result())
                except Exception as error:  # a method that fails to run is reported as such
                    study.record_failure(task, error)
                bar.update()


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--root", type=Path, default=Path("runs/rates"), help="of the models")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the CSV files")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trials at once")
    parser.add_argument("--hours", type=float, default=12.0, help="after which none begins")
    options = parser.parse_args()
    root = options.root.expanduser().absolute()
    options.out.mkdir(parents=True, exist_ok=True)
    with folders.locked(root, "--root"):
        study = Study(options.out, root)
        carry_on(study, options.jobs, time.time() + 3600 * options.hours)
        left = len(study.next_tasks())
        print("all is measured" if not left else f"the time is over; at least {left} trials to do")


if __name__ == "__main__":
    errors.exit_on_user_error(main)()
