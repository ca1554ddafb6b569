"""Adapters as PEFT writes and reads them: adapter_config.json and adapter_model.safetensors.

Of huggingface/peft at 5d602fd. A pair of tensors adds to one tensor of the base:

    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight   [rank, inputs]
    base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight   [outputs, rank]
                     model.layers.0.self_attn.q_proj.weight          + s · B A

Where a tensor of the base holds several matrices (Phi-3's qkv_proj), PEFT has one pair for it, and
here each has its own. Read, each matrix takes A and its rows of B. Written, the ranks are put one
after another, which is exact: A has those of all matrices, and B is zero where a matrix meets the
rank of another.

    A [3 Z, inputs]   Aq         B [outputs, 3 Z]   Bq  0  0
                      Ak                             0 Bk  0
                      Av                             0  0 Bv

Of a model with images they are those of its text, beneath model.language_model in the place of
model, as transformers 5 builds it. Names such as gate_proj would be those of its tower too, so
target_modules is an expression then.
"""

import dataclasses
import math
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from dft_jax import sharding
from dft_jax.models.hf.merging import Pair, Pairs
from dft_jax.models.hf.peft_config import MERGE, AdapterConfig, read_adapter_config
from dft_jax.models.hf.safetensors import DTYPES, Header, open_tensors, read_headers
from dft_jax.models.hf.tensors import Tensor, adaptable_tensors
from dft_jax.models.lora import MODULES, Lora, scale_of
from dft_jax.models.model import Model, layouts_of
from dft_jax.models.spec import at
from dft_jax.runtime import errors, files
from dft_jax.types import Params

CONFIG_NAME, TENSORS_NAME = "adapter_config.json", "adapter_model.safetensors"
# Ours beside them, which PEFT does not read: {"sha256", "path", "revision"} of the base.
BASE_NAME = "base.json"
_PREFIX = "base_model.model."
# What the names of modules begin with, in a model for text and in one with images.
ROOT, ROOT_WITH_IMAGES = "model.", "model.language_model."
_KERNEL = ".weight"
_FETCH = "fetch both files of the adapter again"
# Tensors of other kinds, by a part of their names.
_OTHER_KINDS = {
    "lora_magnitude_vector": "DoRA",
    "lora_embedding_": "adapters of embeddings",
    "embed_tokens": "an embedding that was trained, or whose vocabulary was resized",
    "lm_head": "a head that was trained, or whose vocabulary was resized",
    ".bias": "biases",
}


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter in host memory."""

    folder: Path
    config: AdapterConfig
    pairs: Pairs  # by the name of a tensor of the base, as tensors.py spells it
    base_sha256: str  # of BASE_NAME: of the base's weights; empty where somebody else wrote it
    root: str = ROOT  # that modules of its files are beneath


def read_adapter(folder: Path) -> Adapter:
    """Reads an adapter; each key of its config and each tensor is used, checked or refused by name.

    Raises:
      UserError: all that is wrong, each with key or tensor, value and remedy.
    """
    config = read_adapter_config(folder / CONFIG_NAME)
    pairs, root = _read_pairs(folder, config)
    sha256 = ""
    if (folder / BASE_NAME).exists():
        sha256 = files.read_json(folder / BASE_NAME).get("sha256") or ""
    return Adapter(folder, config, pairs, sha256, root)


def digest(folder: Path) -> str:
    """SHA-256 of what an adapter is: its two files."""
    return files.digest([folder / CONFIG_NAME, folder / TENSORS_NAME])


def _read_pairs(folder: Path, config: AdapterConfig) -> tuple[Pairs, str]:
    """The pairs, and what the names of their modules begin with."""
    file = folder / TENSORS_NAME
    if not file.exists() and (folder / "adapter_model.bin").exists():
        what = f"{folder}: adapter_model.bin is a pickle, which is never opened"
        raise errors.UserError(f"{what}: save the adapter as {TENSORS_NAME}")
    headers = read_headers(file)
    modules, problems = _modules_of(headers)
    for module in modules:
        problems += _header_problems(module, headers, config.rank_of(module))
    errors.raise_if_any([f"{file}: {problem}" for problem in problems])
    root = ROOT
    if any(module.startswith(ROOT_WITH_IMAGES) for module in modules):
        root = ROOT_WITH_IMAGES
    pairs = {}
    with open_tensors(file) as tensors:
        for module in modules:
            a_ZI, b_OZ = [
                _finite(file, name, tensors.get_tensor(name)) for name in _pair_names(module)
            ]
            name = _respelled(module, root, ROOT) + _KERNEL
            pairs[name] = Pair(a_ZI, b_OZ, config.scale_of(module))
    return pairs, root


def _respelled(module: str, root: str, other: str) -> str:
    """A module beneath `root` as one beneath `other`; any other as it is."""
    return other + module.removeprefix(root) if module.startswith(root) else module


def _pair_names(module: str) -> tuple[str, str]:
    return f"{_PREFIX}{module}.lora_A.weight", f"{_PREFIX}{module}.lora_B.weight"


def _modules_of(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The modules that have a pair of tensors, and what is wrong with the others."""
    halves: dict[str, set[str]] = {}
    strays: dict[str, list[str]] = {}
    for name in sorted(names):
        found = re.fullmatch(rf"{re.escape(_PREFIX)}(.+)\.lora_([AB])\.weight", name)
        kinds = [kind for part, kind in _OTHER_KINDS.items() if part in name]
        if kinds or not found:
            kind = kinds[0] if kinds else "no matrices of LoRA"
            strays.setdefault(kind, []).append(name)
        else:
            halves.setdefault(found[1], set()).add(found[2])
    problems = []
    for kind, tensors in strays.items():
        what = f"{len(tensors)} tensors are {kind}, such as {tensors[0]}"
        problems.append(f"{what}; this is not supported: {MERGE}")
    for module, found in halves.items():
        if len(found) == 1:
            missing = "AB".replace(found.copy().pop(), "")
            problems.append(f"{module} has no lora_{missing}; {_FETCH}")
    return list(halves), problems


