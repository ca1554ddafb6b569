"""Makes each change, runs its tests, writes which were noticed; see the package's docstring."""

import csv
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from dft_jax.runtime.files import csv_text, write_atomically
from tests.mutants.changes import CHANGES, Change, changed

ROOT = pathlib.Path(__file__).parents[2]
SCORE = pathlib.Path(__file__).with_name("score.csv")
COPIED = ("dft_jax", "tests", "configs", "pyproject.toml", "setup.py")
LIMIT_S = 900  # a change that makes the tests hang is noticed


def make_tree(folder: pathlib.Path) -> None:
    """A copy of what the tests need; what they only read is linked."""
    for path in ROOT.iterdir():
        if path.name in COPIED:
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, folder / path.name)
        elif not path.name.startswith("."):
            (folder / path.name).symlink_to(path)


def is_noticed(tree: pathlib.Path, change: Change) -> bool:
    """Whether a test fails in `tree`, where the change was made."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "slow or not slow"]
    command += [*change.tests, *(["-k", change.only] if change.only else [])]
    # Bytecode that is left of the right code is not taken for the wrong one's: it has the time of
    # its source, and each run takes longer than the second to which that is kept.
    environment = os.environ | {"PYTHONPATH": str(tree)}
    options = dict(cwd=tree, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    try:
        done = subprocess.run(command, **options)
    except subprocess.TimeoutExpired:
        return True
    if done.returncode not in (0, 1):
        raise SystemExit(
            f"{change.name}: pytest ended with {done.returncode}\n{done.stdout[-2000:]}"
        )
    return done.returncode == 1


def record(change: Change, noticed: bool) -> None:
    """Writes what came out into the score, in the place of what an earlier run of it gave."""
    rows = {}
    if SCORE.exists():
        with open(SCORE, newline="") as handle:
            rows = {row["change"]: row for row in csv.DictReader(handle)}
    rows[change.name] = {"change": change.name, "file": change.file, "noticed": noticed}
    known = [rows[change.name] for change in CHANGES if change.name in rows]
    write_atomically(SCORE, csv_text(known, ["change", "file", "noticed"]))


def main() -> None:
    words = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    chosen = [change for change in CHANGES if not words or any(w in change.name for w in words)]
    if "--list" in sys.argv:
        print("\n".join(f"{change.name:28} {change.file}" for change in chosen))
        return
    found = []
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder)
        make_tree(tree)
        for change in chosen:
            file, begin = tree / change.file, time.monotonic()
            original = file.read_text()
            file.write_text(changed(original, change))
            noticed = is_noticed(tree, change)
            file.write_text(original)
            seconds = time.monotonic() - begin
            found.append(noticed)
            print(
                f"{'noticed' if noticed else 'NOT NOTICED':12} {change.name} ({seconds:.0f} s)",
                flush=True,
            )
            record(change, noticed)
    print(f"{sum(found)} of {len(found)} noticed")
    sys.exit(not all(found))


if __name__ == "__main__":
    main()
