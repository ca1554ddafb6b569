"""A finished run's last checkpoint in JAX against its export in `transformers`: the largest
difference of the logits.

    python experiments/parity/export_check.py --run=WORKDIR [--examples=4] [--length=128]

Needs one environment with both dft_jax and torch. The sequences are the first training examples of
the run, cut to `--length` tokens. Both sides compute in float32; where the export is in another
dtype, the JAX parameters are rounded to it first, so that the difference is the format's and the
architecture's alone. Fails above 1e-4.
"""

import argparse
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from dft_jax.lm.run import SavedRun, open_run
from dft_jax.models.hf.locate import load_tokenizer
from dft_jax.models.hf.safetensors import weights_dtype
from dft_jax.models.model import build, head
from dft_jax.training.inputs import load_data
from dft_jax.types import Batch

LIMIT = 1e-4


def simulate_devices(workdir: pathlib.Path) -> None:
    """As many CPU devices as the run's mesh names; before jax starts."""
    mesh = json.loads((workdir / "config.json").read_text())["mesh"]
    jax.config.update(
        "jax_num_cpu_devices", math.prod(size for size in mesh.values() if size != -1)
    )


def load_sequences(run: SavedRun, n: int, length: int) -> list[np.ndarray]:
    """Token ids of the first `n` training examples, cut to `length`; only their rows are read."""
    config = run.config.copy_and_resolve_references()
    config.data.max_rows, config.data.heldout = n, ""
    examples, _ = load_data(config, run.source, load_tokenizer(run.source), run.model)
    return [example.ids[:length] for example in examples.examples]


def jax_logits(run: SavedRun, sequences: list[np.ndarray], dtype: str) -> list[np.ndarray]:
    """Logits [L, V] of each sequence from the checkpoint's parameters, rounded to `dtype`, in
    float32.
    """
    model = build(run.model.config, run.model.mesh, compute_dtype="float32")
    params = jax.tree.map(lambda leaf: leaf.astype(dtype).astype("float32"), run.params())
    rows = model.mesh.shape["data"] * model.mesh.shape["fsdp"]

    @jax.jit
    def run_once(params, tokens_BL):
        B, L = tokens_BL.shape
        positions_BL = jnp.broadcast_to(jnp.arange(L), (B, L))
        ones_BL = jnp.ones((B, L), jnp.int32)
        hidden_BLD = model.apply(
            params, Batch(tokens_BL, tokens_BL, ones_BL > 0, ones_BL, positions_BL)
        )
        return jnp.einsum("LD,VD->LV", hidden_BLD[0], head(params))

    with jax.default_matmul_precision("highest"):
        return [
            np.asarray(run_once(params, np.broadcast_to(ids, (rows, len(ids)))))
            for ids in sequences
        ]


def torch_logits(folder: pathlib.Path, sequences: list[np.ndarray]) -> list[np.ndarray]:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        return [
            model(torch.tensor(ids[None], dtype=torch.long), use_cache=False).logits[0].numpy()
            for ids in sequences
        ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run",
        required=True,
        type=pathlib.Path,
        help="run directory with checkpoints/ and export/",
    )
    parser.add_argument("--examples", type=int, default=4)
    parser.add_argument("--length", type=int, default=128, help="tokens of each sequence at most")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    simulate_devices(arguments.run)
    run = open_run(arguments.run)
    folder = arguments.run / "export"
    dtype = weights_dtype(folder)
    sequences = load_sequences(run, arguments.examples, arguments.length)
    ours, theirs = jax_logits(run, sequences, dtype), torch_logits(folder, sequences)
    worst = max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True))
    agree = np.mean(
        np.concatenate([a.argmax(-1) == b.argmax(-1) for a, b in zip(ours, theirs, strict=True)])
    )
    largest = max(np.abs(b).max() for b in theirs)
    print(
        f"step {run.step}, export in {dtype}, {sum(map(len, sequences))} positions of"
        f" {len(sequences)} sequences: largest |difference| {worst:.2e} of logits up to"
        f" {largest:.1f};"
        f" most probable token equal at {agree:.2%}"
    )
    if not worst <= LIMIT:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