def _header_problems(module: str, headers: dict[str, Header], rank: int) -> list[str]:
    """What is wrong with shapes and dtypes of a pair, before it is read."""
    problems = []
    for axis, name in enumerate(_pair_names(module)):
        if name not in headers:
            continue
        shape, dtype = headers[name]
        if dtype not in DTYPES:
            known = ", ".join(DTYPES)
            problems.append(f"{name} has dtype {dtype}; save it as one of {known}")
        if len(shape) != 2 or shape[axis] != rank:
            what = f"{name} has shape {list(shape)}, {CONFIG_NAME} says rank {rank}"
            problems.append(f"{what}; {_FETCH}")
    return problems


def _finite(file: Path, name: str, tensor: np.ndarray) -> np.ndarray:
    """A tensor as float32; UserError where it holds NaN or infinity."""
    tensor = tensor.astype(np.float32)
    if not np.isfinite(tensor).all():
        raise errors.UserError(f"{file}: {name} holds NaN or infinity; take another adapter")
    return tensor


def check(adapter: Adapter, model: Model) -> None:
    """Compares an adapter with the model that it is to be added to.

    The names of its config have to describe just the modules that it has tensors for: whoever
    wrote other names meant another adapter.

    Raises:
      UserError: all that differs: unknown modules, layers beyond the last, shapes, names.
    """
    kernels = {tensor.name: tensor for tensor in adaptable_tensors(model)}
    problems = []
    for name, pair in adapter.pairs.items():
        if name not in kernels:
            what = f"{name.removesuffix(_KERNEL)} is no module of the base that can be adapted"
            problems.append(f"{what} (it has {model.config.num_layers} layers); give its own base")
            continue
        O, I = kernels[name].whole_shape
        if (len(pair.b_OZ), pair.a_ZI.shape[1]) != (O, I):
            what = f"{name.removesuffix(_KERNEL)}: A is {list(pair.a_ZI.shape)}, B"
            what += f" {list(pair.b_OZ.shape)}, but the base's matrix is {[O, I]}"
            problems.append(f"{what}; give its own base")
    problems = [f"{adapter.folder / TENSORS_NAME}: {problem}" for problem in problems]
    # Names say nothing of a module that the base does not have.
    errors.raise_if_any(problems or _name_problems(adapter, kernels))


