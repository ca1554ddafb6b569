"""How large pictures may be: preprocessor_config.json, and what the config makes of it."""

import json

import pytest

from dft_jax import config as config_lib
from dft_jax.data import image_settings, options
from dft_jax.data.images import Geometry
from dft_jax.models.spec import VisionSpec
from dft_jax.runtime import errors
from tests.vision_folder import PROCESSOR

SPEC = VisionSpec(2, 16, 2, 24, 16, (1,), 14, 2, 112, 90, 91, 92)


def write(folder, **changes):
    raw = {key: value for key, value in (PROCESSOR | changes).items() if value != "absent"}
    (folder / "preprocessor_config.json").write_text(json.dumps(raw))


def vision(folder, **changes):
    data = config_lib.get_default().data
    data.update(changes)
    return image_settings.of_model(SPEC, folder, data)


NO_PIXELS = {"min_pixels": "absent", "max_pixels": "absent"}


@pytest.mark.parametrize(
    "changes, least, most",
    [
        ({}, 3136, 12845056),
        (NO_PIXELS | {"size": {"shortest_edge": 784, "longest_edge": 78400}}, 784, 78400),
        # The old names win.
        ({"size": {"shortest_edge": 784, "longest_edge": 78400}}, 3136, 12845056),
        (NO_PIXELS | {"size": {"min_pixels": 784, "max_pixels": 78400}}, 784, 78400),
        (NO_PIXELS, 3136, 28 * 28 * 1280),
        ({"max_pixels": None, "do_resize": True, "resample": 3, "crop_size": None}, 3136, 1003520),
        # As transformers 5 writes rounded numbers.
        ({"image_mean": [0.4814547, 0.4578275, 0.4082107]}, 3136, 12845056),
    ],
)
def test_the_limits_of_a_file(changes, least, most, tmp_path):
    write(tmp_path, **changes)
    assert image_settings.read_geometry(tmp_path, SPEC) == Geometry(14, 2, least, most)


def test_absent_keys_are_what_transformers_has(tmp_path):
    """The processor's own defaults, where the file says nothing."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    write(tmp_path, **dict.fromkeys(PROCESSOR, "absent"))
    theirs = Qwen2VLImageProcessorPil.from_pretrained(str(tmp_path))
    ours = image_settings.read_geometry(tmp_path, SPEC)
    assert (ours.min_pixels, ours.max_pixels) == (
        theirs.size["shortest_edge"],
        theirs.size["longest_edge"],
    )
    assert (ours.patch, ours.merge) == (theirs.patch_size, theirs.merge_size)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"patch_size": 16}, ["patch_size=16", "14"]),
        ({"merge_size": 1}, ["merge_size=1"]),
        ({"temporal_patch_size": 1}, ["temporal_patch_size=1"]),
        ({"resample": 2}, ["resample=2"]),
        ({"image_mean": [0.5, 0.5, 0.5]}, ["image_mean", "0.48145466"]),
        ({"image_std": [0.26862954, 0.26130258]}, ["image_std"]),
        ({"rescale_factor": 0.5}, ["rescale_factor=0.5"]),
        ({"do_normalize": False}, ["do_normalize=False"]),
        ({"do_center_crop": True}, ["do_center_crop=True"]),
        ({"min_pixels": "3136"}, ["min_pixels='3136'"]),
        ({"size": {"height": 224, "width": 224}}, ["size=", "shortest_edge"]),
        ({"do_sharpen": True}, ["unknown key 'do_sharpen'"]),
        ({"min_pixels": 5000, "max_pixels": 4000}, ["5,000", "4,000"]),
    ],
)
def test_what_another_processor_would_do_is_refused_by_name(changes, words, tmp_path):
    write(tmp_path, **changes)
    with pytest.raises(errors.UserError) as caught:
        image_settings.read_geometry(tmp_path, SPEC)
    for word in ["preprocessor_config.json", *words]:
        assert word in str(caught.value)


def test_what_transformers_5_saves_counts_first(tmp_path):
    """It writes one file for images, text and videos, beside which an older one may be left."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    saved = Qwen2VLImageProcessorPil(size={"shortest_edge": 784, "longest_edge": 78400}).to_dict()
    joint = tmp_path / "processor_config.json"
    joint.write_text(
        json.dumps({"image_processor": saved, "processor_class": "Qwen2_5_VLProcessor"})
    )
    for write_old in (lambda: None, lambda: write(tmp_path)):
        write_old()
        theirs = Qwen2VLImageProcessorPil.from_pretrained(str(tmp_path)).size
        assert (theirs["shortest_edge"], theirs["longest_edge"]) == (784, 78400)
        assert image_settings.read_geometry(tmp_path, SPEC) == Geometry(14, 2, 784, 78400)
    with pytest.raises(errors.UserError, match=r"processor_config\.json says, 784 to 78,400"):
        _ = vision(tmp_path, image_max_pixels=700).geometry
    joint.write_text(json.dumps({"image_processor": saved | {"resample": 2}}))
    with pytest.raises(errors.UserError, match=r"/processor_config\.json: resample=2"):
        image_settings.read_geometry(tmp_path, SPEC)
    joint.write_text(json.dumps({"image_processor": "Qwen2VLImageProcessor"}))
    with pytest.raises(errors.UserError, match=r"image_processor should be an object, not str"):
        image_settings.read_geometry(tmp_path, SPEC)
    # Those of transformers 4 say nothing of images there.
    joint.write_text(json.dumps({"processor_class": "Qwen2_5_VLProcessor"}))
    assert image_settings.read_geometry(tmp_path, SPEC) == Geometry(14, 2, 3136, 12845056)


