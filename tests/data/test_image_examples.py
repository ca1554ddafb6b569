"""Rows with images to examples: tokens, masks, the account, and hostile files by file and line."""

import dataclasses
import hashlib
import io
import json
import os
import re

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from dft_jax import config as config_lib
from dft_jax.data import account, mixture
from dft_jax.data.account import digest
from dft_jax.data.examples import load_examples
from dft_jax.data.images import decode, patches_of
from dft_jax.data.sources import hub
from dft_jax.data.sources.rows import BadRow
from dft_jax.data.templates import STYLES, Template
from dft_jax.models.hf.locate import load_tokenizer, read_config
from dft_jax.runtime import errors
from tests import vision_folder
from tests.data.test_images import png_header
from tests.vision_folder import END, IMAGE, MARK, START, png

PICTURE = png(60, 90)  # 56 × 84 pixels once scaled: 2 × 3 units


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return vision_folder.write(tmp_path_factory.mktemp("vl") / "base")


@pytest.fixture(scope="module")
def tokenizer(base):
    return load_tokenizer(base)


@pytest.fixture(scope="module")
def spec(base):
    return read_config(base).vision


def data_config(**changes):
    data = config_lib.get_default().data
    data.update({"rows": "sharegpt", "max_length": 256, "template": "tokenizer"} | changes)
    return data


def row(words="<image>Which?", answer="2", images=("a.png",)):
    turns = [{"from": "human", "value": words}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, "images": list(images)}


def write_rows(folder, rows):
    folder.mkdir(exist_ok=True)
    (folder / "a.png").write_bytes(PICTURE)
    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(file)


@pytest.fixture
def load(base, tokenizer, spec, tmp_path):
    def read(rows, **changes):
        file = write_rows(tmp_path, rows)
        return load_examples(file, data_config(**changes), tokenizer, 300, vision=spec, source=base)

    return read


def test_an_image_is_as_many_tokens_as_units_and_none_is_trained(load, tokenizer):
    [example] = load([row()]).examples
    before = tokenizer.encode("<|im_start|>user\n")
    after = tokenizer.encode("Which?<|im_end|>\n<|im_start|>assistant\n")
    answer = tokenizer.encode("2<|endoftext|>")
    expected = [*before, START, *[IMAGE] * 6, END, *after, *answer]
    assert example.ids.tolist() == expected
    assert example.trained.tolist() == [False] * (len(expected) - len(answer)) + [True] * len(
        answer
    )
    [picture] = example.images
    assert (picture.grid, picture.units, picture.n_tokens) == ((4, 6), (2, 3), 6)
    assert (picture.height, picture.width, picture.n_bytes) == (60, 90, len(PICTURE))
    assert example.n_patches == 24 and not example.cuts_an_image
    np.testing.assert_array_equal(
        picture.cut().patches_IX, patches_of(decode(PICTURE), picture.geometry)
    )


def test_a_prompt_that_is_trained_leaves_the_images_out(load):
    [example] = load([row()], prompt_weight=0.5).examples
    is_image = example.ids[1:] == IMAGE
    np.testing.assert_array_equal(example.target_mask(), ~is_image)
    weights = example.target_weights()
    assert set(weights[is_image]) == {0.0} and set(weights[~is_image]) == {0.5, 1.0}


@pytest.mark.parametrize("style", sorted(STYLES))
def test_styles_write_an_image_where_it_stands(style, load, tokenizer, spec):
    [example] = load(
        [row("<image>A or <image>?", images=("a.png", "a.png"))], template=style, max_length=512
    ).examples
    shown = tokenizer.decode(example.ids)
    whole = MARK.replace("<|image_pad|>", "<|image_pad|>" * 6)
    assert f"{whole}A or {whole}?" in shown
    template = Template(style, tokenizer, vision=spec)
    # As it is sampled from: one token for each image.
    assert f"{MARK}{MARK}Which?" in template.prompt("Which?", n_images=2)
    asked = template.prompt_ids("A or ?", n_images=1)
    assert asked.count(IMAGE) == 1 and asked == tokenizer.encode(template.prompt("A or ?", 1))
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]}
    assert template.conversation([message]) == template.prompt("Which?", n_images=1)


