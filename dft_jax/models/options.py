"""config.model: which checkpoint, and how its model is computed; and config.lora."""

import os
from typing import Any

from dft_jax.models import lora
from dft_jax.models.attention.kernels import BACKENDS
from dft_jax.models.rematerialisation import REMAT_POLICIES
from dft_jax.models.spec import DecoderSpec
from dft_jax.runtime import hub
from dft_jax.runtime.options import AT_LEAST_1, Config, Option
from dft_jax.sharding import Sizes

SECTION = {
    "path": Option("", "folder or hub id of a Hugging Face checkpoint"),
    "revision": Option("main", "of a hub id: branch, tag or commit"),
    "init": Option(
        "checkpoint",
        "random: only config.json and tokenizer are read",
        ("checkpoint", "random"),
    ),
    "param_dtype": Option(
        "float32",
        "of master weights and moments; for bfloat16 see optimizer.rounding",
        ("float32", "bfloat16"),
    ),
    "compute_dtype": Option(
        "bfloat16",
        "of matrix products; logits, softmax and loss are always float32",
        ("float32", "bfloat16"),
    ),
    "remat": Option(
        "none",
        "what the backward pass computes again, to save memory; offload: all, and layers' inputs"
        " wait on the host",
        tuple(REMAT_POLICIES),
    ),
    "attention": Option(
        "auto", "backend of attention (models/attention/kernels.py)", ("auto", *BACKENDS)
    ),
    "attention_block": Option(512, "queries in one block of attention", AT_LEAST_1),
}

# config.lora
LORA, lora_problems = lora.SECTION, lora.problems


def problems(given: dict[str, Any], looked_from: str) -> list[str]:
    """What is wrong with the path of a model; `given` are values by their key in SECTION."""
    path = given.get("path")
    if path is None:  # of the wrong type, which was said before
        return []
    if path == "":
        what = "config.model.path is empty"
        return [f"{what}: give the folder or hub id of a Hugging Face checkpoint"]
    found = hub.address_problems(path, "config.model.path")
    if path.startswith((".", "/")) and not os.path.isdir(path):
        remedy = f"(looked from {looked_from}); correct the path"
        found.append(f"config.model.path={path!r}: no such folder {remedy}")
    revision = given.get("revision", "main")
    if revision not in ("", "main") and os.path.isdir(path):
        what = f"config.model.revision={revision!r} has no effect: model.path={path!r} is a folder"
        found.append(f"{what}; remove it (--config.model.revision=main)")
    return found


def architecture_problems(
    mesh: Config, max_length: int, architecture: DecoderSpec, device_count: int
) -> list[str]:
    """What does not fit between a mesh, the length of examples, and a checkpoint's architecture."""
    found = []
    sizes = Sizes(**mesh).on(device_count)
    heads = {"attention": architecture.num_heads, "key/value": architecture.num_kv_heads}
    for name, count in heads.items():
        if count % sizes.tensor:
            what = f"config.mesh.tensor={sizes.tensor} does not divide the model's {count} {name}"
            found.append(f"{what} heads; legal here: {_divisors(count)}")
    found += _expert_problems(sizes.expert, architecture)
    if max_length > architecture.max_length:
        what = f"config.data.max_length={max_length} is beyond the model's max_position_embeddings="
        found.append(f"{what}{architecture.max_length}; use at most {architecture.max_length}")
    return found


def _expert_problems(ways: int, architecture: DecoderSpec) -> list[str]:
    what = f"config.mesh.expert={ways}"
    if architecture.experts is None:
        if ways == 1:
            return []
        return [f"{what} splits experts, and this model has none; use 1, and mesh.fsdp={ways}"]
    count = architecture.experts.count
    if count % ways == 0:
        return []
    return [f"{what} does not divide the model's {count} experts; legal here: {_divisors(count)}"]


def _divisors(count: int) -> str:
    return ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
