"""Parameters as a Hugging Face folder that `transformers` loads, with config and tokenizer."""

import dataclasses
import hashlib
import logging
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError
from safetensors.numpy import save_file

from dft_jax.models.hf import rounding, tokenizer as tokenizer_lib
from dft_jax.models.hf.load import tensor_reader
from dft_jax.models.hf.locate import (
    ADDITIONAL_TEMPLATES,
    additional_templates,
    load_tokenizer,
    tokenizer_files,
)
from dft_jax.models.hf.safetensors import INDEX_NAME, Checkpoint, other_dtypes, weights_dtype
from dft_jax.models.hf.tensors import Tensor, tensor_table
from dft_jax.models.model import Model
from dft_jax.runtime import errors, files, interrupts, processes, progress
from dft_jax.runtime.files import flush, write_json
from dft_jax.runtime.options import ABOVE_0, Option
from dft_jax.types import Params

# config.export
SECTION = {
    "enabled": Option(True, "write a Hugging Face folder under workdir/export at the end"),
    "dtype": Option(
        "auto",
        "auto: that of the checkpoint (source) unless it loses a tenth of what was trained, then"
        " float32",
        ("auto", "source", "float32", "bfloat16"),
    ),
    "max_shard_gb": Option(5.0, "the most that one file of weights holds", ABOVE_0),
}
PROVENANCE_NAME = "dft_jax.json"
MOST_LOST = 0.1  # share of the update's norm that "auto" lets rounding take
_log = logging.getLogger(__name__)  # phases, for fault injection, as in checkpoints/manager.py


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where exported parameters come from, as far as a reader of the folder can use it."""

    objective: str = ""
    step: int | None = None
    template: str = "tokenizer"  # what the run was trained under: data.template
    template_text: str | None = None  # of a .jinja file
    date: str = ""  # YYYY-MM-DD, of a run whose template writes the date
    path: str = ""  # the base's, as the config had it
    revision: str = ""
    # or "random": then the source's weights, if it has any, are not where the run began
    init: str = "checkpoint"
    # what its checkpoints say: run_id, base
    run: dict[str, Any] = dataclasses.field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """For dft_jax.json. `template` is what `--prompt` should be for the exported folder."""
        path = self.path
        if Path(path).is_absolute() or Path(path).is_dir():
            # Exports are published: a folder's name will do.
            path = Path(path).name
        template, digest = self.template, self.template_text
        if self.template_text is not None:
            # it has become the folder's own
            template = "tokenizer"
        if self.template_text:
            digest = hashlib.sha256(self.template_text.encode()).hexdigest()
        base = self.run.get("base") or {"revision": self.revision, "init": self.init}
        return {
            "format": 1,
            "objective": self.objective,
            "step": self.step,
            "template": template,
            "template_source": Path(self.template).name,
            "template_sha256": digest,
            "date": self.date,
            "run_id": self.run.get("run_id"),
            "base": base | {"path": path},
        }


@dataclasses.dataclass(frozen=True)
class _Types:
    """As what tensors are written, and what that does to the run."""

    asked: str  # config.export.dtype
    source: str  # of most tensors in the source
    measured: rounding.Rounding  # as asked; "auto" as the source has it
    written: rounding.Rounding  # the same, unless "auto" keeps float32
    others: dict[str, str]  # name -> dtype of the tensors that are written as another
    n_bytes_measured: int
    n_bytes_written: int
    base_is_random: bool

    @property
    def config_dtype(self) -> str | None:
        """What config.json has to say; None where it stays as it is."""
        if self.asked in ("auto", "source") and self.written is self.measured:
            return None
        return self.written.dtype

    def report(self) -> dict[str, Any]:
        """For dft_jax.json."""
        values: dict[str, Any] = {
            "dtype": self.written.dtype,
            "asked_dtype": self.asked,
            "source_dtype": self.source,
        }
        if self.others:
            values["other_dtypes"] = self.others
        values["rounding"] = self.written.report()
        if self.written is not self.measured:
            values["rounding_in_source_dtype"] = self.measured.report()
        return values


def export(
    params: Params,
    model: Model,
    source: Path,
    out: Path,
    *,
    dtype: str = "auto",
    max_shard_gb: float = 5.0,
    origin: Origin | None = None,
) -> rounding.Rounding:
    """Writes `params` to the folder `out`, config and tokenizer as in the checkpoint `source`.

    All is written to a temporary folder beside `out`, which then takes its name, replacing an
    earlier export. Every process takes part; process 0 writes. `dtype` "source" is that of the
    checkpoint, of each tensor its own, so that an untouched checkpoint comes out byte for byte;
    "auto" is the same unless rounding to it loses a tenth of what was trained, and then float32.
    What rounding does is printed, and written to dft_jax.json; returned is how it is in the files.

    A chat template of `origin` becomes the folder's own, so that it is prompted as it was trained;
    the one that was there stays, as additional_chat_templates/source.jinja.

    Raises:
      UserError: there is no room, or no permission; an earlier export is as it was.
      Stopped: a signal asked for it; likewise.
    """
    origin = origin or Origin()
    temporary = out.with_name(f".{out.name}.tmp")
    is_writer = processes.is_first()
    # safetensors has its own type for a full disk
    with errors.user_errors(
        f"{out}: the export could not be written",
        "make it possible, then run the same command again",
        (OSError, SafetensorError),
    ):
        types = _choose_types(params, model, source, dtype, origin)
        if is_writer:
            _announce(types)
        try:
            if is_writer:
                shutil.rmtree(temporary, ignore_errors=True)  # of an export that was killed
                temporary.mkdir(parents=True)
                _write_small_files(source, temporary, types, origin)
            _write_tensors(
                params, model, temporary, types.written.dtype, types.others, max_shard_gb
            )
            if is_writer:
                _log.debug("export rename")
                _replace(temporary, out)
        finally:
            if is_writer:
                shutil.rmtree(temporary, ignore_errors=True)
    return types.written


def _choose_types(params: Params, model: Model, source: Path, dtype: str, origin: Origin) -> _Types:
    """Measures what rounding to the type asked for does; of "auto", whether that is too much."""
    source_dtype = weights_dtype(source)
    base = None
    if origin.init == "checkpoint":
        base = Checkpoint(source)
    measured_as, others = dtype, {}
    if dtype in ("auto", "source"):
        measured_as, others = source_dtype, other_dtypes(source)
    measured = rounding.measure(params, model, base, measured_as, others)
    n_bytes_measured = _total_bytes(model, measured.dtype, others)
    written = measured
    if dtype == "auto" and measured.lost_share >= MOST_LOST:
        written, others = measured.in_float32(), {}
    return _Types(
        asked=dtype,
        source=source_dtype,
        measured=measured,
        written=written,
        others=others,
        n_bytes_measured=n_bytes_measured,
        n_bytes_written=_total_bytes(model, written.dtype, others),
        base_is_random=base is None,
    )


def _write_small_files(source: Path, to: Path, types: _Types, origin: Origin) -> None:
    """All but the weights; first, because these can be refused."""
    _copy_config(source, to, types.config_dtype)
    if origin.template_text is not None:
        _set_template(to, origin.template_text)
    _warn_of_tokenizer(to)
    write_json(to / PROVENANCE_NAME, origin.report() | types.report())


def provenance(folder: Path) -> dict[str, Any] | None:
    """What an export says of itself; None for another folder, or one from before there was that."""
    file = folder / PROVENANCE_NAME
    if not file.exists():
        return None
    return files.read_json(file)


def _n_bytes(tensor: Tensor, dtype: str) -> int:
    return math.prod(tensor.shape) * jnp.dtype(dtype).itemsize


def _total_bytes(model: Model, dtype: str, others: dict[str, str]) -> int:
    """Of all tensors, each as `dtype` or as the one that `others` has for it."""
    table = tensor_table(model)
    return sum(_n_bytes(tensor, others.get(tensor.name, dtype)) for tensor in table)


def _layer_order(tensor: Tensor) -> int:
    """Files begin with what is outside the layers."""
    return -1 if tensor.layer is None else tensor.layer


def _announce(types: _Types) -> None:
    """Says what rounding does to the run, and how large the files are going to be."""
    measured = types.measured
    moved, also, update = "", "", "the weights"
    if not types.base_is_random:
        n = measured.weights
        moved = f"{measured.changed / n:.1%} of {n:,} weights differ from the base; "
        also = f" and {measured.changed_as_written / n:.1%} of the weights differ"
        update = "the update"
    lost = f"as {measured.dtype} {measured.lost_share:.2%} of {update}'s norm is lost{also}"
    size_gb = types.n_bytes_written / 1e9
    print(
        f"export: {moved}{lost}; written as {types.written.dtype}, {size_gb:.3g} GB",
        file=sys.stderr,
    )
    if types.written is not measured:
        smaller_gb = types.n_bytes_measured / 1e9
        print(
            "export: float32 keeps all of it; config.export.dtype='source' would be"
            f" {smaller_gb:.3g} GB",
            file=sys.stderr,
        )
    elif measured.lost_share >= MOST_LOST:
        print(
            f"warning: config.export.dtype={types.asked!r}: rounding to {measured.dtype} loses"
            f" {measured.lost_share:.1%} of what was trained; 'auto' or 'float32' keeps it",
            file=sys.stderr,
        )


def _write_tensors(
    params: Params, model: Model, to: Path, dtype: str, others: dict[str, str], max_shard_gb: float
) -> None:
    """Each tensor as `dtype`, or as the one that `others` has for it."""
    table = sorted(tensor_table(model), key=_layer_order)
    by_name = {tensor.name: tensor for tensor in table}
    dtypes = {tensor.name: others.get(tensor.name, dtype) for tensor in table}
    sizes = {tensor.name: _n_bytes(tensor, dtypes[tensor.name]) for tensor in table}
    shards = split_state_dict_into_shards_factory(
        sizes,
        get_storage_size=lambda n_bytes: n_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=int(max_shard_gb * 1e9),
    )
    read = tensor_reader(params, model)
    is_writer = processes.is_first()
    with progress.bar(total=len(table), desc="export", unit="tensor") as bar:
        for file_name, names in shards.filename_to_tensors.items():
            tensors = {}
            for name in names:
                interrupts.check()
                _log.debug("export %s", name)
                array = read(by_name[name])  # by all processes together
                if is_writer:
                    tensors[name] = np.ascontiguousarray(array.astype(dtypes[name]))
                bar.update()
            if is_writer:
                _save(tensors, to / file_name)
    if is_writer and shards.is_sharded:
        weight_map = dict(sorted(shards.tensor_to_filename.items()))
        write_json(to / INDEX_NAME, {"metadata": shards.metadata, "weight_map": weight_map})


def _save(tensors: dict[str, np.ndarray], file: Path) -> None:
    # transformers refuses a file without a format
    save_file(tensors, file, metadata={"format": "pt"})
    # safetensors writes for the owner's eyes only
    shutil.copymode(file.with_name("config.json"), file)
    flush(file)


def _copy_config(source: Path, to: Path, dtype: str | None) -> None:
    """Config, generation config, tokenizer and templates as they are, but for another `dtype`."""
    raw = files.read_json(source / "config.json")
    keys = [key for key in ("dtype", "torch_dtype") if key in raw]
    # which older readers know too
    keys = keys or ["torch_dtype"]
    if dtype is None or all(raw.get(key) == dtype for key in keys):
        shutil.copyfile(source / "config.json", to / "config.json")
    else:
        write_json(to / "config.json", raw | dict.fromkeys(keys, dtype))
    others = tokenizer_files(source)
    if (source / "generation_config.json").exists():
        others.append(source / "generation_config.json")
    for file in others:
        shutil.copyfile(file, to / file.name)
    for file in additional_templates(source):
        (to / file.parent.name).mkdir(exist_ok=True)
        shutil.copyfile(file, to / file.parent.name / file.name)


def _warn_of_tokenizer(folder: Path) -> None:
    """Says where transformers will read the folder's tokenizer otherwise than the run did."""
    if not (folder / tokenizer_lib.FILE_NAME).exists():
        return
    difference = tokenizer_lib.differs_in_transformers(folder, load_tokenizer(folder))
    if difference:
        print(f"note: {difference}", file=sys.stderr)


