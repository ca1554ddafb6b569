"""Several sources under `data.train` or `data.heldout`: a list in the place of one path.

    data.train = ["gsm8k.jsonl", {"path": "math.jsonl", "rows": "math", "template": "plain"}]

A source is a path, or a dict with its path and what it has of its own. What an epoch draws of each
is said by its `weight` or by its number of `examples` (see data/mixture.py).
"""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dft_jax.data import templates
from dft_jax.runtime.options import Config, Section, unknown

# Keys of config.data that a source may have of its own.
OWN = (
    "subset",
    "split",
    "revision",
    "rows",
    "prompt_field",
    "completion_field",
    "messages_field",
    "image_field",
    "image_folder",
    "template",
    "max_rows",
    "sample_rows",
    "sample_seed",
    "weight_field",
    "prompt_weight",
)
# What an epoch draws; of held-out sources everything is measured, once.
_DRAWN = ("weight", "examples")
_KEYS = ("path", "name", *_DRAWN, *OWN)
_MOST_WEIGHT = 1e12  # of a source: the sum of all has to be a number
_SHOULD = "a path, or a dict such as {'path': 'a.jsonl', 'weight': 2}"
# Names are parts of metrics' names.
_NAME = re.compile(r"[\w.-]+")


@dataclasses.dataclass(frozen=True)
class Given:
    """One source as a config gives it; of weight and number of examples at most one is there."""

    path: str
    name: str
    weight: float | None
    examples: int | None
    own: dict[str, Any]  # keys of config.data, in the place of those there

    def config(self, data: Config) -> Config:
        """`config.data` as it is for this source."""
        changed = data.copy_and_resolve_references()
        with changed.unlocked():
            changed.update(self.own)
        return changed


def is_several(given: Any) -> bool:
    """Whether a value of `data.train` or `data.heldout` is a list of sources, and not one path."""
    return isinstance(given, (list, tuple))


def sources(given: Any) -> list[Given]:
    """The sources of a list without problems, in order."""
    found = []
    for one in given:
        source: dict[str, Any] = {"path": one} if isinstance(one, str) else one
        own = {key: source[key] for key in OWN if key in source}
        name = source.get("name") or _name_of(source["path"])
        weight, examples = source.get("weight"), source.get("examples")
        found.append(Given(source["path"], name, weight, examples, own))
    return found


def paths_of(given: Any, key: str) -> dict[str, str]:
    """Key -> path of what is given under a key of a config: one, or each of a list."""
    if not is_several(given):
        return {key: given} if given else {}
    return {f"{key}[{number}]": source.path for number, source in enumerate(sources(given))}


def each(given: Any, data: Config) -> list[tuple[str, str, Config]]:
    """(name, path, its own `config.data`) of each source; one path has no name."""
    if not is_several(given):
        return [("", given, data)]
    return [(source.name, source.path, source.config(data)) for source in sources(given)]


def trained_template(data: Config) -> str:
    """The template that all sources of `data.train` have, or what says that they have several."""
    template_of = {name: own.template for name, _, own in each(data.train, data)}
    if len(set(template_of.values())) == 1:
        return next(iter(template_of.values()))
    return templates.several(template_of)


def templates_of(given: Any, key: str) -> dict[str, str]:
    """Key -> template that a source has of its own."""
    found = {}
    if is_several(given):
        for number, source in enumerate(sources(given)):
            if "template" in source.own:
                found[f"{key}[{number}]: template"] = source.own["template"]
    return found


def image_folders_of(given: Any, key: str) -> dict[str, str]:
    """Key -> folder of images that a source has of its own."""
    found = {}
    if is_several(given):
        for number, source in enumerate(sources(given)):
            if source.own.get("image_folder"):
                found[f"{key}[{number}]: image_folder"] = source.own["image_folder"]
    return found


def with_places(given: Any, changed: Callable[[str], str]) -> Any:
    """The same sources with another text for each path, .jinja file and folder of images."""
    if not is_several(given):
        return changed(given)
    found = []
    for source in given:
        if isinstance(source, str):
            found.append(changed(source))
            continue
        source = source | {"path": changed(source["path"])}
        if source.get("template", "").endswith(".jinja"):
            source["template"] = changed(source["template"])
        if source.get("image_folder"):
            source["image_folder"] = changed(source["image_folder"])
        found.append(source)
    return found


