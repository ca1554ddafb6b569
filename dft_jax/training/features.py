"""Features of a frozen tower, made once for each image and kept: `config.data.image_features`.

Steps read them in place of images (types.FeatureBatch), so that their program has no tower. What a
run computes stays the same, but for the order in which a tower of other shapes adds numbers up.
"""

import dataclasses
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from dft_jax import sharding
from dft_jax.data import image_files
from dft_jax.data.examples import Examples
from dft_jax.data.image_features import FeatureFile, key_of
from dft_jax.data.image_files import Picture
from dft_jax.models.hf.load import load_params, tower_digest
from dft_jax.models.hf.safetensors import Checkpoint
from dft_jax.models.model import Model, build, with_tower
from dft_jax.models.parts import VISION
from dft_jax.runtime import distributed, errors, processes, progress

# Patches that a device sees at once, unless one image has more.
_PATCHES = 16_384


def place_in(folder: str, model: Model, source: Path) -> Path:
    """The place in the folder of what the model's tower makes, whose weights are in `source`.

    Args:
      folder: `config.data.image_features`.

    Raises:
      UserError: the model has no tower here, or the folder cannot be written.
    """
    setting = f"config.data.image_features={folder!r}"
    if model.tower is None:
        why = "no row has an image"
        if model.config.vision is None:
            why = "the model has no tower"
        remedy = "remove it (--config.data.image_features=)"
        raise errors.UserError(f"{setting} has no effect: {why}; {remedy}")
    place = Path(folder) / tower_digest(Checkpoint(source), model)
    with errors.user_errors(f"{setting}: cannot be written", "give another folder"):
        place.mkdir(parents=True, exist_ok=True)
        # Before minutes of work: a folder that is there need not allow files in it.
        tempfile.TemporaryFile(dir=place).close()
    return place


def named(examples: Examples, place: Path, model: Model) -> Examples:
    """The examples, whose pictures know the files of their features, which need not be there yet.

    Each picture is cut once more, for the name of its file.

    Raises:
      UserError: as `Picture.cut`.
    """
    # An image that many rows show is cut once.
    distinct = {picture.identity(): picture for picture in examples.pictures}
    width, dtype = model.config.hidden_size, str(model.module.compute_dtype)

    def file_of(picture: Picture) -> FeatureFile:
        key = key_of(picture.cut())
        return FeatureFile.of(place, key, picture.n_tokens, width, dtype)

    made = image_files.by_all_processors(file_of, list(distinct.values()), "cut images")
    files = dict(zip(distinct, made, strict=True))
    found = []
    for example in examples.examples:
        pictures = []
        for picture in example.images:
            pictures.append(dataclasses.replace(picture, features=files[picture.identity()]))
        found.append(dataclasses.replace(example, images=tuple(pictures)))
    return dataclasses.replace(examples, examples=found)


def make(model: Model, source: Path, *examples: Examples | None) -> int:
    """Makes the features that are not in whole files yet; says and returns how many, over all
    processes.

    Each process looks after a part of the images, with a tower of its own on each of its devices,
    so that none waits for another within a program. It may be killed at any time.

    Args:
      model: with its tower, whose weights are in `source`.
      examples: as `named` returns them; nothing is made for others.

    Raises:
      UserError: files that cannot be written, or that not all processes see.
    """
    pictures = _distinct(examples)
    if not pictures:
        return 0
    # All processes list the same pictures in the same order.
    mine = pictures[jax.process_index() :: jax.process_count()]
    with distributed.together("kept features"):
        kept = image_files.by_all_processors(_is_kept, mine, "check features of images")
    missing = [picture for picture, is_kept in zip(mine, kept, strict=True) if not is_kept]
    n_missing = distributed.decided("features to make", len(missing), sum)
    _say(f"{n_missing:,} of {len(pictures):,} are made now", pictures)
    if n_missing:
        # All read the weights, whoever has something to make: they wait for each other there.
        tower = _Tower(model, source)
        with distributed.together("features"):
            tower.look_at(missing)
    with distributed.together("all features"):
        _require_all(pictures)
    return n_missing


def _distinct(examples: Sequence[Examples | None]) -> list[Picture]:
    """A picture for each file of features, in the same order on all processes."""
    found: dict[Path, Picture] = {}
    for some in examples:
        if some is not None:
            for picture in some.pictures:
                if picture.features is not None:
                    found.setdefault(picture.features.path, picture)
    return list(found.values())


