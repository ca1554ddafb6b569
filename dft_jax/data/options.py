"""config.data: which rows are trained on, what they mean, and how they are asked."""

import os
from typing import Any

from dft_jax.data import formats, image_columns, image_settings, source_list, templates
from dft_jax.data.sources import locate
from dft_jax.runtime import hub
from dft_jax.runtime.options import AT_LEAST_0, AT_LEAST_1, FRACTION, Legal, Option

_OWN = f"{', '.join(source_list.OWN[:6])},\n      {', '.join(source_list.OWN[6:])}"
_TRAIN = f""".jsonl, .json, .parquet, a folder, a hub dataset, or world(…); or a list of sources:
      "[{{'path': 'a.jsonl', 'weight': 3}}, {{'path': 'b.jsonl', 'weight': 1}}]"
      A weight is a share of the examples drawn (of tokens it says nothing); with 'examples'
      an epoch draws so many; without either it has all rows once. A source may have a name,
      and other values of {_OWN}"""
_HELDOUT = (
    """the same, for evaluation; empty for none. Sources of a list have metrics of their own"""
)
SECTION = {
    "train": Option("", _TRAIN, also=(list, tuple)),
    "heldout": Option("", _HELDOUT, also=(list, tuple)),
    "subset": Option("", "of hub datasets and folders, both"),
    "split": Option("train", "of a hub dataset or a folder, for data.train"),
    "heldout_split": Option("test", "of a hub dataset or a folder, for data.heldout"),
    "revision": Option("", "of hub datasets: branch, tag or commit"),
    "rows": Option("fields", "what a row means (data/formats.py)", tuple(formats.ROW_FORMATS)),
    "prompt_field": Option("prompt", "column of the prompt, for rows=fields"),
    "completion_field": Option("completion", "column of the completion, for rows=fields"),
    "messages_field": Option("messages", "column of a conversation, for rows=messages"),
    "image_field": Option(
        "", "column of the images before a prompt, for rows=fields and alpaca; empty: none"
    ),
    "image_folder": Option(
        "", "that paths of images are relative to, and lie in; empty: the folder of the data file"
    ),
    "image_features": Option(
        "", "folder that keeps what a frozen tower makes of images; empty: made in every step"
    ),
    "image_min_pixels": Option(
        0, "smaller images are enlarged; 0: as preprocessor_config.json says", AT_LEAST_0
    ),
    "image_max_pixels": Option(
        image_settings.MAX_PIXELS,
        "larger images are scaled down; at most what preprocessor_config.json says",
        AT_LEAST_1,
    ),
    "image_max_patches": Option(
        0,
        "of an example, four to a token; one with more is dropped; 0: twice data.row_length",
        AT_LEAST_0,
    ),
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
    "max_rows": Option(0, "the first rows of data.train, of each source; 0 for all", AT_LEAST_0),
    "sample_rows": Option(
        0, "so many rows of data.train, of each source, drawn by sample_seed; 0 for all", AT_LEAST_0
    ),
    "sample_seed": Option(
        0,
        "of the rows that are drawn",
        Legal(lambda seed: 0 <= seed < 2**32, f"at least 0 and below {2**32}"),
    ),
    "weight_field": Option(
        "", "column with a row's weight in the loss, at least 0; empty: all rows weigh 1"
    ),
    "prompt_weight": Option(
        0.0,
        "weight in the loss of each token that is read, not answered; 0: untrained",
        Legal(formats.is_weight, f"0, or from {formats.LEAST_WEIGHT:g} to {formats.MOST_WEIGHT:g}"),
    ),
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
    in_lists = _list_problems(given)
    # Paths of a list that is wrong cannot be told from the rest of it.
    if in_lists:
        return found + in_lists
    found += _place_problems(given, template, looked_from)
    found += _image_problems(given)
    found += _idle_problems(given)
    found += templates.name_problems("config.data.template", template)
    found += templates.date_problems("config.data.date", given.get("date", ""))
    return found


def _list_problems(given: dict[str, Any]) -> list[str]:
    """What is wrong with lists of sources by themselves."""
    found = []
    for key in ("train", "heldout"):
        place = given.get(key, "")
        setting = f"config.data.{key}"
        if source_list.is_several(place):
            is_drawn = key == "train"
            found += source_list.problems(place, setting, SECTION, is_drawn=is_drawn)
        elif place.lstrip().startswith(("[", "{")):
            should = "is no list that Python reads"
            remedy = """write it as in "['a.jsonl', {'path': 'b.jsonl'}]", in the shell's quotes"""
            found.append(f"{setting}={place!r} {should}; {remedy}")
    return found


def _place_problems(given: dict[str, Any], template: str, looked_from: str) -> list[str]:
    """Paths of the section with nothing there, and addresses, which are no paths."""
    places: dict[str, str] = {}
    files = {"config.data.template": template}
    folders = {"config.data.image_folder": given.get("image_folder", "")}
    for key in ("train", "heldout"):
        place = given.get(key, "")
        places |= source_list.paths_of(place, f"config.data.{key}")
        files |= source_list.templates_of(place, f"config.data.{key}")
        folders |= source_list.image_folders_of(place, f"config.data.{key}")
    found = []
    absent = {}
    for setting, place in places.items():
        addresses = hub.address_problems(place, setting)
        found += addresses
        if not addresses and locate.is_path(place) and not os.path.exists(place):
            absent[setting] = place
    for setting, file in files.items():
        addresses = hub.address_problems(file, setting)
        found += addresses
        if not addresses and file.endswith(".jinja") and not os.path.isfile(file):
            absent[setting] = file
    found += hub.address_problems(given.get("image_features", ""), "config.data.image_features")
    for setting, folder in folders.items():
        if folder and not os.path.isdir(folder):
            remedy = f"(looked from {looked_from}); give the folder that the images are in"
            found.append(f"{setting}={folder!r}: no such folder {remedy}")
    for setting, place in absent.items():
        remedy = f"(looked from {looked_from}); correct the path"
        found.append(f"{setting}={place!r}: {_why_absent(place)} {remedy}")
    return found


def _why_absent(place: str) -> str:
    """What there is to say of a path at which no file is found."""
    try:
        os.stat(place)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return "no such file"
    # As of a folder that is closed to this user, or a name that is too long.
    except OSError as error:
        return f"no file to be seen, {error.strerror}"
    return "no such file"


def _row_problems(given: dict[str, Any]) -> list[str]:
    """An example of max_length tokens has to fit a row."""
    length, max_length = given.get("row_length", 0), given.get("max_length", 0)
    if not 0 < length < max_length:
        return []
    what = f"config.data.row_length={length} is below data.max_length={max_length}"
    return [f"{what}: the longest examples would fit no row; give at least that, or 0 for the same"]


def _image_problems(given: dict[str, Any]) -> list[str]:
    """Limits of images that no image can keep, and a column of images that no row format reads."""
    found = []
    least = given.get("image_min_pixels", 0)
    most = given.get("image_max_pixels", image_settings.MAX_PIXELS)
    if least > most:
        found.append(
            f"config.data.image_min_pixels={least} is above data.image_max_pixels={most}; lower it,"
            " or raise the other"
        )
    read_by = " and ".join(image_columns.WITH_FIELD)
    rows, column = given.get("rows", "fields"), given.get("image_field", "")
    all_rows = {rows}
    for key in ("train", "heldout"):
        if not source_list.is_several(given.get(key, "")):
            continue
        for number, source in enumerate(source_list.sources(given[key])):
            own_rows = source.own.get("rows", rows)
            all_rows.add(own_rows)
            own = source.own.get("image_field")
            if own and own_rows not in image_columns.WITH_FIELD:
                what = f"config.data.{key}[{number}]: image_field={own!r} has no effect"
                found.append(f"{what}: only rows={read_by} read it; remove it")
    if column and not all_rows & set(image_columns.WITH_FIELD):
        what = f"config.data.image_field={column!r} has no effect: only rows={read_by} read it"
        found.append(f"{what}; remove it (--config.data.image_field=)")
    return found


def _idle_problems(given: dict[str, Any]) -> list[str]:
    """Settings that say which part of a dataset is meant, where there is none to choose from."""
    train, heldout = given.get("train", ""), given.get("heldout", "")
    of_train = list(source_list.paths_of(train, "").values())
    of_heldout = list(source_list.paths_of(heldout, "").values())
    places = of_train + of_heldout
    idle = {}  # key -> why it has no effect
    if not any(locate.is_hub_id(place) for place in places):
        idle["revision"] = "the data is no dataset of the hub"
    if not any(_is_in_parts(place) for place in places):
        idle["subset"] = "the data is neither of the hub nor a folder"
    if of_train and not any(_is_in_parts(place) for place in of_train):
        idle["split"] = f"data.train={train!r} has no splits"
    if of_heldout and not any(_is_in_parts(place) for place in of_heldout):
        idle["heldout_split"] = f"data.heldout={heldout!r} has no splits"
    if not _samples(given):
        idle["sample_seed"] = "no rows are drawn (data.sample_rows=0)"
    found = []
    for key, why in idle.items():
        default = SECTION[key].default
        value = given.get(key, default)
        if value not in ("", default):
            remedy = f"remove it (--config.data.{key}={default})"
            found.append(f"config.data.{key}={value!r} has no effect: {why}; {remedy}")
    return found + _idle_of_sources(given)


def _idle_of_sources(given: dict[str, Any]) -> list[str]:
    """The same of what sources of a list have of their own."""
    found = []
    for key in ("train", "heldout"):
        value = given.get(key, "")
        if not source_list.is_several(value):
            continue
        for number, source in enumerate(source_list.sources(value)):
            idle = []
            if not _is_in_parts(source.path):
                idle += ["subset", "split"]
            if not locate.is_hub_id(source.path):
                idle.append("revision")
            for name in idle:
                if source.own.get(name):
                    what = f"config.data.{key}[{number}]: {name}={source.own[name]!r} has no effect"
                    found.append(f"{what}: {source.path!r} has none; remove it")
            # Of the held-out data all rows are measured, where a source does not say otherwise.
            sample_rows = given.get("sample_rows", 0) if key == "train" else 0
            if source.own.get("sample_seed") and not source.own.get("sample_rows", sample_rows):
                what = f"config.data.{key}[{number}]: sample_seed={source.own['sample_seed']}"
                found.append(f"{what} has no effect: no rows are drawn; give sample_rows too")
    return found


def _samples(given: dict[str, Any]) -> bool:
    """Whether rows of any source are drawn."""
    if given.get("sample_rows", 0):
        return True
    for key in ("train", "heldout"):
        value = given.get(key, "")
        if source_list.is_several(value):
            for source in source_list.sources(value):
                if source.own.get("sample_rows"):
                    return True
    return False


def _is_in_parts(place: str) -> bool:
    """Whether a place may have subsets and splits."""
    return locate.is_hub_id(place) or os.path.isdir(place)
