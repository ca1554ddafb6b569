"""Hugging Face checkpoints: where they are, what is in them, and their tensors streamed onto the mesh."""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from dft_jax import errors
from dft_jax.models import Model
from dft_jax.models.config import ConfigReader, DecoderConfig
from dft_jax.models.families import FAMILIES
from dft_jax.types import Params

# Downloaded and carried along; nothing else is looked at (no pickles, no code).
CHECKPOINT_PATTERNS = ("model*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json")
TOKENIZER_PATTERNS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
)
SINGLE_NAME, INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
_REMEDY = "fetch config.json and the weights of one and the same model"
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def resolve(path: str, revision: str) -> Path:
    """The folder of a checkpoint: `path` itself when it is a folder, else the hub's snapshot (cached or fetched).

    Raises:
      UserError: neither; the message says what to fetch.
    """
    if Path(path).is_dir():
        return Path(path)
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise errors.UserError(f"model.path={path!r} is not a folder, nor a hub id such as 'Qwen/Qwen2.5-Math-1.5B'")
    import huggingface_hub

    patterns = [*CHECKPOINT_PATTERNS, *TOKENIZER_PATTERNS]
    try:
        return Path(huggingface_hub.snapshot_download(path, revision=revision, allow_patterns=patterns))
    except Exception as error:  # offline, unknown, gated: many types, one remedy
        raise errors.UserError(
            f"model.path={path!r} (revision {revision!r}) is neither a folder here nor in the hub's cache, and fetching"
            f" failed ({type(error).__name__}); where there is a network: hf download {path} --revision {revision}"
        ) from error


def read_json(file: Path) -> dict:
    """A JSON object from a file of the checkpoint; UserError names file and line."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise errors.UserError(f"{file} is missing; fetch it, or put it back") from None
    except UnicodeDecodeError as error:
        raise errors.UserError(f"{file}: not UTF-8 ({error.reason}); fetch the file again") from error
    except json.JSONDecodeError as error:
        raise errors.UserError(f"{file}:{error.lineno}: not JSON ({error.msg}); fetch the file again") from error
    if not isinstance(value, dict):
        raise errors.UserError(f"{file}: expected a JSON object, found {type(value).__name__}; fetch the file again")
    return value


def read_config(folder: Path) -> DecoderConfig:
    """The architecture from `config.json`, every key accounted for (see models/config.py)."""
    file = folder / "config.json"
    raw = read_json(file)
    if "auto_map" in raw:
        raise errors.UserError(
            f"{file}: 'auto_map' asks to run code from the checkpoint, which is never done here; remove the key if"
            " the model is a plain one of its model_type"
        )
    if "quantization_config" in raw:
        raise errors.UserError(f"{file}: 'quantization_config': cannot fine-tune quantised weights; use the original")
    family = raw.pop("model_type", None)
    if not isinstance(family, str) or family not in FAMILIES:
        raise errors.UserError(f"{file}: model_type={family!r} is not supported; known: {', '.join(sorted(FAMILIES))}")
    reader = ConfigReader(raw, str(file))
    return reader.finish(FAMILIES[family].read(reader))


def source_dtype(folder: Path) -> str:
    """The dtype of a checkpoint's weights; of a bare config.json, the one it names, else float32."""
    if (folder / INDEX_NAME).exists() or (folder / SINGLE_NAME).exists():
        return Checkpoint(folder).dtype
    raw = read_json(folder / "config.json")
    dtype = raw.get("dtype") or raw.get("torch_dtype") or "float32"
    if dtype not in _DTYPES.values():
        known = ", ".join(_DTYPES.values())
        raise errors.UserError(f"{folder / 'config.json'}: dtype={dtype!r}: cannot export as that; use one of {known}")
    return dtype


def tensor_name(path: tuple[str, ...], layer: int | None) -> str:
    """The checkpoint's name of a parameter, `layer` for those stacked over layers.

    ("layers", "attention", "q", "kernel"), 3  ->  "model.layers.3.self_attn.q_proj.weight"
    """
    top = {"embed": "model.embed_tokens.weight", "head": "lm_head.weight"}
    if path[0] in top:
        return top[path[0]]
    if path[0] == "final_norm":
        return "model.norm.weight"
    leaf = {"kernel": "weight", "scale": "weight", "bias": "bias"}[path[-1]]
    norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    if path[1] in norms:
        return f"model.layers.{layer}.{norms[path[1]]}.{leaf}"
    part = {"attention": "self_attn", "mlp": "mlp"}[path[1]]
    name = path[2] if path[2] in ("q_norm", "k_norm") else f"{path[2]}_proj"
    return f"model.layers.{layer}.{part}.{name}.{leaf}"


