"""A measurement of the GPU table as a process of its own, with its environment and its limit."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORK = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dft_jax" / "performance"

ABSENT = "not installed"  # how the gap of a row ends whose packages are not here


@dataclasses.dataclass(frozen=True)
class How:
    """Where results and caches go, and how an attempt is carried out."""

    out: Path
    work: Path
    tiny: bool = False
    limit_s: float = 90
    attention: str = "auto"
    in_process: bool = False


def environment(how: How) -> dict[str, str]:
    """Of an attempt."""
    flags = [os.environ.get("XLA_FLAGS", "")]
    flags.append(f"--xla_gpu_per_fusion_autotune_cache_dir={autotune_folder(how)}")
    return {
        **with_root(),
        "XLA_FLAGS": " ".join(filter(None, flags)),
        "XLA_PYTHON_CLIENT_MEM_FRACTION": ".95",
        "JAX_COMPILATION_CACHE_DIR": str(how.work / "compilations"),
    }


def with_root() -> dict[str, str]:
    """The environment in which a child finds this code: packages may come by PYTHONPATH too, so
    ours goes before what is there.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def autotune_folder(how: How) -> Path:
    folder = how.work / "autotune"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def pack_autotune(how: How) -> None:
    """What XLA tuned, as one file beside the results; it has a file for every fusion."""
    folder = autotune_folder(how)
    if any(folder.iterdir()):
        how.out.mkdir(parents=True, exist_ok=True)
        with tarfile.open(how.out / "autotune.tar.gz", "w:gz") as archive:
            archive.add(folder, "autotune")


def unpack_autotune(how: How) -> None:
    """What an earlier call has tuned."""
    file = how.out / "autotune.tar.gz"
    if file.exists():
        with tarfile.open(file) as archive:
            archive.extractall(how.work, filter="data")


def measure(row: str, attempt: list, how: How) -> dict:
    """One measurement: what `gpu_rows` found, or {"gap": why not}."""
    asked = {"row": row, "attempt": attempt, "tiny": how.tiny, "attention": how.attention}
    asked |= {"out": str(how.out)}
    text = json.dumps(asked)
    if how.in_process:
        return measured(text)
    command = [sys.executable, "-m", "experiments.performance.gpu", f"--only={text}"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(how),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        answer, complaints = process.communicate(timeout=how.limit_s)
    except subprocess.TimeoutExpired:
        # with what it has started: the device is wanted by the next attempt
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return {"gap": f"not done within {how.limit_s:.0f} s"}
    if process.returncode:
        return {"gap": reason(complaints)}
    return json.loads(answer.strip().splitlines()[-1])


def reason(complaints: str) -> str:
    """The line of a dead process's stderr that says why."""
    lines = complaints.strip().splitlines() or ["died"]
    said = [line for line in lines if "Error" in line or "RESOURCE_EXHAUSTED" in line]
    return (said or lines)[-1][:200]


def measured(text: str) -> dict:
    """In the attempt's own process."""
    from experiments.performance import gpu_rows, gpu_tools

    asked = json.loads(text)
    row, attempt, tiny = asked["row"], asked["attempt"], asked["tiny"]
    tools = {"ab": gpu_tools.compare_options, "profile": gpu_tools.profile}
    tools |= {"tiny_run": gpu_tools.tiny_run}
    if row in tools:
        return tools[row](attempt, tiny, asked["attention"], Path(asked["out"]))
    return gpu_rows.measure(row, attempt, tiny, asked["attention"])
