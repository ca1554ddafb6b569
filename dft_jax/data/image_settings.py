"""How a run reads images: what its model's tower takes, how large pictures may be, where they are.

How pictures are scaled is said by the checkpoint's preprocessor_config.json, or by
processor_config.json where transformers 5 has saved it; the config may raise the least area and
lower the largest.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dft_jax.data.images import Geometry
from dft_jax.data.sources import locate
from dft_jax.models.spec import VisionSpec
from dft_jax.models.vision import MEAN, STD
from dft_jax.runtime import errors, files
from dft_jax.runtime.options import Config

FILE_NAME = "preprocessor_config.json"
# That of transformers 5: the same keys stand beneath one of its own, and it has no other file.
_JOINT_NAME, _JOINT_KEY = "processor_config.json", "image_processor"
MAX_PIXELS = 768 * 768  # of an image by default; checkpoints allow 16,384 tokens for one
# What absent keys of the file are to the processor of transformers 5.24.
_MIN_PIXELS, _MAX_PIXELS = 56 * 56, 28 * 28 * 1280
_BICUBIC = 3  # as Pillow numbers its filters
_CLOSE = 1e-6  # files have means as they are, or rounded to float32
# Keys of the file that say nothing of the patches: names of classes, and settings of videos.
_IRRELEVANT = frozenset(
    """
    image_processor_type processor_class feature_extractor_type auto_map data_format device
    disable_grouping input_data_format return_tensors default_to_square crop_size pad_size
    size_divisor image_seq_length min_frames max_frames fps num_frames
    """.split()
)


@dataclasses.dataclass(frozen=True)
class Vision:
    """How a model's images are read: `spec` is its tower's, `source` the checkpoint's folder.

    `min_pixels` and `max_pixels` are those of config.data; `most_patches` are those of an example.
    """

    spec: VisionSpec
    source: Path
    min_pixels: int
    max_pixels: int
    most_patches: int

    @functools.cached_property
    def geometry(self) -> Geometry:
        """How pictures are scaled and cut; read where there is a first image.

        Raises:
          UserError: as `read_geometry`; or no area is left between the limits.
        """
        own = read_geometry(self.source, self.spec)
        least = self.min_pixels or own.min_pixels
        most = min(own.max_pixels, self.max_pixels)
        if least > most:
            raise errors.UserError(
                f"images should have at least {least:,} and at most {most:,} pixels: raise"
                f" data.image_max_pixels={self.max_pixels}, or lower data.image_min_pixels"
                f" ({self.min_pixels}; 0 is what {said_in(self.source)} says,"
                f" {own.min_pixels:,} to {own.max_pixels:,})"
            )
        return dataclasses.replace(own, min_pixels=least, max_pixels=most)


def of_model(spec: VisionSpec | None, source: Path | None, config: Config) -> Vision | None:
    """How the images of `config.data` are read by a model; None for one without a tower.

    Args:
      spec: `model.config.vision`.
      source: the checkpoint's folder, of a model with a tower.
    """
    if spec is None:
        return None
    assert source is not None, "a model with a tower has a checkpoint"
    # Runs that are older than a key have none.
    return Vision(
        spec,
        source,
        min_pixels=config.get("image_min_pixels", 0),
        max_pixels=config.get("image_max_pixels", MAX_PIXELS),
        most_patches=max_patches(config),
    )


def max_patches(config: Config) -> int:
    """Patches of images that an example may have, and a packed row has room for.

    `config` is `config.data`, of a run that may be older than the key.
    """
    given: Any = config.get("image_max_patches", 0)
    row_length: Any = config.get("row_length", 0)
    # With questions and answers about half of a row's tokens are images, of four patches each.
    return given or 2 * (row_length or config.max_length)


def folder_of(path: str, config: Config) -> Path | None:
    """The folder that paths of images in rows are relative to; None of a dataset that has none.

    Args:
      path: the data, as for `load_examples`.
      config: `config.data`.
    """
    given: Any = config.get("image_folder", "")
    if given:
        return Path(given)
    place = Path(path)
    if place.is_dir():
        return place
    if locate.is_path(path) or place.is_file():
        return place.parent
    return None


def said_in(source: Path) -> Path:
    """The file of a checkpoint that says how pictures are scaled, which need not be there."""
    joint = source / _JOINT_NAME
    # transformers 5 takes it first as well, where an older one has left its own file beside it.
    if joint.is_file() and files.read_json(joint).get(_JOINT_KEY) is not None:
        return joint
    return source / FILE_NAME


def read_geometry(source: Path, spec: VisionSpec) -> Geometry:
    """How the file of a checkpoint has pictures scaled, of a processor that does what ours does.

    Raises:
      UserError: there is no such file, or a key of it says otherwise; each by name.
    """
    file = said_in(source)
    if not file.is_file():
        raise errors.UserError(
            f"{file} is missing, which says how large pictures may be; copy it from the base model"
        )
    raw = files.read_json(file)
    if file.name == _JOINT_NAME:
        raw = raw[_JOINT_KEY]
        if not isinstance(raw, dict):
            found = type(raw).__name__
            raise errors.UserError(
                f"{file}: {_JOINT_KEY} should be an object, not {found}; copy the file from the"
                " base model"
            )
    problems = [f"{file}: {problem}" for problem in _problems(raw, spec)]
    errors.raise_if_any(problems)
    size = raw.get("size") or {}
    # The old names win, as in transformers; within `size` they are those of transformers 4.45.
    least = raw.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels")
    most = raw.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels")
    least, most = least or _MIN_PIXELS, most or _MAX_PIXELS
    if least > most:
        raise errors.UserError(f"{file}: at least {least:,} and at most {most:,} pixels; fix it")
    return Geometry(spec.patch_size, spec.merge, least, most)


def _problems(raw: dict[str, Any], spec: VisionSpec) -> list[str]:
    """Each key that is unknown, or under which the processor would do what ours does not."""
    expected: dict[str, tuple[Callable[[Any], bool], str]] = {
        "patch_size": _exactly(spec.patch_size),
        "merge_size": _exactly(spec.merge),
        "temporal_patch_size": _exactly(2),
        "resample": _exactly(_BICUBIC),
        "image_mean": _near(MEAN),
        "image_std": _near(STD),
        "rescale_factor": _near([1 / 255]),
        "min_pixels": (_is_size, "a number of pixels"),
        "max_pixels": (_is_size, "a number of pixels"),
        "size": (_is_range, "an object with shortest_edge and longest_edge, numbers of pixels"),
    }
    for step in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        expected[step] = _exactly(True)
    for step in ("do_center_crop", "do_pad"):
        expected[step] = _exactly(False)
    found = []
    for key, value in raw.items():
        if key in _IRRELEVANT or value is None:
            continue
        if key not in expected:
            found.append(f"unknown key {key!r}: it may change what a picture becomes; remove it")
            continue
        is_right, should = expected[key]
        if not is_right(value):
            found.append(f"{key}={value!r} should be {should}; nothing else is computed here")
    return found


def _exactly(value: Any) -> tuple[Callable[[Any], bool], str]:
    return lambda given: type(given) is type(value) and given == value, repr(value)


def _near(values: Any) -> tuple[Callable[[Any], bool], str]:
    """Numbers as these, one alone or a list; files may have them rounded."""
    wanted = [float(value) for value in values]

    def is_near(given: Any) -> bool:
        listed = given if isinstance(given, list) else [given]
        if len(listed) != len(wanted):
            return False
        for one, other in zip(listed, wanted, strict=True):
            if type(one) not in (int, float) or abs(one - other) > _CLOSE:
                return False
        return True

    return is_near, ", ".join(f"{value:.8g}" for value in wanted)


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_range(value: Any) -> bool:
    # transformers' own objects write the names that they do not use as null
    if not isinstance(value, dict):
        return False
    said = {key: one for key, one in value.items() if one is not None}
    known = {"shortest_edge", "longest_edge", "min_pixels", "max_pixels"}
    return said.keys() <= known and all(map(_is_size, said.values()))