def tensor_shape(path: tuple[str, ...], shape: tuple[int, ...], config: DecoderConfig) -> tuple[int, ...]:
    """The checkpoint's shape of one layer's parameter: head dimensions joined, order unchanged."""
    if path[0] == "layers" and path[1] == "attention" and path[2] in "qkvo":
        joined = config.head_dim * (config.num_heads if path[2] in "qo" else config.num_kv_heads)
        if path[2] == "o":
            return (config.hidden_size, joined) if path[-1] == "kernel" else shape
        return (joined, config.hidden_size) if path[-1] == "kernel" else (joined,)
    return shape


def tensor_table(model: Model) -> Iterator[tuple[tuple[str, ...], int | None, str, tuple[int, ...]]]:
    """(path, layer or None, checkpoint name, checkpoint shape) of each tensor, one entry per layer."""
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(model.abstract_params):
        path = tuple(key.key for key in key_path)
        stacked = path[0] == "layers"
        shape = tensor_shape(path, leaf.shape[1:] if stacked else leaf.shape, model.config)
        for layer in range(model.config.num_layers) if stacked else (None,):
            yield path, layer, tensor_name(path, layer), shape


class Checkpoint:
    """The safetensors of a folder: names, shapes and dtypes without reading data, and one tensor at a time."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.file_of = _index(folder)
        self.headers: dict[str, tuple[tuple[int, ...], str]] = {}
        for file_name in sorted(set(self.file_of.values())):
            with _open(folder / file_name) as tensors:
                for name in tensors.keys():  # noqa: SIM118  (not a dict)
                    slices = tensors.get_slice(name)
                    if self.file_of.get(name) == file_name:
                        self.headers[name] = (tuple(slices.get_shape()), slices.get_dtype())
                    else:
                        raise errors.UserError(
                            f"{folder / file_name}: {INDEX_NAME} does not list tensor {name} there; fetch both again"
                        )

    def read(self, name: str) -> np.ndarray:
        with _open(self.folder / self.file_of[name]) as tensors:
            return tensors.get_tensor(name)

    @property
    def files(self) -> set[Path]:
        return {self.folder / name for name in self.file_of.values()}

    @property
    def dtype(self) -> str:
        """The dtype of the embedding table, taken as that of the checkpoint."""
        return _DTYPES[self.headers["model.embed_tokens.weight"][1]]


def _open(file: Path):
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="np")
    except FileNotFoundError:
        raise errors.UserError(f"{file} is missing, though the index names it; fetch the checkpoint again") from None
    except (SafetensorError, OSError) as error:
        raise errors.UserError(f"{file}: not a whole safetensors file ({error}); fetch it again") from error


def _index(folder: Path) -> dict[str, str]:
    """Tensor name -> plain file name."""
    if (folder / INDEX_NAME).exists():
        weight_map = read_json(folder / INDEX_NAME).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise errors.UserError(f"{folder / INDEX_NAME}: 'weight_map' should map tensor names to file names")
        for name, file in weight_map.items():
            is_plain = isinstance(file, str) and Path(file).name == file and "\\" not in file
            if not is_plain or not file.endswith(".safetensors"):
                raise errors.UserError(
                    f"{folder / INDEX_NAME}: {name} -> {file!r} should be the plain name of a .safetensors file here"
                )
        return weight_map
    if (folder / SINGLE_NAME).exists():
        with _open(folder / SINGLE_NAME) as tensors:
            return dict.fromkeys(tensors.keys(), SINGLE_NAME)
    pickles = sorted(file.name for file in folder.glob("*.bin")) + sorted(file.name for file in folder.glob("*.pt*"))
    found = f" ({', '.join(pickles[:3])}: pickles are never opened; convert to safetensors)" if pickles else ""
    remedy = "fetch them, or set model.init='random'"
    raise errors.UserError(f"{folder}: no model.safetensors and no {INDEX_NAME}{found}; {remedy}")


def check_tensors(checkpoint: Checkpoint, model: Model) -> None:
    """Compares the checkpoint's names, shapes and dtypes with the model's; all differences in one UserError."""
    headers, expected = checkpoint.headers, {name: shape for _, _, name, shape in tensor_table(model)}
    ignored = {name for name in headers if name.endswith(".rotary_emb.inv_freq")}  # a buffer of old Llama files
    tied_head = "lm_head.weight" in headers and model.config.tie_embeddings
    missing = sorted(set(expected) - set(headers))
    unexpected = sorted(set(headers) - set(expected) - ignored - ({"lm_head.weight"} if tied_head else set()))
    problems = []
    for what, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            problems.append(f"{checkpoint.folder}: {len(names)} {what} tensors: {', '.join(names)}; {_REMEDY}")
    for name in sorted(set(expected) & set(headers)):
        shape, dtype = headers[name]
        if shape != expected[name]:
            sizes = f"has shape {list(shape)}, config.json says {list(expected[name])}"
            problems.append(f"{checkpoint.folder}: {name} {sizes}; {_REMEDY}")
        if dtype not in _DTYPES:
            problems.append(f"{checkpoint.folder}: {name} has dtype {dtype}; save it as one of {', '.join(_DTYPES)}")
    if tied_head and not problems:
        head, embedding = checkpoint.read("lm_head.weight"), checkpoint.read("model.embed_tokens.weight")
        if not np.array_equal(head, embedding):
            problems.append(
                f"{checkpoint.folder}: lm_head.weight differs from the embedding, but config.json has"
                " tie_word_embeddings=true; set it to false to keep the head"
            )
    errors.raise_if_any(problems)


def load_params(checkpoint: Checkpoint, model: Model) -> Params:
    """Streams every tensor to its place on the mesh, in the model's dtype.

    Host memory stays at the arrays themselves plus about one tensor: each stacked array is allocated on
    the devices once, and one layer after the other is written into it in place.
    """
    arrays: dict[tuple[str, ...], jax.Array] = {}
    paths_and_leaves = jax.tree_util.tree_leaves_with_path(model.abstract_params)
    leaves = {tuple(k.key for k in path): leaf for path, leaf in paths_and_leaves}
    table = list(tensor_table(model))
    for path, layer, name, _ in tqdm(table, desc="import", unit="tensor", disable=jax.process_index() > 0):
        leaf = leaves[path]
        host = checkpoint.read(name).reshape(leaf.shape if layer is None else leaf.shape[1:])
        if layer is None:
            arrays[path] = _place(host, leaf.sharding, leaf.dtype)
        else:
            if path not in arrays:
                zeros = functools.partial(jnp.zeros, leaf.shape, leaf.dtype)
                arrays[path] = jax.jit(zeros, out_shardings=leaf.sharding)()
            layout = jax.sharding.NamedSharding(model.mesh, jax.sharding.PartitionSpec(*leaf.sharding.spec[1:]))
            arrays[path] = _write_layer(arrays[path], _place(host, layout, leaf.dtype), layer)
    return _nest(arrays)


def _place(host: np.ndarray, layout, dtype) -> jax.Array:
    return jax.make_array_from_callback(host.shape, layout, lambda index: host[index].astype(dtype))


@functools.partial(jax.jit, donate_argnums=0)
def _write_layer(stacked: jax.Array, one: jax.Array, layer) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stacked, one, layer, 0)


def _nest(flat: dict[tuple[str, ...], jax.Array]) -> Params:
    tree: Params = {}
    for path, array in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = array
    return tree


def tensor_reader(params: Params, model: Model) -> Callable[[tuple[str, ...], int | None, tuple[int, ...]], np.ndarray]:
    """Returns read(path, layer, shape): one tensor of `params`, whole on every process's host, checkpoint-shaped."""
    replicated = jax.sharding.NamedSharding(model.mesh, jax.sharding.PartitionSpec())
    take = jax.jit(lambda stacked, layer: stacked[layer], out_shardings=replicated)
    whole = jax.jit(lambda array: array, out_shardings=replicated)

    def read(path, layer, shape):
        leaf = functools.reduce(lambda node, key: node[key], path, params)
        array = whole(leaf) if layer is None else take(leaf, layer)
        return np.asarray(array.addressable_data(0)).reshape(shape)

    return read


def digest(files: Iterable[Path]) -> str:
    """One SHA-256 of the names and contents of files, in the order of their names."""
    total = hashlib.sha256()
    for file in tqdm(sorted(files), desc="hash", unit="file", leave=False, delay=1, disable=jax.process_index() > 0):
        with open(file, "rb") as handle:
            total.update(f"{file.name}\0{hashlib.file_digest(handle, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that make the checkpoint's tokenizer."""
    return sorted({file for pattern in TOKENIZER_PATTERNS for file in folder.glob(pattern) if file.is_file()})


def load_tokenizer(folder: Path):
    """The checkpoint's own fast tokenizer; no code from the checkpoint is run."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it would announce that torch is absent, as it should be
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises many types for a folder without tokenizer files
        raise errors.UserError(
            f"{folder}: no usable tokenizer ({errors.first_line(error)});"
            " copy tokenizer.json and tokenizer_config.json of the base model there"
        ) from error
    if tokenizer.eos_token_id is None:
        raise errors.UserError(
            f"{folder}: the tokenizer has no eos_token, so no answer could end; set it in tokenizer_config.json"
        )
    return tokenizer