def test_the_config_narrows_the_limits(tmp_path):
    write(tmp_path)
    assert vision(tmp_path).geometry == Geometry(14, 2, 3136, 768 * 768)
    narrow = vision(tmp_path, image_min_pixels=10_000, image_max_pixels=20_000)
    assert narrow.geometry == Geometry(14, 2, 10_000, 20_000)
    # Nothing is enlarged beyond what the model was trained with.
    write(tmp_path, max_pixels=7840)
    assert vision(tmp_path).geometry.max_pixels == 7840
    with pytest.raises(errors.UserError, match="at least 3,136 and at most 1,000 pixels"):
        _ = vision(tmp_path, image_max_pixels=1000).geometry


def test_without_the_file_no_image_is_read_but_text_is(tmp_path):
    without = vision(tmp_path)
    with pytest.raises(errors.UserError, match=r"preprocessor_config\.json is missing"):
        _ = without.geometry


def test_patches_of_an_example(tmp_path):
    assert vision(tmp_path, max_length=100).most_patches == 200
    assert vision(tmp_path, max_length=100, row_length=300).most_patches == 600
    assert vision(tmp_path, image_max_patches=64).most_patches == 64
    assert image_settings.of_model(None, tmp_path, config_lib.get_default().data) is None


def test_configs_of_old_runs_lack_the_keys(tmp_path):
    write(tmp_path)
    data = config_lib.get_default().data.copy_and_resolve_references().unlock()
    for key in [key for key in data if key.startswith("image_")]:
        del data[key]
    of_old = image_settings.of_model(SPEC, tmp_path, data)
    assert of_old == vision(tmp_path)
    assert image_settings.folder_of("a/b.jsonl", data).name == "a"


def test_the_folder_of_images(tmp_path):
    data = config_lib.get_default().data
    (tmp_path / "b.jsonl").write_text("")
    assert image_settings.folder_of(str(tmp_path / "b.jsonl"), data) == tmp_path
    assert image_settings.folder_of(str(tmp_path), data) == tmp_path
    assert image_settings.folder_of("someone/set", data) is None
    data.image_folder = str(tmp_path / "pictures")
    assert image_settings.folder_of("someone/set", data) == tmp_path / "pictures"


@pytest.mark.parametrize(
    "given, words",
    [
        (
            {"image_min_pixels": 800_000},
            ["image_min_pixels=800000 is above data.image_max_pixels=589824"],
        ),
        (
            {"rows": "gsm8k", "image_field": "image"},
            ["config.data.image_field='image' has no effect: only rows=fields and alpaca read it"],
        ),
        (
            {"train": [{"path": "a.jsonl", "rows": "math", "image_field": "image"}]},
            ["config.data.train[0]: image_field='image' has no effect"],
        ),
        ({"image_folder": "nowhere"}, ["config.data.image_folder='nowhere': no such folder"]),
        (
            {"train": [{"path": "a.jsonl", "image_folder": "nowhere"}]},
            ["config.data.train[0]: image_folder='nowhere': no such folder"],
        ),
        ({"train": [{"path": "a.jsonl", "image_folder": 3}]}, ["image_folder=3 should be str"]),
    ],
)
def test_settings_that_cannot_be_meant(given, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text("")
    found = options.problems({"train": "a.jsonl"} | given, "here")
    for word in words:
        assert any(word in problem for problem in found), found


def test_a_column_that_one_source_reads_has_an_effect(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text("")
    train = [{"path": "a.jsonl", "name": "a", "rows": "math"}, {"path": "a.jsonl", "name": "b"}]
    assert options.problems({"train": train, "image_field": "image"}, "here") == []
