"""What a session on a GPU has besides rows: a whole small training run, XLA's options side by side,
and a profile of two steps.
"""

import collections
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from dft_jax import sharding
from experiments.performance import gpu_rows, programs, records
from experiments.performance.contenders import adapter

# Each against the first.
OPTIONS: dict[str, dict] = {
    "default": {},
    "memory limit slop 118 %": {"xla_gpu_memory_limit_slop_factor": 118},
    "no Triton GEMM": {"xla_gpu_enable_triton_gemm": False},
    "no command buffers": {"xla_gpu_enable_command_buffer": ""},
}


def tiny_run(_: list, tiny: bool, attention: str, out: Path) -> dict:
    """`dft_jax.main` from its start to its end, in bfloat16: the whole program works here. The
    value is the last loss, in nats.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "dft_jax.main", "--config=configs/tiny.py"]
        command += [f"--workdir={folder}/run", "--config.model.compute_dtype=bfloat16"]
        command += [f"--config.model.attention={attention}"]
        command += ["--config.train.steps=6", "--config.eval.every=3"] * tiny
        environment = os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".5"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            return {"gap": (done.stderr.strip().splitlines() or ["died"])[-1][:200]}
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["train/nll"] for line in lines if "train/nll" in line]
    backend = re.search(r"^attention: (\w+)", done.stderr, re.M)
    if not losses[-1] < losses[0]:
        return {"gap": f"the loss did not fall: {losses[0]} to {losses[-1]}"}
    name = backend[1] if backend else "blocked"
    return {"value": losses[-1], "first": losses[0], "attention": name, "note": ""}


def stepper(row: str, attempt: list, tiny: bool, attention: str):
    """(compile(options), step(compiled)) of a training row, with its own random state."""
    shape, rows, remat, *rest = attempt
    config = programs.training_config(shape, remat, programs.CHUNK_TOKENS)
    model = programs.training_model(config, shape, tiny, None, attention)
    batch = programs.packed_step(model.config.vocab_size, rows, rest[0] if rest else None, tiny)
    trainee = adapter.Trainee(config, model, "dft", None)
    on_device = sharding.device_batch(batch, model.mesh, batch.tokens_BL.shape[1])

    def compile(options: dict):
        with trainee.precision():
            lowered = trainee.train_step.lower(trainee.frozen, trainee.state, on_device)
            return lowered.compile(options or None)

    def step(compiled: Callable):
        trainee.state, sums = compiled(trainee.frozen, trainee.state, on_device)
        return sums

    return compile, step


def compare_options(asked: list, tiny: bool, attention: str, out: Path) -> dict:
    """Milliseconds of a training step under each of OPTIONS, in one process; into gpu_ab.csv."""
    row, *attempt = asked
    compile, step = stepper(row, attempt, tiny, attention)
    lines = []
    for name, options in OPTIONS.items():
        start = time.perf_counter()
        compiled = compile(options)
        seconds = time.perf_counter() - start
        spent = 1e3 * gpu_rows.timed(lambda compiled=compiled: step(compiled), tiny)
        temporary = compiled.memory_analysis().temp_size_in_bytes / 2**30
        about = {"row": row, "attempt": " ".join(map(str, attempt)), "options": name}
        about |= {"ms": float(np.median(spent)), "fastest_ms": float(spent.min())}
        about |= {"rounds": len(spent), "compile_s": seconds, "temporary_gib": temporary}
        lines.append(about | {"device": jax.devices()[0].device_kind})
        records.replace_rows(out / "gpu_ab.csv", "row", {row}, lines)
    return {"value": lines[0]["ms"], "note": "gpu_ab.csv"}


def profile(asked: list, tiny: bool, attention: str, out: Path) -> dict:
    """Two steps of a training row: the trace into profile/, and its kernels by time into
    gpu_profile.csv. The value is the milliseconds of all of them in a step.
    """
    row, *attempt = asked
    compile, step = stepper(row, attempt, tiny, attention)
    compiled = compile({})
    jax.block_until_ready(step(compiled))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(2):
                jax.block_until_ready(step(compiled))
        [trace] = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(trace.read_bytes()))
        kernels = kernels_of(events)
        (out / "profile").mkdir(parents=True, exist_ok=True)
        # one file, for Perfetto: without its name, which is the machine's
        shutil.copy(trace, out / "profile" / "trace.json.gz")
    about = {"row": row, "attempt": " ".join(map(str, attempt))}
    lines = [about | kernel for kernel in kernels]
    records.replace_rows(out / "gpu_profile.csv", "row", {row}, lines)
    return {"value": sum(kernel["ms"] for kernel in kernels) / 2, "note": "gpu_profile.csv"}


def kernels_of(trace: dict, most: int = 60) -> list[dict]:
    """Name, calls and ms of what ran on the device, by time; on a CPU, of XLA's own threads.

    Kernels of the same kind are numbered by XLA: fusion.12 and fusion.13 count as one.
    """
    events = trace["traceEvents"]
    devices = {
        event["pid"]
        for event in events
        if event.get("name") == "process_name" and "/device:" in event["args"]["name"]
    }
    streams = {
        (event["pid"], event["tid"])
        for event in events
        if event.get("name") == "thread_name"
        and (event["pid"] in devices and "Stream" in event["args"]["name"])
    }
    spent: dict[str, list[float]] = collections.defaultdict(list)
    for event in events:
        is_here = not devices or (event.get("pid"), event.get("tid")) in streams
        if event.get("ph") == "X" and is_here:
            spent[re.sub(r"\.\d+", "", event["name"])].append(event.get("dur", 0.0) / 1e3)
    lines = [{"name": name, "calls": len(each), "ms": sum(each)} for name, each in spent.items()]
    return sorted(lines, key=lambda line: -line["ms"])[:most]