def _name_problems(adapter: Adapter, kernels: Iterable[str]) -> list[str]:
    """Where target_modules and its like name other modules than have tensors."""
    named = set()
    for name in kernels:
        module = _respelled(name.removesuffix(_KERNEL), ROOT, adapter.root)
        if adapter.config.adapts(module):
            named.add(name)
    problems = []
    for what, names in (
        ("names {} modules that have no tensors", named - adapter.pairs.keys()),
        ("does not name {} modules that have tensors", adapter.pairs.keys() - named),
    ):
        if names:
            one = min(names).removesuffix(_KERNEL)
            what = f"{adapter.folder / CONFIG_NAME}: target_modules {what.format(len(names))}"
            problems.append(f"{what}, such as {one}; {_FETCH}")
    return problems


def as_lora(adapter: Adapter, model: Model) -> Lora:
    """What a model is built with to train the adapter further: one rank, and one scale.

    `model` is that of the base. Smaller ranks (rank_pattern) are filled up with zeros.

    Raises:
      UserError: it has dropout, modules with different scales, or one whose tensor holds several
      matrices.
    """
    config = adapter.config
    place = adapter.folder / CONFIG_NAME
    for tensor in adaptable_tensors(model):
        if tensor.rows is not None and tensor.name in adapter.pairs:
            # Of PEFT they share A, whose gradient is then another one.
            what = f"{place}: {tensor.name.removesuffix(_KERNEL)} has one adapter, and training"
            what += " here has one for each matrix in it"
            raise errors.UserError(f"{what}; {MERGE} to train that")
    if config.dropout > 0:
        what = f"{place}: lora_dropout={config.dropout}: training here has no dropout"
        raise errors.UserError(f"{what}; set it to 0 to train on without")
    scales = {pair.scale for pair in adapter.pairs.values()}
    if len(scales) > 1:
        what = f"{place}: rank_pattern and alpha_pattern give modules {len(scales)} scales"
        raise errors.UserError(f"{what}, and training has one; {MERGE} to train that")
    rank = max(len(pair.a_ZI) for pair in adapter.pairs.values())
    (scale,) = scales
    alpha = config.alpha
    if scale_of(alpha, rank, config.rslora) != scale:
        # Patterns that come to one scale, of another rank and alpha.
        alpha = scale / scale_of(1.0, rank, config.rslora)
    targets = {
        tensor.path[-2] for tensor in adaptable_tensors(model) if tensor.name in adapter.pairs
    }
    in_order = tuple(name for name in MODULES if name in targets)
    return Lora(rank, alpha, config.rslora, in_order)


def load_adapters(adapter: Adapter, model: Model) -> Params:
    """The adapter as a tree like `model.abstract_adapters`, on the mesh.

    Smaller ranks and modules left out are zeros: a row of A and its column of B that are both zero
    have no gradient, and stay so.
    """
    host = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), model.abstract_adapters)
    for tensor in adaptable_tensors(model):
        if tensor.name in adapter.pairs:
            pair = adapter.pairs[tensor.name]
            node = at(host, tensor.path[:-1])
            rank = len(pair.a_ZI)
            a, b = node["a"][tensor.index], node["b"][tensor.index]
            a[:rank] = pair.a_ZI.reshape(rank, *a.shape[1:])
            b[..., :rank] = pair.b_OZ.reshape(*b.shape[:-1], rank)
    layouts = layouts_of(model.abstract_adapters)
    return jax.tree.map(_place, host, layouts)


def _place(host: np.ndarray, layout: Any) -> jax.Array:
    return jax.make_array_from_callback(host.shape, layout, lambda index: host[index])