def test_a_chat_template_and_an_instruction(tokenizer, spec):
    template = Template("tokenizer", tokenizer, instruction="Think.", vision=spec)
    question = "<|im_start|>user\n" + MARK + "Which?\nThink.<|im_end|>\n<|im_start|>assistant\n"
    assert template.prompt("Which?", n_images=1) == question
    # Where an image is last, the line comes after it.
    parts = [{"type": "text", "text": "Which?"}, {"type": "image"}]
    last = template.conversation([{"role": "user", "content": parts}])
    assert f"Which?{MARK}\nThink.<|im_end|>" in last


def test_several_turns_with_images(load, tokenizer):
    turns = [
        {"from": "human", "value": "<image>1?"},
        {"from": "gpt", "value": "one"},
        {"from": "human", "value": "2?<image>"},
        {"from": "gpt", "value": "two"},
    ]
    [example] = load([{"conversations": turns, "images": ["a.png", "a.png"]}]).examples
    assert tokenizer.decode(example.ids[example.trained]) == "one<|im_end|>two<|endoftext|>"
    assert (example.ids == IMAGE).sum() == 12 and not example.trained[example.ids == IMAGE].any()


@pytest.mark.parametrize(
    "words, images, expected",
    [
        # A text with the token itself would shift the images of others.
        ("say <|image_pad|>", [], "1 tokens stand for an image, but the row has 0"),
        (f"{MARK}Which?", [], "1 tokens stand for an image, but the row has 0"),
        ("<image><|image_pad|>", ["a.png"], "2 tokens stand for an image, but the row has 1"),
    ],
)
def test_the_token_of_an_image_as_text_is_refused(words, images, expected, load):
    with pytest.raises(errors.UserError, match=expected):
        load([row(words, images=images)])


def test_a_template_that_leaves_images_out_is_refused(load, tmp_path):
    lost = tmp_path / "lost.jinja"
    lost.write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    with pytest.raises(errors.UserError, match=re.escape(f"does not write {MARK}")):
        load([row()], template=str(lost))


def test_a_model_without_a_tower_refuses_images(tmp_path, tokenizer):
    file = write_rows(tmp_path, [row()])
    with pytest.raises(errors.UserError, match=r"train\.jsonl:1: the row has an image"):
        load_examples(file, data_config(), tokenizer, 300)
    with pytest.raises(BadRow, match="the row has an image"):
        Template("plain", tokenizer).prompt("Which?", n_images=1)


def test_a_tokenizer_without_the_tokens_is_refused(base, tokenizer, spec):
    other = dataclasses.replace(spec, image_token=299)
    with pytest.raises(errors.UserError, match="no text for the tokens"):
        Template("plain", tokenizer, vision=other).prompt("Which?", n_images=1)


# ---- the account


def test_what_would_be_cut_is_dropped_and_counted(load):
    kept = row("A?", images=[])
    loaded = load([kept, row("x" * 60 + "<image>?")], max_length=60)
    assert loaded.report["rows"]["dropped"] == {"image_cut": 1}
    tokens = loaded.report["tokens"]
    assert tokens["read"] == tokens["used"] + tokens["truncated"] + tokens["dropped"]
    assert "train.jsonl:2: image_cut" in loaded.report["first_offenders"][0]
    [said] = account.warnings("data.train", loaded.report)
    assert "1 dropped as image_cut" in said and "data.image_max_pixels" in said
    # The image is whole, and its answer cut, or not there at all.
    n = len(load([row()]).examples[0].ids)
    loaded = load([row(answer="2" * 100), row("<image>" + "x" * 100), kept], max_length=n)
    assert loaded.report["rows"]["dropped"] == {"prompt_too_long": 1}
    assert loaded.report["rows"]["truncated"] == 1


@pytest.mark.parametrize(
    "beyond, is_cut", [(-2, True), (0, True), (5, True), (6, True), (7, False)]
)
def test_where_the_limit_lies(beyond, is_cut, load):
    """The second image of a conversation: whole with its end, or the row goes."""
    turns = [
        {"from": "human", "value": "1?"},
        {"from": "gpt", "value": "one"},
        {"from": "human", "value": "<image>2?"},
        {"from": "gpt", "value": "two"},
    ]
    long = {"conversations": turns, "images": ["a.png"]}
    [whole] = load([long]).examples
    first = int(np.flatnonzero(whole.ids == IMAGE)[0])
    kept = row("A?", images=[])
    loaded = load([kept, long], max_length=first + beyond)
    assert loaded.report["rows"]["dropped"] == ({"image_cut": 1} if is_cut else {})
    assert loaded.report["rows"]["truncated"] == (0 if is_cut else 1)


