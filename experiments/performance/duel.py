"""The parent's end of a comparison: starts contenders, gives them turns, and collects what they
measured.
"""

import contextlib
import dataclasses
import json
import os
import select
import subprocess
import time
from pathlib import Path

import numpy as np

from dft_jax.evals import significance

ROOT = Path(__file__).parents[2]

# Everything from the heap, which only ever grows: no page is given back to be faulted in again at
# the next step.
TUNED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**28),
    "MALLOC_ARENA_MAX": "1",
}
_START_S, _TURN_S = 900, 900  # a contender that is silent for so long has failed


@dataclasses.dataclass(frozen=True)
class Contender:
    """One process of a comparison, and the cases that it is asked for; `only_gate`: it is compared
    but not timed.
    """

    name: str
    python: str
    module: str
    arguments: tuple[str, ...]
    cases: tuple[str, ...] = ("step",)
    only_gate: bool = False


class Failed(Exception):
    """A contender died or fell silent; the message ends with what it said last."""


def environment(tuned: bool, threads: int = 2, **changes: str) -> dict[str, str]:
    """Of every child: the package of this checkout, so many threads, no network, nothing compiled
    before.
    """
    fixed = {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONWARNINGS": "ignore",
    }
    dropped = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | fixed | (TUNED if tuned else {}) | changes


class Process:
    """A running contender."""

    def __init__(self, contender: Contender, log: Path, tuned: bool):
        self.contender, self.log = contender, log
        command = [contender.python, "-m", f"experiments.performance.contenders.{contender.module}"]
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "w") as errors:
            self.child = subprocess.Popen(
                [*command, *contender.arguments],
                cwd=ROOT,
                env=environment(tuned),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        try:
            self.versions = self._answer(_START_S)["versions"]
        except Failed:
            self.stop()
            raise

    def turn(self, case: str, steps: int) -> dict:
        try:
            self.child.stdin.write(json.dumps({"case": case, "steps": steps}) + "\n")
            self.child.stdin.flush()
        except BrokenPipeError:
            pass  # what it said is in the log
        return self._answer(_TURN_S)

    def _answer(self, limit_s: float) -> dict:
        readable, _, _ = select.select([self.child.stdout], [], [], limit_s)
        line = self.child.stdout.readline() if readable else ""
        if not line:
            said = self.log.read_text(errors="replace").strip().splitlines()[-1:]
            how = "died" if readable else f"said nothing for {limit_s:.0f} s"
            where = f"WORK/logs/{self.log.parent.name}/{self.log.name}"
            raise Failed(
                f"{self.contender.name} {how}: {' '.join(said)[:300]} (all of it: {where})"
            )
        return json.loads(line)

    def stop(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # it died by itself
            self.child.stdin.close()
        try:
            self.child.wait(30)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


@dataclasses.dataclass
class Duel:
    """What came of a comparison: (contender, case) -> rounds, first steps' facts, and who failed
    and why.
    """

    rounds: dict[tuple[str, str], list[dict]] = dataclasses.field(default_factory=dict)
    facts: dict[tuple[str, str], dict] = dataclasses.field(default_factory=dict)
    versions: dict[str, dict] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)


def run(  # noqa: C901 — turn by turn
    contenders: list[Contender],
    *,
    tuned: bool,
    rounds: int,
    steps: int,
    logs: Path,
    warmup: int = 2,
) -> Duel:
    """Starts contenders one after the other, each with `warmup` untimed steps of each case; then
    `rounds` in turn.
    """
    duel, running = Duel(), []
    try:
        for contender in contenders:
            try:
                process = Process(contender, logs / f"{contender.name}.log", tuned)
                running.append(process)
                for case in contender.cases:
                    duel.facts[contender.name, case] = process.turn(case, warmup)["facts"]
                duel.versions[contender.name] = process.versions
            except Failed as failure:
                duel.failed[contender.name] = str(failure)
            if contender.only_gate or contender.name in duel.failed:
                for process in [p for p in running if p.contender is contender]:
                    running.remove(process)
                    process.stop()
            print(f"  {contender.name}: {duel.failed.get(contender.name, 'ready')}", flush=True)
        for number in range(rounds):
            began = time.perf_counter()
            for process in list(running):
                name = process.contender.name
                try:
                    for case in process.contender.cases:
                        duel.rounds.setdefault((name, case), []).append(process.turn(case, steps))
                except Failed as failure:  # the others go on
                    duel.failed[name] = str(failure)
                    running.remove(process)
                    process.stop()
            print(
                f"  round {number + 1} of {rounds}: {time.perf_counter() - began:.0f} s", flush=True
            )
    finally:
        for process in running:
            process.stop()
    return duel


def step_s(rounds: list[dict]) -> np.ndarray:
    """Wall seconds of a step, of each round."""
    return np.array([spent["wall_s"] / spent["steps"] for spent in rounds])


def ratio_interval(
    above: np.ndarray, below: np.ndarray, draws: int = 10_000
) -> tuple[float, float, float]:
    """The ratio of medians and its 95 % bootstrap interval.

    Whole rounds are drawn: their members were side by side.
    """
    assert len(above) == len(below) > 0, (len(above), len(below))

    def ratio(index_Rn: np.ndarray) -> np.ndarray:
        return np.median(above[index_Rn], axis=1) / np.median(below[index_Rn], axis=1)

    low, high = significance.bootstrap_interval(ratio, len(above), n_resamples=draws)
    return float(np.median(above) / np.median(below)), low, high
