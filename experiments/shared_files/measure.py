"""What each of several processes reads and writes of a checkpoint, and for how long.

    python -m experiments.shared_files.measure --folder=EMPTY_FOLDER [--processes=4] [--out=FILE]

Writes a random bf16 checkpoint with the sizes of Qwen2.5-1.5B, but two layers and a head of its own
(1.1 GB), to the folder, then imports it as float32 and exports it, in a job of so many
processes with a simulated device each (fsdp). Every process counts the bytes that it asks the
reader of safetensors for, what Linux reads from the disk for it once the page cache is empty of the
file, and what it writes. On a CPU the arrays lie in host memory too: what is `above` is the peak
minus the arrays minus what the process held before.
"""

import argparse
import csv
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

from dft_jax.models.hf import safetensors, tensor_files
from dft_jax.models.hf.locate import read_config
from dft_jax.models.hf.tensors import tensor_table
from experiments import common

CONFIG = {
    "model_type": "qwen2",
    "vocab_size": 151_936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
FILE_GB = 0.1  # of an export: more files than processes


class Counted:
    """What `safe_open` gives, or a view of a tensor, and how many bytes are taken from it."""

    def __init__(self, opened, counts: list[int]):
        self.opened, self.counts = opened, counts

    def __enter__(self):
        self.opened.__enter__()
        return self

    def __exit__(self, *exc):
        return self.opened.__exit__(*exc)

    def __getitem__(self, rows):
        return self._count(self.opened[rows])

    def get_tensor(self, name: str):
        return self._count(self.opened.get_tensor(name))

    def get_slice(self, name: str):
        return Counted(self.opened.get_slice(name), self.counts)

    def _count(self, array):
        self.counts.append(array.nbytes)
        return array


def count_reads() -> list[int]:
    counts: list[int] = []
    open_tensors = safetensors.open_tensors
    safetensors.open_tensors = lambda file: Counted(open_tensors(file), counts)
    return counts


def count_writes() -> list[int]:
    counts: list[int] = []
    save = tensor_files._save

    def counted(tensors, file):
        save(tensors, file)
        counts.append(file.stat().st_size)

    tensor_files._save = counted
    return counts


def disk_gb() -> float:
    """What Linux has read from disks for this process."""
    lines = pathlib.Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"]) / 1e9


def memory_gb() -> float:
    """What only this process holds: pages of mapped files are anybody's."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) / 1e6


class Peak:
    """The most memory between its start and `stop`, looked at a hundred times a second."""

    def __init__(self):
        import threading

        self.before = self.most = memory_gb()
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def _watch(self) -> None:
        while not self.is_over.wait(0.01):
            self.most = max(self.most, memory_gb())

    def stop(self) -> float:
        self.is_over.set()
        self.thread.join()
        return self.most - self.before


def forget_pages(folder: pathlib.Path) -> None:
    """Lets the page cache go of a checkpoint's files."""
    for file in folder.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def write(folder: pathlib.Path) -> None:
    import ml_dtypes
    import numpy as np
    from safetensors.numpy import save_file

    from dft_jax import sharding
    from dft_jax.models import model as models

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    model = models.build(read_config(folder), sharding.make_mesh(1, -1, 1))
    # The same million values again and again: drawing all takes longer than the rest.
    values = np.random.default_rng(0).normal(size=2**20).astype(ml_dtypes.bfloat16)
    tensors = {table.name: np.resize(values, table.shape) for table in tensor_table(model)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def measure(folder: pathlib.Path, count: int, number: int, port: int) -> None:
    """One process; writes its row to a file in the folder."""
    import jax

    from dft_jax import sharding
    from dft_jax.models import model as models
    from dft_jax.models.hf.export import export
    from dft_jax.models.hf.load import load_params
    from dft_jax.runtime import distributed

    if count > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", count, number)
    model = models.build(read_config(folder), sharding.make_mesh(1, -1, 1), param_dtype="float32")
    read, written = count_reads(), count_writes()
    checkpoint = safetensors.Checkpoint(folder)
    distributed.meet("begin")
    row = {"process": number}
    disk, peak, begin = disk_gb(), Peak(), time.monotonic()
    params = jax.block_until_ready(load_params(checkpoint, model))
    arrays = sum(part.data.nbytes for x in jax.tree.leaves(params) for part in x.addressable_shards)
    row["read_gb"] = sum(read) / 1e9
    row["from_disk_gb"] = disk_gb() - disk
    row["import_s"] = time.monotonic() - begin
    row["arrays_gb"] = arrays / 1e9
    row["import_above_gb"] = peak.stop() - arrays / 1e9
    distributed.meet("between")
    peak, begin = Peak(), time.monotonic()
    export(params, model, folder, folder / "out", max_shard_gb=FILE_GB)
    row["written_gb"] = sum(written) / 1e9
    row["export_s"] = time.monotonic() - begin
    row["export_above_gb"] = peak.stop()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    row["processor_s"] = usage.ru_utime + usage.ru_stime
    (folder / f"{number}.json").write_text(json.dumps(row))


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--folder", required=True, type=pathlib.Path)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--out", type=pathlib.Path, help="a CSV file; by default printed")
    parser.add_argument("--step", choices=["write", "measure"], help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=29871, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = arguments.folder
    if arguments.step == "write":
        write(folder)
        return
    if arguments.step == "measure":
        measure(folder, arguments.processes, arguments.number, arguments.port)
        return
    command = [sys.executable, "-m", "experiments.shared_files.measure", *sys.argv[1:]]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1", "JAX_PLATFORMS": "cpu"}
    environment = os.environ | flags
    if not (folder / "model.safetensors").exists():
        subprocess.run([*command, "--step=write"], env=environment, check=True)
    forget_pages(folder)
    started = []
    for number in range(arguments.processes):
        step = [*command, "--step=measure", f"--number={number}"]
        started.append(subprocess.Popen(step, env=environment))
    assert [process.wait() for process in started] == [0] * arguments.processes
    rows = []
    for number in range(arguments.processes):
        row = json.loads((folder / f"{number}.json").read_text())
        rows.append({name: round(value, 3) for name, value in row.items()})
    file = open(arguments.out, "w", newline="") if arguments.out else sys.stdout  # noqa: SIM115
    sheet = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    sheet.writeheader()
    sheet.writerows(rows)


if __name__ == "__main__":
    main()