def _is_kept(picture: Picture) -> bool:
    """Whether there is a whole file; it is read to the end."""
    return picture.feature_file.found() is not None


def _require_all(pictures: list[Picture]) -> None:
    """UserError where files of another process are not to be seen from here."""
    absent = [picture for picture in pictures if not picture.feature_file.path.exists()]
    if absent:
        place = absent[0].feature_file.path
        raise errors.UserError(
            f"config.data.image_features: {place} and {len(absent) - 1:,} more are not there,"
            " though they were made; give a folder that all processes share"
        )


def _say(what: str, pictures: list[Picture]) -> None:
    if processes.is_first():
        place = pictures[0].feature_file.path.parents[1]
        print(f"features of images: {what}; they are kept in {place}", file=sys.stderr)


class _Tower:
    """The frozen tower on this process's devices, all of it on each."""

    def __init__(self, model: Model, source: Path):
        # In a program over the devices of all processes each would wait for the slowest disk.
        module, mesh = model.module, sharding.local_mesh(model.mesh)
        text = build(
            model.config,
            mesh,
            param_dtype=str(module.param_dtype),
            compute_dtype=str(module.compute_dtype),
        )
        local = with_tower(text)
        only = {VISION: local.abstract_params[VISION]}
        self._params = load_params(Checkpoint(source), local, only=only)[VISION]
        assert local.tower is not None
        self._vision = local.tower.config
        self._n_devices = mesh.size
        # Rows lie apart; what a program makes of each lies where the row does.
        self._layout = sharding.named(mesh, sharding.BATCH_AXES)
        self._see = jax.jit(local.tower.apply, out_shardings=self._layout)

    def look_at(self, pictures: list[Picture]) -> None:
        """Writes the features of these pictures, block by block.

        Raises:
          UserError: a file that cannot be written, as on a disk that is full; or as `Picture.cut`.
        """
        bar = progress.bar(desc="features", unit="image", total=len(pictures))
        with bar, errors.user_errors("features of images cannot be written", "make room"):
            for block in _blocks(pictures, self._vision.window_patches, self._n_devices):
                self._look_at_block(block)
                bar.update(len(block.pictures))

    def _look_at_block(self, block: "_Block") -> None:
        vision = self._vision
        n_units = block.n_patches // vision.merge**2
        tokens_BL = np.zeros((block.n_rows, n_units), np.int32)
        rows = []
        # A row is the tokens of its image, so that what fills batches says where each unit lies.
        for b, picture in enumerate(block.pictures):
            tokens_BL[b, : picture.n_tokens] = vision.image_token
            rows.append([(tokens_BL[b, : picture.n_tokens], [picture])])
        images = image_files.fill(tokens_BL, rows, vision, block.n_patches)
        features_BJD = jax.device_get(self._see(self._params, jax.device_put(images, self._layout)))
        for b, picture in enumerate(block.pictures):
            # Units come by windows, and are kept row by row.
            places_J = images.units_BL[b, : picture.n_tokens] - 1
            picture.feature_file.write(features_BJD[b, places_J])


@dataclasses.dataclass(frozen=True)
class _Block:
    """Pictures that are seen at once, each in a row of its own."""

    pictures: list[Picture]
    n_rows: int  # empty ones included
    n_patches: int  # that each row has room for


def _blocks(pictures: list[Picture], window_patches: int, n_devices: int) -> Iterator[_Block]:
    """All pictures in blocks of few shapes, each of which is a compilation.

    A row has room for 1, 2, 4, … windows; all blocks with such rows have as many of them.
    """
    by_room: dict[int, list[Picture]] = {}
    for picture in pictures:
        n_windows = -(-picture.n_patches // window_patches)
        room = window_patches << (n_windows - 1).bit_length()
        by_room.setdefault(room, []).append(picture)
    for room, alike in sorted(by_room.items()):
        # Few pictures are few rows: empty ones take as long as others.
        of_device = min(max(_PATCHES // room, 1), -(-len(alike) // n_devices))
        n_rows = of_device * n_devices
        for start in range(0, len(alike), n_rows):
            yield _Block(alike[start : start + n_rows], n_rows, room)
