"""Bad places: a full disk, a read-only folder, one for two runs, a clock set back, a dead peer.

A full and a read-only disk are small file systems in memory, mounted where only this process sees
them; that takes root (or a user namespace), so these cases are left out, and counted as left out,
where it is not allowed.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from tests.faults import launch, state
from tests.faults.launch import Fault

HEARTBEAT_S, GRACE_S = 30, 10


def in_namespace(folder: pathlib.Path, wanted_from: pathlib.Path, every: int) -> list[dict]:
    """Runs every so-many-th case of `mounted` in a mount namespace of its own; returns its rows."""
    mount = f"mount -t tmpfs -o size=64m tmpfs {folder}"
    again = f"exec {sys.executable} -m tests.faults.places {folder} {wanted_from} {every}"
    flags = ["-m"] if os.geteuid() == 0 else ["-U", "-r", "-m"]
    done = subprocess.run(
        ["unshare", *flags, "sh", "-c", f"{mount} && {again}"],
        cwd=launch.ROOT,
        capture_output=True,
        text=True,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not rows:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return [{"kind": "disk", "case": "all", "ok": None, "detail": f"left out: {why}"}]
    if done.returncode:
        rows.append({"kind": "disk", "case": "campaign", "ok": False, "detail": done.stderr[-300:]})
    return rows


def full_disks(
    folder: pathlib.Path, wanted: dict, checkpoint_bytes: int, every: int
) -> Iterator[dict]:
    """Full at each phase: exit 2 with a message, nothing half-written; with room, as if unhurt."""
    cases = [
        (f"data or metadata, {kib} KiB left", Fault("save 4", "fill", argument=1024 * kib))
        for kib in (0, 4, 16)
    ]
    for tenths in (1, 3, 5, 7, 8):
        some = Fault("save 6", "fill", argument=checkpoint_bytes * tenths / 10)
        cases.append((f"data or metadata, room for {tenths}/10 of it", some))
    cases += [("manifest", Fault("commit 4", "fill")), ("manifest", Fault("commit 8", "fill"))]
    cases += [
        ("export", Fault("export model.norm.weight", "fill", argument=argument))
        for argument in (0, 1e5)
    ]
    for number, (case, fault) in enumerate(cases[::every]):
        workdir = folder / f"full{number}"
        code = launch.run(workdir, fault)
        lines = launch.log(workdir).splitlines()
        messages = [line for line in lines if line.startswith("error: ")]
        problems = []
        if code != 2 or len(messages) != 1:
            problems.append(f"exit {code}, {len(messages)} messages")
        if _half_export(workdir):
            problems.append("half an export")
        (folder / "filler").unlink()
        code = launch.run(workdir)
        if code != 0 or state.summary(workdir) != wanted:
            problems.append(f"afterwards exit {code}, differs")
        yield {
            "kind": "disk full",
            "case": case,
            "ok": not problems,
            "detail": "; ".join(problems or messages),
        }
        shutil.rmtree(workdir)


def _half_export(workdir: pathlib.Path) -> bool:
    return (workdir / "export").exists() and not (workdir / "export/model.safetensors").exists()


def small_disk(folder: pathlib.Path) -> Iterator[dict]:
    """No room for one checkpoint: refused before compiling."""
    info = os.statvfs(folder)
    with open(folder / "filler", "wb") as handle:
        os.posix_fallocate(handle.fileno(), 0, info.f_bavail * info.f_frsize - 500_000)
    code = launch.run(folder / "small")
    said = "a checkpoint takes" in launch.log(folder / "small")
    began = any(phase.startswith("step") for phase in launch.phases(folder / "small"))
    (folder / "filler").unlink()
    yield {
        "kind": "disk full",
        "case": "at the start",
        "ok": code == 2 and said and not began,
        "detail": f"exit {code}",
    }


def read_only(folder: pathlib.Path) -> Iterator[dict]:
    place = folder / "locked"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", place], check=True)
    process = launch.start(folder / "run", arguments=(f"--workdir={place}/run",))
    code = launch.wait(process)
    yield {"kind": "read-only folder", "case": "workdir", "ok": code == 2, "detail": f"exit {code}"}


def two_runs(folder: pathlib.Path, wanted: dict) -> Iterator[dict]:
    """The second is refused at once, the first is not disturbed."""
    workdir = folder / "shared"
    first = launch.start(workdir, Fault("step 3", "sleep", argument=12.0))
    while "step 3" not in launch.phases(workdir):
        time.sleep(0.05)
    other = folder / "second"
    other.symlink_to(workdir)  # the same folder by another name
    second = launch.run(other)
    said = "another process is at work there" in launch.log(other)
    code = launch.wait(first)
    same = code == 0 and state.summary(workdir) == wanted
    detail = f"first exit {code}, second exit {second}"
    yield {
        "kind": "two runs on one folder",
        "case": "",
        "ok": second == 2 and said and same,
        "detail": detail,
    }


def clock_set_back(folder: pathlib.Path, wanted: dict) -> Iterator[dict]:
    """Killed, and resumed with a clock that is a day behind."""
    workdir = folder / "clock"
    killed = launch.run(workdir, Fault("commit 6", "KILL"))
    code = launch.run(workdir, clock_s=-86400.0)
    same = code == 0 and state.summary(workdir) == wanted
    yield {
        "kind": "clock set back",
        "case": "one day",
        "ok": killed == -9 and same,
        "detail": f"exit {code}",
    }


def dead_peers(
    folder: pathlib.Path,
    phases: tuple[str, ...] = ("step 3", "save 4", "evaluate 4"),
    victims: tuple[int, ...] = (0, 1),
) -> Iterator[dict]:
    """One of two processes dies: the other ends with an error, soon after the heartbeat."""
    for victim in victims:
        for phase in phases:
            workdir = folder / f"peer{victim}.{phase.replace(' ', '')}"
            processes = launch.start_many(workdir, 2, {victim: Fault(phase, "KILL")})
            launch.wait(processes[victim])
            died = time.monotonic()
            code = launch.wait(processes[1 - victim])
            took = time.monotonic() - died
            ok = (
                code not in (0, 2, 42)
                and took < HEARTBEAT_S + GRACE_S
                and processes[victim].exitcode == -signal.SIGKILL
            )
            case = f"process {victim} at {phase}"
            detail = f"the other: exit {code} after {took:.1f} s"
            yield {
                "kind": "dead process",
                "case": case,
                "ok": ok,
                "seconds": round(took, 1),
                "detail": detail,
            }


def mounted(folder: pathlib.Path, whole: pathlib.Path, every: int) -> Iterator[dict]:
    checkpoint_bytes = sum(
        file.stat().st_size for file in (whole / "checkpoints/8").rglob("*") if file.is_file()
    )
    yield from full_disks(folder, state.summary(whole), checkpoint_bytes, every)
    yield from small_disk(folder)
    yield from read_only(folder)


if __name__ == "__main__":
    mount, whole_run, every_nth = sys.argv[1:]
    for row in mounted(pathlib.Path(mount), pathlib.Path(whole_run), int(every_nth)):
        print(json.dumps(row), flush=True)
