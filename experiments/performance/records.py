"""The study's files: results, rounds, gate and surroundings. A part that is measured again replaces
its own lines.
"""

import csv
import datetime
import json
import os
import platform
import subprocess
import time
from pathlib import Path

from dft_jax.runtime.files import csv_text, write_atomically
from experiments.performance.targets import Target

ROOT = Path(__file__).parents[2]


def read_rows(file: Path) -> list[dict[str, str]]:
    if not file.exists():
        return []
    with open(file, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def replace_rows(file: Path, key: str, keys: set[str], new: list[dict]) -> None:
    """Writes `new` in the place of the rows whose `key` is among `keys`; the others stay."""
    rows = [row for row in read_rows(file) if row[key] not in keys] + [as_text(row) for row in new]
    if not rows:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, csv_text(rows))


def keep_by_processor(file: Path, results: list[dict]) -> None:
    """Writes results in the place of those of the same commit on the same processor."""
    about = {"processor": machine()["cpu"], "commit": git("rev-parse", "--short", "HEAD")}
    lines = read_rows(file)
    for row in results:
        same = about | {"id": row["id"]}
        lines = [line for line in lines if not same.items() <= line.items()]
        lines.append(same | {name: row[name] for name in ("value", "low", "high")})
    if lines:
        write_rows(file, lines)


def write_rows(file: Path, rows: list[dict]) -> None:
    """All rows of a file; one that lacks a column of another has an empty cell there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, csv_text([as_text(row) for row in rows]))


def as_text(row: dict) -> dict[str, str]:
    def text(value) -> str:
        if value is None:
            return ""
        return f"{value:.9g}" if isinstance(value, float) else str(value)

    return {name: text(value) for name, value in row.items()}


def result(target: Target, value: float | None, interval=(None, None), **about) -> dict:
    """A row of results; `value` None is a gap, and `about` should have a `note` that says why."""
    verdict = "not measured" if value is None else target.verdict(value)
    low, high = interval
    numbers = {"value": value, "low": low, "high": high, "verdict": verdict}
    named = {"id": target.id, "measure": target.measure, "better": target.better}
    return {
        **named,
        "floor": target.floor,
        "aim": target.aim,
        "unit": target.unit,
        **numbers,
        **about,
    }


class Surroundings:
    """What else the machine did during a part, and what it is; written to environment.json."""

    def __init__(self):
        self.load, self.began, self.stat = os.getloadavg(), time.time(), self._busy_s()
        self.used = self._children_s()

    def end(self, versions: dict) -> dict:
        seconds = time.time() - self.began
        busy, own = self._busy_s() - self.stat, self._children_s() - self.used
        return {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": git("rev-parse", "HEAD"),
            "uncommitted": bool(git("status", "--porcelain", "--untracked-files=no")),
            "seconds": round(seconds),
            "load_before": self.load,
            "load_after": os.getloadavg(),
            # Of one core; the children are counted when they have ended.
            "cores_used_by_others": round(max(0.0, busy - own) / seconds, 3),
            "versions": versions,
        }

    @staticmethod
    def _busy_s() -> float:
        ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        # without idle and waiting for disks
        return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def _children_s() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system


def git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def machine() -> dict:
    """The machine in plain words, without its name."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in info if line.startswith("model name")),
        "unknown",
    )
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    flags = next((line for line in info if line.startswith("flags")), "")
    wide = [
        flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags.split()
    ]
    libc = " ".join(platform.libc_ver())
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "instructions": wide,
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]}, {libc}",
        "python": platform.python_version(),
    }


def write_surroundings(file: Path, part: str, found: dict) -> None:
    known = json.loads(file.read_text()) if file.exists() else {}
    known.setdefault("machine", {})
    known["machine"] |= machine()
    known.setdefault("parts", {})[part] = found
    file.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
