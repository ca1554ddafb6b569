"""Fingerprints of what training computes, to compare two commits on one machine.

python -m tests.same_run OUT

It trains the tiny model for six steps with SFT, DFT and ASFT, each by the real command in a new
folder of OUT, and prints two SHA-256 for each: of the rows of metrics.jsonl without what depends on
the clock, and of the exported weights. A refactoring prints the same lines before and after. Another
machine, or another number of cores, may print others.
"""

import hashlib
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
OBJECTIVES = ("sft", "dft", "asft")
# Of the clock and the machine's load, not of the computation.
VOLATILE = ("speed/", "time")
SETTINGS = [
    "--config.train.steps=6",
    "--config.eval.every=3",
    "--config.checkpoint.every=3",
    "--config.log.tensorboard=False",
]


def train(objective: str, folder: pathlib.Path) -> None:
    """A run by the real command, on one CPU device."""
    config = f"--config=configs/tiny.py:objective={objective}"
    command = [sys.executable, "-m", "dft_jax.main", config, f"--workdir={folder}", *SETTINGS]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-3000:]}")


def digest_of_metrics(file: pathlib.Path) -> str:
    """SHA-256 of the rows, their volatile keys left out and the others in order."""
    found = hashlib.sha256()
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        kept = {}
        for key in sorted(row):
            if not key.startswith(VOLATILE):
                kept[key] = row[key]
        found.update(json.dumps(kept).encode() + b"\n")
    return found.hexdigest()


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("python -m tests.same_run OUT")
    out = pathlib.Path(sys.argv[1]).resolve()
    for objective in OBJECTIVES:
        folder = out / objective
        if folder.exists():
            sys.exit(f"{folder} exists: a run there would be resumed; name a new folder")
        train(objective, folder)
        weights = hashlib.sha256((folder / "export/model.safetensors").read_bytes()).hexdigest()
        print(f"{objective:5} metrics {digest_of_metrics(folder / 'metrics.jsonl')}")
        print(f"{objective:5} weights {weights}", flush=True)


if __name__ == "__main__":
    main()