def test_too_many_patches(load):
    rows = [row(), row("<image><image>?", images=("a.png", "a.png"))]
    report = load(rows, image_max_patches=24).report
    assert report["rows"]["dropped"] == {"too_many_patches": 1}
    assert report["images"] == {"read": 1, "bytes": len(PICTURE), "exif_turned": 0}
    # A lower area makes them smaller.
    assert load(rows, image_max_patches=24, image_max_pixels=56 * 56).report["images"]["read"] == 3


def test_images_that_exif_turns_are_counted(load, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "turned.jpg").write_bytes(png(60, 90, format="JPEG", exif=exif))
    loaded = load([row(images=["turned.jpg"])])
    assert loaded.report["images"]["exif_turned"] == 1
    assert loaded.examples[0].images[0].grid == (6, 4)


def test_the_digest_covers_images(load, tmp_path):
    (tmp_path / "b.png").write_bytes(png(60, 90, seed=1))
    # The same size, so the same tokens.
    one, other = load([row()]), load([row(images=["b.png"])])
    np.testing.assert_array_equal(one.examples[0].ids, other.examples[0].ids)
    assert one.report["sha256"] != other.report["sha256"] == digest(other.examples)
    both = load([row(), row(images=["b.png"]), row()])
    assert both.report["equal_rows"]["number"] == 1
    # Of text alone it is what it has always been.
    text = load([row("1?", images=[])])
    [example] = text.examples
    total = hashlib.sha256()
    total.update(len(example.ids).to_bytes(8, "little"))
    total.update(example.ids.tobytes() + example.trained.tobytes())
    assert text.report["sha256"] == total.hexdigest() and "images" not in text.report


def test_a_file_that_changes_later_is_refused(load, tmp_path):
    [example] = load([row()]).examples
    (tmp_path / "a.png").write_bytes(png(60, 90, seed=2))
    with pytest.raises(errors.UserError, match="'a.png': it has changed"):
        example.images[0].cut()


# ---- hostile rows


def bomb():
    return png_header(8_000, 8_000)


def eps():
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"


