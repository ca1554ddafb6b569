"""The tables of programs compiled ahead of time, gpu_aot.csv and tpu_aot.csv: a process for each, a
line when it ends. Lines of other commits stay, so that what a change does can be read off.
"""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.performance import aot, gpu_process, records

_KEYS = ("row", "attempt", "device", "mesh", "asked", "commit")  # what a line is of


@dataclasses.dataclass(frozen=True)
class Case:
    """A row's attempt for a device; `attention` as in config.model.attention."""

    row: str
    attempt: str
    device: str
    mesh: str = "1x1x1"
    attention: str = "auto"


# The same settings before and after a change.
STUDY = (
    ("train_1.5b", "1.5b 8 full 8", "blocked"),
    ("train_1.5b", "1.5b 8 none 8", "blocked"),
    ("train_1.5b", "1.5b 8 none 8", "auto"),
    ("train_1.5b", "1.5b 16 dots 4", "blocked"),
    ("train_1.5b", "1.5b 16 dots 4", "auto"),
    ("train_7b", "7b 4 full 16", "blocked"),
    ("train_7b", "7b 16 full 1", "auto"),
    ("head", "4096", "auto"),
)
TPU = (
    Case("train_1.5b", "1.5b 1 dots 1", "v5e:2x4", "1x8x1"),
    Case("train_1.5b", "1.5b 1 dots 4", "v5e:2x4", "1x8x1"),
    Case("train_1.5b", "1.5b 1 dots 1", "v5e:2x4", "2x2x2"),
    Case("train_7b", "7b 2 full 1", "v5p:2x2x1", "1x4x1"),
    Case("train_1.5b", "1.5b 4 none 1", "v5p:2x2x1", "1x4x1"),
    Case("train_1.5b", "1.5b 2 none 1", "v6e:2x4", "1x8x1"),
    Case("train_7b", "7b 2 full 1", "v6e:2x4", "1x8x1"),
    Case("train_8b", "8b 2 full 1", "v6e:2x4", "1x8x1"),
)


def gpu_cases(rows: list[str], devices: list[str]) -> list[Case]:
    """The study's, where `rows` has `study`, and every attempt of the other rows that has a program
    of ours.
    """
    from experiments.performance import gpu, programs

    cases = []
    for device in devices:
        if "study" in rows:
            cases += [Case(row, attempt, device, attention=how) for row, attempt, how in STUDY]
        for row in rows:
            if row in gpu.ATTEMPTS and programs.of(row):
                cases += [Case(row, gpu.fields(one), device) for one in gpu.ATTEMPTS[row]]
    return cases


def fill(file: Path, cases: list[Case], again: bool, texts: Path | None = None) -> int:
    """Compiles what has no line of this commit yet; returns the exit status. `texts` takes the
    text of each program.
    """
    commit, n_failed = aot.package_commit(), 0
    for case in cases:
        about = {"row": case.row, "attempt": case.attempt, "device": case.device}
        about |= {"mesh": case.mesh, "asked": case.attention, "commit": commit}
        lines = records.read_rows(file)
        others = [line for line in lines if not _is_of(line, about)]
        known = [line for line in lines if _is_of(line, about)]
        if known and known[0]["total_gib"] and not again:
            continue
        found = compiled(case, text_file(case, commit, texts))
        n_failed += "gap" in found
        records.write_rows(file, [*others, about | found])
        text = found.get("gap") or f"{found['total_gib']:.1f} GiB, {found['predicted_ms']:.0f} ms"
        print(f"{case.row} {case.attempt} on {case.device} {case.mesh}: {text}", flush=True)
    return int(n_failed > 0)


def _is_of(line: dict, about: dict) -> bool:
    return all(line[key] == about[key] for key in _KEYS)


def text_file(case: Case, commit: str, texts: Path | None) -> Path | None:
    if texts is None:
        return None
    texts.mkdir(parents=True, exist_ok=True)
    words = (case.row, *case.attempt.split(), case.attention, case.device, case.mesh, commit)
    return texts.absolute() / ("_".join(words).replace(":", "-") + ".txt")


def compiled(
    case: Case, text: Path | None = None, options: Mapping[str, Any] | None = None
) -> dict:
    """What aot.py says of a case, in a process of its own; {"gap": why} where it fails.

    `options` are XLA's for this program.
    """
    command = [sys.executable, "-m", "experiments.performance.aot", case.row]
    command += [*case.attempt.split(), f"--device={case.device}", f"--mesh={case.mesh}"]
    if case.attention != "auto":
        command.append(f"--attention={case.attention}")
    if options:
        command.append(f"--options={json.dumps(dict(options))}")
    if text is not None:
        command.append(f"--hlo={text}")
    environment = gpu_process.with_root() | aot.ENVIRONMENT
    done = subprocess.run(
        command, cwd=gpu_process.ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        return {"gap": gpu_process.reason(done.stderr)}
    return json.loads(done.stdout.strip().splitlines()[-1])


def chosen(cases: list[Case], numbers: str) -> list[Case]:
    """Those of these numbers, with commas; all if there are none."""
    return [cases[int(number)] for number in numbers.split(",") if number] or cases


def gpu(out: Path, cases: list[Case], numbers: str, again: bool, texts: Path | None) -> int:
    """gpu_aot.csv; returns the exit status."""
    return fill(out / "gpu_aot.csv", chosen(cases, numbers), again, texts)


def tpu(out: Path, numbers: str, again: bool, texts: Path | None) -> int:
    """tpu_aot.csv; returns the exit status."""
    return fill(out / "tpu_aot.csv", chosen(list(TPU), numbers), again, texts)