def _name_of(path: str) -> str:
    """What a source is called where it is given no name: its file or folder, or the hub's name."""
    name = Path(path.partition("(")[0]).name
    for ending in (".jsonl", ".json", ".parquet"):
        name = name.removesuffix(ending)
    return re.sub(r"[^\w.-]", "_", name) or "data"


def problems(given: Any, setting: str, section: Section, *, is_drawn: bool) -> list[str]:
    """What is wrong with a list of sources by itself.

    Args:
      setting: what the user calls the list, as in config.data.train.
      section: the options of config.data.
      is_drawn: a run draws from it, in shares; else it is measured as it is.
    """
    if not given:
        return [f"{setting}={given!r} has no source; give at least one, {_SHOULD}"]
    found = []
    for number, source in enumerate(given):
        found += _source_problems(source, f"{setting}[{number}]", section, is_drawn)
    # What goes together is looked at where each is right.
    if found:
        return found
    return _weight_problems(given, setting) + _name_problems(given, setting)


def _source_problems(source: Any, setting: str, section: Section, is_drawn: bool) -> list[str]:
    """What is wrong with one source."""
    if isinstance(source, str):
        source = {"path": source}
    if not isinstance(source, dict):
        return [f"{setting}={source!r} should be {_SHOULD}"]
    found = []
    for key in source:
        if key not in _KEYS:
            found.append(unknown(f"{setting}: unknown key {key!r}", str(key), _KEYS))
    path = source.get("path", "")
    if not isinstance(path, str) or not path:
        found.append(f"{setting}: path={path!r} should name a file, a folder or a hub dataset")
    name = source.get("name", "a")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        found.append(f"{setting}: name={name!r} should be letters, digits, '.', '_' and '-'")
    found += _drawn_problems(source, setting, is_drawn)
    return found + _own_problems(source, setting, section)


def _own_problems(source: dict[str, Any], setting: str, section: Section) -> list[str]:
    """What is wrong with what a source has in the place of keys of config.data."""
    found = []
    for key in OWN:
        if key not in source:
            continue
        mistake = section[key].mistake(f"{setting}: {key}", source[key])
        if mistake:
            found.append(mistake)
        elif key == "template":
            found += templates.name_problems(f"{setting}: template", source[key])
    return found


def _drawn_problems(source: dict[str, Any], setting: str, is_drawn: bool) -> list[str]:
    """What is wrong with how much an epoch draws of a source."""
    if not is_drawn:
        idle = [key for key in _DRAWN if key in source]
        what = f"has no effect: all rows of {setting.partition('[')[0]} are measured"
        return [f"{setting}: {key}={source[key]!r} {what}; remove it" for key in idle]
    found = []
    weight, examples = source.get("weight", 1), source.get("examples", 1)
    is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not is_number or not 0 < weight <= _MOST_WEIGHT:
        remedy = "leave the source out to draw nothing of it"
        should = f"should be a number above 0, and at most {_MOST_WEIGHT:g}"
        found.append(f"{setting}: weight={weight!r} {should}; {remedy}")
    if type(examples) is not int or examples < 1:
        should = "should be a whole number of at least 1, drawn in an epoch"
        found.append(f"{setting}: examples={examples!r} {should}")
    if "weight" in source and "examples" in source:
        both = f"weight={weight!r} and examples={examples!r} both say what is drawn"
        found.append(f"{setting}: {both}; remove one of them")
    return found


def _weight_problems(given: Any, setting: str) -> list[str]:
    """Weights are shares of a whole: they say nothing where some sources have none."""
    listed = sources(given)
    with_weight, without = [], []
    for number, source in enumerate(listed):
        (without if source.weight is None else with_weight).append(number)
    if not with_weight or not without:
        return []
    one, other = with_weight[0], without[0]
    what = f"source {one} has weight={listed[one].weight!r} and source {other} has none"
    return [f"{setting}: {what}; give every source a weight, or none"]


def _name_problems(given: Any, setting: str) -> list[str]:
    """Metrics and the account tell sources by their names."""
    numbers: dict[str, int] = {}
    for number, source in enumerate(sources(given)):
        if source.name in numbers:
            first = numbers[source.name]
            both = f"sources {first} and {number} are both called {source.name!r}"
            return [f"{setting}: {both}; give one of them another name, as in name='other'"]
        numbers[source.name] = number
    return []
