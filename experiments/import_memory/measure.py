"""Peak host memory while a large checkpoint is imported, above the arrays themselves.

    python -m experiments.import_memory.measure --folder=EMPTY_FOLDER [--devices=8]
    [--param-dtype=float32]

Writes a random bf16 Qwen2-shaped checkpoint of 2 GB (4 GB of float32 arrays) to the folder, in
shards, then imports it in a process of its own over simulated devices. On a CPU the arrays lie in
host memory too, so what the import itself needs is the peak minus the arrays minus what the process
held before.
"""

import argparse
import json
import math
import os
import pathlib
import resource
import subprocess
import sys

from dft_jax.models.hf.locate import read_config
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.hf.tensors import tensor_table
from experiments import common

CONFIG = {
    "model_type": "qwen2",
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 75,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


def rss_gb() -> float:
    """Resident memory now."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e9


def build(folder: pathlib.Path, param_dtype: str):
    from dft_jax import sharding
    from dft_jax.models import model as models

    return models.build(read_config(folder), sharding.make_mesh(1, -1, 1), param_dtype=param_dtype)


def write(folder: pathlib.Path) -> None:
    import ml_dtypes
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    rng, weight_map = np.random.default_rng(0), {}
    for tensor in tensor_table(build(folder, "bfloat16")):
        file = f"model-{0 if tensor.layer is None else tensor.layer + 1:05d}.safetensors"
        values = rng.normal(size=tensor.shape).astype(ml_dtypes.bfloat16)
        weight_map.setdefault(file, {})[tensor.name] = values
    for file, tensors in weight_map.items():
        save_file(tensors, folder / file)
    names = {name: file for file, tensors in weight_map.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def measure(folder: pathlib.Path, param_dtype: str) -> None:
    import jax

    from dft_jax.models.hf.load import check_tensors, load_params

    model = build(folder, param_dtype)
    checkpoint = Checkpoint(folder)
    check_tensors(checkpoint, model)
    before = rss_gb()
    params = jax.block_until_ready(load_params(checkpoint, model))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    arrays = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 1e9
    item_bytes = 4 if param_dtype == "float32" else 2
    largest = max(math.prod(tensor.shape) for tensor in tensor_table(model)) * item_bytes / 1e9
    print(
        f"{jax.device_count()} devices, {param_dtype}: arrays {arrays:.2f} GB, largest"
        f" tensor {largest:.2f} GB"
    )
    print(
        f"before {before:.2f} GB, peak {peak:.2f} GB: {peak - before - arrays:.2f} GB above"
        " the arrays"
    )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--folder", required=True, type=pathlib.Path)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--param-dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--step", choices=["write", "measure"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step == "write":
        write(arguments.folder)
    elif arguments.step == "measure":
        measure(arguments.folder, arguments.param_dtype)
    else:
        flags = f"--xla_force_host_platform_device_count={arguments.devices}"
        for step in ("write", "measure"):
            environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "experiments.import_memory.measure",
                    *sys.argv[1:],
                    f"--step={step}",
                ],
                env=environment,
                check=True,
            )


if __name__ == "__main__":
    main()
