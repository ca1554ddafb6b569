"""Which keys of a config name files and folders, and how these are found again from elsewhere."""

from pathlib import Path
from typing import Any

from dft_jax.data import source_list
from dft_jax.runtime.options import Config, flatten

# Keys whose values may be files and folders, or be the hub's.
_PATHS = (
    "model.path",
    "data.train",
    "data.heldout",
    "data.image_features",
    "data.image_folder",
    "eval.benchmark_data",
    "lora.adapter",
)


def paths(config: Config) -> dict[str, str]:
    """Key -> value of what may be files and folders, or be the hub's; those that are given.

    Of a list of sources each has a key, as in `data.train[0]`.
    """
    flat = flatten(config)
    found: dict[str, str] = {}
    for key in _PATHS:
        found |= source_list.paths_of(flat.get(key), key)
    return found


def with_absolute_paths(config: Config) -> Config:
    """The config as it is to be read from any folder: a relative path might mean something else
    there.
    """
    absolute = config.copy_and_resolve_references()
    flat = flatten(config)
    # A list may take the place of a tuple.
    with absolute.ignore_type():
        for key in _PATHS:
            if flat.get(key):
                places = source_list.with_places(flat[key], _from_anywhere)
                absolute.update_from_flattened_dict({key: places})
    return absolute


def _from_anywhere(path: str) -> str:
    """The absolute path of what is here; what is not, such as a hub id, as it is."""
    return str(Path(path).absolute()) if Path(path).exists() else path


def path_under(held: dict[str, Any], key: str) -> str:
    """The path under a key, such as `data.train` or `data.train[0]`, in a config.json; empty where
    there is none.
    """
    key, _, number = key.partition("[")
    section, name = key.split(".")
    values = held.get(section)
    if not isinstance(values, dict):
        return ""
    began = values.get(name, "")
    if not number:
        return str(began)
    listed = source_list.paths_of(began, key) if source_list.is_several(began) else {}
    return listed.get(f"{key}[{number}", "")