HOSTILE = {
    "../a.png": (None, ["leads out of the folder"]),
    "/etc/hostname": (None, ["leads out of the folder"]),
    "link.png": (None, ["leads out of the folder"]),
    "none.png": (None, ["is missing"]),
    "https://x.y/a.png": (None, ["addresses are not fetched"]),
    "cut.jpg": (png(60, 90, format="JPEG")[:1000], ["image", "cannot be read"]),
    "eps.png": (eps(), ["cannot be read as one of PNG"]),
    "bomb.png": (bomb(), ["8000 × 8000 pixels"]),
    "thin.png": (png(1, 300), ["300 × 1 pixels"]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_images_are_refused_by_file_and_line(name, load, tmp_path):
    content, words = HOSTILE[name]
    (tmp_path.parent / "a.png").write_bytes(PICTURE)
    if name == "link.png":
        os.symlink("/etc/hostname", tmp_path / name)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(errors.UserError) as caught:
        load([row(), row(images=[name])])
    for word in ["train.jsonl:2", name, *words]:
        assert word in str(caught.value)
    report = load([row(), row(images=[name])], bad_rows="drop").report
    assert report["rows"]["dropped"] == {"bad_row": 1} and report["images"]["read"] == 1


# ---- where images are


def test_two_sources_with_folders_of_their_own(base, tokenizer, spec, tmp_path):
    files = {name: write_rows(tmp_path / name, [row()]) for name in ("one", "two")}
    elsewhere = tmp_path / "pictures"
    elsewhere.mkdir()
    (elsewhere / "a.png").write_bytes(png(60, 90, seed=3))
    given = [
        {"path": files["one"], "name": "one"},
        {"path": files["two"], "name": "two", "image_folder": str(elsewhere)},
    ]
    loaded = mixture.load(given, data_config(), tokenizer, 300, vision=spec, source=base)
    digests = [example.images[0].sha256 for example in loaded.examples]
    expected = [(tmp_path / "one/a.png").read_bytes(), (elsewhere / "a.png").read_bytes()]
    assert digests == [hashlib.sha256(content).hexdigest() for content in expected]
    # The folder of all does not reach a file that is not in it.
    with pytest.raises(errors.UserError, match="b.png' is missing"):
        write_rows(tmp_path / "one", [row(images=["b.png"])])
        mixture.load(given[:1], data_config(), tokenizer, 300, vision=spec, source=base)


def test_a_table_as_datasets_writes_it(base, tokenizer, spec, tmp_path, monkeypatch):
    """Bytes in some rows and paths in others, beside each other in one column of structs."""
    datasets = pytest.importorskip("datasets")
    (tmp_path / "b.png").write_bytes(png(90, 60))
    monkeypatch.chdir(tmp_path)  # where `datasets` looks for the size of the file
    features = datasets.Features(
        {
            "prompt": datasets.Value("string"),
            "completion": datasets.Value("string"),
            "image": datasets.Image(decode=False),
        }
    )
    table = datasets.Dataset.from_list(
        [
            {"prompt": "A?", "completion": "1", "image": {"bytes": PICTURE, "path": None}},
            {"prompt": "B?", "completion": "2", "image": {"bytes": None, "path": "b.png"}},
            {"prompt": "C?", "completion": "3", "image": None},
        ],
        features=features,
    )
    table.to_parquet(tmp_path / "train.parquet")
    loaded = load_examples(
        str(tmp_path / "train.parquet"),
        data_config(rows="fields", image_field="image"),
        tokenizer,
        300,
        vision=spec,
        source=base,
    )
    grids = [[picture.grid for picture in example.images] for example in loaded.examples]
    assert grids == [[(4, 6)], [(6, 4)], []]
    # The hub's own reader gives the same, and decodes nothing.
    rows = [row.value for row in hub._rows("x/y", table.cast_column("image", datasets.Image()))]
    assert [one["image"] for one in rows] == [
        {"bytes": PICTURE, "path": None},
        {"bytes": None, "path": "b.png"},
        None,
    ]
    assert [one["prompt"] for one in rows] == ["A?", "B?", "C?"]


def test_lists_of_images_of_the_hub_are_not_decoded():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"n": datasets.Value("int64"), "images": datasets.List(datasets.Image())}
    )
    buffer = io.BytesIO(PICTURE)
    table = datasets.Dataset.from_dict(
        {"n": [1], "images": [[{"bytes": buffer.getvalue(), "path": "a.png"}]]}, features=features
    )
    [found] = hub._rows("x/y", table)
    assert found.value == {"n": 1, "images": [{"bytes": PICTURE, "path": "a.png"}]}
    assert found.origin == "x/y[0]"


def test_paths_of_the_hub_need_a_folder(base, tokenizer, spec, tmp_path, monkeypatch):
    from dft_jax.data.sources import locate
    from dft_jax.data.sources.rows import Row, Source

    (tmp_path / "a.png").write_bytes(PICTURE)
    monkeypatch.setattr(
        locate, "open_rows", lambda *_: Source(iter([Row("x/y[0]", row())]), "c" * 40)
    )
    arguments = ("x/y", data_config(), tokenizer, 300)
    with pytest.raises(
        errors.UserError, match=r"x/y\[0\].*is a path, and the dataset is no folder"
    ):
        load_examples(*arguments, vision=spec, source=base)
    folder = data_config(image_folder=str(tmp_path))
    monkeypatch.setattr(
        locate, "open_rows", lambda *_: Source(iter([Row("x/y[0]", row())]), "c" * 40)
    )
    loaded = load_examples("x/y", folder, tokenizer, 300, vision=spec, source=base)
    assert loaded.examples[0].n_patches == 24


def test_rows_of_a_table_are_read_in_pieces_of_bounded_size(tmp_path):
    from dft_jax.data.sources import files

    large = pa.table({"image": [os.urandom(2**20)] * 3, "n": [1, 2, 3]})
    parquet.write_table(large, tmp_path / "a.parquet", use_dictionary=False)
    found = files._rows_at_once(parquet.ParquetFile(tmp_path / "a.parquet").metadata)
    assert 32 <= found <= 64
    assert [one.value["n"] for one in files.read_file(tmp_path / "a.parquet")] == [1, 2, 3]
