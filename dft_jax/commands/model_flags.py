"""Flags of the commands that read models which are there: evaluate, and analysis.tokens.

Which revision of a model, how it lies on the devices, how it is sampled, and how demonstrations are
read.
"""

import dataclasses
from collections.abc import Collection

from absl import flags

from dft_jax.analysis.asked import Reading
from dft_jax.evals.settings import Settings
from dft_jax.lm.language_model import LM
from dft_jax.lm.opening import open_lm
from dft_jax.lm.run import NEWEST
from dft_jax.runtime import errors, files

_REVISION = flags.DEFINE_string("revision", "main", "Of a hub id.")
_BASE = flags.DEFINE_string(
    "base", "", "Of an adapter: folder or hub id of its base, if not where the adapter says."
)
_TENSOR = flags.DEFINE_integer(
    "tensor", 1, "Devices that share each copy of the model; 1 where it fits on one.", 1
)
_COMPUTE = flags.DEFINE_enum(
    "compute_dtype",
    None,
    ["float32", "bfloat16"],
    "Of matrix products; by default float32 on CPUs, else bfloat16.",
)
_ROWS = flags.DEFINE_string("rows", "fields", "What a row of --heldout means: data/formats.py.")
_PROMPT_FIELD = flags.DEFINE_string("prompt_field", "prompt", "Of --heldout with --rows=fields.")
_COMPLETION_FIELD = flags.DEFINE_string(
    "completion_field", "completion", "Of --heldout with --rows=fields."
)
flags.DEFINE_string(
    "image_field",
    "",
    "Of demonstrations with --rows=fields or alpaca: the column of images before a prompt.",
)
flags.DEFINE_string(
    "image_folder",
    "",
    "That paths of images in demonstrations are relative to; by default the folder of the data.",
)


# How models are opened, and demonstrations read.
OF_READING = (
    *("revision", "base", "tensor", "compute_dtype", "prompt", "instruction", "context"),
    *("rows", "prompt_field", "completion_field"),
    *("image_field", "image_folder", "image_min_pixels", "image_max_pixels"),
)


def _define_settings() -> None:
    """A flag for each field of evals.settings.Settings."""
    define = {
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        bool: flags.DEFINE_bool,
        str: flags.DEFINE_string,
    }
    for field in dataclasses.fields(Settings):
        text = field.metadata["help"]
        if isinstance(field.default, tuple):
            flags.DEFINE_string(field.name, ",".join(map(str, field.default)), text)
        else:
            define[type(field.default)](field.name, field.default, text)


_define_settings()


def settings() -> Settings:
    """What the flags say."""
    values = {}
    for field in dataclasses.fields(Settings):
        values[field.name] = flags.FLAGS[field.name].value
    return Settings.read(values, "--")


def reading() -> Reading:
    """What the flags say of demonstrations.

    Raises:
      UserError: --instruction, which is of sampled questions only.
    """
    if flags.FLAGS.instruction:
        what = "--instruction is of sampled questions only, not of demonstrations"
        raise errors.UserError(f"{what}; give --prompt=tokenizer-boxed, or a .jinja file")
    return Reading(
        rows=flags.FLAGS.rows,
        prompt=flags.FLAGS.prompt,
        prompt_field=flags.FLAGS.prompt_field,
        completion_field=flags.FLAGS.completion_field,
        context=flags.FLAGS.context,
        image_field=flags.FLAGS.image_field,
        image_folder=flags.FLAGS.image_folder,
        image_min_pixels=flags.FLAGS.image_min_pixels,
        image_max_pixels=flags.FLAGS.image_max_pixels,
    )


def require_context() -> None:
    """UserError for a --context in which no demonstration has room.

    Of the settings of sampling it is the only one that counts where demonstrations are read.
    """
    mistakes = settings().mistakes("--")
    errors.raise_if_any([line for line in mistakes if line.startswith("--context=")])


def idle(known: Collection[str], why: str) -> list[str]:
    """Flags of this file that were given and have no effect, a line each.

    Args:
      known: names of those that have one.
      why: ends the line.
    """
    found = []
    for flag in flags.FLAGS.flags_by_module_dict()[__name__]:
        if flag.name not in known and flag.value != flag.default:
            found.append(f"--{flag.name}={flag.value} has no effect{why}; remove it")
    return found


def refuse_idle_revision(paths: list[str], revision: str) -> None:
    """UserError for a --revision where no model is of the hub."""
    local = [path for path in paths if files.named(path).is_dir()]
    if revision != "main" and len(local) == len(paths):
        what = f"--revision={revision} has no effect: {local[0]} is a folder"
        raise errors.UserError(f"{what}; remove it")


def open_model(path: str, step: str = NEWEST) -> LM:
    """The model of a folder, hub id or run, as the flags ask; of a run at `step`.

    Raises:
      UserError: as `open_lm`.
    """
    return open_lm(
        path,
        revision=_REVISION.value,
        base=_BASE.value,
        # So many devices share each copy of the model.
        mesh={"data": -1, "fsdp": 1, "tensor": _TENSOR.value},
        compute_dtype=_COMPUTE.value,
        step=step,
    )
