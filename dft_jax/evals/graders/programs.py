"""Judges completions that are programs: each is run against its benchmark's tests in a jail.

`require` is called before anything is sampled: where the machine does not confine programs it says
so, and nothing of a model ever runs unconfined.
"""

import dataclasses
import functools
import importlib.util
import os
import platform
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from importlib import metadata
from typing import Any

from tqdm import tqdm

from dft_jax.evals.jail import extraction, selftest
from dft_jax.evals.jail.supervisor import Jail, Job, Outcome, Unconfined
from dft_jax.evals.tasks import benchmarks
from dft_jax.evals.tasks.task import Program
from dft_jax.runtime import errors, processes

# Raised with any change of what is extracted, run or counted: older scores are then made anew.
RULES = 2
# What is done with completions that are programs.
RUN, SKIP = "run", "skip"
MEMORY_MB = 1024
# What this process has judged: evaluations on the way of a training, or of one model after the
# other, run many programs again, and each takes two processes of its own.
_KNOWN: dict[Job, Outcome] = {}
_MOST_KNOWN = 50_000
_REMEDY = (
    "sample here with --programs=skip, and grade on a Linux machine with kernel 5.13 or later by"
    " --grade=predictions.jsonl. In Docker: a profile that allows landlock_* or unshare"
    " (--security-opt seccomp=unconfined has both); in Kubernetes: hostUsers: false; on Debian 11:"
    " sysctl kernel.unprivileged_userns_clone=1. macOS and Windows are not supported"
)


@dataclasses.dataclass(frozen=True)
class Judged:
    """A verdict of `pool.VERDICTS`, the program that was run (None: none), and why."""

    verdict: str
    extracted: str | None
    reason: str


def require(names: Iterable[str]) -> None:
    """Refuses benchmarks of programs, if some of these are, where programs are not confined.

    Process 0 judges, and is the one that has to confine.

    Raises:
      UserError: what is missing, a line for each way out that is open, and the remedy.
    """
    for name in names:
        if benchmarks.find(name).runs_programs and processes.is_first():
            _require(name)


@functools.cache
def _require(benchmark: str) -> None:
    """The self-test, once a process: it takes a second."""
    what = f"{benchmark} runs programs that a model wrote, and this machine"
    try:
        with _jail() as jail:
            open_ways = selftest.failures(jail)
    except Unconfined as error:
        raise errors.UserError(
            f"{what} gives no way to confine them ({error}); {_REMEDY}"
        ) from None
    if open_ways:
        head = f"{what} does not confine them (fences: {', '.join(jail.fences)}); {_REMEDY}"
        raise errors.UserError([head, *open_ways])


def description() -> dict[str, Any]:
    """How programs are judged, as in scores.json."""
    numpy_version = None
    if _packages():
        numpy_version = metadata.version("numpy")
    return {
        "kind": "program",
        "rules": RULES,
        "memory_mb": MEMORY_MB,
        "fences": ["limits", "seccomp", *_fences()],
        "python": platform.python_version(),
        "numpy": numpy_version,
    }


@functools.cache
def _fences() -> tuple[str, ...]:
    """Those of this machine; Unconfined where there are none."""
    return Jail(memory_mb=MEMORY_MB).fences


def _jail() -> Jail:
    return Jail(_fences(), memory_mb=MEMORY_MB, packages=_packages())


@functools.cache
def _packages() -> str:
    """The folder that numpy is in, which programs and tests may import."""
    found = importlib.util.find_spec("numpy")
    if found is None or found.origin is None:
        return ""
    return os.path.realpath(os.path.dirname(os.path.dirname(found.origin)))


def job_of(program: Program, row: dict[str, Any]) -> Job:
    """A row of predictions as the jail judges it.

    Args:
      row: `completion`; `prompt`, the whole text that the model saw, where it is known; and
        `answer_prefix`, the end of that text with which the answer begins.
    """
    prefix = row.get("answer_prefix") or ""
    completion = f"{prefix}{row['completion']}"
    style = _style(program, row)
    return Job(
        completion=extraction.cut(completion, style),
        prompt=program.prompt,
        entry_point=program.entry_point,
        setup=program.setup,
        tests=program.tests,
        style=style,
        wall_s=program.wall_s,
        imports_numpy=program.imports_numpy,
    )


def _style(program: Program, row: dict[str, Any]) -> str:
    """Whether a completion goes on where the problem's text ends, or answers a question."""
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        if prompt.strip() == program.prompt.strip():
            return program.style
        return extraction.ANSWER
    # Of another engine's rows nobody knows: an answer has a block, or the function's first line.
    completion = row["completion"]
    defines = re.search(rf"^(async )?def {re.escape(program.entry_point)}\b", completion, re.M)
    if "```" in completion or (defines and program.style == extraction.CONTINUATION):
        return extraction.ANSWER
    return program.style


class Grader:
    """Judges programs in a number of jails at once; use it as a context manager."""

    def __init__(self, workers: int):
        self.jail = _jail()
        self.pool = futures.ThreadPoolExecutor(workers)

    def __enter__(self) -> "Grader":
        self.jail.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        # In this order: what runs ends at once, and nothing else begins.
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.jail.__exit__(*exc)
        self.pool.shutdown()

    def grade(
        self, jobs: Sequence[Job], progress: bool = True, check: Callable[[], Any] = lambda: None
    ) -> list[Judged]:
        """The verdicts in the order of the jobs; equal jobs run once in a process.

        A program whose time was over runs again when no other does: a busy machine then costs
        nobody a verdict.

        Args:
          progress: whether to show a bar.
          check: is called with every verdict; what it raises ends the grading.

        Raises:
          UserError: processes that were confined before are not any more.
        """
        try:
            return self._graded(jobs, progress, check)
        except Unconfined as error:
            raise errors.UserError(
                f"programs could not be run ({error}); free memory and processors, then run the"
                " same command again: what is sampled is kept"
            ) from None

    def _graded(
        self, jobs: Sequence[Job], progress: bool, check: Callable[[], Any]
    ) -> list[Judged]:
        counts = Counter(jobs)
        outcomes = {job: _KNOWN[job] for job in counts if job in _KNOWN}
        # Not the bar of runtime/progress.py, as in pool.py.
        with tqdm(total=len(jobs), desc="judging", unit="program", disable=not progress) as bar:
            for job in outcomes:
                bar.update(counts[job])
                check()
            for job, outcome in self._outcomes([job for job in counts if job not in outcomes]):
                outcomes[job] = outcome
                if outcome.verdict != "timeout":
                    bar.update(counts[job])
                check()
            for job, outcome in outcomes.items():
                if outcome.verdict == "timeout":
                    outcomes[job] = self.jail.run(job)
                    bar.update(counts[job])
                    check()
        for job, outcome in outcomes.items():
            # How long a program takes, and what kills it, is no property of it alone.
            if outcome.verdict not in ("timeout", "error") and len(_KNOWN) < _MOST_KNOWN:
                _KNOWN[job] = outcome
        judged = []
        for job in jobs:
            outcome = outcomes[job]
            judged.append(Judged(outcome.verdict, outcome.program, outcome.reason))
        return judged

    def _outcomes(self, jobs: list[Job]) -> Iterator[tuple[Job, Outcome]]:
        """As they come."""
        running = {self.pool.submit(self.jail.run, job): job for job in jobs}
        for done in futures.as_completed(running):
            yield running[done], done.result()