def _set_template(folder: Path, text: str) -> None:
    """Makes `text` the chat template of an exported tokenizer, in every place where one is read.

    Readers differ in which place comes first, so none may keep the old one. That goes to
    additional_chat_templates, where transformers offers it by the name "source", with those that
    tokenizer_config.json had by other names.
    """
    file = folder / "chat_template.jinja"
    settings_file = folder / "tokenizer_config.json"
    settings = files.read_json(settings_file) if settings_file.exists() else {}
    held = settings.get("chat_template")
    for name, template in _held_templates(held, file).items():
        additional = folder / ADDITIONAL_TEMPLATES / f"{Path(name).name}.jinja"
        if template != text and not additional.exists():
            additional.parent.mkdir(exist_ok=True)
            additional.write_text(template, encoding="utf-8")
    file.write_text(text, encoding="utf-8")
    if held is not None:
        write_json(settings_file, settings | {"chat_template": text})


def _held_templates(held: str | list[dict[str, str]] | None, file: Path) -> dict[str, str]:
    """Name -> template, of those in the settings and in the file; the default one is `source`."""
    templates = {}
    if isinstance(held, str):
        templates["source"] = held
    elif isinstance(held, list):
        for entry in held:
            name = entry["name"]
            if name == "default":
                name = "source"
            templates[name] = entry["template"]
    if file.exists():
        templates["source"] = file.read_text(encoding="utf-8")
    return templates


def _replace(temporary: Path, out: Path) -> None:
    """`temporary` takes the name `out`; an earlier export goes when the new one has its place."""
    old = out.with_name(f".{out.name}.old")
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
    temporary.rename(out)
    shutil.rmtree(old, ignore_errors=True)
