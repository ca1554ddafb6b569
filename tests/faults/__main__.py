"""The fault campaign: hurts real runs in every known way, and writes down what came of it.

python -m tests.faults --kills=100 --image_kills=10 --corruptions=300 --terms=20 --jobs=2

The tiny run of eight steps (four checkpoints' worth of saves) is hurt by each fault, resumed
until it ends, and compared with an uninterrupted one: SHA-256 of parameters, moments and step, all
metrics but the rates, the exported file, and no debris. Writes experiments/reliability/results.csv
and report.md; exit code 1 if anything failed.
"""

import argparse
import collections
import concurrent.futures
import csv
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import metadata

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"
_CACHE = pathlib.Path(__file__).parents[2] / ".pytest_cache/compilations"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

from tqdm import tqdm

from dft_jax.runtime import files
from tests.fake_bucket import Faults
from tests.faults import buckets, corruption, kills, launch, meshes, places, state

OUT = launch.ROOT / "experiments/reliability"
FIELDS = (
    "kind",
    "case",
    "ok",
    "landed",
    "save in flight",
    "late steps",
    "seconds",
    "file",
    "what",
    "detail",
    "commit",
)


def campaign(
    folder: pathlib.Path,
    n_kills: int,
    n_image_kills: int,
    n_corruptions: int,
    n_terms: int,
    jobs: int,
    seed: int,
) -> list[dict]:
    """All faults; rows of what happened."""
    folder = folder / "runs"
    folder.mkdir()
    whole = folder / "whole"
    assert launch.run(whole) == 0, launch.log(whole)[-3000:]
    wanted = state.summary(whole)
    assert not wanted["debris"], wanted
    parts = [
        (kills.kill_chain, folder, wanted, aims, seed + i)
        for i, aims in enumerate(kills.kill_plan(n_kills, seed))
    ]
    parts += [(kills.best_chain, folder), (kills.lora_chain, folder, whole)] if n_kills else []
    if n_kills:
        well, in_trouble = folder / "bucket", folder / "bucket.in_trouble"
        faults = Faults(unavailable_every=150, lost_every=11, listing_lag_s=0.3)
        parts.append((buckets.kill_chain, well, wanted, buckets.KILLS, Faults()))
        parts.append((buckets.kill_chain, in_trouble, wanted, buckets.KILLS, faults))
    for i, aims in enumerate(kills.kill_plan(n_image_kills, seed)):
        parts.append((kills.image_chain, folder, aims, seed + i))
    parts += [(places.two_runs, folder, wanted), (places.clock_set_back, folder, wanted)]
    share = -(-n_corruptions // 4)
    counts = [min(share, n_corruptions - i * share) for i in range(4)]
    parts += [
        (corruption.corruptions, whole, folder, n, seed + i) for i, n in enumerate(counts) if n > 0
    ]
    (folder / "disk").mkdir()
    parts += [(places.in_namespace, folder / "disk", whole, 1)]
    for processes in (1, 2):
        ends = kills.uninterrupted(folder, processes) if n_terms else {}
        for i, phases in enumerate(kills.term_plan(n_terms)):
            parts.append((kills.term_chain, folder, ends, phases, processes, seed + i))
    parts += [(places.dead_peers, folder), (meshes.restarts, folder)] if n_terms else []
    return _all(parts, jobs)


def _all(parts: list[tuple], jobs: int) -> list[dict]:
    rows: list[dict] = []
    with concurrent.futures.ThreadPoolExecutor(jobs) as threads:
        futures = {threads.submit(_one, *part): part for part in parts}
        done = concurrent.futures.as_completed(futures)
        # Not runtime.progress, which asks JAX for the number of this process: nothing here starts
        # its backend, beside the runs that need the memory.
        for future in tqdm(done, total=len(futures), desc="faults", unit="chain"):
            rows += future.result()
            failed = [row for row in rows if row["ok"] is False]
            tqdm.write(f"{len(rows)} faults, {len(failed)} failed {failed[-1:] or ''}")
    return rows


def _one(function, *arguments) -> list[dict]:
    rows = []
    try:
        for row in function(*arguments):
            rows.append(row)
    except Exception as error:  # the campaign continues; what broke it is a failure
        rows.append(
            {
                "kind": function.__name__,
                "case": "",
                "ok": False,
                "detail": f"{type(error).__name__}: {error}",
            }
        )
    return rows


def table(rows: list[dict]) -> str:
    """Counts by kind and case."""
    groups = collections.defaultdict(list)
    for row in rows:
        groups[row["kind"], row["case"]].append(row)
    lines = [
        "| fault | aimed at | tried | hit | as it should be | left out |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for (kind, case), group in sorted(groups.items()):
        hit = sum(row.get("landed", True) for row in group)
        ok, left_out = (sum(row["ok"] is value for row in group) for value in (True, None))
        lines.append(f"| {kind} | {case} | {len(group)} | {hit} | {ok} | {left_out or ''} |")
    return "\n".join(lines)


def write(rows: list[dict], options: argparse.Namespace, took_s: float) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=OUT, capture_output=True, text=True
    ).stdout.strip()
    table: list[dict] = []
    if options.append:
        with open(OUT / "results.csv", newline="") as handle:
            table += csv.DictReader(handle)
    for row in rows:
        detail = str(row.get("detail", "")).replace(str(options.folder), "…")
        table.append({**row, "detail": detail, "commit": commit})
    files.write_atomically(OUT / "results.csv", files.csv_text(table, FIELDS))
    before = "# The fault campaign, as it went\n"
    if options.append:
        before = (OUT / "report.md").read_text()
    (OUT / "report.md").write_text(before + report(rows, options, took_s, commit))


def report(rows: list[dict], options: argparse.Namespace, took_s: float, commit: str) -> str:
    """What a campaign found, for report.md."""
    killed = [row for row in rows if row["kind"] == "kill"]
    in_flight = sum(bool(row["save in flight"]) for row in killed)
    packages = ("jax", "orbax-checkpoint", "grain", "flax")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    n_failed = sum(row["ok"] is False for row in rows)
    n_left_out = sum(row["ok"] is None for row in rows)
    title = "The whole"
    if options.append:
        title = "Again, in part"
    names = ("kills", "image_kills", "corruptions", "terms", "jobs", "seed")
    flags = " ".join(f"--{name}={getattr(options, name)}" for name in names)
    return f"""
## {title}, at commit {commit}

Command: `python -m tests.faults {flags}`; {took_s / 60:.0f} minutes on {os.cpu_count()} cores.
Python {platform.python_version()}, {versions}.

- SIGKILL: {sum(row["landed"] for row in killed)} of {len(killed)} hit the run, {in_flight} of them
  while a checkpoint was being saved; {sum(row["ok"] for row in killed)} of {len(killed)} ended as
  the uninterrupted run did.
- Failed: {n_failed}. Left out: {n_left_out}.

{table(rows)}
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--image_kills", type=int, default=10, help="of runs on rows with images")
    parser.add_argument("--corruptions", type=int, default=300)
    parser.add_argument(
        "--terms", type=int, default=20, help="of each phase, on one and on two processes"
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--append", action="store_true", help="to the results that are there")
    options = parser.parse_args()
    began = time.monotonic()
    options.folder = pathlib.Path(tempfile.mkdtemp(prefix="faults"))
    rows = campaign(
        options.folder,
        options.kills,
        options.image_kills,
        options.corruptions,
        options.terms,
        options.jobs,
        options.seed,
    )
    write(rows, options, time.monotonic() - began)
    shutil.rmtree(options.folder)
    print(table(rows))
    return int(any(row["ok"] is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
