"""Parameters as a Hugging Face folder that `transformers` loads, with all that goes with them."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dft_jax.models.hf import provenance, rounding
from dft_jax.models.hf.export_folder import new_folder, writing
from dft_jax.models.hf.fetch import Fetch, params_fetch
from dft_jax.models.hf.provenance import Origin
from dft_jax.models.hf.safetensors import Checkpoint, other_dtypes, weights_dtype
from dft_jax.models.hf.small_files import write_small_files
from dft_jax.models.hf.tensor_files import total_bytes, write_tensors
from dft_jax.models.model import Model
from dft_jax.runtime import processes
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
    "what": Option(
        "auto",
        "of a run with lora.rank: the merged model, the adapter as PEFT has it, or auto: both",
        ("auto", "merged", "adapter"),
    ),
}
MOST_LOST = 0.1  # share of the update's norm that "auto" lets rounding take


def problems(what: str, is_adapted: bool) -> list[str]:
    """What is wrong with `config.export.what` of a run that trains adapters, or all of a model."""
    if what != "adapter" or is_adapted:
        return []
    return ["config.export.what='adapter', but lora.rank=0 trains no adapter; use 'auto'"]


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
    """Writes `params` to the folder `out`; see `export_tensors`."""
    fetch = params_fetch(params, model)
    return export_tensors(
        fetch, model, source, out, dtype=dtype, max_shard_gb=max_shard_gb, origin=origin
    )


def export_tensors(
    fetch: Fetch,
    model: Model,
    source: Path,
    out: Path,
    *,
    dtype: str = "auto",
    max_shard_gb: float = 5.0,
    origin: Origin | None = None,
    write_more: Callable[[Path], None] | None = None,
) -> rounding.Rounding:
    """Writes a model to the folder `out`, config and tokenizer as in the checkpoint `source`.

    All is written to a temporary folder beside `out`, which then takes its name, replacing an
    earlier export. Every process takes part: files of weights are shared out among those that see
    the folder, and process 0 writes the others. All are the same for any number of processes.

    `dtype` "source" is that of the checkpoint, of each tensor its own, so that an untouched
    checkpoint comes out byte for byte; "auto" is the same unless rounding to it loses a tenth of
    what was trained, and then float32.
    The tower of a model with images is copied as it is in the checkpoint, whatever `dtype` is.
    What rounding does is printed, and written to dft_jax.json; returned is how it is in the files.
    `write_more`, of process 0, puts more into the folder.

    A chat template of `origin` becomes the folder's own, so that it is prompted as it was trained;
    the one that was there stays, as additional_chat_templates/source.jinja.

    Raises:
      UserError: there is no room, or no permission; an earlier export is as it was.
      Stopped: a signal asked for it; likewise.
    """
    origin = origin or Origin()
    base = None
    if origin.init == "checkpoint":
        base = Checkpoint(source)
    types = _choose_types(fetch, model, source, dtype, base)
    if processes.is_first():
        _announce(types)
    with new_folder(out) as folder:
        with writing(out):
            if processes.is_first():
                # Before the weights: these can be refused.
                write_small_files(source, folder, types.config_dtype, origin.template_text)
                provenance.write(folder, origin, source, types.report())
                if write_more is not None:
                    write_more(folder)
        write_tensors(
            fetch, model, folder, out, types.written.dtype, types.others, max_shard_gb, base
        )
    return types.written


def _choose_types(
    fetch: Fetch, model: Model, source: Path, dtype: str, base: Checkpoint | None
) -> _Types:
    """Measures what rounding to the type asked for does; of "auto", whether that is too much."""
    source_dtype = weights_dtype(source)
    measured_as, others = dtype, {}
    if dtype in ("auto", "source"):
        measured_as, others = source_dtype, other_dtypes(source)
    measured = rounding.measure(fetch, model, base, measured_as, others)
    n_bytes_measured = total_bytes(model, measured.dtype, others, base)
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
        n_bytes_written=total_bytes(model, written.dtype, others, base),
        base_is_random=base is None,
    )


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
