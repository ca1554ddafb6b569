"""What Orbax itself does in the fault cases of this study; the counts are in peers.md.

JAX_PLATFORMS=cpu python experiments/reliability/peers_measure.py FULL
FULL is an empty folder on a file system of one megabyte: mount -t tmpfs -o size=1m tmpfs FULL.
"""

import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import PreemptionCheckpointingPolicy


def make_state(seed: int, side: int = 64) -> dict:
    """Return noise, which compression cannot shrink, and regular numbers, which it can."""
    noise = np.random.default_rng(seed).standard_normal((side, side)).astype(np.float32)
    return {"noise": jnp.asarray(noise), "regular": jnp.arange(side * side, dtype=jnp.int32) + seed}


def outcome(folder: Path) -> str:
    """Say which step a new manager takes for the latest, and which state it restores."""
    with ocp.CheckpointManager(folder) as manager:
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, make_state(0))
        try:
            state = manager.restore(None, args=ocp.args.StandardRestore(target))
        except Exception:
            return f"latest {manager.latest_step()}, restoring raises"
        same = [
            seed
            for seed in (1, 2)
            if all(np.array_equal(state[k], v) for k, v in make_state(seed).items())
        ]
        return f"latest {manager.latest_step()}, " + (
            f"state {same[0]} restored" if same else "WRONG state restored"
        )


def folders(work: Path) -> None:
    """Damage the newer of two steps, copy only a part of it, and let two managers save the same
    step.
    """
    good = work / "good"
    first, second = ocp.CheckpointManager(good), ocp.CheckpointManager(good)
    for manager, step, seed in ((first, 1, 1), (first, 2, 1), (second, 2, 2)):
        manager.save(step, args=ocp.args.StandardSave(make_state(seed)))
        manager.wait_until_finished()
        print(
            f"step {step} saved by {'first' if manager is first else 'second'} manager:"
            f" {outcome(good)}"
        )
    files = [path.relative_to(good) for path in (good / "2").rglob("*") if path.is_file()]
    files.sort(key=lambda name: (good / name).stat().st_size)
    arrays = [name for name in files if "ocdbt.process_0/d" in str(name)]
    draw = random.Random(0)

    def flip(content: bytes) -> bytes:
        place = draw.randrange(len(content))
        return (
            content[:place]
            + bytes([content[place] ^ 1 << draw.randrange(8)])
            + content[place + 1 :]
        )

    drawn = draw.choices(arrays, [(good / name).stat().st_size for name in arrays], k=200)
    cases = [("one bit of array data", [name], flip) for name in drawn]
    changes = {
        "cut to half": lambda old: old[: len(old) // 2],
        "zeroed": lambda old: bytes(len(old)),
    }
    cases += [(kind, [name], changes.get(kind)) for kind in (*changes, "deleted") for name in files]
    cases += [
        (f"{kept} of {len(files)} files copied", files[kept:], None)
        for kept in (len(files) // 2, 0)
    ]
    results = Counter()
    for number, (kind, names, change) in enumerate(cases):
        bad = work / str(number)  # a new name each time: TensorStore caches by name
        shutil.copytree(good, bad)
        for name in names:
            (bad / name).write_bytes(change((bad / name).read_bytes())) if change else (
                bad / name
            ).unlink()
        results[f"{kind}: {outcome(bad)}"] += 1
    print(*(f"{times} times {result}" for result, times in results.items()), sep="\n")


def child(case: str, folder: Path) -> None:
    """Be the process of a case: one asynchronous save, or sixty steps that save when a preemption
    is announced.
    """
    if "distributed" in case:
        jax.distributed.initialize("localhost:29977", 1, 0)
    policy = None if "save" in case else PreemptionCheckpointingPolicy()
    manager = ocp.CheckpointManager(
        folder, options=ocp.CheckpointManagerOptions(save_decision_policy=policy)
    )
    for step in range(2 if "save" in case else 60):
        manager.wait_until_finished()
        if manager.save(
            step,
            args=ocp.args.StandardSave(make_state(step, 1024 if "save" in case and step else 64)),
        ):
            print("save returns True at step", step, flush=True)
        print("step", step, flush=True)
        time.sleep(0 if "save" in case else 0.1)
    if "killed" in case:
        os.kill(os.getpid(), 9)
    if "waited for" in case:
        manager.wait_until_finished()


def processes(work: Path, full: Path) -> None:
    """Run the cases that end a process; print its exit code, what it said and what it left."""
    sent = {"SIGTERM": [15], "SIGTERM twice": [15, 15], "SIGINT": [2], "SIGTERM, SIGINT": [15, 2]}
    cases = [
        (f"{how}, {kind}", work, codes)
        for kind in ("alone", "distributed")
        for how, codes in sent.items()
    ]
    cases += [(f"save {how}", work, []) for how in ("killed", "left alone", "waited for")]
    cases += [(f"save on a full disk {how}", full, []) for how in ("left alone", "waited for")]
    for case, place, codes in cases:
        command = [sys.executable, __file__, "--child", case, str(place / "run")]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        while codes and not process.stdout.readline().startswith("step 5"):
            pass
        for code in codes:
            process.send_signal(code)
            time.sleep(0.5)
        out, err = process.communicate()
        errors = sorted(set(re.findall(r"^(?:\w+\.)*\w+Error: .{0,60}", err, re.M)))
        print(f"{case}: exit {process.returncode}, {re.findall('save.*', out)}, {errors}")
        print(
            f"    left {os.listdir(place / 'run')}, steps"
            f" {ocp.CheckpointManager(place / 'run').all_steps()}"
        )
        shutil.rmtree(place / "run")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]))
    else:
        with tempfile.TemporaryDirectory() as name:
            folders(Path(name))
            processes(Path(name), Path(sys.argv[1]))
