"""config.data: which rows are trained on, what they mean, and how they are asked."""

from pathlib import Path
from typing import Any

from dft_jax.data import formats, templates
from dft_jax.data.sources import locate
from dft_jax.runtime import hub
from dft_jax.runtime.options import AT_LEAST_0, FRACTION, Legal, Option

SECTION = {
    "train": Option("", ".jsonl, .json, .parquet, a folder, a hub dataset, or world(…)"),
    "heldout": Option("", "the same, for evaluation; empty for none"),
    "subset": Option("", "of hub datasets and folders, both"),
    "split": Option("train", "of a hub dataset or a folder, for data.train"),
    "heldout_split": Option("test", "of a hub dataset or a folder, for data.heldout"),
    "revision": Option("", "of hub datasets: branch, tag or commit"),
    "rows": Option("fields", "what a row means (data/formats.py)", tuple(formats.ROW_FORMATS)),
    "prompt_field": Option("prompt", "column of the prompt, for rows=fields"),
    "completion_field": Option("completion", "column of the completion, for rows=fields"),
    "messages_field": Option("messages", "column of a conversation, for rows=messages"),
    "template": Option("tokenizer", "a name of data/templates.py, or a .jinja file"),
    "date": Option("", "YYYY-MM-DD, for templates that write it; empty: the day the run begins"),
    "max_length": Option(
        2048,
        "tokens of an example, prompt and EOS included",
        Legal(lambda tokens: tokens >= 2, "at least 2 (one token to read, one to predict)"),
    ),
    "row_length": Option(
        0,
        "positions of a packed row, at least max_length; 0: as many as max_length",
        Legal(lambda positions: positions >= 0, "at least 0 (as data.max_length)"),
    ),
    "max_rows": Option(0, "the first rows of data.train; 0 for all", AT_LEAST_0),
    "bad_rows": Option(
        "refuse", "drop: leave malformed rows out, and count them", ("refuse", "drop")
    ),
    "max_lost_fraction": Option(
        0.5, "of the rows of data.train, may be cut or dropped; 1 accepts all", FRACTION
    ),
}


def problems(given: dict[str, Any], looked_from: str) -> list[str]:
    """What is wrong between values of the section, and with its paths.

    Args:
      given: values by their key in SECTION; those of a wrong type are left out.
    """
    found = _row_problems(given)
    if given.get("train") == "":
        remedy = "give a .jsonl, .json or .parquet file, a folder or a hub dataset"
        found.append(f"config.data.train is empty: {remedy}")
    template = given.get("template", "tokenizer")
    found += _place_problems(given, template, looked_from)
    found += _idle_problems(given)
    found += templates.name_problems("config.data.template", template)
    found += templates.date_problems("config.data.date", given.get("date", ""))
    return found


def _place_problems(given: dict[str, Any], template: str, looked_from: str) -> list[str]:
    """Paths of the section with nothing there, and addresses, which are no paths."""
    found = []
    absent = []
    for key in ("train", "heldout"):
        place = given.get(key, "")
        addresses = hub.address_problems(place, f"config.data.{key}")
        found += addresses
        if not addresses and locate.is_path(place) and not Path(place).exists():
            absent.append(key)
    addresses = hub.address_problems(template, "config.data.template")
    found += addresses
    if not addresses and template.endswith(".jinja") and not Path(template).is_file():
        absent.append("template")
    for key in absent:
        remedy = f"(looked from {looked_from}); correct the path"
        found.append(f"config.data.{key}={given[key]!r}: no such file {remedy}")
    return found


def _row_problems(given: dict[str, Any]) -> list[str]:
    """An example of max_length tokens has to fit a row."""
    length, max_length = given.get("row_length", 0), given.get("max_length", 0)
    if not 0 < length < max_length:
        return []
    what = f"config.data.row_length={length} is below data.max_length={max_length}"
    return [f"{what}: the longest examples would fit no row; give at least that, or 0 for the same"]


def _idle_problems(given: dict[str, Any]) -> list[str]:
    """Settings that say which part of a dataset is meant, where there is none to choose from."""
    train, heldout = given.get("train", ""), given.get("heldout", "")
    places = [place for place in (train, heldout) if place]
    from_hub = any(locate.is_hub_id(place) for place in places)
    in_parts = from_hub or any(Path(place).is_dir() for place in places)
    idle = {}  # key -> why it has no effect
    if not from_hub:
        idle["revision"] = "the data is no dataset of the hub"
    if not in_parts:
        idle["subset"] = "the data is neither of the hub nor a folder"
    for key, place, split in (("train", train, "split"), ("heldout", heldout, "heldout_split")):
        if place and not locate.is_hub_id(place) and not Path(place).is_dir():
            idle[split] = f"data.{key}={place!r} has no splits"
    found = []
    for key, why in idle.items():
        default = SECTION[key].default
        value = given.get(key, default)
        if value not in ("", default):
            remedy = f"remove it (--config.data.{key}={default})"
            found.append(f"config.data.{key}={value!r} has no effect: {why}; {remedy}")
    return found