def pairs_of(adapters: Params, model: Model) -> Pairs:
    """The pairs of a tree like `model.abstract_adapters`, whole on the host of every process."""
    lora = model.lora
    assert lora is not None, "its adapters were given"
    # Every device, and so every host, gets all of a leaf.
    whole = jax.jit(lambda leaf: leaf, out_shardings=sharding.named(model.mesh))
    host = jax.tree.map(lambda leaf: np.asarray(whole(leaf).addressable_data(0)), adapters)
    pairs: dict[str, Pair] = {}
    for tensor in adaptable_tensors(model):
        if tensor.path[-2] in lora.targets:
            node = at(host, tensor.path[:-1])
            a_ZI = node["a"][tensor.index].reshape(lora.rank, -1)
            b_OZ = node["b"][tensor.index].reshape(-1, lora.rank)
            pair = Pair(a_ZI, b_OZ, lora.scale)
            pairs[tensor.name] = _joined(pairs.get(tensor.name), pair, tensor)
    return pairs


def _joined(before: Pair | None, pair: Pair, tensor: Tensor) -> Pair:
    """The pair of a whole tensor of the base: what is there of it already, and that of one more of
    the matrices that it holds.
    """
    if tensor.rows is None:
        return pair
    O, Z = tensor.rows.of, len(pair.a_ZI)
    b_OZ = np.zeros((O, Z), pair.b_OZ.dtype)
    b_OZ[tensor.row_slice] = pair.b_OZ
    if before is None:
        return Pair(pair.a_ZI, b_OZ, pair.scale)
    a_ZI = np.concatenate([before.a_ZI, pair.a_ZI])
    return Pair(a_ZI, np.concatenate([before.b_OZ, b_OZ], axis=1), pair.scale)


def write_adapter(
    pairs: Pairs, lora: Lora, base: dict[str, str], out: Path, root: str = ROOT
) -> None:
    """Writes an adapter into the folder `out`, which is there.

    Args:
      pairs: all of the scale of `lora`. Smaller ranks than the largest are filled up with zeros.
      base: "path", "revision" and "sha256" (of its weights) of the base.
      root: ROOT_WITH_IMAGES of a model with images.
    """
    # Sorted, so that equal adapters are equal files.
    rank = max(len(pair.a_ZI) for pair in pairs.values())
    tensors = {}
    for name, pair in sorted(pairs.items()):
        module = _respelled(name.removesuffix(_KERNEL), ROOT, root)
        name_of_a, name_of_b = _pair_names(module)
        more = rank - len(pair.a_ZI)
        tensors[name_of_a] = np.ascontiguousarray(np.pad(pair.a_ZI, ((0, more), (0, 0))))
        tensors[name_of_b] = np.ascontiguousarray(np.pad(pair.b_OZ, ((0, 0), (0, more))))
    modules = {name.removesuffix(_KERNEL).rpartition(".")[2] for name in pairs}
    if rank != lora.rank:
        # The same scale, of ranks that were joined.
        times = rank / lora.rank
        alpha = lora.alpha * (math.sqrt(times) if lora.rslora else times)
        lora = dataclasses.replace(lora, rank=rank, alpha=alpha)
    config = _config_for(lora, sorted(modules), base, root)
    files.write_json(out / CONFIG_NAME, config, sort_keys=True)
    files.write_json(out / BASE_NAME, base)
    # PEFT refuses a file without a format.
    save_file(tensors, out / TENSORS_NAME, metadata={"format": "pt"})
    # safetensors writes for the owner's eyes only
    shutil.copymode(out / CONFIG_NAME, out / TENSORS_NAME)
    files.flush(out / TENSORS_NAME)


def _config_for(lora: Lora, modules: list[str], base: dict[str, str], root: str) -> dict[str, Any]:
    """What adapter_config.json is to say: names that mean the same to every reader, one scale."""
    alpha = lora.alpha
    targets: Any = modules
    if root != ROOT:
        targets = rf"{re.escape(root)}.*\.({'|'.join(targets)})"
    # Neither patterns, which vLLM drops without a word, nor "all-linear", which each reader
    # expands in its own way.
    return {
        "alpha_pattern": {},
        "base_model_name_or_path": base["path"],
        "bias": "none",
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        # PEFT has integers here.
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": lora.rank,
        "rank_pattern": {},
        "revision": base["revision"],
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": lora.rslora,
    }
