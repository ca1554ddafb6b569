"""Hugging Face checkpoints: where they are, what is in them, and their tensors streamed onto the mesh."""

import concurrent.futures
import functools
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from tqdm import tqdm

from dft_jax import sharding
from dft_jax.models.families import FAMILIES
from dft_jax.models.hf.tokenizer import Tokenizer, read_tokenizer
from dft_jax.models.model import Model
from dft_jax.models.spec import ConfigReader, DecoderConfig
from dft_jax.runtime import distributed, errors, hub
from dft_jax.runtime.files import FETCH, begins, check_file, read_json, refuse_code
from dft_jax.types import Params

# Downloaded and carried along (an adapter's config to be refused); nothing else is looked at: no pickles, no code.
CHECKPOINT_PATTERNS = (
    "model*.safetensors model.safetensors.index.json config.json generation_config.json adapter_config.json"
).split()
TOKENIZER_PATTERNS = (
    "tokenizer* special_tokens_map.json added_tokens.json chat_template* vocab* merges.txt *.model *.tiktoken"
).split()
# Templates besides the default one, by their names; a folder of the checkpoint's.
ADDITIONAL_TEMPLATES = "additional_chat_templates"
SINGLE_NAME, INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_REMEDY = "fetch config.json and the weights of one and the same model"
# What is sometimes found under the name of a safetensors file, by its first bytes. A header's length, which a whole one
# begins with, has zeros in bytes 4 to 7.
_MISTAKEN = {
    rb"(?s)\x80[\x02-\x05](?!..\0{4})|PK\x03\x04": "it is a pickle, which is never opened: convert it to safetensors",
    rb"(?i)\s*<(?:!doctype|html|\?xml)": "it is a web page, such as a login or an error: fetch the file again",
}
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# A parameter's path here -> its name there; inside the layers, part by part.
_TOP = {("embed",): _EMBEDDING, ("head",): _HEAD, ("final_norm", "scale"): "model.norm.weight"}
_RENAMED = {part: f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")}
_RENAMED |= {"attention": "self_attn", "attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
_RENAMED |= {"kernel": "weight", "scale": "weight"}


def resolve(path: str, revision: str) -> Path:
    """The folder of a checkpoint: `path` itself when it is a folder, else the hub's snapshot (cached or fetched).

    A hub id is said to be one, with the commit that `revision` stands for now.

    Raises:
      UserError: neither; the message says what to fetch.
    """
    if Path(path).is_dir():
        return Path(path)
    if path.startswith((".", "/", "~")) or path.removeprefix(hub.PREFIX).count("/") != 1:
        raise errors.UserError(f"model.path={path!r} is not a folder, nor a hub id such as 'Qwen/Qwen2.5-Math-1.5B'")
    hub_id = hub.id_of(path, "model.path")
    import huggingface_hub

    patterns = [*CHECKPOINT_PATTERNS, *TOKENIZER_PATTERNS, f"{ADDITIONAL_TEMPLATES}/*.jinja"]
    try:
        folder = Path(huggingface_hub.snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except Exception as error:  # offline, unknown, gated: many types, one remedy
        raise errors.UserError(
            f"model.path={path!r} (revision {revision!r}) is neither a folder here nor in the hub's cache, and fetching"
            f" failed ({type(error).__name__}); where there is a network: hf download {hub_id} --revision {revision}"
        ) from error
    if jax.process_index() == 0:
        print(f"note: model {hub_id} is the hub's, {revision} is commit {hub.commit_of(folder)}", file=sys.stderr)
    return folder


def read_config(folder: Path) -> DecoderConfig:
    """The architecture from `config.json`, every key accounted for (see models/config.py)."""
    file, adapter, generation = (folder / f"{name}.json" for name in ("config", "adapter_config", "generation_config"))
    if adapter.exists():
        raise errors.UserError(
            f"{adapter}: the folder holds an adapter (LoRA), which would not be applied; merge it into its base model,"
            " or remove the file to train the base alone"
        )
    raw = read_json(file)
    if generation.exists():
        read_json(generation)  # carried along to the export, where it should not be what fails
    refuse_code(raw, file)
    if raw.get("quantization_config") is not None:
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


def other_dtypes(folder: Path) -> dict[str, str]:
    """Name -> dtype of a checkpoint's tensors that have another than `source_dtype`: norms are kept in float32 by some.

    Empty for a bare config.json.
    """
    if not (folder / INDEX_NAME).exists() and not (folder / SINGLE_NAME).exists():
        return {}
    checkpoint = Checkpoint(folder)
    dtypes = {name: _DTYPES[dtype] for name, (_, dtype) in checkpoint.headers.items() if dtype in _DTYPES}
    return {name: dtype for name, dtype in dtypes.items() if dtype != checkpoint.dtype}


def tensor_name(path: tuple[str, ...], layer: int | None) -> str:
    """The checkpoint's name of a parameter, `layer` for those stacked over layers.

    ("layers", "attention", "q", "kernel"), 3  ->  "model.layers.3.self_attn.q_proj.weight"
    """
    if path in _TOP:
        return _TOP[path]
    return ".".join([f"model.layers.{layer}", *(_RENAMED.get(part, part) for part in path[1:])])


def tensor_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The checkpoint's shape of one layer's parameter: number and width of heads joined, order unchanged."""
    if path[1:2] == ("attention",) and path[2] in "qkv":
        return (shape[0] * shape[1], *shape[2:])
    if path[-2:] == ("o", "kernel"):
        return (shape[0], shape[1] * shape[2])
    return shape


def tensor_table(model: Model) -> Iterator[tuple[tuple[str, ...], int | None, str, tuple[int, ...]]]:
    """(path, layer or None, checkpoint name, checkpoint shape) of each tensor, one entry per layer."""
    for path, leaf in sorted(flatten_dict(model.abstract_params).items()):
        stacked = path[0] == "layers"
        shape = tensor_shape(path, leaf.shape[1:] if stacked else leaf.shape)
        for layer in range(model.config.num_layers) if stacked else (None,):
            yield path, layer, tensor_name(path, layer), shape


class Checkpoint:
    """The safetensors of a folder: names, shapes and dtypes without reading data, and one tensor at a time."""

    def __init__(self, folder: Path):
        self.folder = folder
        listed = _weight_map(folder)
        self.file_of: dict[str, str] = {}
        self.headers: dict[str, tuple[tuple[int, ...], str]] = {}
        for file_name in sorted(set(listed.values())) or [SINGLE_NAME]:
            for name, header in _headers(folder / file_name).items():
                if listed and listed.get(name) != file_name:
                    raise errors.UserError(
                        f"{folder / file_name}: {INDEX_NAME} does not list tensor {name} there; fetch both again"
                    )
                self.file_of[name], self.headers[name] = file_name, header
        absent = [f"{name} (in {file})" for name, file in sorted(listed.items()) if name not in self.headers]
        if absent:
            what = f"lists {len(absent)} tensors that are not where it says: {', '.join(absent)}"
            raise errors.UserError(f"{folder / INDEX_NAME} {what}; fetch it and the shards again")

    def read(self, name: str) -> np.ndarray:
        with _open(self.folder / self.file_of[name]) as tensors:
            return tensors.get_tensor(name)

    @property
    def files(self) -> set[Path]:
        return {self.folder / name for name in self.file_of.values()}

    @property
    def dtype(self) -> str:
        """The dtype of the embedding table, taken as that of the checkpoint."""
        _, dtype = self.headers.get(_EMBEDDING, (None, "missing"))
        if dtype not in _DTYPES:
            known = ", ".join(_DTYPES)
            raise errors.UserError(f"{self.folder}: {_EMBEDDING} is {dtype}; it should be there as one of {known}")
        return _DTYPES[dtype]


def _open(file: Path):
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise errors.UserError(f"{file} is missing, though the index names it; fetch the checkpoint again")
    try:
        return safe_open(file, framework="np")
    except (SafetensorError, OSError) as error:
        first = begins(file)
        remedy = next((text for start, text in _MISTAKEN.items() if re.match(start, first)), "fetch it again")
        raise errors.UserError(f"{file}: not a whole safetensors file ({error}); {remedy}") from error


def _headers(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Tensor name -> shape, dtype."""
    check_file(file)
    with _open(file), open(file, "rb") as handle:  # the library checks all, but of two equal names it takes the last
        header = handle.read(int.from_bytes(handle.read(8), "little"))
    with errors.told(f"{file}: in its header", "fetch it again", (ValueError,)):
        entries = json.loads(header, object_pairs_hook=errors.unique_keys)
    entries.pop("__metadata__", None)
    return {name: (tuple(entry["shape"]), entry["dtype"]) for name, entry in entries.items()}


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor name -> plain file name, as the index says; empty where all is in one file."""
    index, single = folder / INDEX_NAME, folder / SINGLE_NAME
    if index.exists() and single.exists():
        raise errors.UserError(f"{folder} holds both {SINGLE_NAME} and {INDEX_NAME}; remove what is not of this model")
    if index.exists():
        raw = read_json(index)
        weight_map, metadata = raw.get("weight_map"), raw.get("metadata") or {}
        if not isinstance(metadata, dict) or type(metadata.get("total_size", 0)) not in (int, float):
            raise errors.UserError(f"{index}: metadata={metadata!r} should have a number as total_size; {FETCH}")
        if not isinstance(weight_map, dict) or not weight_map:
            raise errors.UserError(f"{index}: 'weight_map' should map tensor names to file names; {FETCH}")
        for name, file in weight_map.items():
            is_plain = isinstance(file, str) and Path(file).name == file and not set(file) & set("\\:\0")
            if not is_plain or not file.endswith(".safetensors"):
                raise errors.UserError(
                    f"{index}: {name} -> {file!r} should be the plain name of a .safetensors file here"
                )
        strays = {file.name for file in folder.glob("model-*-of-*.safetensors")} - set(weight_map.values())
        if strays:
            raise errors.UserError(f"{index} does not name {', '.join(sorted(strays))}, which is there; {_REMEDY}")
        return weight_map
    if single.exists():
        return {}
    pickles = sorted(file.name for file in folder.glob("*.bin")) + sorted(file.name for file in folder.glob("*.pt*"))
    found = f" ({', '.join(pickles[:3])}: pickles are never opened; convert to safetensors)" if pickles else ""
    remedy = "fetch them, or set model.init='random'"
    raise errors.UserError(f"{folder}: no {SINGLE_NAME} and no {INDEX_NAME}{found}; {remedy}")


def check_tensors(checkpoint: Checkpoint, model: Model) -> None:
    """Compares the checkpoint's names, shapes and dtypes with the model's; all differences in one UserError."""
    headers, expected = checkpoint.headers, {name: shape for _, _, name, shape in tensor_table(model)}
    ignored = {name for name in headers if name.endswith(".rotary_emb.inv_freq")}  # a buffer of old Llama files
    tied_head = _HEAD in headers and model.config.tie_embeddings
    if tied_head:
        expected[_HEAD] = expected[_EMBEDDING]
    others = {"missing": expected.keys() - headers.keys(), "unexpected": headers.keys() - expected.keys() - ignored}
    found = [(len(names), what, ", ".join(sorted(names))) for what, names in others.items() if names]
    problems = [f"{count} {what} tensors: {names}; {_REMEDY}" for count, what, names in found]
    for name in sorted(expected.keys() & headers.keys()):
        shape, dtype = headers[name]
        if shape != expected[name]:
            problems.append(f"{name} has shape {list(shape)}, config.json says {list(expected[name])}; {_REMEDY}")
        if dtype not in _DTYPES:
            problems.append(f"{name} has dtype {dtype}; save it as one of {', '.join(_DTYPES)}")
    if tied_head and not problems and not np.array_equal(checkpoint.read(_HEAD), checkpoint.read(_EMBEDDING)):
        remedy = "set it to false to keep the head"
        problems.append(f"{_HEAD} differs from the embedding, but config.json has tie_word_embeddings=true; {remedy}")
    errors.raise_if_any([f"{checkpoint.folder}: {problem}" for problem in problems])


def load_params(checkpoint: Checkpoint, model: Model) -> Params:
    """Streams every tensor to its place on the mesh, in the model's dtype.

    Host memory stays at the arrays themselves plus about one tensor: each stacked array is allocated on
    the devices once, and one layer after the other is written into it in place.

    Raises:
      UserError: a tensor that holds NaN or infinity, with which every step would be skipped.
    """
    arrays: dict[tuple[str, ...], jax.Array] = {}
    leaves = flatten_dict(model.abstract_params)
    table = list(tensor_table(model))
    for path, layer, name, _ in tqdm(table, desc="import", unit="tensor", disable=jax.process_index() > 0):
        leaf = leaves[path]
        host = checkpoint.read(name).reshape(leaf.shape if layer is None else leaf.shape[1:])
        if not np.isfinite(host).all():
            where = checkpoint.folder / checkpoint.file_of[name]
            raise errors.UserError(f"{where}: {name} holds NaN or infinity; fetch it again, or take another checkpoint")
        if layer is None:
            arrays[path] = _place(host, leaf.sharding, leaf.dtype)
        else:
            if path not in arrays:
                zeros = functools.partial(jnp.zeros, leaf.shape, leaf.dtype)
                arrays[path] = jax.jit(zeros, out_shardings=leaf.sharding)()
            layout = sharding.named(model.mesh, *leaf.sharding.spec[1:])
            arrays[path] = _write_layer(arrays[path], _place(host, layout, leaf.dtype), layer)
    distributed.meet("weights")  # one disk may be minutes slower than another
    return unflatten_dict(arrays)


def _place(host: np.ndarray, layout, dtype) -> jax.Array:
    return jax.make_array_from_callback(host.shape, layout, lambda index: host[index].astype(dtype))


@functools.partial(jax.jit, donate_argnums=0)
def _write_layer(stacked: jax.Array, one: jax.Array, layer) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stacked, one, layer, 0)


def tensor_reader(params: Params, model: Model) -> Callable[[tuple[str, ...], int | None, tuple[int, ...]], np.ndarray]:
    """Returns read(path, layer, shape): one tensor of `params`, whole on every process's host, checkpoint-shaped."""
    layout = sharding.named(model.mesh)
    take = jax.jit(lambda array, layer: array if layer is None else array[layer], out_shardings=layout)

    def read(path, layer, shape):
        leaf = functools.reduce(lambda node, key: node[key], path, params)
        return np.asarray(take(leaf, layer).addressable_data(0)).reshape(shape)

    return read


def digest(files: Iterable[Path]) -> str:
    """One SHA-256 of the names and contents of files, in the order of their names."""
    return joined_digest(sha256_of(files))


def sha256_of(files: Iterable[Path]) -> dict[Path, str]:
    """The SHA-256 of each file's content."""
    files = sorted(files)

    def of(file: Path) -> str:
        with open(file, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()

    with concurrent.futures.ThreadPoolExecutor(4) as threads:  # hashing leaves the interpreter to others
        hashed = threads.map(of, files)
        how = dict(desc="hash", unit="file", leave=False, delay=1, disable=jax.process_index() > 0)
        return dict(zip(files, tqdm(hashed, total=len(files), **how), strict=True))


def joined_digest(hashes: dict[Path, str]) -> str:
    """What `digest` makes of files whose own SHA-256 are known.

    Raises:
      ValueError: no files. The hash of nothing would be the same for any two things that are gone.
    """
    if not hashes:
        raise ValueError("there are no files to hash")
    total = hashlib.sha256()
    for file in sorted(hashes):
        total.update(f"{file.name}\0{hashes[file]}\n".encode())
    return total.hexdigest()


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that make the checkpoint's tokenizer."""
    found = {file for pattern in TOKENIZER_PATTERNS for file in folder.glob(pattern)}
    return sorted(file for file in found if file.is_file())


def additional_templates(folder: Path) -> list[Path]:
    """Chat templates besides the default one, which an export carries along; no part of a run's identity."""
    return sorted(folder.glob(f"{ADDITIONAL_TEMPLATES}/*.jinja"))


def load_tokenizer(folder: Path) -> Tokenizer:
    """The checkpoint's tokenizer, as its tokenizer.json says; no code from the checkpoint is run.

    Raises:
      UserError: none that can be used, or files of it that contradict each other (models/tokenizer.py).
    """
    files = tokenizer_files(folder)
    for file in additional_templates(folder):
        check_file(file)
    for file in files:
        check_file(file)
    return read_tokenizer(folder, files)
